//! The authorities that sign. Only auth holds them. Private keys are used through [`Signer`], so that a later one may sit
//! in an HSM; the built-in ones read a 0600 file's text. What a request may ask for is the caller's decision; this file
//! owns the certificate's form. Read back by [`crate::verify`].

use aws_lc_rs::{rand, signature as aws_signature};
use proto::id::ClusterName;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber, SubjectPublicKeyInfo,
};
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::public::{Ed25519PublicKey, KeyData};
use russh::keys::ssh_key::{Algorithm, Signature};
use russh::keys::{PrivateKey, PublicKey, signature};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::claims::{self, HostClaims, UserClaims};
use crate::keys;
use crate::names::{self, HostAddress};

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

/// An X.509 authority, ECDSA P-256.
#[derive(Debug)]
pub struct TlsAuthority {
    kind: AuthorityKind,
    signer: Box<dyn Signer>,
    certificate_pem: String,
    certificate_der: CertificateDer<'static>,
    valid_until: i64,
}

impl TlsAuthority {
    /// A new authority: its key as PKCS#8 PEM (to be stored 0600) and its self-signed certificate as PEM, valid ten years.
    ///
    /// # Errors
    /// Key generation fails.
    pub fn generate(
        kind: AuthorityKind,
        cluster: &ClusterName,
        now: i64,
    ) -> Result<(Zeroizing<String>, String), AuthorityError> {
        let key = keys::tls_generate().map_err(signing)?;
        let mut params = params(
            &authority_name(cluster.as_str(), kind),
            Validity { not_before: now, not_after: now.saturating_add(AUTHORITY_SECONDS) },
        )?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::CrlSign,
        ];
        let certificate = params.self_signed(&key).map_err(signing)?;
        Ok((Zeroizing::new(key.serialize_pem()), certificate.pem()))
    }
    /// From what [`Self::generate`] gave.
    ///
    /// # Errors
    /// Not such material, or key and certificate don't belong together.
    pub fn load(
        kind: AuthorityKind,
        key_pem: &str,
        certificate_pem: &str,
    ) -> Result<Self, AuthorityError> {
        let key = keys::tls_parse(key_pem).map_err(material)?;
        Self::with_signer(kind, Box::new(FileTlsSigner(key)), certificate_pem)
    }
    /// As [`Self::load`], with a key that is elsewhere.
    ///
    /// # Errors
    /// Not such a certificate, or key and certificate don't belong together.
    pub fn with_signer(
        kind: AuthorityKind,
        signer: Box<dyn Signer>,
        certificate_pem: &str,
    ) -> Result<Self, AuthorityError> {
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(material)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(material)?;
        if parsed.public_key().subject_public_key.data.as_ref() != signer.public_key() {
            return Err(material("the key does not belong to the certificate"));
        }
        let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let of_kind = name.is_some_and(|name| name.ends_with(&authority_name("", kind)));
        if !parsed.is_ca() || !of_kind {
            return Err(material(format!("not a {} authority's certificate", kind.as_str())));
        }
        let valid_until = parsed.validity().not_after.timestamp();
        Ok(Self {
            kind,
            signer,
            certificate_pem: certificate_pem.to_owned(),
            certificate_der: der,
            valid_until,
        })
    }
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }
    /// Unix seconds.
    pub fn valid_until(&self) -> i64 {
        self.valid_until
    }
    /// Signs a person's client certificate (leaf PEM only). `spki` is DER SubjectPublicKeyInfo and must be P-256.
    ///
    /// # Errors
    /// Wrong kind of authority or key.
    pub fn issue_user(
        &self,
        claims: &UserClaims,
        spki: &[u8],
        validity: Validity,
    ) -> Result<String, AuthorityError> {
        self.kind.expect(AuthorityKind::User)?;
        let json = claims::encode(claims).map_err(AuthorityError::Request)?;
        let mut params =
            self.leaf(claims.user.as_str(), claims::USER_CLAIMS_OID, json, validity)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign_leaf(&params, spki)
    }
    /// Signs a machine's certificate (server and client use), leaf PEM followed by the authority's PEM, so that a client
    /// with only a pin can check the chain. SANs: `<host_id>.<cluster>`, `<nodename>.<cluster>`, for each role
    /// `<role>.<cluster>`, and `names` (DNS names or IP addresses).
    ///
    /// # Errors
    /// Wrong kind of authority or key, or a name that is no DNS name or address, is reserved for a role that the machine
    /// does not have, or is shaped like another machine's id.
    pub fn issue_host(
        &self,
        claims: &HostClaims,
        names: &[String],
        spki: &[u8],
        validity: Validity,
    ) -> Result<String, AuthorityError> {
        self.kind.expect(AuthorityKind::Host)?;
        let json = claims::encode(claims).map_err(AuthorityError::Request)?;
        let mut params =
            self.leaf(claims.host_id.as_str(), claims::HOST_CLAIMS_OID, json, validity)?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        for name in names::tls_names(claims, names).map_err(AuthorityError::Request)? {
            params.subject_alt_names.push(match name {
                HostAddress::Dns(name) => SanType::DnsName(name.try_into().map_err(signing)?),
                HostAddress::Ip(address) => SanType::IpAddress(address),
            });
        }
        Ok(self.sign_leaf(&params, spki)? + &self.certificate_pem)
    }
    /// Signs bytes of our own with a context prefix, such as the policy snapshot: ECDSA P-256/SHA-256, ASN.1.
    ///
    /// # Errors
    /// The signer refuses.
    pub fn sign(&self, context: &[u8], message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        self.signer.sign(&[context, message].concat())
    }

    /// What both kinds of leaf have in common.
    fn leaf(
        &self,
        name: &str,
        claims_oid: &[u64],
        claims_json: String,
        validity: Validity,
    ) -> Result<CertificateParams, AuthorityError> {
        let not_after = validity.not_after.min(self.valid_until);
        let mut params = params(name, Validity { not_after, ..validity })?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let claims = CustomExtension::from_oid_content(claims_oid, claims_json.into_bytes());
        params.custom_extensions = vec![claims];
        Ok(params)
    }

    fn sign_leaf(&self, params: &CertificateParams, spki: &[u8]) -> Result<String, AuthorityError> {
        let key = requester_key(spki)?;
        let signer = RcgenSigner(&*self.signer);
        let issuer = Issuer::from_ca_cert_der(&self.certificate_der, signer).map_err(signing)?;
        Ok(params.signed_by(&key, &issuer).map_err(signing)?.pem())
    }
}

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

/// The built-in TLS signer: a key from a file.
struct FileTlsSigner(rcgen::KeyPair);

impl std::fmt::Debug for FileTlsSigner {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("FileTlsSigner(..)")
    }
}

impl Signer for FileTlsSigner {
    fn public_key(&self) -> &[u8] {
        self.0.public_key_raw()
    }
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        rcgen::SigningKey::sign(&self.0, message).map_err(signing)
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

/// [`Signer`] as rcgen wants it.
struct RcgenSigner<'a>(&'a dyn Signer);

impl PublicKeyData for RcgenSigner<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for RcgenSigner<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        // rcgen has one error for keys that are elsewhere, without a text.
        self.0.sign(message).map_err(|_| rcgen::Error::RemoteKeyError)
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

/// Subject, serial and validity. The serial is random: rcgen's default would be the same for each renewal of one key.
fn params(name: &str, validity: Validity) -> Result<CertificateParams, AuthorityError> {
    let validity = checked(validity)?;
    let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(signing);
    let mut serial = [0; SERIAL_BYTES];
    random(&mut serial)?;
    // Positive and of full length (RFC 5280, section 4.1.2.2).
    if let Some(first) = serial.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    params.not_before = time(validity.not_before)?;
    params.not_after = time(validity.not_after)?;
    Ok(params)
}

/// The validity that goes into the certificate.
fn checked(validity: Validity) -> Result<Validity, AuthorityError> {
    if validity.not_after <= validity.not_before {
        return Err(AuthorityError::Request("it would end before it begins"));
    }
    let not_before = validity.not_before.saturating_sub(CLOCK_BEHIND_SECONDS);
    Ok(Validity { not_before, not_after: validity.not_after })
}

/// A requester's key: P-256, and really a point on the curve.
fn requester_key(spki: &[u8]) -> Result<SubjectPublicKeyInfo, AuthorityError> {
    let key = SubjectPublicKeyInfo::from_der(spki)
        .map_err(|_| AuthorityError::RequesterKey("not a DER SubjectPublicKeyInfo"))?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(AuthorityError::RequesterKey("not an ECDSA P-256 key"));
    }
    let parsed = aws_signature::ParsedPublicKey::new(
        &aws_signature::ECDSA_P256_SHA256_ASN1,
        key.der_bytes(),
    );
    parsed.map_err(|_| AuthorityError::RequesterKey("not a point of P-256"))?;
    Ok(key)
}

fn authority_name(cluster: &str, kind: AuthorityKind) -> String {
    format!("{cluster} {} authority", kind.as_str())
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
/// Ten years: rotation is an operation, not a calendar event.
const AUTHORITY_SECONDS: i64 = 10 * 365 * 24 * 3600;
/// 128 bits: RFC 5280 allows 160; unguessable serials keep hash-collision forgeries out.
const SERIAL_BYTES: usize = 16;
/// OpenSSH refuses certificates with more (`SSHKEY_CERT_MAX_PRINCIPALS`, sshkey.h).
const SSH_PRINCIPALS_MAX: usize = 256;
