//! A few connections, many bytes, one way: upstream to client.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::on_threads;
use super::stream::{Buffer, Stream, Target};
use crate::upstream;

/// As many as a user's browser or a parallel copy would open.
pub(crate) const CONNECTIONS: u64 = 4;

/// Where the upstream takes the bytes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// One that it has just touched: the caches still hold it.
    Buffer,
    /// A large file in memory: no cache holds it.
    File,
}

/// Fetches `bytes` over all connections together; how long it took.
pub(crate) fn fetch(target: &Target, from: Source, bytes: u64) -> Result<Duration> {
    let each = bytes / CONNECTIONS;
    let started = Instant::now();
    on_threads((0..CONNECTIONS).map(|_| || fetch_one(target, from, each)))?;
    Ok(started.elapsed())
}

fn fetch_one(target: &Target, from: Source, bytes: u64) -> Result<()> {
    let mut stream = Stream::open(target, Buffer::Large)?;
    stream.send(&match from {
        Source::Buffer => upstream::hot_source(bytes),
        Source::File => upstream::source(bytes),
    })?;
    let count = stream.take_all()?;
    ensure!(count == bytes, "{count} bytes arrived, not {bytes}");
    Ok(())
}
