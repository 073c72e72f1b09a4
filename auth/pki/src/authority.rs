//! The authorities that sign. Only auth holds them. Private keys are used through [`Signer`], so that a later one may sit
//! in an HSM; the built-in one reads a 0600 file's text.

use proto::id::ClusterName;
use russh::keys::PublicKey;
use zeroize::Zeroizing;

use crate::claims::{HostClaims, UserClaims};

/// A private key that signs and is not given out. Ed25519 for SSH, ECDSA P-256 with SHA-256 (ASN.1) for TLS.
pub trait Signer: Send + Sync + std::fmt::Debug {
    /// Ed25519: the 32-byte point. P-256: the uncompressed point (65 bytes).
    fn public_key(&self) -> &[u8];
    /// Signs the message (not its digest).
    ///
    /// # Errors
    /// The device refuses.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AuthorityError>;
}

/// Why an authority could not be loaded or could not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the requester's public key is not acceptable: {0}")]
    RequesterKey(&'static str),
    #[error("the authority's key or certificate cannot be read: {0}")]
    Material(String),
    #[error("signing failed: {0}")]
    Signing(String),
}

/// From when until when, Unix seconds. `not_before` is set back by a minute for clocks that are behind.
#[derive(Debug, Clone, Copy)]
pub struct Validity {
    pub not_before: i64,
    pub not_after: i64,
}

/// Whom an authority vouches for. Kept apart so that a host's certificate can never pass for a person's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityKind {
    Host,
    User,
}

/// An X.509 authority, ECDSA P-256.
#[derive(Debug)]
pub struct TlsAuthority {
    _kind: AuthorityKind,
}

impl TlsAuthority {
    /// A new authority: its key as PKCS#8 PEM (to be stored 0600) and its self-signed certificate as PEM, valid ten years.
    ///
    /// # Errors
    /// Key generation fails.
    pub fn generate(
        _kind: AuthorityKind,
        _cluster: &ClusterName,
        _now: i64,
    ) -> Result<(Zeroizing<String>, String), AuthorityError> {
        todo!()
    }
    /// From what [`Self::generate`] gave.
    ///
    /// # Errors
    /// Not such material, or key and certificate don't belong together.
    pub fn load(
        _kind: AuthorityKind,
        _key_pem: &str,
        _certificate_pem: &str,
    ) -> Result<Self, AuthorityError> {
        todo!()
    }
    pub fn certificate_pem(&self) -> &str {
        todo!()
    }
    /// Unix seconds.
    pub fn valid_until(&self) -> i64 {
        todo!()
    }
    /// Signs a person's client certificate (leaf PEM only). `spki` is DER SubjectPublicKeyInfo and must be P-256.
    ///
    /// # Errors
    /// Wrong kind of authority or key.
    pub fn issue_user(
        &self,
        _claims: &UserClaims,
        _spki: &[u8],
        _validity: Validity,
    ) -> Result<String, AuthorityError> {
        todo!()
    }
    /// Signs a machine's certificate (server and client use), leaf PEM followed by the authority's PEM, so that a client
    /// with only a pin can check the chain. SANs: `<host_id>.<cluster>`, `<nodename>.<cluster>`, for each role
    /// `<role>.<cluster>`, and `names` (DNS names or IP addresses).
    ///
    /// # Errors
    /// Wrong kind of authority or key, or a name that is no DNS name or address.
    pub fn issue_host(
        &self,
        _claims: &HostClaims,
        _names: &[String],
        _spki: &[u8],
        _validity: Validity,
    ) -> Result<String, AuthorityError> {
        todo!()
    }
    /// Signs bytes of our own with a context prefix, such as the policy snapshot: ECDSA P-256/SHA-256, ASN.1.
    ///
    /// # Errors
    /// The signer refuses.
    pub fn sign(&self, _context: &[u8], _message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        todo!()
    }
}

/// An SSH authority, Ed25519.
#[derive(Debug)]
pub struct SshAuthority {
    _kind: AuthorityKind,
}

impl SshAuthority {
    /// A new authority's private key in OpenSSH text (to be stored 0600).
    ///
    /// # Errors
    /// Key generation fails.
    pub fn generate(_kind: AuthorityKind) -> Result<Zeroizing<String>, AuthorityError> {
        todo!()
    }
    /// From what [`Self::generate`] gave.
    ///
    /// # Errors
    /// Not such material.
    pub fn load(_kind: AuthorityKind, _key: &str) -> Result<Self, AuthorityError> {
        todo!()
    }
    pub fn public_key(&self) -> &PublicKey {
        todo!()
    }
    /// Signs a person's certificate: key id = user, principals = logins (never empty: an empty list would mean all),
    /// extensions permit-pty, permit-port-forwarding, permit-agent-forwarding and our own. Gives OpenSSH one-line text.
    ///
    /// # Errors
    /// Wrong kind of authority, no logins, or a key that is not Ed25519.
    pub fn issue_user(
        &self,
        _claims: &UserClaims,
        _public_key: &str,
        _validity: Validity,
    ) -> Result<String, AuthorityError> {
        todo!()
    }
    /// Signs a machine's certificate: principals host id, node name, both with `.<cluster>`, and `names`.
    ///
    /// # Errors
    /// Wrong kind of authority, or a key that is not Ed25519.
    pub fn issue_host(
        &self,
        _claims: &HostClaims,
        _names: &[String],
        _public_key: &str,
        _validity: Validity,
    ) -> Result<String, AuthorityError> {
        todo!()
    }
}
