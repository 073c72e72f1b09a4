//! TLS 1.3 with users, nodes and browsers: the settings of their handshakes, which the relay does, and whom a client
//! certificate makes of them. Settings follow the cluster's authorities; certificates are the newest at each handshake.
//! Next on the path: [`crate::user`], [`crate::tunnel`] or
//! [`crate::web`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use net::host::Host;
use net::policy_feed::Current;
use net::tls::{ClientAuth, TlsError};
use pki::{HostIdentity, Identity, IdentityError, UserIdentity};
use policy::Policy;
use proto::preamble::{ALPN_HTTP, ALPN_SSH, ALPN_STREAM, ALPN_TUNNEL};
use proto::resource::HostRole;
use proto::snapshot::Authorities;
use relay::tls::TlsStream;
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::route::PEER_ALPN;

/// Who is at the other end of a connection with a client certificate, and what they came for.
#[derive(Debug)]
pub(crate) enum Peer {
    NodeControl(HostIdentity),
    NodeData(HostIdentity),
    User(UserIdentity),
}

/// Why nobody is known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the client certificate gives no identity")]
    Identity(#[from] IdentityError),
    #[error("the certificate is not for what the connection asks for")]
    WrongKind,
}

/// Settings of both kinds of handshake.
#[derive(Debug)]
pub(crate) struct Settings {
    host: Host,
    web: Arc<ServerConfig>,
    /// Made of these authorities; made again when they change, not at every change of policy: session tickets are
    /// good only with the settings that gave them.
    peers: Mutex<Option<(Authorities, Arc<ServerConfig>)>>,
}

impl Settings {
    pub(crate) fn new(host: Host, web_keypairs: &[(PathBuf, PathBuf)]) -> Result<Self, TlsError> {
        let web = web_config(&host, web_keypairs)?;
        Ok(Self { host, web, peers: Mutex::default() })
    }

    /// For a browser, without a client certificate.
    pub(crate) fn web_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.web)
    }

    /// For users and nodes.
    pub(crate) fn peers_config(
        &self,
        current: &Current<Policy>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let authorities = &current.policy.snapshot().authorities;
        let mut held = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, config)) = held.as_ref()
            && of == authorities
        {
            return Ok(Arc::clone(config));
        }
        let config = net::tls::server_config(
            self.host.server_certificate(),
            &ClientAuth::Required(Arc::new(current.verifier.client_roots())),
            &PEER_ALPN,
        )?;
        let config = for_relay((*config).clone());
        *held = Some((authorities.clone(), Arc::clone(&config)));
        Ok(config)
    }
}

/// The relay takes the keys out after the handshake, to open and seal records itself or let the kernel.
fn for_relay(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// Who is at the other end of an established connection, and what they came for.
pub(crate) fn peer(tls: &TlsStream, current: &Current<Policy>) -> Result<Peer, HandshakeError> {
    // Also of a resumed session: its ticket outlives neither the certificate nor the authority.
    let identity = current.verifier.tls_peer(tls.peer_certificates(), net::unix_now())?;
    peer_of(identity, tls.alpn())
}

/// Which certificate may come for what: people for streams, nodes for tunnels.
fn peer_of(identity: Identity, alpn: Option<&[u8]>) -> Result<Peer, HandshakeError> {
    match (identity, alpn) {
        (Identity::User(user), Some(ALPN_SSH)) => Ok(Peer::User(user)),
        (Identity::Host(host), Some(ALPN_TUNNEL)) if host.has_role(HostRole::Node) => {
            Ok(Peer::NodeControl(host))
        }
        (Identity::Host(host), Some(ALPN_STREAM)) if host.has_role(HostRole::Node) => {
            Ok(Peer::NodeData(host))
        }
        (Identity::User(_) | Identity::Host(_), _) => Err(HandshakeError::WrongKind),
    }
}

/// Whether these files can be served.
///
/// # Errors
/// One of them cannot be read, or key and certificate do not belong together.
pub fn check_keypairs(keypairs: &[(PathBuf, PathBuf)]) -> Result<(), TlsError> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    keypairs.iter().try_for_each(|(key, certificate)| {
        public_certificate(key, certificate, &provider).map(drop)
    })
}

fn web_config(host: &Host, keypairs: &[(PathBuf, PathBuf)]) -> Result<Arc<ServerConfig>, TlsError> {
    let bad = |detail: &dyn std::fmt::Display| TlsError::Credentials(detail.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let public = keypairs
        .iter()
        .map(|(key, certificate)| public_certificate(key, certificate, &provider))
        .collect::<Result<Vec<_>, _>>()?;
    let certificates = Arc::new(WebCertificates { public, own: host.server_certificate() });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| bad(&error))?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![ALPN_HTTP.to_vec()];
    config.max_early_data_size = 0;
    // Answers here are one short response: resumption would gain nothing.
    config.send_tls13_tickets = 0;
    Ok(for_relay(config))
}

fn public_certificate(
    key: &Path,
    certificate: &Path,
    provider: &rustls::crypto::CryptoProvider,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let bad = |path: &Path, detail: &dyn std::fmt::Display| {
        TlsError::Credentials(format!("{}: {detail}", path.display()))
    };
    let pem = std::fs::read_to_string(certificate).map_err(|e| bad(certificate, &e))?;
    let chain = net::tls::certificates(&pem).map_err(|e| bad(certificate, &e))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(key, &e))?;
    let secret = provider.key_provider.load_private_key(secret).map_err(|e| bad(key, &e))?;
    let certified = CertifiedKey::new(chain, secret);
    certified.keys_match().map_err(|e| bad(key, &e))?;
    Ok(Arc::new(certified))
}

/// A public certificate for the names it covers, the cluster's for all others.
#[derive(Debug)]
struct WebCertificates {
    public: Vec<Arc<CertifiedKey>>,
    own: Arc<dyn ResolvesServerCert>,
}

impl ResolvesServerCert for WebCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let covers = |certified: &CertifiedKey, name: &ServerName<'_>| {
            certified
                .end_entity_cert()
                .and_then(ParsedCertificate::try_from)
                .is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
        };
        let public = name.and_then(|name| self.public.iter().find(|key| covers(key, &name)));
        public.map_or_else(|| self.own.resolve(hello), |key| Some(Arc::clone(key)))
    }
}
