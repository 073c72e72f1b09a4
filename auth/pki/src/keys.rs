//! Key pairs that clients and machines make for themselves. The private halves leave only as text for a 0600 file.

use russh::keys::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

/// An SSH (Ed25519) and a TLS (ECDSA P-256) key pair.
pub struct KeyPairs {
    ssh: PrivateKey,
    tls: rcgen::KeyPair,
}

/// Why keys could not be made or read. Never holds key material.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("not an Ed25519 OpenSSH private key")]
    Ssh(#[source] russh::keys::ssh_key::Error),
    #[error("not an ECDSA P-256 private key in PKCS#8 PEM")]
    Tls(#[source] rcgen::Error),
}

impl std::fmt::Debug for KeyPairs {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("KeyPairs(..)")
    }
}

impl KeyPairs {
    /// New keys from the operating system's randomness.
    ///
    /// # Errors
    /// The random source fails.
    pub fn generate() -> Result<Self, KeyError> {
        todo!()
    }
    /// Keys from their PEM texts.
    ///
    /// # Errors
    /// Not such keys.
    pub fn from_pem(_ssh_openssh: &str, _tls_pkcs8: &str) -> Result<Self, KeyError> {
        todo!()
    }
    /// OpenSSH private key text.
    pub fn ssh_pem(&self) -> Zeroizing<String> {
        todo!()
    }
    /// PKCS#8 PEM text.
    pub fn tls_pem(&self) -> Zeroizing<String> {
        todo!()
    }
    /// For russh.
    pub fn ssh(&self) -> &PrivateKey {
        &self.ssh
    }
    /// OpenSSH one-line format, what auth's requests carry.
    pub fn ssh_public_line(&self) -> String {
        todo!()
    }
    pub fn ssh_public(&self) -> &PublicKey {
        self.ssh.public_key()
    }
    /// DER SubjectPublicKeyInfo, what auth's requests carry.
    pub fn tls_spki(&self) -> Vec<u8> {
        let _ = &self.tls;
        todo!()
    }
}
