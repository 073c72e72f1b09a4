//! What a listener's connections are asked before they are relayed, and by whom. A [`Service`] decides; the worker does the
//! reading, the handshake and the dialing, so that a stranger who is slow costs a place in a table, not a task.
//! Called on a worker's thread: an answer must not wait for anything.

use std::any::Any;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::ServerConfig;

use crate::tls::{Established, HandshakeFault};
use crate::{Limits, Outcome};

/// Whatever is held while a connection is in some phase, and let go at its end: a place among the unauthenticated, a count.
pub type Place = Box<dyn Any + Send>;

/// Decides about a listener's connections.
pub trait Service: Send + Sync + 'static {
    /// Whether a connection may come in. The place is held until it is relayed, given or gone.
    fn admit(&self, from: SocketAddr) -> Option<Place>;
    /// What is to become of a connection that has sent `opening` so far; asked first with nothing, and again after each
    /// [`Next::More`].
    fn route(&self, from: SocketAddr, opening: &[u8]) -> Next;
    /// What is to become of one after its TLS handshake.
    fn established(&self, from: SocketAddr, peer: &Established) -> Next;
    /// Takes a connection over.
    fn give(&self, given: Given);
    /// A connection ended before it was relayed or given.
    fn failed(&self, from: SocketAddr, fault: &OpeningFault);
    /// A relayed connection ended.
    fn ended(&self, from: SocketAddr, outcome: &Outcome);
    /// From accept to being relayed or given, dialing included.
    fn within(&self) -> Duration;
}

/// What is to become of a connection.
pub enum Next {
    /// Dial there and relay, with what was read first. `place` is held until the end; `tag` goes with the stream to
    /// another process, if it does.
    Dial { to: SocketAddr, limits: Limits, place: Option<Place>, tag: Bytes },
    /// [`Service::give`].
    Give,
    /// Read more, then ask again.
    More,
    /// Say this (after a handshake inside TLS, with close_notify behind it), as far as there is room, and close.
    Refuse(Bytes),
    /// TLS ends here; then [`Service::established`].
    Terminate(Arc<ServerConfig>),
}

impl std::fmt::Debug for Next {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dial { to, .. } => write!(out, "Dial({to})"),
            Self::Give => out.write_str("Give"),
            Self::More => out.write_str("More"),
            Self::Refuse(_) => out.write_str("Refuse"),
            Self::Terminate(_) => out.write_str("Terminate"),
        }
    }
}

/// A connection that leaves the relay for the control plane.
pub struct Given {
    pub socket: OwnedFd,
    pub from: SocketAddr,
    /// What was read and not used up: before TLS all of it.
    pub opening: Bytes,
    /// After a handshake.
    pub established: Option<Established>,
    pub place: Place,
    /// When [`Service::within`] ends.
    pub deadline: Instant,
}

impl std::fmt::Debug for Given {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Given").field("from", &self.from).finish_non_exhaustive()
    }
}

/// Why a connection ended before it was relayed or given.
#[derive(Debug, thiserror::Error)]
pub enum OpeningFault {
    #[error("the target cannot be reached")]
    Dial(#[source] std::io::Error),
    #[error("the TLS handshake failed")]
    Handshake(#[from] HandshakeFault),
    #[error("the connection was lost")]
    Io(#[source] std::io::Error),
    #[error("the relay carries as many streams as it may")]
    Full,
    #[error("it was not done in time")]
    TimedOut,
    #[error("it began with more than anybody looks at")]
    TooLong,
}
