//! Checks the signature under a client's certificate once, not at each connection: the same person comes with the same
//! certificate for hours, and each check costs as much as a third of a handshake. Only that is remembered which never
//! changes: that an authority of this verifier signed exactly these bytes. Time is looked at anew each time; what the
//! certificate's holder may do, and whether a lock is on them, is decided later anyway. That the peer holds the key is
//! proved in each handshake.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use sha2::{Digest, Sha256};

/// SHA-256 of a certificate.
type Fingerprint = [u8; 32];

/// A verifier that remembers which certificates another found good.
pub struct KnownClients {
    verifier: Arc<dyn ClientCertVerifier>,
    /// From when, and until before when, each is valid.
    known: Mutex<HashMap<Fingerprint, Range<i64>>>,
}

impl std::fmt::Debug for KnownClients {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("KnownClients").field("verifier", &self.verifier).finish_non_exhaustive()
    }
}

impl KnownClients {
    /// `verifier` must judge by certificate, authorities and time alone: one that asks about revocation would be asked
    /// once only.
    pub fn new(verifier: Arc<dyn ClientCertVerifier>) -> Self {
        Self { verifier, known: Mutex::default() }
    }

    fn is_known(&self, fingerprint: &Fingerprint, now: i64) -> bool {
        // Every critical section is one operation on the map: a panic elsewhere leaves it whole.
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(fingerprint).is_some_and(|valid| valid.contains(&now))
    }

    fn remember(&self, fingerprint: Fingerprint, certificate: &CertificateDer<'_>) {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return };
        let validity = parsed.validity();
        let valid = validity.not_before.timestamp()..validity.not_after.timestamp();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(fingerprint, valid);
    }
}

impl ClientCertVerifier for KnownClients {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // With intermediates there would be more validities than one to look at; no user's certificate has any.
        let Ok(seconds) = i64::try_from(now.as_secs()) else {
            return self.verifier.verify_client_cert(end_entity, intermediates, now);
        };
        if !intermediates.is_empty() {
            return self.verifier.verify_client_cert(end_entity, intermediates, now);
        }
        let fingerprint = Sha256::digest(end_entity).into();
        if self.is_known(&fingerprint, seconds) {
            return Ok(ClientCertVerified::assertion());
        }
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        self.remember(fingerprint, end_entity);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }
    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }
    fn requires_raw_public_keys(&self) -> bool {
        self.verifier.requires_raw_public_keys()
    }
}

/// Some 100 KiB; more people than log in through one proxy within a certificate's life.
const KNOWN_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair};
    use time::OffsetDateTime;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    /// Finds every certificate good, or none, and counts.
    #[derive(Debug)]
    struct Counting {
        good: bool,
        asked: AtomicUsize,
    }

    impl ClientCertVerifier for Counting {
        fn verify_client_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: UnixTime,
        ) -> Result<ClientCertVerified, Error> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.good {
                Ok(ClientCertVerified::assertion())
            } else {
                Err(Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
            }
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("not asked".to_owned()))
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("not asked".to_owned()))
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            Vec::new()
        }
        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            &[]
        }
    }

    fn certificate() -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::from_unix_timestamp(NOW).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(NOW + 100).unwrap();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    struct Fixture {
        counting: Arc<Counting>,
        known: KnownClients,
    }

    impl Fixture {
        fn new(good: bool) -> Self {
            let counting = Arc::new(Counting { good, asked: AtomicUsize::new(0) });
            Self { known: KnownClients::new(counting.clone()), counting }
        }

        /// How often the verifier behind has been asked once this has been looked at.
        fn asked(
            &self,
            leaf: &CertificateDer<'_>,
            intermediates: &[CertificateDer<'_>],
            now: i64,
        ) -> usize {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(now.unsigned_abs()));
            let found = self.known.verify_client_cert(leaf, intermediates, now);
            assert_eq!(found.is_ok(), self.counting.good);
            self.counting.asked.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn a_good_certificate_is_checked_once_while_it_is_valid() {
        let fixture = Fixture::new(true);
        let (one, other) = (certificate(), certificate());
        assert_eq!(fixture.asked(&one, &[], NOW), 1);
        assert_eq!(fixture.asked(&one, &[], NOW + 99), 1);
        assert_eq!(fixture.asked(&other, &[], NOW), 2);
        assert_eq!(fixture.asked(&one, &[], NOW - 1), 3);
        assert_eq!(fixture.asked(&one, &[], NOW + 100), 4);
        assert_eq!(fixture.asked(&one, &[other], NOW), 5);
    }

    #[test]
    fn a_bad_certificate_is_not_remembered() {
        let fixture = Fixture::new(false);
        let one = certificate();
        assert_eq!(fixture.asked(&one, &[], NOW), 1);
        assert_eq!(fixture.asked(&one, &[], NOW), 2);
    }

    #[test]
    fn not_more_is_remembered_than_there_is_room_for() {
        let fixture = Fixture::new(true);
        let one = certificate();
        for number in 0..2 * KNOWN_MAX {
            fixture.known.remember(Sha256::digest(number.to_be_bytes()).into(), &one);
            assert!(fixture.known.known.lock().unwrap().len() <= KNOWN_MAX);
        }
    }
}
