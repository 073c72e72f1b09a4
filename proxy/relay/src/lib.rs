//! Moves bytes between two legs. Knows nothing of certificates, targets or protocols, and nothing of our other crates.
//!
//! The interface is that of the ladder's every rung; what stands is its lowest: readiness by epoll (tokio), TLS in user
//! space. Invariants: no unbounded buffer, half-close is mapped, every stream can be cut by id, each ends by its idle timeout.
//!
//! - [`leg`]: one side of a stream
//! - [`copy`]: both directions of a stream, until its end
//! - [`pool`]: buffers, held only while data is moving
//! - [`ktls`]: keys and control records of kernel TLS; nothing here uses it yet
//! - `sys`: the only `unsafe`
#![deny(unsafe_code)]

mod copy;
pub mod ktls;
mod leg;
mod pool;
mod sys {
    pub(crate) mod ktls;
}

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, counter, gauge};
use tokio_util::sync::CancellationToken;

pub use crate::leg::{Io, Leg};

use crate::copy::Transfer;
use crate::pool::Pool;

/// The rung of the ladder that moves the bytes, for logs and metrics.
pub const RUNG: &str = "epoll";

/// Names a relayed stream for [`Relay::cut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// Limits of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Ended after so long without a byte in either direction.
    pub idle_timeout: Option<Duration>,
}

/// How a stream ended, and what it moved.
#[derive(Debug)]
pub struct Outcome {
    pub bytes_from_client: u64,
    pub bytes_from_target: u64,
    pub end: End,
}

/// Why it ended.
#[derive(Debug)]
pub enum End {
    /// Both directions were closed.
    Closed,
    /// By [`Relay::cut`] or the relay's own end.
    Cut,
    Failed(io::Error),
    Idle,
}

impl End {
    /// For metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Cut => "cut",
            Self::Failed(_) => "failed",
            Self::Idle => "idle",
        }
    }
}

/// The relay; cheap to clone.
#[derive(Debug, Clone)]
pub struct Relay {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    streams_max: usize,
    next_id: AtomicU64,
    streams: Mutex<HashMap<StreamId, CancellationToken>>,
    pool: Pool,
}

impl Relay {
    /// Starts it. `streams_max` bounds how many run at once.
    pub fn start(streams_max: usize) -> Self {
        tracing::info!(rung = RUNG, streams_max, "the data plane moves bytes");
        gauge!("postern_data_plane_rung", "rung" => RUNG).set(1.0);
        Self {
            shared: Arc::new(Shared {
                streams_max,
                next_id: AtomicU64::new(1),
                streams: Mutex::default(),
                pool: Pool::new(),
            }),
        }
    }
    /// A new id; never given twice.
    pub fn next_id(&self) -> StreamId {
        StreamId(self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }
    /// Moves bytes until the end. A stream beyond `streams_max`, or with an id that runs already, fails at once.
    pub async fn run(&self, id: StreamId, client: Leg, target: Leg, limits: Limits) -> Outcome {
        match self.shared.enter(id) {
            Ok(running) => {
                let meters = Meters::new();
                Transfer::new(client, target, &self.shared.pool, &meters, limits)
                    .run(&running.cut)
                    .await
            }
            Err(error) => {
                Outcome { bytes_from_client: 0, bytes_from_target: 0, end: End::Failed(error) }
            }
        }
    }
    /// Ends a stream; false when there is none of that id.
    pub fn cut(&self, id: StreamId) -> bool {
        match self.shared.streams().get(&id) {
            Some(cut) => {
                cut.cancel();
                true
            }
            None => false,
        }
    }
    /// Streams that run now.
    pub fn active(&self) -> usize {
        self.shared.streams().len()
    }
    /// Whether a further stream would fail now; to be asked before a client is told that it may go on.
    pub fn is_full(&self) -> bool {
        self.active() >= self.shared.streams_max
    }
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, HashMap<StreamId, CancellationToken>> {
        // Every critical section is one map operation: a panic elsewhere leaves the map whole.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, id: StreamId) -> io::Result<Running<'_>> {
        let mut streams = self.streams();
        if streams.len() >= self.streams_max {
            return Err(io::Error::other("the relay carries as many streams as it may"));
        }
        if streams.contains_key(&id) {
            return Err(io::Error::other("a stream of this id runs already"));
        }
        let cut = CancellationToken::new();
        streams.insert(id, cut.clone());
        Ok(Running { shared: self, id, cut })
    }
}

/// A stream's entry in the table.
struct Running<'a> {
    shared: &'a Shared,
    id: StreamId,
    cut: CancellationToken,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.shared.streams().remove(&self.id);
    }
}

/// What a stream reports while it runs.
struct Meters {
    active: Gauge,
    from_client: Counter,
    from_target: Counter,
}

impl Meters {
    fn new() -> Self {
        let active = gauge!("postern_relay_streams");
        active.increment(1.0);
        Self {
            active,
            from_client: counter!("postern_relay_bytes_total", "from" => "client"),
            from_target: counter!("postern_relay_bytes_total", "from" => "target"),
        }
    }
}

impl Drop for Meters {
    fn drop(&mut self) {
        self.active.decrement(1.0);
    }
}

#[cfg(test)]
mod tests;
