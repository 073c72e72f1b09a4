//! New connections, each with its upstream connection and one exchange of 64 bytes.

use anyhow::Result;

use super::{Bench, Contest, cpu_of, peers};
use crate::load::connections;
use crate::measure::as_f64;
use crate::metric::{CONNECTION_RATE, CPU_PER_CONNECTION};
use crate::peer::Work;

pub(super) fn plain(bench: &Bench) -> Result<Contest<'_>> {
    Ok(open(bench, Work::Plain, bench.effort.choose(20_000, 4_000)))
}

pub(super) fn tls(bench: &Bench) -> Result<Contest<'_>> {
    Ok(open(bench, Work::Tls, bench.effort.choose(4_000, 1_000)))
}

pub(super) fn tls_with_clients(bench: &Bench) -> Result<Contest<'_>> {
    Ok(open(bench, Work::TlsWithClients, bench.effort.choose(4_000, 1_000)))
}

fn open(bench: &Bench, work: Work, count: u64) -> Contest<'_> {
    peers(bench, work, move |peer| {
        let (cpu, took) = cpu_of(peer.pid(), || connections::run(&peer.target, count))?;
        let count = as_f64(count);
        Ok(vec![
            (CPU_PER_CONNECTION, cpu * 1e6 / count),
            (CONNECTION_RATE, count / took.as_secs_f64()),
        ])
    })
}
