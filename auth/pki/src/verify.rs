//! Certificate in, identity out. Each check fails closed; time is an argument.

use std::net::IpAddr;

use proto::id::ClusterName;
use proto::id::Login;
use proto::snapshot::Authorities;
use russh::keys::Certificate;
use rustls::pki_types::CertificateDer;

use crate::identity::{HostIdentity, Identity, UserIdentity};

/// Why a certificate gives no identity. For the operator; users get a neutral sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate is for cluster {0}")]
    Cluster(String),
    #[error("the certificate has expired")]
    Expired,
    #[error("the certificate's contents are not as this cluster issues them: {0}")]
    Malformed(&'static str),
    #[error("the certificate is not yet valid")]
    NotYetValid,
    #[error("the certificate is not for {0}")]
    Principal(String),
    #[error("the certificate may not be used from {0}")]
    SourceAddress(String),
    #[error("the certificate has a critical option that is not understood: {0}")]
    UnknownCriticalOption(String),
    #[error("no authority of this cluster signed the certificate")]
    UnknownAuthority,
    #[error("a {found} certificate where a {expected} certificate is needed")]
    WrongKind { expected: &'static str, found: &'static str },
}

/// Checks certificates against one cluster's authorities.
#[derive(Debug, Clone)]
pub struct Verifier {
    _cluster: ClusterName,
}

impl Verifier {
    /// # Errors
    /// An authority's text is not a certificate or a key: the message says which.
    pub fn new(_cluster: &ClusterName, _authorities: &Authorities) -> Result<Self, String> {
        todo!()
    }
    /// The holder of a TLS client or server certificate. The *chain* is checked here again, against the user and the host
    /// authority separately, so that neither can vouch for the other's kind.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn tls_peer(
        &self,
        _chain: &[CertificateDer<'_>],
        _now: i64,
    ) -> Result<Identity, IdentityError> {
        todo!()
    }
    /// A person who proved possession of the certificate's key over SSH and asks for `login` from `from`.
    /// Checks authority, signature, time, type, principal, critical options (`source-address` is honoured, `force-command`
    /// and unknown ones are refused), cluster.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn ssh_user(
        &self,
        _certificate: &Certificate,
        _login: &Login,
        _from: Option<IpAddr>,
        _now: i64,
    ) -> Result<UserIdentity, IdentityError> {
        todo!()
    }
    /// As [`Self::ssh_user`], for the jump host, where no account is entered: any principal will do.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn ssh_user_any_login(
        &self,
        _certificate: &Certificate,
        _from: Option<IpAddr>,
        _now: i64,
    ) -> Result<UserIdentity, IdentityError> {
        todo!()
    }
    /// A machine that proved possession of its host certificate's key, expected under the name `principal`.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn ssh_host(
        &self,
        _certificate: &Certificate,
        _principal: &str,
        _now: i64,
    ) -> Result<HostIdentity, IdentityError> {
        todo!()
    }
    /// Whether the host TLS authority signed `context || message`.
    ///
    /// # Errors
    /// It did not.
    pub fn signed_by_host_authority(
        &self,
        _context: &[u8],
        _message: &[u8],
        _signature: &[u8],
    ) -> Result<(), IdentityError> {
        todo!()
    }
    /// Root store of the host authority, for rustls.
    pub fn host_roots(&self) -> rustls::RootCertStore {
        todo!()
    }
    /// Root store of both authorities, for rustls' client verifier.
    pub fn client_roots(&self) -> rustls::RootCertStore {
        todo!()
    }
    /// `@cert-authority` line for `known_hosts`: `patterns` joined by commas.
    pub fn known_hosts_line(&self, _patterns: &[String]) -> String {
        todo!()
    }
}

/// `sha256:<hex>` of the SubjectPublicKeyInfo of an authority's certificate: what `--ca-pin` takes.
///
/// # Errors
/// Not a certificate.
pub fn ca_pin(_certificate_pem: &str) -> Result<String, String> {
    todo!()
}
