//! Seals records of TLS 1.3 (RFC 8446, section 5.2) from one buffer into another, which the caller has and uses again:
//! rustls' own interface for it makes a new one for each record and copies the plaintext there first. Which number
//! comes when, and when the key has sealed enough, is [`super::session`]'s.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

use super::session::{APPLICATION_DATA, Fault, HEADER_BYTES};

/// One direction's key.
pub(super) struct Sealer {
    key: LessSafeKey,
    iv: zeroize::Zeroizing<[u8; aead::NONCE_LEN]>,
}

impl Sealer {
    pub(super) fn new(secrets: &ConnectionTrafficSecrets) -> Result<Self, Fault> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (&aead::CHACHA20_POLY1305, key, iv)
            }
            _ => return Err(Fault::Suite),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| Fault::Suite)?;
        let iv = iv.as_ref().try_into().map_err(|_| Fault::Suite)?;
        Ok(Self { key: LessSafeKey::new(key), iv: zeroize::Zeroizing::new(iv) })
    }

    /// Makes `record` the record of `payload`, of which it must be longer by [`SEALED_OVERHEAD`]. No two records of a key
    /// may have the same number.
    pub(super) fn seal(
        &self,
        sequence: u64,
        content_type: u8,
        payload: &[u8],
        record: &mut [u8],
    ) -> Result<(), Fault> {
        let failed = || Fault::Tls(rustls::Error::EncryptError);
        let (header, body) = record.split_first_chunk_mut::<HEADER_BYTES>().ok_or_else(failed)?;
        let [high, low] = u16::try_from(body.len()).map_err(|_| failed())?.to_be_bytes();
        *header = [APPLICATION_DATA, 3, 3, high, low];
        let (ciphertext, rest) = body.split_at_mut_checked(payload.len()).ok_or_else(failed)?;
        self.key
            .seal_out_of_place_scatter(
                self.nonce(sequence),
                Aad::from(*header),
                payload,
                ciphertext,
                &[content_type],
                rest,
            )
            .map_err(|_| failed())
    }

    /// RFC 8446, section 5.3.
    fn nonce(&self, sequence: u64) -> Nonce {
        let mut nonce = *self.iv;
        for (byte, number) in nonce.iter_mut().rev().zip(sequence.to_be_bytes().iter().rev()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// What a sealed record has beyond its payload: header, content type, tag (the same for every suite).
pub(super) const SEALED_OVERHEAD: usize = HEADER_BYTES + 1 + 16;

#[cfg(test)]
mod tests {
    use rustls::SupportedCipherSuite;
    use rustls::crypto::aws_lc_rs::cipher_suite::{
        TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    use rustls::crypto::cipher::{AeadKey, InboundOpaqueMessage, Iv};
    use rustls::{ContentType, ProtocolVersion};

    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const IV: [u8; 12] = [9; 12];

    /// What we seal, rustls opens.
    fn check(suite: SupportedCipherSuite, secrets: &ConnectionTrafficSecrets) {
        let suite = suite.tls13().unwrap();
        let sealer = Sealer::new(secrets).unwrap();
        for sequence in [0, 1, 255, 256, 1 << 40] {
            for (content_type, length) in [(21, 2), (22, 5), (23, 0), (23, 1), (23, 16_384)] {
                let payload: Vec<u8> =
                    (0..length).map(|n: usize| u8::try_from(n % 251).unwrap()).collect();
                let mut record = vec![0; length + SEALED_OVERHEAD];
                sealer.seal(sequence, content_type, &payload, &mut record).unwrap();
                let (header, body) = record.split_at_mut(HEADER_BYTES);
                let [high, low] = u16::try_from(body.len()).unwrap().to_be_bytes();
                assert_eq!(header, [23, 3, 3, high, low]);
                let opaque = InboundOpaqueMessage::new(
                    ContentType::ApplicationData,
                    ProtocolVersion::TLSv1_2,
                    body,
                );
                let mut opener = suite.aead_alg.decrypter(AeadKey::from(KEY), Iv::from(IV));
                let plain = opener.decrypt(opaque, sequence).unwrap();
                assert_eq!((u8::from(plain.typ), plain.payload), (content_type, &payload[..]));
            }
        }
    }

    #[test]
    fn what_is_sealed_can_be_opened() {
        let (key, iv) = (AeadKey::from(KEY), Iv::from(IV));
        check(TLS13_AES_256_GCM_SHA384, &ConnectionTrafficSecrets::Aes256Gcm { key, iv });
        let (key, iv) = (AeadKey::from(KEY), Iv::from(IV));
        let chacha = ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv };
        check(TLS13_CHACHA20_POLY1305_SHA256, &chacha);
    }

    #[test]
    fn room_of_another_size_is_refused() {
        let (key, iv) = (AeadKey::from(KEY), Iv::from(IV));
        let sealer = Sealer::new(&ConnectionTrafficSecrets::Aes256Gcm { key, iv }).unwrap();
        for room in [0, 4, 25, SEALED_OVERHEAD + 9, SEALED_OVERHEAD + 11] {
            assert!(sealer.seal(0, 23, &[0; 10], &mut vec![0; room]).is_err(), "{room}");
        }
    }
}
