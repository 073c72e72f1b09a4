//! The authorities that sign. Only auth holds them. Private keys are used through [`Signer`], so that a later one may sit
//! in an HSM; the built-in ones read a 0600 file's text. What a request may ask for is the caller's decision; these files
//! own the certificate's form. Read back by [`crate::verify`].
//!
//! - `tls`: [`TlsAuthority`], X.509
//! - `ssh`: [`SshAuthority`], OpenSSH certificates

mod ssh;
mod tls;

use aws_lc_rs::rand;

pub use ssh::SshAuthority;
pub use tls::TlsAuthority;

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
    #[error("the certificate that is asked for is not possible: {0}")]
    Request(&'static str),
    #[error("the requester's public key is not acceptable: {0}")]
    RequesterKey(&'static str),
    #[error("the authority's key or certificate cannot be read: {0}")]
    Material(String),
    #[error("signing failed: {0}")]
    Signing(String),
}

/// From when until when, Unix seconds. What is issued begins [`CLOCK_BEHIND_SECONDS`] before `not_before`, for clocks
/// that are behind, and ends at `not_after`, or with its TLS authority if that is sooner.
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

impl AuthorityKind {
    /// The word in messages and in the authority's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::User => "user",
        }
    }

    fn expect(self, kind: Self) -> Result<(), AuthorityError> {
        if self == kind {
            return Ok(());
        }
        Err(AuthorityError::Request("the authority is of the other kind"))
    }
}

/// The validity that goes into the certificate.
fn checked(validity: Validity) -> Result<Validity, AuthorityError> {
    if validity.not_after <= validity.not_before {
        return Err(AuthorityError::Request("it would end before it begins"));
    }
    let not_before = validity.not_before.saturating_sub(CLOCK_BEHIND_SECONDS);
    Ok(Validity { not_before, not_after: validity.not_after })
}

fn random(bytes: &mut [u8]) -> Result<(), AuthorityError> {
    rand::fill(bytes).map_err(|_| AuthorityError::Signing("no randomness".into()))
}

fn material(error: impl ToString) -> AuthorityError {
    AuthorityError::Material(error.to_string())
}

fn signing(error: impl ToString) -> AuthorityError {
    AuthorityError::Signing(error.to_string())
}

/// How far back certificates reach, for clocks that are behind.
pub const CLOCK_BEHIND_SECONDS: i64 = 60;
