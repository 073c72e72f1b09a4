//! rustls settings. One provider (aws-lc-rs), TLS 1.3 only, no renegotiation, no early data.

use std::sync::Arc;

use pki::keys::KeyPairs;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Whom a client believes to be the server.
#[derive(Debug, Clone)]
pub enum Trust {
    /// No check at all: only by `--insecure`, with a warning.
    DangerousAnyone,
    /// The cluster's host authorities.
    HostAuthority(Arc<RootCertStore>),
    /// An authority in the server's chain whose key has this pin (`sha256:<hex>`), and a leaf that it signed.
    Pin(String),
    /// What the operating system trusts: proxies with a public certificate.
    Platform,
}

/// What can be wrong with settings.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the certificate or key cannot be used: {0}")]
    Credentials(String),
    #[error("the trust settings cannot be used: {0}")]
    Trust(String),
}

/// A chain and its key, ready for rustls.
///
/// # Errors
/// The PEM holds no certificate, or the key does not fit it.
pub fn certified_key(_chain_pem: &str, _keys: &KeyPairs) -> Result<Arc<CertifiedKey>, TlsError> {
    todo!()
}

/// Client settings with an optional client certificate. The server's name is checked except under
/// [`Trust::DangerousAnyone`]. `resumption` is on (memory cache).
///
/// # Errors
/// A malformed pin or credentials.
pub fn client_config(
    _trust: &Trust,
    _credentials: Option<Arc<CertifiedKey>>,
    _alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    todo!()
}

/// Whether a server asks for client certificates. Whoever accepts must still turn the chain into an identity with
/// `pki::Verifier::tls_peer`.
#[derive(Debug, Clone)]
pub enum ClientAuth {
    /// Without a certificate too (sign-in, join, browsers).
    Optional(Arc<RootCertStore>),
    Required(Arc<RootCertStore>),
}

/// Server settings. `certificates` is asked at each handshake, so that renewed certificates are used at once.
///
/// # Errors
/// No roots.
pub fn server_config(
    _certificates: Arc<dyn rustls::server::ResolvesServerCert>,
    _client_auth: &ClientAuth,
    _alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    todo!()
}

/// Certificates of a PEM text.
///
/// # Errors
/// None in it, or damaged.
pub fn certificates(_pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    todo!()
}
