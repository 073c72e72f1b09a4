//! Whether a byte costs more when there are many connections: the same turns, a few at a time, over ten connections and
//! over as many as the limit on open files lets a peer hold.

use anyhow::Result;

use super::{Bench, Contest, cpu_of, fresh_peers};
use crate::load::held::{self, TURN_BYTES};
use crate::measure::as_f64;
use crate::metric::{CONNECTIONS, CPU_GROWTH, CPU_PER_GB_FEW, CPU_PER_GB_MANY};
use crate::peer::{Work, connections_max};

const FEW: usize = 10;
/// Turns of each connection before those that count.
const EARLY_TURNS: u64 = 10;

pub(super) fn open(bench: &Bench) -> Result<Contest<'_>> {
    let many = usize::try_from(connections_max())?;
    let turns = bench.effort.choose(20, 2) * many as u64;
    Ok(fresh_peers(bench, Work::Plain, move |peer| {
        let cost = |count: usize| -> Result<f64> {
            let mut streams = held::open(&peer.target, count)?;
            // Whatever a first use costs, each has had it, and enough bytes have passed for a proxy to know what passes.
            held::take_turns(&mut streams, EARLY_TURNS * count as u64)?;
            let (cpu, ()) = cpu_of(peer.pid(), || held::take_turns(&mut streams, turns))?;
            // There and back.
            Ok(cpu / (2.0 * as_f64(turns * TURN_BYTES as u64) / 1e9))
        };
        let (costs_few, costs_many) = (cost(FEW)?, cost(many)?);
        Ok(vec![
            (CPU_GROWTH, costs_many / costs_few),
            (CPU_PER_GB_FEW, costs_few),
            (CPU_PER_GB_MANY, costs_many),
            (CONNECTIONS, f64::from(u32::try_from(many)?)),
        ])
    }))
}
