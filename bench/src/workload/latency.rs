//! What a peer adds to the time that a small message takes. Each sample is two runs, one straight to the upstream and
//! one through the peer, because the machine's own share changes from minute to minute.
//!
//! Here, and only here, load, peer and upstream share one core, and a busy loop of the idle class, before which anything
//! else goes at once, keeps it awake. Otherwise what is measured is mostly how a hypervisor wakes one core for another,
//! the same for every peer and more than what any of them does with a message; the README has figures.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Bench, Contest, peers_before};
use crate::load::open_loop;
use crate::metric::{ADDED_P50, ADDED_P99, ADDED_P999, P50, P99, P999};
use crate::peer::Work;
use crate::program::{Core, Program, command};
use crate::upstream::Upstream;

pub(super) fn open(bench: &Bench) -> Result<Contest<'_>> {
    let length = bench.effort.choose(Duration::from_secs(4), Duration::from_secs(1));
    let upstream = Upstream::start(&bench.dir, Core::Measured)?;
    let behind = upstream.addr();
    let mut contest = peers_before(bench, behind, Work::Plain, move |peer| {
        let straight = open_loop::run(behind, Core::Measured, length)?;
        let through = open_loop::run(peer.target.addr, Core::Measured, length)?;
        let quantiles = [(0.5, ADDED_P50, P50), (0.99, ADDED_P99, P99), (0.999, ADDED_P999, P999)];
        Ok(quantiles
            .iter()
            .flat_map(|(quantile, added, all)| {
                let (straight, through) =
                    (straight.quantile(*quantile), through.quantile(*quantile));
                [(*added, through - straight), (*all, through)]
            })
            .collect())
    });
    contest.helpers.extend([keep_awake(bench, Core::Measured)?, upstream.into_program()]);
    Ok(contest)
}

fn keep_awake(bench: &Bench, core: Core) -> Result<Program> {
    let ourselves = std::env::current_exe().context("where are we?")?;
    let words = ["--idle".into(), "0".into(), ourselves.into_os_string(), "spin".into()];
    let log = bench.dir.join(format!("spin-{core:?}.log"));
    Program::start("the busy loop", core, &command("chrt", words), log)
}
