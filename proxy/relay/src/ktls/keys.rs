//! A direction's keys as the kernel wants them: `struct tls12_crypto_info_*` of `linux/tls.h`, which TLS 1.3 uses too.
//! Written as bytes, so that there is one buffer to zero afterwards and no pointer to cast. Makes no system call.

use rustls::{CipherSuite, ConnectionTrafficSecrets, SupportedCipherSuite};
use zeroize::Zeroizing;

/// A cipher of TLS 1.3 that the kernel may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Suite {
    /// Linux 4.13, with TLS 1.3 since 5.1.
    Aes128Gcm,
    /// Linux 5.1.
    Aes256Gcm,
    /// Linux 5.11.
    Chacha20Poly1305,
}

impl Suite {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes256Gcm, Self::Chacha20Poly1305];

    /// The cipher that these secrets are for; none where rustls has grown one that we do not know.
    pub fn of(secrets: &ConnectionTrafficSecrets) -> Option<Self> {
        match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { .. } => Some(Self::Aes128Gcm),
            ConnectionTrafficSecrets::Aes256Gcm { .. } => Some(Self::Aes256Gcm),
            ConnectionTrafficSecrets::Chacha20Poly1305 { .. } => Some(Self::Chacha20Poly1305),
            _ => None,
        }
    }

    /// The cipher of a negotiated suite; none for those of TLS 1.2.
    pub fn negotiated(suite: SupportedCipherSuite) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.cipher_suite() == suite.suite())
    }

    /// The suite of RFC 8446, appendix B.4.
    pub fn cipher_suite(self) -> CipherSuite {
        match self {
            Self::Aes128Gcm => CipherSuite::TLS13_AES_128_GCM_SHA256,
            Self::Aes256Gcm => CipherSuite::TLS13_AES_256_GCM_SHA384,
            Self::Chacha20Poly1305 => CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        }
    }

    /// For logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes-128-gcm",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::Chacha20Poly1305 => "chacha20-poly1305",
        }
    }

    /// `TLS_CIPHER_*`.
    fn number(self) -> u16 {
        match self {
            Self::Aes128Gcm => libc::TLS_CIPHER_AES_GCM_128,
            Self::Aes256Gcm => libc::TLS_CIPHER_AES_GCM_256,
            Self::Chacha20Poly1305 => libc::TLS_CIPHER_CHACHA20_POLY1305,
        }
    }

    fn key_bytes(self) -> usize {
        match self {
            Self::Aes128Gcm => libc::TLS_CIPHER_AES_GCM_128_KEY_SIZE,
            Self::Aes256Gcm => libc::TLS_CIPHER_AES_GCM_256_KEY_SIZE,
            Self::Chacha20Poly1305 => libc::TLS_CIPHER_CHACHA20_POLY1305_KEY_SIZE,
        }
    }

    /// How much of the nonce's start the kernel calls the salt.
    fn salt_bytes(self) -> usize {
        match self {
            Self::Aes128Gcm => libc::TLS_CIPHER_AES_GCM_128_SALT_SIZE,
            Self::Aes256Gcm => libc::TLS_CIPHER_AES_GCM_256_SALT_SIZE,
            Self::Chacha20Poly1305 => libc::TLS_CIPHER_CHACHA20_POLY1305_SALT_SIZE,
        }
    }
}

/// Version and cipher, two integers in the machine's byte order, before everything else.
pub(super) const HEADER_BYTES: usize = size_of::<libc::tls_crypto_info>();
/// RFC 8446, section 5.3: of all three ciphers.
const NONCE_BYTES: usize = 12;
/// The record's sequence number, big-endian, after everything else.
const SEQUENCE_BYTES: usize = 8;
const _: () = {
    assert!(size_of::<libc::tls12_crypto_info_aes_gcm_128>() == 40);
    assert!(size_of::<libc::tls12_crypto_info_aes_gcm_256>() == 56);
    assert!(size_of::<libc::tls12_crypto_info_chacha20_poly1305>() == 56);
    assert!(HEADER_BYTES == 4);
};

/// A direction's key and nonce base, to be given to the kernel later; zeroed when dropped, never printed.
pub struct Keys(CryptoInfo);

impl std::fmt::Debug for Keys {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Keys")
    }
}

impl Keys {
    /// `None`: of a cipher that the kernel does not know.
    pub fn of(secrets: &ConnectionTrafficSecrets) -> Option<Self> {
        CryptoInfo::new(secrets, 0).map(Self)
    }

    /// The cipher.
    pub fn suite(&self) -> Option<Suite> {
        suite_in(*self.0.as_bytes().first_chunk()?)
    }

    /// As the kernel wants them, from the record with this number on.
    pub(super) fn from(&self, sequence: u64) -> CryptoInfo {
        let mut info = CryptoInfo(self.0.0.clone());
        if let Some(last) = info.as_bytes_mut().last_chunk_mut::<SEQUENCE_BYTES>() {
            *last = sequence.to_be_bytes();
        }
        info
    }
}

/// The structure's bytes; zeroed when dropped, never printed. On the heap and never grown: moving it leaves no copy.
pub(super) struct CryptoInfo(Zeroizing<Vec<u8>>);

impl CryptoInfo {
    /// From what rustls gives out. `None`: a cipher that we do not know, or parts of a length that it has not.
    pub(super) fn new(secrets: &ConnectionTrafficSecrets, sequence: u64) -> Option<Self> {
        match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                Self::from_parts(Suite::of(secrets)?, key.as_ref(), iv.as_ref(), sequence)
            }
            _ => None,
        }
    }

    /// Header, then in the order of the header file: the nonce's end, the key, the nonce's start, the sequence number.
    pub(super) fn from_parts(suite: Suite, key: &[u8], iv: &[u8], sequence: u64) -> Option<Self> {
        let (salt, rest) = iv.split_at_checked(suite.salt_bytes())?;
        if key.len() != suite.key_bytes() || iv.len() != NONCE_BYTES {
            return None;
        }
        let mut info = Self::sized_for(suite);
        let mut left = info.0.as_mut_slice();
        let header = [libc::TLS_1_3_VERSION.to_ne_bytes(), suite.number().to_ne_bytes()].concat();
        for part in [&header, rest, key, salt, &sequence.to_be_bytes()] {
            left.split_off_mut(..part.len())?.copy_from_slice(part);
        }
        Some(info)
    }

    /// Zeroes, to be filled by the kernel.
    pub(super) fn sized_for(suite: Suite) -> Self {
        let length = HEADER_BYTES + NONCE_BYTES + suite.key_bytes() + SEQUENCE_BYTES;
        Self(Zeroizing::new(vec![0; length]))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// The sequence number of the next record.
    pub(super) fn sequence(&self) -> Option<u64> {
        self.as_bytes().last_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }
}

/// The cipher in a header that the kernel wrote.
pub(super) fn suite_in(header: [u8; HEADER_BYTES]) -> Option<Suite> {
    let [_, _, low, high] = header;
    let number = u16::from_ne_bytes([low, high]);
    Suite::ALL.into_iter().find(|suite| suite.number() == number)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// Against the structures of the C header, field by field.
    #[test]
    fn the_layout_is_that_of_the_header_file() {
        macro_rules! check {
            ($suite:expr, $info:ty, $key:literal, $salt:literal) => {{
                let key: Vec<u8> = (100..100 + $key).collect();
                let iv: Vec<u8> = (1..=12).collect();
                let info =
                    CryptoInfo::from_parts($suite, &key, &iv, 0x0102_0304_0506_0708).unwrap();
                let bytes = info.as_bytes();
                assert_eq!(bytes.len(), size_of::<$info>());
                let at = |offset: usize, length: usize| &bytes[offset..offset + length];
                assert_eq!(at(0, 2), 0x0304_u16.to_ne_bytes());
                assert_eq!(at(offset_of!($info, salt), $salt), &iv[..$salt]);
                assert_eq!(at(offset_of!($info, iv), 12 - $salt), &iv[$salt..]);
                assert_eq!(at(offset_of!($info, key), $key), key);
                assert_eq!(at(offset_of!($info, rec_seq), 8), [1, 2, 3, 4, 5, 6, 7, 8]);
                assert_eq!(info.sequence(), Some(0x0102_0304_0506_0708));
                assert_eq!(suite_in(bytes[..4].try_into().unwrap()), Some($suite));
            }};
        }
        check!(Suite::Aes128Gcm, libc::tls12_crypto_info_aes_gcm_128, 16, 4);
        check!(Suite::Aes256Gcm, libc::tls12_crypto_info_aes_gcm_256, 32, 4);
        check!(Suite::Chacha20Poly1305, libc::tls12_crypto_info_chacha20_poly1305, 32, 0);
    }

    #[test]
    fn parts_of_another_length_are_refused() {
        fn check(suite: Suite, key: usize, iv: usize) {
            assert!(CryptoInfo::from_parts(suite, &vec![0; key], &vec![0; iv], 0).is_none());
        }
        check(Suite::Aes128Gcm, 32, 12);
        check(Suite::Aes256Gcm, 16, 12);
        check(Suite::Aes256Gcm, 32, 11);
        check(Suite::Chacha20Poly1305, 32, 13);
        check(Suite::Aes128Gcm, 16, 3);
        check(Suite::Aes128Gcm, 0, 0);
    }

    #[test]
    fn unknown_ciphers_are_not_guessed() {
        assert_eq!(suite_in([4, 3, 0, 0]), None);
        assert_eq!(suite_in([0xff; 4]), None);
    }

    #[test]
    fn negotiated_suites_are_recognised() {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let known: Vec<_> =
            provider.cipher_suites.iter().filter_map(|suite| Suite::negotiated(*suite)).collect();
        assert_eq!(known.len(), Suite::ALL.len());
    }
}
