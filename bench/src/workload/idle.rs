//! What an idle connection holds in the peer's memory: a fresh process, some connections to warm it up, then many more;
//! the difference, by their number. The kernel's own memory for the sockets is the same for all and not counted.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Contest, fresh_peers};
use crate::load::held;
use crate::measure::memory_bytes;
use crate::metric::{PROCESS_MEMORY, USER_MEMORY};
use crate::peer::Work;

/// Opened and used first, so that what a peer allocates once is not counted for each.
const WARM_UP: usize = 100;
/// For a peer to let go of what it only needs at first.
const REST: Duration = Duration::from_secs(2);

pub(super) fn plain(bench: &Bench) -> Result<Contest<'_>> {
    Ok(open(bench, Work::Plain))
}

pub(super) fn tls(bench: &Bench) -> Result<Contest<'_>> {
    Ok(open(bench, Work::Tls))
}

fn open(bench: &Bench, work: Work) -> Contest<'_> {
    let count = bench.effort.choose(4000_u32, 1000);
    fresh_peers(bench, work, move |peer| {
        let warm = held::open(&peer.target, WARM_UP)?;
        std::thread::sleep(REST);
        let before = memory_bytes(peer.pid(), None)?;
        let many = held::open(&peer.target, usize::try_from(count)?)?;
        std::thread::sleep(REST);
        let after = memory_bytes(peer.pid(), None)?;
        drop((warm, many));
        Ok(vec![
            (USER_MEMORY, (after - before) / 1024.0 / f64::from(count)),
            (PROCESS_MEMORY, after / f64::from(1 << 20)),
        ])
    })
}
