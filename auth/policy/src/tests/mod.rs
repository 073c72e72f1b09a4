//! Decisions over whole snapshots.
//!
//! - [`matrix`]: role x action x resource as one readable table, golden
//! - [`rules`]: each step of the decision, one by one
//! - [`properties`]: what must hold whatever the roles are
//!
//! This file: snapshots from JSON, and identities the only way they come: from certificates.

mod matrix;
mod properties;
mod rules;

use std::sync::LazyLock;

use pki::authority::{AuthorityKind, TlsAuthority, Validity};
use pki::claims::UserClaims;
use pki::keys::KeyPairs;
use pki::{Identity, UserIdentity, Verifier};
use proto::id::{ClusterName, HostId};
use proto::resource::{Labels, Lock, Role, Traits};
use proto::snapshot::{Authorities, FORMAT, Snapshot};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::compile::Policy;
use crate::decide::{Decision, Request, decide};

const NOW: i64 = 1_800_000_000;
const HOUR: i64 = 3600;

struct Issuer {
    authority: TlsAuthority,
    keys: KeyPairs,
    verifier: Verifier,
}

static ISSUER: LazyLock<Issuer> = LazyLock::new(|| {
    let (key, pem) = TlsAuthority::generate(AuthorityKind::User, &cluster(), NOW).unwrap();
    let authorities = Authorities { user_tls: vec![pem.clone()], ..Authorities::default() };
    Issuer {
        authority: TlsAuthority::load(AuthorityKind::User, &key, &pem).unwrap(),
        keys: KeyPairs::generate().unwrap(),
        verifier: Verifier::new(&cluster(), &authorities).unwrap(),
    }
});

fn cluster() -> ClusterName {
    "example.com".parse().unwrap()
}

/// Alice with these roles, and with root, alice and ops as her certificate's logins; valid for an hour.
fn alice(roles: &[&str]) -> UserIdentity {
    identity(roles, &["root", "alice", "ops"])
}

fn identity(roles: &[&str], logins: &[&str]) -> UserIdentity {
    let claims = UserClaims {
        cluster: cluster(),
        user: "alice".parse().unwrap(),
        roles: roles.iter().map(|role| role.parse().unwrap()).collect(),
        traits: traits(),
        logins: logins.iter().map(|login| login.parse().unwrap()).collect(),
    };
    let validity = Validity { not_before: NOW, not_after: NOW + HOUR };
    let pem = ISSUER.authority.issue_user(&claims, &ISSUER.keys.tls_spki(), validity).unwrap();
    let chain = [CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
    match ISSUER.verifier.tls_peer(&chain, NOW).unwrap() {
        Identity::User(user) => user,
        Identity::Host(_) => panic!("not a user"),
    }
}

fn traits() -> Traits {
    [("logins".to_owned(), vec!["alice".into(), "not a login".into()])].into()
}

/// A role from its spec.
fn role(name: &str, spec: Value) -> Role {
    resource(json!({"kind": "role", "version": "v7", "metadata": {"name": name}, "spec": spec}))
}

fn lock(target: Value) -> Lock {
    resource(json!({
        "kind": "lock", "version": "v2", "metadata": {"name": "l"}, "spec": {"target": target},
    }))
}

fn resource<S: serde::de::DeserializeOwned>(json: Value) -> proto::resource::Resource<S> {
    serde_json::from_value(json).unwrap()
}

fn policy(roles: Vec<Role>, locks: Vec<Lock>) -> Policy {
    Policy::new(Snapshot {
        format: FORMAT,
        cluster: cluster(),
        revision: 1,
        issued_at: NOW,
        authorities: Authorities::default(),
        roles,
        locks,
    })
    .unwrap()
}

fn host_id() -> HostId {
    HostId::from_random([1; 16])
}

fn labels(list: &[(&str, &str)]) -> Labels {
    list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

/// `permit`, or the kind of the denial.
fn word(decision: &Decision) -> &'static str {
    match decision {
        Decision::Denial(denial) => denial.kind(),
        Decision::Permit(_) => "permit",
    }
}

fn reach(policy: &Policy, identity: &UserIdentity, labels: &Labels) -> Decision {
    decide(policy, identity, &Request::ReachNode { host_id: &host_id(), labels }, NOW)
}

fn ssh(policy: &Policy, identity: &UserIdentity, login: &str, labels: &Labels) -> Decision {
    let (login, host_id) = (&login.parse().unwrap(), &host_id());
    decide(policy, identity, &Request::SshSession { login, host_id, labels }, NOW)
}

fn administer(policy: &Policy, identity: &UserIdentity, resource: &str, verb: &str) -> Decision {
    decide(policy, identity, &Request::Administer { resource, verb }, NOW)
}
