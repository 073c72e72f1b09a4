//! Key pairs that clients and machines make for themselves. The private halves leave only as text for a 0600 file.
//! Also the helpers that make and read single keys, which [`crate::authority`] shares. Writing files is the caller's.

use aws_lc_rs::rand;
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{self, Algorithm, LineEnding};
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
        Ok(Self { ssh: ssh_generate()?, tls: tls_generate()? })
    }
    /// Keys from their PEM texts.
    ///
    /// # Errors
    /// Not such keys.
    pub fn from_pem(ssh_openssh: &str, tls_pkcs8: &str) -> Result<Self, KeyError> {
        Ok(Self { ssh: ssh_parse(ssh_openssh)?, tls: tls_parse(tls_pkcs8)? })
    }
    /// OpenSSH private key text.
    pub fn ssh_pem(&self) -> Zeroizing<String> {
        // Only an encoder bug could fail here; empty text is no key for any reader.
        ssh_text(&self.ssh).unwrap_or_default()
    }
    /// PKCS#8 PEM text.
    pub fn tls_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.tls.serialize_pem())
    }
    /// For russh.
    pub fn ssh(&self) -> &PrivateKey {
        &self.ssh
    }
    /// OpenSSH one-line format, what auth's requests carry.
    pub fn ssh_public_line(&self) -> String {
        // As above: encoding a key that was decoded can't fail, and auth refuses an empty line.
        self.ssh.public_key().to_openssh().unwrap_or_default()
    }
    pub fn ssh_public(&self) -> &PublicKey {
        self.ssh.public_key()
    }
    /// DER SubjectPublicKeyInfo, what auth's requests carry.
    pub fn tls_spki(&self) -> Vec<u8> {
        self.tls.subject_public_key_info()
    }
}

/// A new Ed25519 key without comment.
pub(crate) fn ssh_generate() -> Result<PrivateKey, KeyError> {
    let mut seed = Zeroizing::new([0; 32]);
    rand::fill(&mut *seed).map_err(|_| KeyError::Ssh(ssh_key::Error::Crypto))?;
    let pair = Ed25519Keypair::from_seed(&seed);
    PrivateKey::new(KeypairData::Ed25519(pair), "").map_err(KeyError::Ssh)
}

/// An unencrypted Ed25519 key.
pub(crate) fn ssh_parse(openssh: &str) -> Result<PrivateKey, KeyError> {
    let key = PrivateKey::from_openssh(openssh).map_err(KeyError::Ssh)?;
    if key.is_encrypted() {
        return Err(KeyError::Ssh(ssh_key::Error::Encrypted));
    }
    if key.algorithm() != Algorithm::Ed25519 {
        return Err(KeyError::Ssh(ssh_key::Error::AlgorithmUnknown));
    }
    Ok(key)
}

/// OpenSSH private key text.
pub(crate) fn ssh_text(key: &PrivateKey) -> Result<Zeroizing<String>, KeyError> {
    key.to_openssh(LineEnding::LF).map_err(KeyError::Ssh)
}

/// A new P-256 key.
pub(crate) fn tls_generate() -> Result<rcgen::KeyPair, KeyError> {
    rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(KeyError::Tls)
}

/// A P-256 key.
pub(crate) fn tls_parse(pkcs8: &str) -> Result<rcgen::KeyPair, KeyError> {
    rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(pkcs8, &PKCS_ECDSA_P256_SHA256)
        .map_err(KeyError::Tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_texts() {
        let keys = KeyPairs::generate().unwrap();
        let again = KeyPairs::from_pem(&keys.ssh_pem(), &keys.tls_pem()).unwrap();
        assert_eq!(again.ssh_public_line(), keys.ssh_public_line());
        assert_eq!(again.tls_spki(), keys.tls_spki());
        assert!(keys.ssh_public_line().starts_with("ssh-ed25519 "));
        let other = KeyPairs::generate().unwrap();
        assert_ne!(other.ssh_public_line(), keys.ssh_public_line());
        assert_ne!(other.tls_spki(), keys.tls_spki());
    }

    #[test]
    fn other_texts_are_refused_and_not_repeated() {
        let keys = KeyPairs::generate().unwrap();
        let (ssh, tls) = (keys.ssh_pem(), keys.tls_pem());
        assert!(matches!(KeyPairs::from_pem(&tls, &tls), Err(KeyError::Ssh(_))));
        assert!(matches!(KeyPairs::from_pem(&ssh, &ssh), Err(KeyError::Tls(_))));
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(matches!(KeyPairs::from_pem(&ssh, &p384.serialize_pem()), Err(KeyError::Tls(_))));
        let error = KeyPairs::from_pem("SECRET", "SECRET").unwrap_err();
        assert!(!format!("{error:?} {error}").contains("SECRET"));
        assert_eq!(format!("{keys:?}"), "KeyPairs(..)");
    }
}
