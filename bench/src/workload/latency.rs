//! What a peer adds to the time that a small message takes. Each sample is two runs, one straight to the upstream and
//! one through the peer, because the machine's own share changes from minute to minute.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Contest, peers};
use crate::load::open_loop;
use crate::metric::{ADDED_P50, ADDED_P99, ADDED_P999, P50, P99, P999};
use crate::peer::Work;

pub(super) fn open(bench: &Bench) -> Result<Contest<'_>> {
    let length = bench.effort.choose(Duration::from_secs(4), Duration::from_secs(1));
    let upstream = bench.upstream.addr();
    Ok(peers(bench, Work::Plain, move |peer| {
        let straight = open_loop::run(upstream, length)?;
        let through = open_loop::run(peer.target.addr, length)?;
        let quantiles = [(0.5, ADDED_P50, P50), (0.99, ADDED_P99, P99), (0.999, ADDED_P999, P999)];
        Ok(quantiles
            .iter()
            .flat_map(|(quantile, added, all)| {
                let (straight, through) =
                    (straight.quantile(*quantile), through.quantile(*quantile));
                [(*added, through - straight), (*all, through)]
            })
            .collect())
    }))
}
