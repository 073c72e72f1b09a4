//! Load generators: small, cheap, on the core that what is measured does not use. All verify that they got what they
//! asked for. What they ask goes to [`crate::upstream`].
//!
//! - [`stream`]: a client's connection, plain or TLS
//! - [`bulk`]: a few connections, many bytes, one way
//! - [`connections`]: many short connections, one exchange each
//! - [`open_loop`]: messages at a fixed rate, timed from when they were due
//! - [`held`]: many connections that stay open, idle or taking turns

pub(crate) mod bulk;
pub(crate) mod connections;
pub(crate) mod held;
pub(crate) mod open_loop;
pub(crate) mod stream;

use anyhow::{Result, anyhow};

/// Each piece of work on a thread of its own.
fn on_threads<T: Send, W: FnOnce() -> Result<T> + Send>(
    work: impl Iterator<Item = W>,
) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = work.map(|work| scope.spawn(work)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<T>>| {
            thread.join().map_err(|_| anyhow!("a load generator failed badly"))?
        };
        threads.into_iter().map(join).collect()
    })
}
