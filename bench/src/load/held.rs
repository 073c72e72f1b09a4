//! Many connections that stay open: idle, to see what they hold in memory, or taking turns, to see whether the cost of
//! a byte grows with their number.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use super::on_threads;
use super::stream::{Buffer, Stream, Target};
use crate::upstream;

/// Threads that open connections, and that take turns later: as many with few connections as with many, so that as many
/// turns are under way.
const WORKERS: usize = 5;
/// What one turn sends and gets back.
pub(crate) const TURN_BYTES: usize = 16 << 10;

/// Opens `count` connections and uses each once, so that whatever a peer allocates late is there.
pub(crate) fn open(target: &Target, count: usize) -> Result<Vec<Stream>> {
    let opened = on_threads((0..WORKERS).map(|worker| {
        // As even as it gets.
        let share = count / WORKERS + usize::from(worker < count % WORKERS);
        move || (0..share).map(|_| open_one(target)).collect::<Result<Vec<Stream>>>()
    }))?;
    Ok(opened.into_iter().flatten().collect())
}

fn open_one(target: &Target) -> Result<Stream> {
    let mut stream = Stream::open(target, Buffer::Small)?;
    stream.send(&upstream::echo())?;
    stream.send(&[1; upstream::HEADER_BYTES])?;
    stream.take_exactly(upstream::HEADER_BYTES)?;
    Ok(stream)
}

/// Lets the connections take turns, one per thread at a time, `turns` in all.
pub(crate) fn take_turns(streams: &mut [Stream], turns: u64) -> Result<()> {
    let share = streams.len().div_ceil(WORKERS).max(1);
    let taken = AtomicU64::new(0);
    let taken = &taken;
    on_threads(streams.chunks_mut(share).map(|mine| {
        move || {
            let message = vec![7; TURN_BYTES];
            loop {
                for stream in mine.iter_mut() {
                    if taken.fetch_add(1, Ordering::Relaxed) >= turns {
                        return Ok(());
                    }
                    stream.send(&message)?;
                    stream.take_exactly(TURN_BYTES)?;
                }
            }
        }
    }))?;
    Ok(())
}
