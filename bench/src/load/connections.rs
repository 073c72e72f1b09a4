//! Many short connections: connect, handshake, one exchange of 64 bytes each way, and the upstream closes first, as a
//! server does that answers `Connection: close`. A closed loop of a few workers: what is judged is the CPU that each
//! connection costs the peer, not how long it takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::on_threads;
use super::stream::{Buffer, Stream, Target};
use crate::upstream;

/// Connections under way at once.
const WORKERS: usize = 16;

/// Opens, uses and ends `count` connections; how long it took.
pub(crate) fn run(target: &Target, count: u64) -> Result<Duration> {
    let done = AtomicU64::new(0);
    let started = Instant::now();
    on_threads((0..WORKERS).map(|_| {
        || {
            while done.fetch_add(1, Ordering::Relaxed) < count {
                one(target)?;
            }
            Ok(())
        }
    }))
    .with_context(|| format!("after {} connections", done.load(Ordering::Relaxed)))?;
    Ok(started.elapsed())
}

fn one(target: &Target) -> Result<()> {
    let mut stream = Stream::open(target, Buffer::Small)?;
    stream.send(&upstream::exchange())?;
    let count = stream.take_all()?;
    let expected = upstream::HEADER_BYTES as u64;
    ensure!(count == expected, "{count} bytes came back, not {expected}");
    Ok(())
}
