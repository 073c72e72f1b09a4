//! What an SSH client says first: its version line and its KEXINIT (RFC 4253, sections 4.2 and 7.1). Read before russh
//! starts, so that what we offer can suit the client: in SSH the client's order of ciphers wins, OpenSSH's puts
//! ChaCha20-Poly1305 first, and AES-GCM takes a fraction of its CPU where the processor has instructions for it.
//!
//! Refuses nobody: whatever is odd goes to russh as it came, with the whole offer, and russh ends what it cannot use. Both
//! KEXINITs are in the exchange hash that the host key signs, so nobody in between can choose for the client.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use russh::cipher;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::JumpError;

/// Which ciphers a client is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    AesGcm,
    Everything,
}

impl Offer {
    pub(super) fn ciphers(self) -> &'static [cipher::Name] {
        match self {
            Self::AesGcm => &AES_GCM,
            Self::Everything => &russh::Preferred::DEFAULT.cipher,
        }
    }
}

/// What a client said before russh listens, and what follows from it.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) bytes: BytesMut,
    pub(super) offer: Offer,
}

/// Says our version, and listens where that changes anything.
pub(super) async fn exchange<S>(stream: &mut S, deadline: Instant) -> Result<Greeting, JumpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let said = timeout_at(deadline, stream.write_all(VERSION.as_bytes())).await;
    said.map_err(|_| JumpError::TimedOut)?.map_err(failed)?;
    if processor_has_aes() {
        listen(stream, deadline).await
    } else {
        Ok(Greeting { bytes: BytesMut::new(), offer: Offer::Everything })
    }
}

/// Reads version line and KEXINIT. A client that waits for our KEXINIT before it sends its own, as it may, is waited for
/// only a moment and then gets everything offered.
async fn listen<S>(stream: &mut S, deadline: Instant) -> Result<Greeting, JumpError>
where
    S: AsyncRead + Unpin,
{
    let mut bytes = BytesMut::with_capacity(USUAL_BYTES);
    let mut patience = deadline;
    loop {
        match look(&bytes) {
            Look::Done(offer) => return Ok(Greeting { bytes, offer }),
            Look::KexInit => patience = patience.min(Instant::now() + KEXINIT_WITHIN),
            Look::Version => {}
        }
        let room = GREETING_BYTES_MAX.saturating_sub(bytes.len());
        let read = timeout_at(patience, stream.read_buf(&mut (&mut bytes).limit(room))).await;
        let more = match read {
            Ok(read) => read.map_err(failed)? > 0,
            Err(_) if patience < deadline => false,
            Err(_) => return Err(JumpError::TimedOut),
        };
        if !more {
            return Ok(Greeting { bytes, offer: Offer::Everything });
        }
    }
}

fn failed(error: std::io::Error) -> JumpError {
    JumpError::Ssh(russh::Error::IO(error))
}

/// What the bytes so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Done(Offer),
    /// The version line is there, the KEXINIT not yet.
    KexInit,
    /// The version line is not whole yet.
    Version,
}

fn look(bytes: &[u8]) -> Look {
    let line = bytes.get(..VERSION_BYTES_MAX).unwrap_or(bytes);
    let Some(newline) = line.iter().position(|byte| *byte == b'\n') else {
        let whole = line.len() == VERSION_BYTES_MAX;
        return if whole { Look::Done(Offer::Everything) } else { Look::Version };
    };
    if !line.starts_with(b"SSH-") {
        return Look::Done(Offer::Everything);
    }
    let rest = bytes.get(newline.saturating_add(1)..).unwrap_or_default();
    let Some((length, packet)) = rest.split_first_chunk() else { return Look::KexInit };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > PACKET_BYTES_MAX {
        return Look::Done(Offer::Everything);
    }
    match packet.get(..length) {
        Some(packet) => Look::Done(offer(packet)),
        None => Look::KexInit,
    }
}

/// What suits the client that sent this packet, from its padding's length on.
fn offer(packet: &[u8]) -> Offer {
    match gcm_names(packet) {
        // russh has one cipher for both directions, the client one for each.
        Some([Some(to_server), Some(to_client)]) if to_server == to_client => Offer::AesGcm,
        Some(_) | None => Offer::Everything,
    }
}

/// The AES-GCM cipher that the client would take of what we have, to the server and to the client.
fn gcm_names(packet: &[u8]) -> Option<[Option<&[u8]>; 2]> {
    let (&padding, rest) = packet.split_first()?;
    let payload = rest.get(..rest.len().checked_sub(usize::from(padding))?)?;
    let (&KEXINIT, rest) = payload.split_first()? else { return None };
    let rest = rest.get(COOKIE_BYTES..)?;
    let (_key_exchanges, rest) = name_list(rest)?;
    let (_host_keys, rest) = name_list(rest)?;
    let (to_server, rest) = name_list(rest)?;
    let (to_client, _rest) = name_list(rest)?;
    Some([first_gcm(to_server), first_gcm(to_client)])
}

fn first_gcm(names: &[u8]) -> Option<&[u8]> {
    let is_ours = |name: &&[u8]| AES_GCM.iter().any(|ours| ours.as_ref().as_bytes() == *name);
    names.split(|byte| *byte == b',').find(is_ours)
}

/// A name-list (RFC 4251, section 5) and what comes behind it.
fn name_list(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

/// Without these instructions, ChaCha20-Poly1305 is the faster one.
#[cfg(target_arch = "x86_64")]
fn processor_has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}
#[cfg(target_arch = "aarch64")]
fn processor_has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull")
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn processor_has_aes() -> bool {
    false
}

/// Our version line. russh sends the same, which the client must not see twice: see [`super::wire`].
pub(super) const VERSION: &str = "SSH-2.0-postern\r\n";
/// In the order of preference of nobody: the client's counts.
const AES_GCM: [cipher::Name; 2] = [cipher::AES_128_GCM, cipher::AES_256_GCM];
/// RFC 4253, section 4.2, line end included.
const VERSION_BYTES_MAX: usize = 255;
/// RFC 4253, section 6.1: what everybody must take.
const PACKET_BYTES_MAX: usize = 35_000;
const GREETING_BYTES_MAX: usize = VERSION_BYTES_MAX + 4 + PACKET_BYTES_MAX;
/// OpenSSH 9.2 sends 1.6 KB.
const USUAL_BYTES: usize = 2048;
/// `SSH_MSG_KEXINIT` (RFC 4253, section 12).
const KEXINIT: u8 = 20;
const COOKIE_BYTES: usize = 16;
/// The KEXINIT comes a round trip after our version line, or without waiting for it. Who waits for ours loses this much.
const KEXINIT_WITHIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::duplex;

    use super::*;

    const OPENSSH: &str = "chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,\
                           aes128-gcm@openssh.com,aes256-gcm@openssh.com";

    fn packet(message: u8, lists: &[&str]) -> Vec<u8> {
        let mut payload = vec![message];
        payload.extend([7; COOKIE_BYTES]);
        for list in lists {
            payload.extend(u32::try_from(list.len()).unwrap().to_be_bytes());
            payload.extend(list.as_bytes());
        }
        let mut packet = u32::try_from(payload.len() + 5).unwrap().to_be_bytes().to_vec();
        packet.push(4);
        packet.extend(payload);
        packet.extend([0; 4]);
        packet
    }

    fn greeting(to_server: &str, to_client: &str) -> Vec<u8> {
        let lists = ["curve25519-sha256", "ssh-ed25519", to_server, to_client, "", "", "none"];
        [b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), packet(KEXINIT, &lists)].concat()
    }

    #[test]
    fn who_can_gcm_both_ways_is_offered_gcm() {
        fn check(to_server: &str, to_client: &str, expect: Offer) {
            assert_eq!(look(&greeting(to_server, to_client)), Look::Done(expect), "{to_server}");
        }
        let only = "aes256-gcm@openssh.com";
        check(OPENSSH, OPENSSH, Offer::AesGcm);
        check(only, only, Offer::AesGcm);
        check(only, OPENSSH, Offer::Everything);
        check(OPENSSH, "aes256-ctr", Offer::Everything);
        check("chacha20-poly1305@openssh.com", OPENSSH, Offer::Everything);
        check("aes256-gcm@openssh.co", "aes256-gcm@openssh.co", Offer::Everything);
        check("", "", Offer::Everything);
    }

    #[test]
    fn what_is_not_whole_is_waited_for() {
        let whole = greeting(OPENSSH, OPENSSH);
        let line = whole.iter().position(|byte| *byte == b'\n').unwrap();
        for end in 0..whole.len() {
            let expect = if end <= line { Look::Version } else { Look::KexInit };
            assert_eq!(look(&whole[..end]), expect, "{end}");
        }
        let more = [&whole[..], b"what comes next"].concat();
        assert_eq!(look(&more), look(&whole));
    }

    #[test]
    fn what_is_odd_is_left_to_russh() {
        fn check(bytes: &[u8]) {
            assert_eq!(look(bytes), Look::Done(Offer::Everything), "{bytes:?}");
        }
        let after_version = |rest: &[u8]| check(&[b"SSH-2.0-x\r\n", rest].concat());
        check(b"GET / HTTP/1.1\r\n");
        check(b"\n");
        check(&[b'S'; VERSION_BYTES_MAX]);
        check(&[&[b'S'; VERSION_BYTES_MAX][..], b"\n"].concat());
        after_version(&[0xff; 4]);
        after_version(&35_001_u32.to_be_bytes());
        after_version(&[0; 4]);
        after_version(&[0, 0, 0, 1, 9]);
        after_version(&[0, 0, 0, 2, 0, KEXINIT]);
        after_version(&packet(KEXINIT, &["curve25519-sha256", "ssh-ed25519", OPENSSH]));
        after_version(&packet(2, &["curve25519-sha256", "ssh-ed25519", OPENSSH, OPENSSH]));
        let mut torn = packet(KEXINIT, &["", "", OPENSSH, OPENSSH]);
        torn[25] = 200;
        after_version(&torn);
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..400), version: bool) {
            let start: &[u8] = if version { b"SSH-2.0-x\r\n\0\0" } else { b"" };
            look(&[start, &bytes].concat());
        }
    }

    /// What becomes of these first bytes, after which nothing comes.
    async fn heard(said: &[u8], within: Duration) -> Result<Greeting, JumpError> {
        let (mut client, mut server) = duplex(64 * 1024);
        client.write_all(said).await.unwrap();
        listen(&mut server, Instant::now() + within).await
    }

    const LOGIN: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn everything_that_was_read_is_kept() {
        let start = Instant::now();
        let said = [greeting(OPENSSH, OPENSSH), b"and more".to_vec()].concat();
        let heard = heard(&said, LOGIN).await.unwrap();
        assert_eq!((heard.offer, &heard.bytes[..]), (Offer::AesGcm, &said[..]));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_our_kexinit_gets_it() {
        let start = Instant::now();
        let said = b"SSH-2.0-patient\r\n";
        let heard = heard(said, LOGIN).await.unwrap();
        assert_eq!((heard.offer, &heard.bytes[..]), (Offer::Everything, &said[..]));
        assert_eq!(start.elapsed(), KEXINIT_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_come_to_the_point_is_let_go() {
        for said in [&b""[..], b"SSH-2.0-half a li"] {
            let start = Instant::now();
            let error = heard(said, LOGIN).await.unwrap_err();
            assert!(matches!(error, JumpError::TimedOut), "{error}");
            assert_eq!(start.elapsed(), LOGIN);
        }
        let error = heard(b"SSH-2.0-late\r\n", KEXINIT_WITHIN / 2).await.unwrap_err();
        assert!(matches!(error, JumpError::TimedOut), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_drip_are_waited_for_once() {
        const GAP: Duration = Duration::from_millis(50);
        let (mut client, mut server) = duplex(64);
        let drip = async {
            for byte in greeting(OPENSSH, OPENSSH) {
                tokio::time::sleep(GAP).await;
                client.write_all(&[byte]).await.unwrap();
            }
        };
        let start = Instant::now();
        let heard = tokio::select! {
            heard = listen(&mut server, start + LOGIN) => heard.unwrap(),
            () = drip => panic!("all of it was waited for"),
        };
        assert_eq!(heard.offer, Offer::Everything);
        let line = u32::try_from("SSH-2.0-OpenSSH_9.2\r\n".len()).unwrap();
        assert_eq!(start.elapsed(), line * GAP + KEXINIT_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_a_greeting_is_not_read() {
        let (mut client, mut server) = duplex(1024 * 1024);
        let packet = [&35_000_u32.to_be_bytes()[..], &[0; 200_000]].concat();
        client.write_all(&[b"SSH-2.0-big\r\n", &packet[..]].concat()).await.unwrap();
        let heard = listen(&mut server, Instant::now() + LOGIN).await.unwrap();
        assert_eq!(heard.offer, Offer::Everything);
        assert!(heard.bytes.len() <= GREETING_BYTES_MAX, "{}", heard.bytes.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_ends_is_left_to_russh() {
        let (mut client, mut server) = duplex(64);
        client.write_all(b"SSH-2.0-gone\r\n").await.unwrap();
        client.shutdown().await.unwrap();
        let heard = listen(&mut server, Instant::now() + LOGIN).await.unwrap();
        assert_eq!(heard.offer, Offer::Everything);
    }

    #[tokio::test]
    async fn our_version_is_said_first() {
        let (mut client, mut server) = duplex(64 * 1024);
        client.write_all(&greeting(OPENSSH, OPENSSH)).await.unwrap();
        exchange(&mut server, Instant::now() + LOGIN).await.unwrap();
        let mut version = vec![0; VERSION.len()];
        client.read_exact(&mut version).await.unwrap();
        assert_eq!(version, VERSION.as_bytes());
    }
}
