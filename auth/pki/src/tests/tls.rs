//! TLS certificates.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;

use super::{Cluster, FOR_AN_HOUR, HOUR, NOW, Tls, alice, cluster, keys, web1};
use crate::authority::{AuthorityError, AuthorityKind, Signer, TlsAuthority, Validity};
use crate::claims::{CLAIMS_BYTES_MAX, HOST_CLAIMS_OID, USER_CLAIMS_OID};
use crate::identity::Identity;
use crate::verify::{IdentityError, Verifier, ca_pin};

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

fn user_pem(ours: &Cluster, validity: Validity) -> String {
    ours.user_tls.authority.issue_user(&alice(), &keys().tls_spki(), validity).unwrap()
}

/// A leaf that says what its maker likes.
#[derive(Clone)]
struct Forgery {
    extensions: Vec<CustomExtension>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    is_ca: IsCa,
}

impl Forgery {
    fn new(extensions: &[(&[u64], &str)]) -> Self {
        let extension = |(oid, text): &(&[u64], &str)| {
            CustomExtension::from_oid_content(oid, text.as_bytes().to_vec())
        };
        Self {
            extensions: extensions.iter().map(extension).collect(),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
            is_ca: IsCa::ExplicitNoCa,
        }
    }

    fn signed(&self, by: &Tls) -> Vec<CertificateDer<'static>> {
        let authority = KeyPair::from_pem(&by.key_pem).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&by.certificate_pem, authority).unwrap();
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::from_unix_timestamp(NOW).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(NOW + HOUR).unwrap();
        params.custom_extensions = self.extensions.clone();
        params.extended_key_usages = self.usages.clone();
        params.is_ca = self.is_ca;
        let key = KeyPair::generate().unwrap();
        vec![params.signed_by(&key, &issuer).unwrap().der().clone()]
    }
}

fn json<C: serde::Serialize>(claims: &C) -> String {
    serde_json::to_string(claims).unwrap()
}

#[test]
fn users_round_trip() {
    let ours = Cluster::new();
    let chain = chain(&user_pem(&ours, FOR_AN_HOUR));
    assert_eq!(chain.len(), 1);
    let Identity::User(identity) = ours.verifier().tls_peer(&chain, NOW).unwrap() else {
        panic!("not a user");
    };
    assert_eq!(identity.user().as_str(), "alice");
    assert_eq!(identity.cluster(), &cluster());
    assert_eq!(identity.roles(), alice().roles);
    assert_eq!(identity.traits(), &alice().traits);
    assert_eq!(identity.logins(), alice().logins);
    assert_eq!(identity.valid_until(), NOW + HOUR);
}

#[test]
fn hosts_round_trip_and_answer_to_their_names() {
    let ours = Cluster::new();
    let names = ["proxy.test".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let spki = keys().tls_spki();
    let pem = ours.host_tls.authority.issue_host(&web1(), &names, &spki, FOR_AN_HOUR).unwrap();
    let chain = chain(&pem);
    assert_eq!(chain.len(), 2);
    let Identity::Host(identity) = ours.verifier().tls_peer(&chain, NOW).unwrap() else {
        panic!("not a host");
    };
    assert_eq!(identity.host_id(), &web1().host_id);
    assert_eq!(identity.nodename().as_str(), "web1");
    assert_eq!(identity.roles(), web1().roles);
    assert_eq!(identity.valid_until(), NOW + HOUR);

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Arc::new(ours.verifier().host_roots());
    let client = WebPkiServerVerifier::builder_with_provider(roots, provider).build().unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW as u64));
    let check = |name: &str, expect: bool| {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let got = client.verify_server_cert(&chain[0], &chain[1..], &name, &[], now);
        assert_eq!(got.is_ok(), expect, "{name:?}: {got:?}");
    };
    check(&format!("{}.example.com", web1().host_id), true);
    check("web1.example.com", true);
    check("node.example.com", true);
    check("proxy.test", true);
    check("127.0.0.1", true);
    check("::1", true);
    check("auth.example.com", false);
    check("web2.example.com", false);
    check("127.0.0.2", false);
}

#[test]
fn a_users_certificate_is_no_server() {
    let ours = Cluster::new();
    let chain = chain(&user_pem(&ours, FOR_AN_HOUR));
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    assert!(leaf.subject_alternative_name().unwrap().is_none());
    assert!(!leaf.is_ca());
}

#[test]
fn time_is_checked_at_both_ends() {
    let ours = Cluster::new();
    let (verifier, chain) = (ours.verifier(), chain(&user_pem(&ours, FOR_AN_HOUR)));
    let check = |now: i64, expect: Option<IdentityError>| {
        assert_eq!(verifier.tls_peer(&chain, now).err(), expect, "{}", now - NOW);
    };
    check(NOW - 61, Some(IdentityError::NotYetValid));
    check(NOW - 60, None);
    check(NOW + HOUR - 1, None);
    check(NOW + HOUR + 1, Some(IdentityError::Expired));
    check(0, Some(IdentityError::NotYetValid));
    check(-1, Some(IdentityError::NotYetValid));
    check(i64::MIN, Some(IdentityError::NotYetValid));
    check(i64::MAX, Some(IdentityError::Expired));
}

#[test]
fn nothing_outlives_its_authority() {
    let ours = Cluster::new();
    let end = ours.user_tls.authority.valid_until();
    assert_eq!(end, NOW + 10 * 365 * 24 * HOUR);
    let chain = chain(&user_pem(&ours, Validity { not_before: NOW, not_after: end + HOUR }));
    let Ok(Identity::User(identity)) = ours.verifier().tls_peer(&chain, NOW) else {
        panic!("not a user");
    };
    assert_eq!(identity.valid_until(), end);
}

#[test]
fn foreign_authorities_are_unknown() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let unknown = Some(IdentityError::UnknownAuthority);
    // Theirs have the same names as ours.
    let foreign = chain(&user_pem(&theirs, FOR_AN_HOUR));
    assert_eq!(ours.verifier().tls_peer(&foreign, NOW).err(), unknown);
    // Sending their authority along does not help.
    let with_theirs = [foreign, chain(&theirs.user_tls.certificate_pem)].concat();
    assert_eq!(ours.verifier().tls_peer(&with_theirs, NOW).err(), unknown);
    let nobody = Verifier::new(&cluster(), &Default::default()).unwrap();
    let own = chain(&user_pem(&ours, FOR_AN_HOUR));
    assert_eq!(nobody.tls_peer(&own, NOW).err(), unknown);
    assert!(nobody.client_roots().is_empty());
}

#[test]
fn rotation_knows_the_old_and_the_new() {
    let (old, new) = (Cluster::new(), Cluster::new());
    let mut authorities = old.authorities();
    authorities.user_tls.push(new.user_tls.certificate_pem.clone());
    authorities.host_tls.push(new.host_tls.certificate_pem.clone());
    let both = Verifier::new(&cluster(), &authorities).unwrap();
    for cluster in [&old, &new] {
        assert!(both.tls_peer(&chain(&user_pem(cluster, FOR_AN_HOUR)), NOW).is_ok());
        let signature = cluster.host_tls.authority.sign(b"c", b"m").unwrap();
        assert_eq!(both.signed_by_host_authority(b"c", b"m", &signature), Ok(()));
    }
    assert_eq!(both.client_roots().len(), 4);
    assert_eq!(both.host_roots().len(), 2);
}

#[test]
fn another_clusters_name_is_refused() {
    let ours = Cluster::new();
    let other = Verifier::new(&"example.org".parse().unwrap(), &ours.authorities()).unwrap();
    let expect = Some(IdentityError::Cluster("example.com".into()));
    assert_eq!(other.tls_peer(&chain(&user_pem(&ours, FOR_AN_HOUR)), NOW).err(), expect);
    let spki = keys().tls_spki();
    let host = ours.host_tls.authority.issue_host(&web1(), &[], &spki, FOR_AN_HOUR).unwrap();
    assert_eq!(other.tls_peer(&chain(&host), NOW).err(), expect);
}

#[test]
fn claims_must_be_those_of_the_authoritys_kind() {
    let ours = Cluster::new();
    let (user, host) = (json(&alice()), json(&web1()));
    let check = |by: &Tls, forgery: Forgery, expect: &str| {
        let got = match ours.verifier().tls_peer(&forgery.signed(by), NOW) {
            Ok(_) => "identity".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(expect), "{got:?} without {expect:?}");
    };
    let (of_user, of_host) = ((USER_CLAIMS_OID, &*user), (HOST_CLAIMS_OID, &*host));
    // The forgery itself is good: what follows fails for what it changes.
    check(&ours.user_tls, Forgery::new(&[of_user]), "identity");
    check(&ours.host_tls, Forgery::new(&[of_host]), "identity");
    check(&ours.host_tls, Forgery::new(&[of_user]), "a user certificate where a host");
    check(&ours.user_tls, Forgery::new(&[of_host]), "a host certificate where a user");
    check(&ours.user_tls, Forgery::new(&[of_user, of_host]), "a host certificate where a user");
    check(&ours.user_tls, Forgery::new(&[of_user, of_user]), "it has several claims");
    check(&ours.user_tls, Forgery::new(&[]), "it has no claims");
    check(&ours.user_tls, Forgery::new(&[(USER_CLAIMS_OID, &host)]), "not readable");
    check(&ours.user_tls, Forgery::new(&[(USER_CLAIMS_OID, "")]), "not readable");
    let more = user.replacen('{', r#"{"source_address":"10.0.0.1","#, 1);
    check(&ours.user_tls, Forgery::new(&[(USER_CLAIMS_OID, &more)]), "not readable");
    let trailing = format!("{user} x");
    check(&ours.user_tls, Forgery::new(&[(USER_CLAIMS_OID, &trailing)]), "not readable");
    let long = format!("{user}{}", " ".repeat(CLAIMS_BYTES_MAX));
    check(&ours.user_tls, Forgery::new(&[(USER_CLAIMS_OID, &long)]), "too long");

    let mut critical = Forgery::new(&[of_user]);
    critical.extensions[0].set_criticality(true);
    check(&ours.user_tls, critical, "does not verify");
    let mut server = Forgery::new(&[of_user]);
    server.usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    check(&ours.user_tls, server, "does not verify");
    let mut authority = Forgery::new(&[of_user]);
    authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    check(&ours.user_tls, authority, "does not verify");
}

#[test]
fn chains_are_short_and_authorities_have_no_heirs() {
    let ours = Cluster::new();
    let check = |chain: &[CertificateDer<'_>]| {
        let error = ours.verifier().tls_peer(chain, NOW).unwrap_err();
        assert_eq!(error.kind(), "malformed", "{error}");
    };
    check(&[]);
    let leaf = chain(&user_pem(&ours, FOR_AN_HOUR));
    let authority = chain(&ours.user_tls.certificate_pem);
    check(&[leaf.clone(), authority.clone(), authority.clone(), authority.clone()].concat());
    // The authority's own certificate is nobody's.
    check(&authority);
    check(&[CertificateDer::from(b"junk".to_vec())]);

    // A user's key signs another "user".
    let key = KeyPair::generate().unwrap();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let own = ours.user_tls.authority.issue_user(&alice(), &spki, FOR_AN_HOUR).unwrap();
    // rcgen asks an issuer's certificate whether it may sign; a forger does not.
    let mut as_issuer = CertificateParams::default();
    as_issuer.distinguished_name = rcgen::DistinguishedName::new();
    as_issuer.distinguished_name.push(rcgen::DnType::CommonName, "alice");
    let issuer = Issuer::new(as_issuer, &key);
    let mut params = CertificateParams::default();
    let mut claims = alice();
    claims.user = "root".parse().unwrap();
    let claims = json(&claims).into_bytes();
    params.custom_extensions = vec![CustomExtension::from_oid_content(USER_CLAIMS_OID, claims)];
    params.not_before = OffsetDateTime::from_unix_timestamp(NOW).unwrap();
    params.not_after = OffsetDateTime::from_unix_timestamp(NOW + HOUR).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let forged = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
    check(&[vec![forged.der().clone()], chain(&own)].concat());
}

#[test]
fn requests_that_are_refused() {
    let ours = Cluster::new();
    let (user, host) = (&ours.user_tls.authority, &ours.host_tls.authority);
    let good = keys().tls_spki();
    fn check(got: Result<String, AuthorityError>, expect: &str) {
        let error = got.unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} without {expect:?}");
    }
    check(host.issue_user(&alice(), &good, FOR_AN_HOUR), "other kind");
    check(user.issue_host(&web1(), &[], &good, FOR_AN_HOUR), "other kind");
    check(user.issue_user(&alice(), b"", FOR_AN_HOUR), "SubjectPublicKeyInfo");
    let trailing = [&*good, b"x"].concat();
    check(user.issue_user(&alice(), &trailing, FOR_AN_HOUR), "SubjectPublicKeyInfo");
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = rcgen::PublicKeyData::subject_public_key_info(&p384);
    check(user.issue_user(&alice(), &p384, FOR_AN_HOUR), "not an ECDSA P-256 key");
    let mut off_curve = good.clone();
    *off_curve.last_mut().unwrap() ^= 1;
    check(user.issue_user(&alice(), &off_curve, FOR_AN_HOUR), "not a point");
    let backwards = Validity { not_before: NOW, not_after: NOW };
    check(user.issue_user(&alice(), &good, backwards), "end before it begins");
    let mut large = alice();
    large.traits.insert("x".into(), vec!["y".repeat(CLAIMS_BYTES_MAX)]);
    check(user.issue_user(&large, &good, FOR_AN_HOUR), "too long");
    let mut auth = web1();
    auth.nodename = "auth".parse().unwrap();
    check(host.issue_host(&auth, &[], &good, FOR_AN_HOUR), "reserved for a role");
    check(host.issue_host(&web1(), &["*.x".into()], &good, FOR_AN_HOUR), "DNS name");
}

#[test]
fn each_certificate_has_its_own_serial() {
    let ours = Cluster::new();
    let spki = keys().tls_spki();
    let serial = || {
        let pem = ours.user_tls.authority.issue_user(&alice(), &spki, FOR_AN_HOUR).unwrap();
        let chain = chain(&pem);
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        leaf.raw_serial().to_vec()
    };
    let (one, two) = (serial(), serial());
    assert_ne!(one, two);
    assert_eq!((one.len(), two.len()), (16, 16));
}

/// A key that is in a device which is out of order.
#[derive(Debug)]
struct Broken(Vec<u8>);

impl Signer for Broken {
    fn public_key(&self) -> &[u8] {
        &self.0
    }
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        Err(AuthorityError::Signing("out of order".into()))
    }
}

#[test]
fn keys_are_used_through_the_signer_only() {
    let ours = Tls::new(AuthorityKind::User);
    let point = KeyPair::from_pem(&ours.key_pem).unwrap().public_key_raw().to_vec();
    let load = |point| {
        let signer = Box::new(Broken(point));
        TlsAuthority::with_signer(AuthorityKind::User, signer, &ours.certificate_pem)
    };
    assert!(load(vec![4; 65]).is_err());
    let broken = load(point).unwrap();
    let issued = broken.issue_user(&alice(), &keys().tls_spki(), FOR_AN_HOUR);
    assert!(matches!(issued, Err(AuthorityError::Signing(_))), "{issued:?}");
    assert!(broken.sign(b"c", b"m").is_err());
}

#[test]
fn signed_bytes_are_refused_when_altered() {
    let ours = Cluster::new();
    let (verifier, host) = (ours.verifier(), &ours.host_tls.authority);
    let signature = host.sign(b"context\0", b"payload").unwrap();
    let check = |context: &[u8], message: &[u8], signature: &[u8], expect: bool| {
        let got = verifier.signed_by_host_authority(context, message, signature);
        assert_eq!(got.is_ok(), expect, "{context:?} {message:?}");
    };
    check(b"context\0", b"payload", &signature, true);
    check(b"context\0", b"paYload", &signature, false);
    check(b"kontext\0", b"payload", &signature, false);
    check(b"context\0", b"payload", b"", false);
    for index in 0..signature.len() {
        let mut altered = signature.clone();
        altered[index] ^= 1;
        check(b"context\0", b"payload", &altered, false);
    }
    assert!(host.sign(b"", b"payload").is_err());
    assert!(host.sign(b"\x30\x82", b"payload").is_err());
    let by_user = ours.user_tls.authority.sign(b"context\0", b"payload").unwrap();
    check(b"context\0", b"payload", &by_user, false);
}

#[test]
fn pins_are_those_of_openssl() {
    // openssl x509 -pubkey -noout | openssl pkey -pubin -outform DER | sha256sum
    const PEM: &str = include_str!("pin.pem");
    const PIN: &str = include_str!("pin.txt");
    assert_eq!(ca_pin(PEM).unwrap(), PIN.trim_end());
    assert!(ca_pin("x").is_err());
    let ours = Cluster::new();
    let pin = ca_pin(&ours.host_tls.certificate_pem).unwrap();
    assert_eq!(ca_pin(&ours.host_tls.certificate_pem).unwrap(), pin);
    assert_ne!(ca_pin(&ours.user_tls.certificate_pem).unwrap(), pin);
}
