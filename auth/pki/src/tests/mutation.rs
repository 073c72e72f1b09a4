//! Bytes that are no certificates, and certificates with a byte changed: never a panic, never an identity.

use std::sync::LazyLock;

use proptest::prelude::*;
use russh::keys::Certificate;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Cluster, FOR_AN_HOUR, NOW, alice, keys, web1};
use crate::claims::{self, UserClaims};
use crate::source_address;
use crate::verify::Verifier;

/// One cluster and its certificates, made once: proptest asks hundreds of times.
struct Samples {
    verifier: Verifier,
    user_tls: Vec<u8>,
    host_tls: Vec<u8>,
    user_ssh: Vec<u8>,
    host_ssh: Vec<u8>,
}

static SAMPLES: LazyLock<Samples> = LazyLock::new(|| {
    let (ours, keys) = (Cluster::new(), keys());
    let (spki, line) = (keys.tls_spki(), keys.ssh_public_line());
    let der = |pem: String| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    let blob = |line: String| Certificate::from_openssh(&line).unwrap().to_bytes().unwrap();
    let (user, host) = (alice(), web1());
    Samples {
        verifier: ours.verifier(),
        user_tls: der(ours.user_tls.authority.issue_user(&user, &spki, FOR_AN_HOUR).unwrap()),
        host_tls: der(ours.host_tls.authority.issue_host(&host, &[], &spki, FOR_AN_HOUR).unwrap()),
        user_ssh: blob(ours.user_ssh.authority.issue_user(&user, &line, FOR_AN_HOUR).unwrap()),
        host_ssh: blob(ours.host_ssh.authority.issue_host(&host, &[], &line, FOR_AN_HOUR).unwrap()),
    }
});

fn tls_verifies(der: &[u8]) -> bool {
    SAMPLES.verifier.tls_peer(&[CertificateDer::from(der)], NOW).is_ok()
}

fn ssh_verifies(blob: &[u8]) -> bool {
    let Ok(certificate) = Certificate::from_bytes(blob) else { return false };
    let login = "root".parse().unwrap();
    SAMPLES.verifier.ssh_user(&certificate, &login, None, NOW).is_ok()
        || SAMPLES.verifier.ssh_user_any_login(&certificate, None, NOW).is_ok()
        || SAMPLES.verifier.ssh_host(&certificate, "web1", NOW).is_ok()
}

fn altered(bytes: &[u8], at: prop::sample::Index, with: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = at.index(bytes.len());
    bytes[at] ^= with;
    bytes
}

#[test]
fn the_samples_are_good() {
    assert!(tls_verifies(&SAMPLES.user_tls) && tls_verifies(&SAMPLES.host_tls));
    assert!(ssh_verifies(&SAMPLES.user_ssh) && ssh_verifies(&SAMPLES.host_ssh));
}

proptest! {
    #[test]
    fn a_changed_byte_ends_it(at: prop::sample::Index, with in 1..=u8::MAX) {
        for sample in [&SAMPLES.user_tls, &SAMPLES.host_tls] {
            prop_assert!(!tls_verifies(&altered(sample, at, with)));
        }
        for sample in [&SAMPLES.user_ssh, &SAMPLES.host_ssh] {
            prop_assert!(!ssh_verifies(&altered(sample, at, with)));
        }
    }

    #[test]
    fn a_cut_or_longer_certificate_is_none(at: prop::sample::Index, more in prop::collection::vec(any::<u8>(), 1..8)) {
        for sample in [&SAMPLES.user_tls, &SAMPLES.host_tls] {
            prop_assert!(!tls_verifies(&sample[..at.index(sample.len())]));
            prop_assert!(!tls_verifies(&[sample, &*more].concat()));
        }
        for sample in [&SAMPLES.user_ssh, &SAMPLES.host_ssh] {
            prop_assert!(!ssh_verifies(&sample[..at.index(sample.len())]));
            prop_assert!(!ssh_verifies(&[sample, &*more].concat()));
        }
    }

    #[test]
    fn random_bytes_are_nobody(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(!tls_verifies(&bytes));
        prop_assert!(!ssh_verifies(&bytes));
        prop_assert!(SAMPLES.verifier.signed_by_host_authority(b"c", b"m", &bytes).is_err());
        prop_assert!(claims::decode::<UserClaims>(&bytes).is_err());
    }

    #[test]
    fn texts_never_panic(text: String, address: std::net::IpAddr) {
        let _ = source_address::allows(&text, address);
        prop_assert!(crate::keys::KeyPairs::from_pem(&text, &text).is_err());
        prop_assert!(crate::verify::ca_pin(&text).is_err());
        let line = SAMPLES.verifier.known_hosts_line(&[text]);
        prop_assert!(line.is_empty() || line.split(' ').count() == 4);
    }
}
