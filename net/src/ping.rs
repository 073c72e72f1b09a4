//! What a proxy says of its cluster before sign-in: `GET /webapi/ping`. The server half is the proxy's.

use serde::{Deserialize, Serialize};

use crate::dial::DialError;
use crate::tls::Trust;

/// Path of the answer.
pub const PATH: &str = "/webapi/ping";

/// The answer. Unknown fields are ignored: newer proxies may say more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    pub cluster_name: String,
    pub server_version: String,
    /// `host:port` that clients should use.
    pub proxy_public_addr: String,
    /// `host:port` of the SSH jump listener; empty when there is none.
    pub ssh_jump_addr: String,
    /// PEM of the host TLS authorities. Worth as much as the trust with which it was fetched.
    pub host_ca_pem: Vec<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PingError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the proxy's answer is not understood: {0}")]
    Answer(String),
}

/// Asks. Under [`Trust::Pin`] the answer's authorities are checked against the pin as well.
///
/// # Errors
/// See [`PingError`].
pub async fn ping(_proxy: &str, _trust: &Trust) -> Result<Ping, PingError> {
    todo!()
}
