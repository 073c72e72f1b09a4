//! TLS 1.3 without its own sockets: bytes in, bytes out. rustls does the handshake and derives the keys; records are then
//! opened in place in one buffer of the worker and sealed into another, or by the kernel. Neither certificates nor
//! names are looked at here: that is the caller's, who gives the configuration and gets what the peer showed.
//!
//! - [`handshake`]: until both sides have finished
//! - [`session`]: records from then on, key updates, alerts; [`sealer`]: the cipher of those that go out
//! - [`stream`]: a session on a tokio socket, for the control plane

pub(crate) mod handshake;
mod sealer;
pub(crate) mod session;
mod stream;

pub use handshake::{Established, Handshake, HandshakeFault};
pub use session::{Fault, Session};
pub use stream::{AcceptError, NotAtBoundary, TlsStream};
