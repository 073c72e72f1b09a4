//! A machine's identity: joined once with a token, kept 0600 in its folder, renewed by itself at half of its life.
//! Proxy and node each have one.

use std::path::PathBuf;
use std::sync::Arc;

use pki::keys::KeyPairs;
use proto::id::{ClusterName, HostId, NodeName};
use proto::resource::HostRole;
use proto::snapshot::Authorities;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::auth_client::Route;
use crate::shutdown::Shutdown;

/// What a role needs to join or to go on.
#[derive(Debug)]
pub struct HostSettings {
    /// Private folder of this role: `<data_dir>/node`.
    pub dir: PathBuf,
    pub role: HostRole,
    pub nodename: NodeName,
    /// Needed only the first time.
    pub token: Option<Zeroizing<String>>,
    pub route: Route,
    /// Needed the first time unless the proxy has a public certificate.
    pub ca_pin: Option<String>,
    /// Proxy: public names and addresses for its certificates.
    pub principals: Vec<String>,
}

/// What a machine holds. Replaced as a whole when renewed.
#[derive(Debug)]
pub struct HostCredentials {
    pub host_id: HostId,
    pub cluster: ClusterName,
    pub nodename: NodeName,
    pub keys: KeyPairs,
    /// OpenSSH one-line certificate.
    pub ssh_certificate: String,
    pub tls: Arc<CertifiedKey>,
    pub authorities: Authorities,
    /// Unix seconds.
    pub valid_until: i64,
}

/// Why a machine has no identity.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("auth refused: {0}")]
    Refused(String),
    #[error(
        "not joined yet and no join token given: get one with `tctl tokens add --type={role}` and pass --token"
    )]
    NoToken { role: &'static str },
    #[error("the authority is not known: pass --ca-pin (printed by `tctl status`)")]
    NoTrust,
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the stored identity in {path} is damaged: {detail}; move the folder away and join again"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error("cannot reach auth: {0}")]
    Unreachable(String),
}

/// A joined machine.
#[derive(Debug, Clone)]
pub struct Host {
    credentials: watch::Receiver<Arc<HostCredentials>>,
    channel: Channel,
}

impl Host {
    /// Loads the identity, or joins with the token (keeps trying while auth is unreachable, gives up when it refuses).
    /// Starts the renewal task, which lives until `shutdown` stops.
    ///
    /// # Errors
    /// See [`HostError`].
    pub async fn start(_settings: HostSettings, _shutdown: Shutdown) -> Result<Self, HostError> {
        todo!()
    }
    /// Newest credentials.
    pub fn credentials(&self) -> Arc<HostCredentials> {
        self.credentials.borrow().clone()
    }
    /// To be told of renewals.
    pub fn watch(&self) -> watch::Receiver<Arc<HostCredentials>> {
        self.credentials.clone()
    }
    /// gRPC to auth with this machine's certificate.
    pub fn auth(&self) -> Channel {
        self.channel.clone()
    }
    /// Asked by rustls at each handshake of a server: always the newest certificate.
    pub fn server_certificate(&self) -> Arc<dyn rustls::server::ResolvesServerCert> {
        todo!()
    }
}
