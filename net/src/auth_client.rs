//! gRPC to auth. The channel connects when first used and again after failures; each new connection takes the newest
//! client certificate. TLS runs end to end to auth (SNI `auth.<cluster>`), also through a proxy.

use std::path::PathBuf;
use std::sync::Arc;

use proto::id::ClusterName;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::tls::{TlsError, Trust};

/// How to reach auth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `host:port` of auth itself.
    Direct(String),
    /// `host:port` of a proxy, which relays TLS untouched.
    Proxy(String),
    /// Auth's local administration socket; the kernel says who we are.
    Socket(PathBuf),
}

/// Largest message either way: an event or a resource is far smaller, a page of events fits.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A channel to auth. `credentials` is read at each connect; `None` inside means: no client certificate (sign-in, join).
///
/// # Errors
/// Malformed trust settings.
pub fn channel(
    _route: &Route,
    _cluster: &ClusterName,
    _trust: &Trust,
    _credentials: watch::Receiver<Option<Arc<CertifiedKey>>>,
) -> Result<Channel, TlsError> {
    todo!()
}

/// A channel over auth's local administration socket.
pub fn socket_channel(_path: PathBuf) -> Channel {
    todo!()
}
