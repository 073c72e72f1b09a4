//! A node's tunnel to a proxy: one control stream and a pool of idle, already authenticated data connections, each of
//! which carries one proxied stream. Redialed with jitter after the proxy dies or the network drops.

use pki::HostIdentity;
use proto::preamble::Open;
use proto::resource::Labels;
use tokio::sync::{mpsc, watch};

use crate::host::Host;
use crate::shutdown::Shutdown;
use crate::stream::Stream;

/// A proxied stream that arrived; the reply has been sent, TLS has been left if it was to be.
#[derive(Debug)]
pub struct Incoming {
    pub open: Open,
    pub stream: Stream,
    /// The proxy that sent it, by its certificate.
    pub proxy: HostIdentity,
}

/// Whether the tunnel stands, for readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Connected,
    Connecting,
}

/// Keeps the tunnel to `proxy` (`host:port`) until `shutdown` stops; tells the proxy when it drains.
/// A full `sink` delays taking new streams, never loses one silently.
pub async fn run(
    _proxy: String,
    _host: Host,
    _labels: watch::Receiver<Labels>,
    _sink: mpsc::Sender<Incoming>,
    _state: watch::Sender<State>,
    _shutdown: Shutdown,
) {
    todo!()
}
