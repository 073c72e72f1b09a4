//! Moves bytes between two legs. Knows nothing of certificates, targets or protocols, and nothing of our other crates.
//!
//! The interface is that of the ladder's every rung; what stands is its lowest: readiness by epoll (tokio), TLS in user
//! space. Invariants: no unbounded buffer, half-close is mapped, every stream can be cut by id, each ends by its idle timeout.
#![forbid(unsafe_code)]

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A byte stream that is no bare socket: TLS in user space, an SSH channel.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// One side of a relayed stream.
pub enum Leg {
    /// A bare socket with bytes already read from it: what can be spliced.
    Socket { socket: TcpStream, pending: Bytes },
    /// Anything else.
    Stream(Box<dyn Io>),
}

impl std::fmt::Debug for Leg {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Socket { .. } => "Leg::Socket",
            Self::Stream(_) => "Leg::Stream",
        })
    }
}

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
    Failed(std::io::Error),
    Idle,
}

/// The relay; cheap to clone.
#[derive(Debug, Clone)]
pub struct Relay {
    _private: (),
}

impl Relay {
    /// Starts it. `streams_max` bounds how many run at once.
    pub fn start(_streams_max: usize) -> Self {
        todo!()
    }
    /// A new id; never given twice.
    pub fn next_id(&self) -> StreamId {
        todo!()
    }
    /// Moves bytes until the end.
    pub async fn run(&self, _id: StreamId, _client: Leg, _target: Leg, _limits: Limits) -> Outcome {
        todo!()
    }
    /// Ends a stream; false when there is none of that id.
    pub fn cut(&self, _id: StreamId) -> bool {
        todo!()
    }
    /// Streams that run now.
    pub fn active(&self) -> usize {
        todo!()
    }
}
