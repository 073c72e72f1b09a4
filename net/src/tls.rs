//! rustls settings. One provider (aws-lc-rs), TLS 1.3 only, no renegotiation, no early data.

use std::sync::{Arc, LazyLock};

use pki::keys::KeyPairs;
use pki::known::KnownClients;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::trust::{AnyServer, Pin, PinnedServer};

#[cfg(test)]
mod tests;

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
pub fn certified_key(chain_pem: &str, keys: &KeyPairs) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates(chain_pem)?;
    let bad = |detail: &dyn std::fmt::Display| TlsError::Credentials(detail.to_string());
    let key = PrivateKeyDer::from_pem_slice(keys.tls_pem().as_bytes()).map_err(|e| bad(&e))?;
    let key = PROVIDER.key_provider.load_private_key(key).map_err(|e| bad(&e))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|e| bad(&e))?;
    Ok(Arc::new(certified))
}

/// Client settings with an optional client certificate. The server's name is checked except under
/// [`Trust::DangerousAnyone`]. `resumption` is on (memory cache).
///
/// # Errors
/// A malformed pin or credentials.
pub fn client_config(
    trust: &Trust,
    credentials: Option<Arc<CertifiedKey>>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TlsError::Trust(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(trust)?);
    let mut config = match credentials {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

fn server_verifier(trust: &Trust) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let bad = |detail: &dyn std::fmt::Display| TlsError::Trust(detail.to_string());
    Ok(match trust {
        Trust::DangerousAnyone => Arc::new(AnyServer::new(PROVIDER.clone())),
        Trust::HostAuthority(roots) => {
            WebPkiServerVerifier::builder_with_provider(roots.clone(), PROVIDER.clone())
                .build()
                .map_err(|error| bad(&error))?
        }
        Trust::Pin(pin) => {
            let pin = Pin::parse(pin).map_err(|error| bad(&error))?;
            Arc::new(PinnedServer::new(pin, PROVIDER.clone()))
        }
        Trust::Platform => Arc::new(
            rustls_platform_verifier::Verifier::new(PROVIDER.clone())
                .map_err(|error| bad(&error))?,
        ),
    })
}

/// Whether a server asks for client certificates. Whoever accepts must still turn the chain into an identity with
/// `pki::Verifier::tls_peer`, also when the session was resumed: a ticket outlives neither expiry nor locks.
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
    certificates: Arc<dyn rustls::server::ResolvesServerCert>,
    client_auth: &ClientAuth,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let bad = |detail: &dyn std::fmt::Display| TlsError::Trust(detail.to_string());
    let clients = |roots: &Arc<RootCertStore>| {
        WebPkiClientVerifier::builder_with_provider(roots.clone(), PROVIDER.clone())
    };
    let verifier = match client_auth {
        ClientAuth::Optional(roots) => clients(roots).allow_unauthenticated().build(),
        ClientAuth::Required(roots) => clients(roots).build(),
    };
    let verifier = KnownClients::new(verifier.map_err(|error| bad(&error))?);
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| bad(&error))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(certificates);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // Refills of a tunnel's pool resume; keys live in this process and change every six hours.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| bad(&error))?;
    config.send_half_rtt_data = false;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// Whether an error or one of its causes says that nobody who is trusted signed the server's certificate: another
/// cluster, or somebody in between. Trying again does not help.
pub fn is_unknown_authority(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // An I/O error does not name the error inside it as its source.
        let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = match inside {
            Some(inside) => inside.downcast_ref::<rustls::Error>(),
            None => error.downcast_ref::<rustls::Error>(),
        };
        if let Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) =
            tls
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// Certificates of a PEM text.
///
/// # Errors
/// None in it, or damaged.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::Credentials(error.to_string()))?;
    if chain.is_empty() {
        return Err(TlsError::Credentials("no certificate in the PEM text".into()));
    }
    Ok(chain)
}

/// The cryptography behind all settings.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
