//! Certificate in, identity out. Each check fails closed; time is an argument. That the peer holds the certificate's key
//! is TLS' and SSH's handshake's business; what the identity may do is decided by the `policy` crate, which comes next.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use proto::id::ClusterName;
use proto::id::Login;
use proto::snapshot::Authorities;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, RootCertStore};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::Oid;

use crate::authority::AuthorityKind;
use crate::claims::{self, HostClaims, UserClaims};
use crate::identity::{HostIdentity, Identity, UserIdentity};
use crate::known::KnownClients;
use crate::source_address;

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

impl IdentityError {
    /// For metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cluster(_) => "cluster",
            Self::Expired => "expired",
            Self::Malformed(_) => "malformed",
            Self::NotYetValid => "not_yet_valid",
            Self::Principal(_) => "principal",
            Self::SourceAddress(_) => "source_address",
            Self::UnknownCriticalOption(_) => "unknown_critical_option",
            Self::UnknownAuthority => "unknown_authority",
            Self::WrongKind { .. } => "wrong_kind",
        }
    }
}

/// Checks certificates against one cluster's authorities.
#[derive(Debug, Clone)]
pub struct Verifier {
    cluster: ClusterName,
    user_tls: TlsRoots,
    host_tls: TlsRoots,
    user_ssh: Vec<PublicKey>,
    host_ssh: Vec<PublicKey>,
}

impl Verifier {
    /// A kind without any authority is possible: then no certificate of that kind is good.
    ///
    /// # Errors
    /// An authority's text is not a certificate or a key: the message says which. Or one key is for both kinds.
    pub fn new(cluster: &ClusterName, authorities: &Authorities) -> Result<Self, String> {
        let verifier = Self {
            cluster: cluster.clone(),
            user_tls: TlsRoots::new("user_tls", &authorities.user_tls)?,
            host_tls: TlsRoots::new("host_tls", &authorities.host_tls)?,
            user_ssh: ssh_keys("user_ssh", &authorities.user_ssh)?,
            host_ssh: ssh_keys("host_ssh", &authorities.host_ssh)?,
        };
        let shared_tls =
            verifier.user_tls.points.iter().any(|p| verifier.host_tls.points.contains(p));
        let shared_ssh = verifier.user_ssh.iter().any(|key| verifier.host_ssh.contains(key));
        if shared_tls || shared_ssh {
            return Err("one authority's key stands for users and for hosts".into());
        }
        Ok(verifier)
    }
    /// The holder of a TLS client or server certificate. The *chain* is checked here again, against the user and the host
    /// authority separately, so that neither can vouch for the other's kind.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn tls_peer(
        &self,
        chain: &[CertificateDer<'_>],
        now: i64,
    ) -> Result<Identity, IdentityError> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(IdentityError::Malformed("there is no certificate"));
        };
        if chain.len() > CHAIN_LENGTH_MAX {
            return Err(IdentityError::Malformed("its chain is too long"));
        }
        let kind = match self.user_tls.check(leaf, intermediates, now) {
            Ok(()) => AuthorityKind::User,
            Err(IdentityError::UnknownAuthority) => {
                self.host_tls.check(leaf, intermediates, now)?;
                AuthorityKind::Host
            }
            Err(error) => return Err(error),
        };
        let (_, leaf) = x509_parser::parse_x509_certificate(leaf)
            .map_err(|_| IdentityError::Malformed("it is no X.509 certificate"))?;
        let valid_until = leaf.validity().not_after.timestamp();
        match kind {
            AuthorityKind::User => {
                let claims: UserClaims = tls_claims(&leaf, kind)?;
                self.same_cluster(&claims.cluster)?;
                Ok(Identity::User(UserIdentity::new(claims, valid_until)))
            }
            AuthorityKind::Host => {
                let claims: HostClaims = tls_claims(&leaf, kind)?;
                self.same_cluster(&claims.cluster)?;
                Ok(Identity::Host(HostIdentity::new(claims, valid_until)))
            }
        }
    }
    /// A person who proved possession of the certificate's key over SSH and asks for `login` from `from`.
    /// Checks authority, signature, time, type, principal, critical options (`source-address` is honoured, `force-command`
    /// and unknown ones are refused), cluster.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn ssh_user(
        &self,
        certificate: &Certificate,
        login: &Login,
        from: Option<IpAddr>,
        now: i64,
    ) -> Result<UserIdentity, IdentityError> {
        let identity = self.ssh_user_any_login(certificate, from, now)?;
        let principal = certificate.valid_principals().iter().any(|p| p == login.as_str());
        if !principal || !identity.logins().contains(login) {
            return Err(IdentityError::Principal(login.to_string()));
        }
        Ok(identity)
    }
    /// As [`Self::ssh_user`], for the jump host, where no account is entered: any principal will do.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn ssh_user_any_login(
        &self,
        certificate: &Certificate,
        from: Option<IpAddr>,
        now: i64,
    ) -> Result<UserIdentity, IdentityError> {
        let valid_until = ssh_check(certificate, AuthorityKind::User, &self.user_ssh, now)?;
        for (name, value) in certificate.critical_options().iter() {
            if name != "source-address" {
                return Err(IdentityError::UnknownCriticalOption(name.clone()));
            }
            let address = from.map_or("an unknown address".into(), |from| from.to_string());
            match from.map(|from| source_address::allows(value, from)) {
                Some(Some(true)) => {}
                Some(None) => return Err(IdentityError::Malformed("its list of source addresses")),
                Some(Some(false)) | None => return Err(IdentityError::SourceAddress(address)),
            }
        }
        let claims: UserClaims = ssh_claims(certificate)?;
        self.same_cluster(&claims.cluster)?;
        if claims.user.as_str() != certificate.key_id() {
            return Err(IdentityError::Malformed("its key id and its claims disagree"));
        }
        Ok(UserIdentity::new(claims, valid_until))
    }
    /// A machine that proved possession of its host certificate's key, expected under the name `principal`.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn ssh_host(
        &self,
        certificate: &Certificate,
        principal: &str,
        now: i64,
    ) -> Result<HostIdentity, IdentityError> {
        let valid_until = ssh_check(certificate, AuthorityKind::Host, &self.host_ssh, now)?;
        if let Some(name) = certificate.critical_options().keys().next() {
            return Err(IdentityError::UnknownCriticalOption(name.clone()));
        }
        let claims: HostClaims = ssh_claims(certificate)?;
        self.same_cluster(&claims.cluster)?;
        if claims.host_id.as_str() != certificate.key_id() {
            return Err(IdentityError::Malformed("its key id and its claims disagree"));
        }
        if !certificate.valid_principals().iter().any(|p| p == principal) {
            return Err(IdentityError::Principal(principal.to_owned()));
        }
        Ok(HostIdentity::new(claims, valid_until))
    }
    /// Whether the host TLS authority signed `context || message`.
    ///
    /// # Errors
    /// It did not.
    pub fn signed_by_host_authority(
        &self,
        context: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), IdentityError> {
        let signed = [context, message].concat();
        let good = self.host_tls.points.iter().any(|point| {
            ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
                .is_ok_and(|key| key.verify_sig(&signed, signature).is_ok())
        });
        if good { Ok(()) } else { Err(IdentityError::UnknownAuthority) }
    }
    /// Root store of the host authority, for rustls.
    pub fn host_roots(&self) -> rustls::RootCertStore {
        (*self.host_tls.store).clone()
    }
    /// Root store of both authorities, for rustls' client verifier.
    pub fn client_roots(&self) -> rustls::RootCertStore {
        let mut store = (*self.user_tls.store).clone();
        store.extend(self.host_tls.store.roots.iter().cloned());
        store
    }
    /// `@cert-authority` line for `known_hosts`: `patterns` joined by commas. While the host authority is rotated there
    /// are several lines. No line end after the last. Patterns that could break out of the field are left out.
    pub fn known_hosts_line(&self, patterns: &[String]) -> String {
        let plain =
            |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_graphic() && b != b',');
        let patterns: Vec<_> = patterns.iter().map(String::as_str).filter(plain).collect();
        if patterns.is_empty() {
            return String::new();
        }
        let patterns = patterns.join(",");
        let keys = self.host_ssh.iter().filter_map(|key| key.to_openssh().ok());
        let lines: Vec<_> = keys.map(|key| format!("@cert-authority {patterns} {key}")).collect();
        lines.join("\n")
    }

    fn same_cluster(&self, cluster: &ClusterName) -> Result<(), IdentityError> {
        if *cluster == self.cluster {
            return Ok(());
        }
        Err(IdentityError::Cluster(cluster.to_string()))
    }
}

/// `sha256:<hex>` of the SubjectPublicKeyInfo of an authority's certificate: what `--ca-pin` takes.
///
/// # Errors
/// Not a certificate.
pub fn ca_pin(certificate_pem: &str) -> Result<String, String> {
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
        .map_err(|_| "not a PEM certificate")?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&der).map_err(|_| "not an X.509 certificate")?;
    Ok(format!("sha256:{}", hex::encode(Sha256::digest(parsed.public_key().raw))))
}

/// The TLS authorities of one kind.
#[derive(Debug, Clone)]
struct TlsRoots {
    store: Arc<RootCertStore>,
    /// The authorities' public keys: uncompressed P-256 points.
    points: Vec<Vec<u8>>,
    /// None without any authority: rustls makes no verifier without roots.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl TlsRoots {
    fn new(list: &str, pems: &[String]) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        let mut points = Vec::with_capacity(pems.len());
        for (index, pem) in pems.iter().enumerate() {
            let bad = |why: &str| format!("authority {index} of {list}: {why}");
            let der = CertificateDer::from_pem_slice(pem.as_bytes())
                .map_err(|_| bad("not a PEM certificate"))?;
            let (_, parsed) = x509_parser::parse_x509_certificate(&der)
                .map_err(|_| bad("not an X.509 certificate"))?;
            let point = parsed.public_key().subject_public_key.data.to_vec();
            if !parsed.is_ca() || ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &point).is_err() {
                return Err(bad("not a P-256 authority's certificate"));
            }
            store.add(der.clone()).map_err(|_| bad("not usable as a root"))?;
            points.push(point);
        }
        let store = Arc::new(store);
        let verifier = if points.is_empty() { None } else { Some(webpki_verifier(&store)?) };
        Ok(Self { store, points, verifier })
    }

    /// Whether the leaf descends from one of these authorities and is valid now.
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: i64,
    ) -> Result<(), IdentityError> {
        // A clock before 1970 finds every certificate not yet valid.
        let now = Duration::from_secs(u64::try_from(now).unwrap_or(0));
        let Some(verifier) = &self.verifier else {
            return Err(IdentityError::UnknownAuthority);
        };
        verifier
            .verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(now))
            .map(|_| ())
            .map_err(|error| chain_error(&error))
    }
}

fn webpki_verifier(store: &Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(store), provider);
    let verifier = builder.build().map_err(|error| error.to_string())?;
    Ok(Arc::new(KnownClients::new(verifier)))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "rustls may add errors; each is a refusal")]
fn chain_error(error: &rustls::Error) -> IdentityError {
    let rustls::Error::InvalidCertificate(error) = error else {
        return IdentityError::Malformed("its chain can't be checked");
    };
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            IdentityError::Expired
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            IdentityError::NotYetValid
        }
        // An authority of the same name with another key, or none of that name.
        CertificateError::BadSignature | CertificateError::UnknownIssuer => {
            IdentityError::UnknownAuthority
        }
        _ => IdentityError::Malformed("its chain does not verify"),
    }
}

/// The claims in a leaf of an authority of this kind: exactly one extension, and none of the other kind.
fn tls_claims<C: DeserializeOwned>(
    leaf: &X509Certificate<'_>,
    kind: AuthorityKind,
) -> Result<C, IdentityError> {
    let all = |oid: &[u64]| -> Result<Vec<&[u8]>, IdentityError> {
        let oid = Oid::from(oid).map_err(|_| IdentityError::Malformed("our own claims' number"))?;
        Ok(leaf.iter_extensions().filter(|e| e.oid == oid).map(|e| e.value).collect())
    };
    let (own, other) = match kind {
        AuthorityKind::Host => (claims::HOST_CLAIMS_OID, claims::USER_CLAIMS_OID),
        AuthorityKind::User => (claims::USER_CLAIMS_OID, claims::HOST_CLAIMS_OID),
    };
    if !all(other)?.is_empty() {
        return Err(wrong_kind(kind));
    }
    match all(own)?.as_slice() {
        [text] => claims::decode(text).map_err(IdentityError::Malformed),
        [] => Err(IdentityError::Malformed("it has no claims")),
        _ => Err(IdentityError::Malformed("it has several claims")),
    }
}

/// What both kinds of SSH certificate need: type, a known authority, its signature, time, principals. Gives the end.
fn ssh_check(
    certificate: &Certificate,
    kind: AuthorityKind,
    authorities: &[PublicKey],
    now: i64,
) -> Result<i64, IdentityError> {
    let cert_type = match kind {
        AuthorityKind::Host => CertType::Host,
        AuthorityKind::User => CertType::User,
    };
    if certificate.cert_type() != cert_type {
        return Err(wrong_kind(kind));
    }
    // Before any arithmetic: only keys of ours, which are Ed25519, are ever used to verify.
    let signer = certificate.signature_key();
    if !authorities.iter().any(|key| key.key_data() == signer) {
        return Err(IdentityError::UnknownAuthority);
    }
    if !matches!(certificate.public_key(), KeyData::Ed25519(_)) {
        return Err(IdentityError::Malformed("its key is not Ed25519"));
    }
    // This also refuses "forever".
    let Ok(valid_until) = i64::try_from(certificate.valid_before()) else {
        return Err(IdentityError::Malformed("it has no end"));
    };
    let Ok(valid_from) = i64::try_from(certificate.valid_after()) else {
        return Err(IdentityError::NotYetValid);
    };
    if valid_until <= valid_from {
        return Err(IdentityError::Malformed("it ends before it begins"));
    }
    // At its own beginning, so that only a wrong signature can fail here; the clock comes next.
    certificate
        .validate_at(certificate.valid_after(), &[signer.fingerprint(HashAlg::Sha256)])
        .map_err(|_| IdentityError::UnknownAuthority)?;
    if now < valid_from {
        return Err(IdentityError::NotYetValid);
    }
    if now >= valid_until {
        return Err(IdentityError::Expired);
    }
    // OpenSSH's meaning of an empty list is "everybody".
    if certificate.valid_principals().is_empty() {
        return Err(IdentityError::Malformed("it has no principals"));
    }
    Ok(valid_until)
}

fn ssh_claims<C: DeserializeOwned>(certificate: &Certificate) -> Result<C, IdentityError> {
    let Some(text) = certificate.extensions().get(claims::SSH_CLAIMS) else {
        return Err(IdentityError::Malformed("it has no claims"));
    };
    claims::decode(text.as_bytes()).map_err(IdentityError::Malformed)
}

fn ssh_keys(list: &str, lines: &[String]) -> Result<Vec<PublicKey>, String> {
    let parse = |(index, line): (usize, &String)| {
        let bad = || format!("authority {index} of {list}: not an Ed25519 OpenSSH public key");
        let key = PublicKey::from_openssh(line).map_err(|_| bad())?;
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(bad());
        }
        // Without the comment, which could carry anything into known_hosts.
        Ok(PublicKey::new(key.key_data().clone(), ""))
    };
    lines.iter().enumerate().map(parse).collect()
}

fn wrong_kind(expected: AuthorityKind) -> IdentityError {
    let found = match expected {
        AuthorityKind::Host => AuthorityKind::User,
        AuthorityKind::User => AuthorityKind::Host,
    };
    IdentityError::WrongKind { expected: expected.as_str(), found: found.as_str() }
}

/// Leaf and authority, and room for one between: peers choose the length, before they are known.
const CHAIN_LENGTH_MAX: usize = 3;
