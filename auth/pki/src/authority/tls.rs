//! The X.509 authority: user and host leaves, and signatures over bytes of our own. Profiles after RFC 5280.

use aws_lc_rs::signature as aws_signature;
use proto::id::ClusterName;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{AuthorityError, AuthorityKind, Signer, Validity, checked, material, random, signing};
use crate::claims::{self, HostClaims, UserClaims};
use crate::keys;
use crate::names::{self, HostAddress};

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
    /// The signer refuses, or the context is none: empty, or it could begin a certificate.
    pub fn sign(&self, context: &[u8], message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        // This key also signs certificates, whose signed part begins with a DER SEQUENCE.
        if context.first().is_none_or(|first| *first == DER_SEQUENCE) {
            return Err(AuthorityError::Request("no context to sign in"));
        }
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

/// Ten years: rotation is an operation, not a calendar event.
const AUTHORITY_SECONDS: i64 = 10 * 365 * 24 * 3600;
/// 128 bits: RFC 5280 allows 160; unguessable serials keep hash-collision forgeries out.
const SERIAL_BYTES: usize = 16;
/// Tag of a DER SEQUENCE (ITU-T X.690, section 8.9).
const DER_SEQUENCE: u8 = 0x30;
