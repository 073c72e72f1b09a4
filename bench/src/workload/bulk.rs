//! Many bytes one way, from the upstream through the peer to the client.

use anyhow::Result;

use super::{Bench, Contest, cpu_of, peers};
use crate::load::bulk;
use crate::measure::as_f64;
use crate::metric::{CPU_PER_GB, WALL_RATE};
use crate::peer::Work;

const MIB: u64 = 1 << 20;

pub(super) fn plain(bench: &Bench) -> Result<Contest<'_>> {
    Ok(open(bench, Work::Plain))
}

pub(super) fn tls(bench: &Bench) -> Result<Contest<'_>> {
    Ok(open(bench, Work::Tls))
}

fn open(bench: &Bench, work: Work) -> Contest<'_> {
    // About a second of the peer's core: its clock ticks a hundred times in that.
    let bytes = bench.effort.choose(2048 * MIB, 512 * MIB);
    peers(bench, work, move |peer| {
        let (cpu, took) = cpu_of(peer.pid(), || bulk::fetch(&peer.target, bytes))?;
        let gigabytes = as_f64(bytes) / 1e9;
        Ok(vec![(CPU_PER_GB, cpu / gigabytes), (WALL_RATE, gigabytes / took.as_secs_f64())])
    })
}
