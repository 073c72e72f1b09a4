//! Certificates from issue to identity, and every way in which they must give none. By subject:
//!
//! - [`tls`], [`ssh`]: round trips, and certificates that no authority of ours would make, made with rcgen and ssh-key
//! - [`mutation`]: bytes that are not certificates, or not any more
//!
//! This file: one cluster's authorities at a fixed time, and claims.

mod mutation;
mod ssh;
mod tls;

use proto::id::{ClusterName, HostId};
use proto::resource::HostRole;
use proto::snapshot::Authorities;
use zeroize::Zeroizing;

use crate::authority::{AuthorityKind, SshAuthority, TlsAuthority, Validity};
use crate::claims::{HostClaims, UserClaims};
use crate::keys::KeyPairs;
use crate::verify::Verifier;

const NOW: i64 = 1_800_000_000;
const HOUR: i64 = 3600;
const FOR_AN_HOUR: Validity = Validity { not_before: NOW, not_after: NOW + HOUR };

/// A TLS authority with the key that a thief of it would have.
struct Tls {
    key_pem: Zeroizing<String>,
    certificate_pem: String,
    authority: TlsAuthority,
}

impl Tls {
    fn new(kind: AuthorityKind) -> Self {
        let (key_pem, certificate_pem) = TlsAuthority::generate(kind, &cluster(), NOW).unwrap();
        let authority = TlsAuthority::load(kind, &key_pem, &certificate_pem).unwrap();
        Self { key_pem, certificate_pem, authority }
    }
}

/// An SSH authority, likewise.
struct Ssh {
    key: Zeroizing<String>,
    authority: SshAuthority,
}

impl Ssh {
    fn new(kind: AuthorityKind) -> Self {
        let key = SshAuthority::generate(kind).unwrap();
        let authority = SshAuthority::load(kind, &key).unwrap();
        Self { key, authority }
    }

    fn line(&self) -> String {
        self.authority.public_key().to_openssh().unwrap()
    }
}

/// All of a cluster's authorities.
struct Cluster {
    user_tls: Tls,
    host_tls: Tls,
    user_ssh: Ssh,
    host_ssh: Ssh,
}

impl Cluster {
    fn new() -> Self {
        Self {
            user_tls: Tls::new(AuthorityKind::User),
            host_tls: Tls::new(AuthorityKind::Host),
            user_ssh: Ssh::new(AuthorityKind::User),
            host_ssh: Ssh::new(AuthorityKind::Host),
        }
    }

    fn authorities(&self) -> Authorities {
        Authorities {
            host_tls: vec![self.host_tls.certificate_pem.clone()],
            user_tls: vec![self.user_tls.certificate_pem.clone()],
            host_ssh: vec![self.host_ssh.line()],
            user_ssh: vec![self.user_ssh.line()],
        }
    }

    fn verifier(&self) -> Verifier {
        Verifier::new(&cluster(), &self.authorities()).unwrap()
    }
}

fn cluster() -> ClusterName {
    "example.com".parse().unwrap()
}

fn alice() -> UserClaims {
    UserClaims {
        cluster: cluster(),
        user: "alice".parse().unwrap(),
        roles: vec!["access".parse().unwrap()],
        traits: [("logins".to_owned(), vec!["root".to_owned(), "alice".to_owned()])].into(),
        logins: vec!["root".parse().unwrap(), "alice".parse().unwrap()],
    }
}

fn web1() -> HostClaims {
    HostClaims {
        cluster: cluster(),
        host_id: HostId::from_random([1; 16]),
        nodename: "web1".parse().unwrap(),
        roles: vec![HostRole::Node],
    }
}

fn keys() -> KeyPairs {
    KeyPairs::generate().unwrap()
}

#[test]
fn authorities_that_are_none_are_named() {
    fn check(change: fn(&mut Authorities, &Cluster), expect: &str) {
        let ours = Cluster::new();
        let mut authorities = ours.authorities();
        change(&mut authorities, &ours);
        let error = Verifier::new(&cluster(), &authorities).unwrap_err();
        assert!(error.contains(expect), "{error:?} without {expect:?}");
    }
    check(|a, _| a.host_tls.push("x".into()), "authority 1 of host_tls");
    check(|a, _| a.user_tls[0] = "x".into(), "authority 0 of user_tls");
    check(|a, _| a.user_ssh.push("ssh-rsa AAAA".into()), "authority 1 of user_ssh");
    check(|a, _| a.host_ssh[0].clear(), "authority 0 of host_ssh");
    check(|a, _| a.user_tls.push(a.host_tls[0].clone()), "for users and for hosts");
    check(|a, _| a.user_ssh.push(a.host_ssh[0].clone()), "for users and for hosts");
    let leaf = |a: &mut Authorities, ours: &Cluster| {
        let spki = keys().tls_spki();
        a.user_tls[0] = ours.user_tls.authority.issue_user(&alice(), &spki, FOR_AN_HOUR).unwrap();
    };
    check(leaf, "not a P-256 authority's certificate");
}

#[test]
fn keys_and_certificates_of_authorities_must_fit() {
    let ours = Cluster::new();
    let (user, host) = (&ours.user_tls, &ours.host_tls);
    let load = |kind, key: &Tls, certificate: &Tls| {
        TlsAuthority::load(kind, &key.key_pem, &certificate.certificate_pem)
    };
    assert!(load(AuthorityKind::User, user, user).is_ok());
    assert!(load(AuthorityKind::User, host, user).is_err());
    assert!(load(AuthorityKind::User, host, host).is_err());
    assert!(load(AuthorityKind::Host, user, user).is_err());
    assert!(TlsAuthority::load(AuthorityKind::User, "x", &user.certificate_pem).is_err());
    assert!(SshAuthority::load(AuthorityKind::User, &user.key_pem).is_err());
    let debug = format!("{:?} {:?}", user.authority, ours.user_ssh.authority);
    assert!(!debug.contains("PRIVATE"), "{debug}");
}
