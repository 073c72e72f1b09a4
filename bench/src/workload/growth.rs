//! Whether a byte costs more when there are many connections: the same turns, a few at a time, over ten connections and
//! over as many as the limit on open files lets a peer hold.

use anyhow::{Context, Result};

use super::{Bench, Contest, cpu_of, fresh_peers};
use crate::load::held::{self, TURN_BYTES};
use crate::measure::as_f64;
use crate::metric::{CPU_GROWTH, CPU_PER_GB_FEW, CPU_PER_GB_MANY};
use crate::peer::Work;

const FEW: usize = 10;
/// What it is about; a limit on open files of 20,000 and some leave room for it.
const MANY: u64 = 10_000;
/// Open files that a peer needs beside two for each connection.
const SPARE_FILES: u64 = 500;

/// Connections that a peer can hold.
pub(crate) fn many() -> u64 {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    (files.unwrap_or(u64::MAX).saturating_sub(SPARE_FILES) / 2).min(MANY)
}

pub(super) fn open(bench: &Bench) -> Result<Contest<'_>> {
    let turns = bench.effort.choose(60_000, 10_000);
    let many = usize::try_from(many()).context("fewer than usize can say")?;
    Ok(fresh_peers(bench, Work::Plain, move |peer| {
        let cost = |count: usize| -> Result<f64> {
            let mut streams = held::open(&peer.target, count)?;
            let (cpu, ()) = cpu_of(peer.pid(), || held::take_turns(&mut streams, turns))?;
            // There and back.
            Ok(cpu / (2.0 * as_f64(turns * TURN_BYTES as u64) / 1e9))
        };
        let (few, many) = (cost(FEW)?, cost(many)?);
        Ok(vec![(CPU_GROWTH, many / few), (CPU_PER_GB_FEW, few), (CPU_PER_GB_MANY, many)])
    }))
}
