//! A stream through a proxy: TCP, TLS, preamble, reply, and then TLS is left or stays.

use std::sync::Arc;
use std::time::Duration;

use proto::preamble::{Dial, Refusal};
use rustls::ClientConfig;

use crate::frame::FrameIoError;
use crate::stream::{Stream, Tls};

/// Whole way to the reply. Generous for slow links; a dead proxy is known by TCP long before.
pub const DIAL_WITHIN: Duration = Duration::from_secs(20);

/// What goes wrong, by whose fault.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("TLS with {address} failed")]
    Tls {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{address} is no valid host:port")]
    Address { address: String },
    #[error("no answer from {address} within {within:?}")]
    TimedOut { address: String, within: Duration },
    /// `message` is the proxy's sentence for the user.
    #[error("{message}")]
    Refused { reason: Refusal, message: String },
    #[error(transparent)]
    Frame(#[from] FrameIoError),
    #[error("the other side left TLS in the middle of a record")]
    Boundary,
}

/// TCP (nodelay) and TLS to `address` (`host:port`), record-exact. `server_name` is sent as SNI and checked.
///
/// # Errors
/// See [`DialError`].
pub async fn tls(
    _address: &str,
    _server_name: &str,
    _config: Arc<ClientConfig>,
) -> Result<Tls, DialError> {
    todo!()
}

/// A user's stream to an SSH target: `config` carries the user's certificate and ALPN `postern-ssh`.
///
/// # Errors
/// See [`DialError`]; a refusal carries the proxy's sentence.
pub async fn ssh(
    _proxy: &str,
    _config: Arc<ClientConfig>,
    _dial: &Dial,
) -> Result<Stream, DialError> {
    todo!()
}
