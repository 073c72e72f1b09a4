//! What every engine of a node needs to know: who we are, what the policy is now, where events and recordings go.
//! Values, not services: tests make one without a cluster. Made by [`crate::start`].

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use net::policy_feed::Current;
use net::shutdown::Shutdown;
use policy::Policy;
use policy::decide::NodeFacts;
use russh::keys::{Certificate, PrivateKey};
use tokio::sync::{Notify, watch};

use crate::account::Serves;
use crate::audit::Audit;
use crate::environment::AllowList;
use crate::recorder::Recorder;
use capture::Capture;

/// Shared by all connections.
#[derive(Debug)]
pub(crate) struct NodeContext {
    pub(crate) facts: NodeFacts,
    pub(crate) policy: watch::Receiver<Arc<Current<Policy>>>,
    pub(crate) host_key: HostKeySource,
    pub(crate) audit: Arc<dyn Audit>,
    pub(crate) recorder: Recorder,
    pub(crate) capture: Capture,
    /// Told when a session has ended and its recording waits.
    pub(crate) finished_recordings: Arc<Notify>,
    pub(crate) serves: Serves,
    pub(crate) environment_allow: AllowList,
    /// Our own binary, which knows `sftp-server`.
    pub(crate) helper: PathBuf,
    pub(crate) sessions: AtomicUsize,
    pub(crate) shutdown: Shutdown,
}

impl NodeContext {
    /// Counts a session until the guard is dropped.
    pub(crate) fn count_session(self: &Arc<Self>) -> SessionCounted {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        SessionCounted(self.clone())
    }
}

/// See [`NodeContext::count_session`].
#[derive(Debug)]
pub(crate) struct SessionCounted(Arc<NodeContext>);

impl Drop for SessionCounted {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Gives the newest host key and certificate, so that renewed ones serve new connections.
pub(crate) struct HostKeySource(Box<dyn Fn() -> Result<HostKey, String> + Send + Sync>);

impl HostKeySource {
    pub(crate) fn new(give: impl Fn() -> Result<HostKey, String> + Send + Sync + 'static) -> Self {
        Self(Box::new(give))
    }
    pub(crate) fn current(&self) -> Result<HostKey, String> {
        (self.0)()
    }
}

impl std::fmt::Debug for HostKeySource {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("HostKeySource(..)")
    }
}

/// A host key with its certificate.
pub(crate) struct HostKey {
    pub(crate) key: PrivateKey,
    pub(crate) certificate: Certificate,
}

/// The user's end of a connection, as the proxy saw it: for events and `source-address`, never for identity.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// As told: `address:port`.
    pub(crate) text: String,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) port: u16,
    /// Ties log lines of client, proxy and node together.
    pub(crate) trace: String,
}

impl Client {
    /// From the proxy's preamble. An address that can't be read stays unknown, and certificates bound to an address
    /// are then refused.
    pub(crate) fn new(text: &str, trace: &str) -> Self {
        let socket: Option<std::net::SocketAddr> = text.parse().ok();
        let ip = socket.map(|s| s.ip()).or_else(|| text.parse().ok());
        let port = socket.map_or(0, |s| s.port());
        Self { text: text.to_owned(), ip, port, trace: trace.to_owned() }
    }
    /// For `SSH_CLIENT`: an address in any case.
    pub(crate) fn ip_text(&self) -> String {
        self.ip.map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string())
    }
}
