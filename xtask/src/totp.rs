//! Time-based one-time codes (RFC 6238: HMAC-SHA-1, six digits, thirty seconds), as an authenticator app makes them.
//! For the demo's user only; the product checks codes with a crate of its own choosing, which makes this a second
//! opinion. SHA-1 (FIPS 180-4) and HMAC (RFC 2104) stand here because xtask has no dependencies to speak of.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

/// Arguments of `cargo xtask otp`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A file with the base32 secret in its first line.
    #[arg(long)]
    secret_file: PathBuf,
}

/// A code is good for so long.
const STEP_SECONDS: u64 = 30;
/// The cluster takes codes of one step ahead of its clock.
const STEPS_AHEAD: u64 = 1;

/// Prints a code that was not handed out before.
pub(crate) fn run(options: &Options) -> Result<()> {
    println!("{}", fresh_code(&options.secret_file)?);
    Ok(())
}

/// A code that the cluster has not seen: it refuses a code's second use, so the file beside the secret remembers the
/// last step that was handed out. Waits, half a minute at most per call made too early, until one is acceptable.
pub(crate) fn fresh_code(secret_file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(secret_file)
        .with_context(|| format!("cannot read {}", secret_file.display()))?;
    let secret = base32(text.trim()).context("the secret is not base32")?;
    let used_file = secret_file.with_extension("used");
    let used = std::fs::read_to_string(&used_file).ok().and_then(|t| t.trim().parse::<u64>().ok());
    let step = used.map_or(0, |used| used + 1).max(current_step()?);
    while step > current_step()? + STEPS_AHEAD {
        std::thread::sleep(Duration::from_millis(200));
    }
    std::fs::write(&used_file, step.to_string())
        .with_context(|| format!("cannot write {}", used_file.display()))?;
    Ok(format!("{:06}", code(&secret, step)))
}

fn current_step() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / STEP_SECONDS)
}

/// RFC 4226, section 5.3.
fn code(secret: &[u8], counter: u64) -> u32 {
    let mac = hmac_sha1(secret, &counter.to_be_bytes());
    let offset = usize::from(mac.last().copied().unwrap_or(0) & 0x0f);
    let word = mac.iter().skip(offset).take(4).fold(0_u32, |w, byte| (w << 8) | u32::from(*byte));
    (word & 0x7fff_ffff) % 1_000_000
}

fn hmac_sha1(key: &[u8], message: &[u8]) -> [u8; 20] {
    let mut block = [0_u8; 64];
    let digest;
    let key = if key.len() > block.len() {
        digest = sha1(key);
        &digest[..]
    } else {
        key
    };
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    let mut inner: Vec<u8> = block.iter().map(|b| b ^ 0x36).collect();
    inner.extend_from_slice(message);
    let mut outer: Vec<u8> = block.iter().map(|b| b ^ 0x5c).collect();
    outer.extend_from_slice(&sha1(&inner));
    sha1(&outer)
}

#[expect(clippy::indexing_slicing, reason = "indices 0..80 into an array of 80")]
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend_from_slice(&(message.len() as u64 * 8).to_be_bytes());

    let mut state = [0x6745_2301_u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in padded.chunks_exact(64) {
        let mut words = [0_u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = bytes.iter().fold(0, |w, byte| (w << 8) | u32::from(*byte));
        }
        for i in 16..80 {
            words[i] = (words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (i, word) in words.iter().enumerate() {
            let (mix, constant) = match i {
                0..20 => ((b & c) | (!b & d), 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc_u32),
                _ => (b ^ c ^ d, 0xca62_c1d6),
            };
            let next = a.rotate_left(5).wrapping_add(mix).wrapping_add(e);
            let next = next.wrapping_add(constant).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, part) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    let mut digest = [0; 20];
    for (to, from) in digest.iter_mut().zip(state.iter().flat_map(|word| word.to_be_bytes())) {
        *to = from;
    }
    digest
}

/// RFC 4648, section 6, padding optional.
fn base32(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for c in text.trim_end_matches('=').chars() {
        let value = match c.to_ascii_uppercase() {
            letter @ 'A'..='Z' => u32::from(letter) - u32::from('A'),
            digit @ '2'..='7' => u32::from(digit) - u32::from('2') + 26,
            _ => bail!("an unexpected character"),
        };
        bits = ((bits & 0x7f) << 5) | value;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff)?);
        }
    }
    if bytes.is_empty() {
        bail!("nothing there");
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// FIPS 180-4 examples, and a message that ends past the length field's place.
    #[test]
    fn sha1_vectors() {
        fn check(message: &[u8], expect: &str) {
            assert_eq!(hex(&sha1(message)), expect);
        }
        check(b"", "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        check(b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d");
        check(
            b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "84983e441c3bd26ebaae4aa1f95129e5e54670f1",
        );
    }

    /// RFC 2202, cases 2 and 6.
    #[test]
    fn hmac_vectors() {
        assert_eq!(
            hex(&hmac_sha1(b"Jefe", b"what do ya want for nothing?")),
            "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"
        );
        assert_eq!(
            hex(&hmac_sha1(&[0xaa; 80], b"Test Using Larger Than Block-Size Key - Hash Key First")),
            "aa4ae5e15272d00e95705637ce8a3b55ed402112"
        );
    }

    /// RFC 6238, appendix B, last six of the eight digits.
    #[test]
    fn totp_vectors() {
        fn check(seconds: u64, expect: u32) {
            assert_eq!(code(b"12345678901234567890", seconds / STEP_SECONDS), expect);
        }
        check(59, 287_082);
        check(1_111_111_109, 81_804);
        check(1_234_567_890, 5_924);
        check(20_000_000_000, 353_130);
    }

    #[test]
    fn base32_reads_what_authenticators_read() {
        assert_eq!(base32("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ").unwrap(), b"12345678901234567890");
        assert_eq!(base32("mzxw6===").unwrap(), b"foo");
        assert!(base32("not base32!").is_err());
        assert!(base32("").is_err());
    }
}
