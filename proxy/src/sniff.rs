//! Learns from a connection's first bytes what it wants, before any cryptography. Pure: bytes in, names out.
//! Called by the door for each connection; what the names ask for is `route`'s. Public to be measured by `bench`.

use std::io;

use rustls::server::Acceptor;

/// What a ClientHello says about where the connection should go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// Server name, as sent.
    pub sni: Option<String>,
    pub alpn: Vec<Vec<u8>>,
}

/// Why nothing was learnt; always by the peer's fault.
#[derive(Debug, thiserror::Error)]
pub enum SniffError {
    #[error("it speaks HTTP without TLS")]
    Http,
    #[error("it speaks SSH without TLS")]
    Ssh,
    #[error("its first bytes are of no protocol that is served here")]
    Unknown,
    #[error("its ClientHello is malformed or too long")]
    Malformed,
}

/// Looks at what a connection has sent so far. None: not whole yet.
///
/// # Errors
/// It is no ClientHello, or none that anybody sends.
pub fn look(bytes: &[u8]) -> Result<Option<Hello>, SniffError> {
    let mut end = 0_usize;
    for record in 0..RECORDS_MAX {
        let rest = bytes.get(end..).unwrap_or_default();
        let Some(header) = rest.get(..HEADER_BYTES) else { return Ok(None) };
        let body = match record_body(header) {
            Some(body) => body,
            None if record == 0 => return Err(protocol(header)),
            None => return Err(SniffError::Malformed),
        };
        end = end.saturating_add(HEADER_BYTES).saturating_add(body);
        if end > HELLO_BYTES_MAX {
            return Err(SniffError::Malformed);
        }
        let Some(records) = bytes.get(..end) else { return Ok(None) };
        if let Some(hello) = parse(records)? {
            return Ok(Some(hello));
        }
    }
    Err(SniffError::Malformed)
}

/// The ClientHello in these bytes; None while it is not whole.
fn parse(mut bytes: &[u8]) -> Result<Option<Hello>, SniffError> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).map_err(|_: io::Error| SniffError::Malformed)? == 0 {
            return Err(SniffError::Malformed);
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return Ok(Some(Hello {
                    sni: hello.server_name().map(str::to_owned),
                    alpn: hello
                        .alpn()
                        .map(|names| names.map(<[u8]>::to_vec).collect())
                        .unwrap_or_default(),
                }));
            }
            Err(_) => return Err(SniffError::Malformed),
        }
    }
    Ok(None)
}

/// Length of the body behind the header of a handshake record (RFC 8446, section 5.1).
fn record_body(header: &[u8]) -> Option<usize> {
    match *header {
        [HANDSHAKE, 3, _, high, low] => {
            let length = usize::from(u16::from_be_bytes([high, low]));
            (length > 0 && length <= RECORD_BODY_BYTES_MAX).then_some(length)
        }
        _ => None,
    }
}

/// What else these first bytes may be.
fn protocol(first: &[u8]) -> SniffError {
    const METHODS: [&[u8]; 9] =
        [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELET", b"OPTIO", b"PATCH", b"CONNE", b"TRACE"];
    if first.starts_with(b"SSH-") {
        SniffError::Ssh
    } else if METHODS.iter().any(|method| first.starts_with(method)) {
        SniffError::Http
    } else {
        SniffError::Unknown
    }
}

/// `ContentType.handshake`.
const HANDSHAKE: u8 = 22;
/// Content type, version, length.
const HEADER_BYTES: usize = 5;
/// RFC 8446, section 5.1: no plaintext record is longer.
const RECORD_BODY_BYTES_MAX: usize = 1 << 14;
/// A ClientHello with post-quantum key shares and a resumption ticket that carries a client certificate is below 8 KiB.
const HELLO_BYTES_MAX: usize = 16 * 1024;
/// Clients send one or two; each further one makes us parse again from the start.
const RECORDS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn client_hello(sni: &str, alpn: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same handshake message in records of at most `size` bytes.
    fn fragment(hello: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for part in hello[HEADER_BYTES..].chunks(size) {
            out.extend_from_slice(&hello[..3]);
            out.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    #[test]
    fn names_are_learnt_as_soon_as_the_hello_is_whole() {
        let hello = client_hello("auth.example.com", &[b"h2", b"http/1.1"]);
        for size in [1 << 14, 700, 300] {
            let mut wire = fragment(&hello, size);
            for end in 0..wire.len() {
                assert_eq!(
                    look(&wire[..end]).unwrap(),
                    None,
                    "{end} of {}, size {size}",
                    wire.len()
                );
            }
            wire.extend_from_slice(b"what comes next");
            let learnt = look(&wire).unwrap().unwrap();
            assert_eq!(learnt.sni.as_deref(), Some("auth.example.com"));
            assert_eq!(learnt.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        }
    }

    #[test]
    fn other_protocols_are_told_apart() {
        fn check(bytes: &[u8], expect: &str) {
            let error = look(bytes).unwrap_err();
            assert!(format!("{error:?}").starts_with(expect), "{error:?} for {bytes:?}");
        }
        check(b"GET / HTTP/1.1\r\n\r\n", "Http");
        check(b"OPTIONS * HTTP/1.1\r\n\r\n", "Http");
        check(b"SSH-2.0-OpenSSH_9.2\r\n", "Ssh");
        check(b"\x00\x00\x00\x08\x04\xd2\x16\x2f", "Unknown");
        check(b"\x16\x03\x01\x00\x00", "Unknown");
        check(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "Malformed");
        check(b"\x16\x03\x01\x40\x00", "Malformed");
        let tiny = fragment(&client_hello("a.example", &[]), 10);
        check(&tiny, "Malformed");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            drop(look(&bytes));
            drop(parse(&bytes));
            assert!(!protocol(&bytes).to_string().is_empty());
            record_body(&bytes);
        }

        #[test]
        fn no_damaged_hello_makes_it_panic(
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut bytes = client_hello("node.example.com", &[b"postern-ssh"]);
            for (index, value) in flips {
                let at = index.index(bytes.len());
                bytes[at] = value;
            }
            drop(parse(&bytes));
            let cut = cut.index(bytes.len());
            drop(parse(&bytes[..cut]));
        }
    }
}
