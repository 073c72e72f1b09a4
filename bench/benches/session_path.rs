//! The parts of opening a session that are ours and pure: the preamble, the certificate, the decision. What the kernel
//! and the network add is for the load generators.
#![expect(clippy::unwrap_used, reason = "a benchmark: what it makes itself is well-formed")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use pki::authority::{AuthorityKind, TlsAuthority, Validity};
use pki::claims::UserClaims;
use pki::keys::KeyPairs;
use pki::{Identity, Verifier};
use policy::{Policy, Request, decide};
use proto::id::{ClusterName, HostId};
use proto::preamble::{Dial, FRAME_HEADER_BYTES, Inner, VERSION, decode, encode};
use proto::resource::{Labels, Role};
use proto::snapshot::{Authorities, FORMAT, Snapshot};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

const NOW: i64 = 1_800_000_000;
/// A cluster with more roles than most have; one person holds three of them.
const ROLES: usize = 50;

fn cluster() -> ClusterName {
    "bench.example.com".parse().unwrap()
}

fn preamble(criterion: &mut Criterion) {
    let dial = Dial {
        version: VERSION,
        cluster: cluster(),
        target: "web-1.bench.example.com".into(),
        inner: Inner::Plain,
        trace: "0123456789abcdef0123456789abcdef".into(),
    };
    let frame = encode(&dial).unwrap();
    let body = frame.get(FRAME_HEADER_BYTES..).unwrap();
    criterion.bench_function("preamble/encode", |b| b.iter(|| encode(black_box(&dial)).unwrap()));
    criterion.bench_function("preamble/decode", |b| {
        b.iter(|| decode::<Dial>(black_box(body)).unwrap());
    });
}

/// A user's certificate and the verifier that knows its authority.
fn certificate() -> (CertificateDer<'static>, Verifier) {
    let (key, pem) = TlsAuthority::generate(AuthorityKind::User, &cluster(), NOW).unwrap();
    let authority = TlsAuthority::load(AuthorityKind::User, &key, &pem).unwrap();
    let claims = UserClaims {
        cluster: cluster(),
        user: "alice".parse().unwrap(),
        roles: ["role-0", "role-1", "role-2"].map(|role| role.parse().unwrap()).into(),
        traits: [("logins".to_owned(), vec!["alice".to_owned(), "root".to_owned()])].into(),
        logins: ["alice", "root"].map(|login| login.parse().unwrap()).into(),
    };
    let validity = Validity { not_before: NOW, not_after: NOW + 3600 };
    let keys = KeyPairs::generate().unwrap();
    let leaf = authority.issue_user(&claims, &keys.tls_spki(), validity).unwrap();
    let authorities = Authorities { user_tls: vec![pem], ..Authorities::default() };
    let verifier = Verifier::new(&cluster(), &authorities).unwrap();
    (CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap(), verifier)
}

fn role(number: usize) -> Role {
    serde_json::from_value(json!({
        "kind": "role", "version": "v7", "metadata": { "name": format!("role-{number}") },
        "spec": {
            "allow": {
                "logins": ["{{internal.logins}}"],
                "node_labels": { "env": ["dev", format!("stage-{number}")], "team": "^team-[0-9]+$" },
            },
            "deny": { "logins": ["nobody"] },
        },
    }))
    .unwrap()
}

fn session(criterion: &mut Criterion) {
    let (leaf, verifier) = certificate();
    let chain = [leaf];
    criterion.bench_function("pki/verify-user", |b| {
        b.iter(|| verifier.tls_peer(black_box(&chain), NOW).unwrap());
    });

    let Identity::User(alice) = verifier.tls_peer(&chain, NOW).unwrap() else {
        panic!("a user's certificate gives a user")
    };
    let snapshot = Snapshot {
        format: FORMAT,
        cluster: cluster(),
        revision: 1,
        issued_at: NOW,
        authorities: Authorities::default(),
        roles: (0..ROLES).map(role).collect(),
        locks: Vec::new(),
    };
    criterion.bench_function("policy/compile-50-roles", |b| {
        b.iter(|| Policy::new(black_box(snapshot.clone())).unwrap());
    });

    let policy = Policy::new(snapshot.clone()).unwrap();
    let login = "root".parse().unwrap();
    let host_id = HostId::from_random([1; 16]);
    let labels: Labels =
        [("env", "dev"), ("team", "team-7")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let request = Request::SshSession { login: &login, host_id: &host_id, labels: &labels };
    criterion.bench_function("policy/decide-ssh-session", |b| {
        b.iter(|| decide(&policy, black_box(&alice), black_box(&request), NOW));
    });
}

criterion_group!(benches, preamble, session);
criterion_main!(benches);
