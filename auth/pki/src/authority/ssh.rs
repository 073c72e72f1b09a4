//! The SSH authority: OpenSSH user and host certificates (PROTOCOL.certkeys).

use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::public::{Ed25519PublicKey, KeyData};
use russh::keys::ssh_key::{Algorithm, Signature};
use russh::keys::{PrivateKey, PublicKey, signature};
use zeroize::Zeroizing;

use super::{AuthorityError, AuthorityKind, Signer, Validity, checked, material, random, signing};
use crate::claims::{self, HostClaims, UserClaims};
use crate::keys;
use crate::names::{self, HostAddress};

/// An SSH authority, Ed25519.
#[derive(Debug)]
pub struct SshAuthority {
    kind: AuthorityKind,
    signer: Box<dyn Signer>,
    public_key: PublicKey,
}

impl SshAuthority {
    /// A new authority's private key in OpenSSH text (to be stored 0600).
    ///
    /// # Errors
    /// Key generation fails.
    pub fn generate(_kind: AuthorityKind) -> Result<Zeroizing<String>, AuthorityError> {
        let key = keys::ssh_generate().map_err(signing)?;
        keys::ssh_text(&key).map_err(signing)
    }
    /// From what [`Self::generate`] gave.
    ///
    /// # Errors
    /// Not such material.
    pub fn load(kind: AuthorityKind, key: &str) -> Result<Self, AuthorityError> {
        let key = keys::ssh_parse(key).map_err(material)?;
        let KeyData::Ed25519(Ed25519PublicKey(public)) = *key.public_key().key_data() else {
            return Err(material("not an Ed25519 key"));
        };
        Self::with_signer(kind, Box::new(FileSshSigner { key, public }))
    }
    /// As [`Self::load`], with a key that is elsewhere.
    ///
    /// # Errors
    /// The signer's public key is not an Ed25519 point.
    pub fn with_signer(
        kind: AuthorityKind,
        signer: Box<dyn Signer>,
    ) -> Result<Self, AuthorityError> {
        let point = signer.public_key().try_into().map_err(|_| material("not an Ed25519 key"))?;
        let public_key = PublicKey::new(KeyData::Ed25519(Ed25519PublicKey(point)), "");
        Ok(Self { kind, signer, public_key })
    }
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }
    /// Signs a person's certificate: key id = user, principals = logins (never empty: an empty list would mean all),
    /// extensions permit-pty, permit-port-forwarding, permit-agent-forwarding and our own. Gives OpenSSH one-line text.
    ///
    /// # Errors
    /// Wrong kind of authority, no logins, or a key that is not Ed25519.
    pub fn issue_user(
        &self,
        claims: &UserClaims,
        public_key: &str,
        validity: Validity,
    ) -> Result<String, AuthorityError> {
        self.kind.expect(AuthorityKind::User)?;
        let json = claims::encode(claims).map_err(AuthorityError::Request)?;
        let logins: Vec<_> = claims.logins.iter().map(ToString::to_string).collect();
        let mut builder =
            self.certificate(CertType::User, claims.user.as_str(), &logins, public_key, validity)?;
        for permit in ["permit-agent-forwarding", "permit-port-forwarding", "permit-pty"] {
            builder.extension(permit, "").map_err(signing)?;
        }
        builder.extension(claims::SSH_CLAIMS, json).map_err(signing)?;
        self.sign_certificate(builder)
    }
    /// Signs a machine's certificate: principals host id, node name, both with `.<cluster>`, and `names`.
    ///
    /// # Errors
    /// Wrong kind of authority, a key that is not Ed25519, or a name as in [`TlsAuthority::issue_host`].
    pub fn issue_host(
        &self,
        claims: &HostClaims,
        names: &[String],
        public_key: &str,
        validity: Validity,
    ) -> Result<String, AuthorityError> {
        self.kind.expect(AuthorityKind::Host)?;
        let json = claims::encode(claims).map_err(AuthorityError::Request)?;
        let names = names::ssh_names(claims, names).map_err(AuthorityError::Request)?;
        let names: Vec<_> = names.iter().map(HostAddress::text).collect();
        let id = claims.host_id.as_str();
        let mut builder = self.certificate(CertType::Host, id, &names, public_key, validity)?;
        builder.extension(claims::SSH_CLAIMS, json).map_err(signing)?;
        self.sign_certificate(builder)
    }

    /// What both kinds have in common.
    fn certificate(
        &self,
        cert_type: CertType,
        key_id: &str,
        principals: &[String],
        public_key: &str,
        validity: Validity,
    ) -> Result<Builder, AuthorityError> {
        if principals.is_empty() {
            return Err(AuthorityError::Request(
                "no logins: an SSH certificate without any would fit all",
            ));
        }
        if principals.len() > SSH_PRINCIPALS_MAX {
            return Err(AuthorityError::Request(
                "more logins than OpenSSH accepts in a certificate",
            ));
        }
        let key = PublicKey::from_openssh(public_key)
            .map_err(|_| AuthorityError::RequesterKey("not an OpenSSH public key"))?;
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(AuthorityError::RequesterKey("not an Ed25519 key"));
        }
        if key.key_data() == self.public_key.key_data() {
            return Err(AuthorityError::RequesterKey("the authority's own key"));
        }
        let validity = checked(validity)?;
        let seconds = |time| u64::try_from(time).map_err(signing);
        let (from, until) = (seconds(validity.not_before)?, seconds(validity.not_after)?);
        let (mut nonce, mut serial) = ([0; Builder::RECOMMENDED_NONCE_SIZE], [0; 8]);
        random(&mut nonce)?;
        random(&mut serial)?;
        let mut builder =
            Builder::new(nonce, key.key_data().clone(), from, until).map_err(signing)?;
        builder.serial(u64::from_be_bytes(serial)).map_err(signing)?;
        builder.cert_type(cert_type).map_err(signing)?;
        builder.key_id(key_id).map_err(signing)?;
        for principal in principals {
            builder.valid_principal(principal).map_err(signing)?;
        }
        Ok(builder)
    }

    fn sign_certificate(&self, builder: Builder) -> Result<String, AuthorityError> {
        let signed = builder.sign(&SshKeySigner(self)).map_err(signing)?;
        signed.to_openssh().map_err(signing)
    }
}

/// The built-in SSH signer: a key from a file.
struct FileSshSigner {
    key: PrivateKey,
    public: [u8; Ed25519PublicKey::BYTE_SIZE],
}

impl std::fmt::Debug for FileSshSigner {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("FileSshSigner(..)")
    }
}

impl Signer for FileSshSigner {
    fn public_key(&self) -> &[u8] {
        &self.public
    }
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        let signature = signature::Signer::<Signature>::try_sign(&self.key, message);
        Ok(signature.map_err(signing)?.as_bytes().to_vec())
    }
}

/// [`Signer`] as ssh-key wants it.
struct SshKeySigner<'a>(&'a SshAuthority);

impl From<&SshKeySigner<'_>> for KeyData {
    fn from(signer: &SshKeySigner<'_>) -> Self {
        signer.0.public_key.key_data().clone()
    }
}

impl signature::Signer<Signature> for SshKeySigner<'_> {
    fn try_sign(&self, message: &[u8]) -> signature::Result<Signature> {
        let bytes = self.0.signer.sign(message).map_err(signature::Error::from_source)?;
        Signature::new(Algorithm::Ed25519, bytes).map_err(signature::Error::from_source)
    }
}

/// OpenSSH refuses certificates with more (`SSHKEY_CERT_MAX_PRINCIPALS`, sshkey.h).
const SSH_PRINCIPALS_MAX: usize = 256;
