//! Many bytes one way, from the upstream through the peer to the client.

use anyhow::Result;

use super::{Bench, Contest, cpu_of, peers};
use crate::load::bulk::{self, Source};
use crate::measure::as_f64;
use crate::metric::{CPU_PER_GB, WALL_RATE};
use crate::peer::Work;

const MIB: u64 = 1 << 20;

pub(super) fn plain(bench: &Bench) -> Result<Contest<'_>> {
    Ok(open(bench, Work::Plain, Source::File))
}

/// As [`plain`], with bytes that the caches still hold: the best case for peers that copy.
pub(super) fn plain_hot(bench: &Bench) -> Result<Contest<'_>> {
    Ok(open(bench, Work::Plain, Source::Buffer))
}

pub(super) fn tls(bench: &Bench) -> Result<Contest<'_>> {
    Ok(open(bench, Work::Tls, Source::File))
}

fn open(bench: &Bench, work: Work, from: Source) -> Contest<'_> {
    // About a second of the peer's core: its clock ticks a hundred times in that.
    let bytes = bench.effort.choose(2048 * MIB, 512 * MIB);
    peers(bench, work, move |peer| {
        let (cpu, took) = cpu_of(peer.pid(), || bulk::fetch(&peer.target, from, bytes))?;
        let gigabytes = as_f64(bytes) / 1e9;
        Ok(vec![(CPU_PER_GB, cpu / gigabytes), (WALL_RATE, gigabytes / took.as_secs_f64())])
    })
}
