//! Answers to clients that knocked at the wrong door, in their own protocol, so that people see what to do.
//! Nothing that a stray sends has any effect.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// HTTP without TLS.
pub(crate) async fn http(socket: TcpStream, public_addr: &str) {
    let body = format!("this port speaks TLS: use https://{public_addr}\n");
    let length = body.len();
    let head =
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close";
    say(socket, format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes()).await;
}

/// SSH on the TLS port.
pub(crate) async fn ssh(socket: TcpStream, ssh_public_addr: &str) {
    let hint = if ssh_public_addr.is_empty() {
        "this port speaks TLS: use tsh ssh".to_owned()
    } else {
        format!("this port speaks TLS: use tsh ssh, or ssh -J {ssh_public_addr}")
    };
    say(socket, &ssh_goodbye(&hint)).await;
}

/// TLS for a protocol that is not served: the alert `no_application_protocol` (RFC 7301, section 3.2).
pub(crate) async fn tls(socket: TcpStream) {
    say(socket, &[21, 3, 3, 0, 2, 2, 120]).await;
}

/// A server's version and SSH_MSG_DISCONNECT before any key exchange (RFC 4253, sections 4.2, 6 and 11.1).
fn ssh_goodbye(hint: &str) -> Vec<u8> {
    const DISCONNECT: u8 = 1;
    const PROTOCOL_VERSION_NOT_SUPPORTED: u32 = 8;
    let mut payload = vec![DISCONNECT];
    payload.extend_from_slice(&PROTOCOL_VERSION_NOT_SUPPORTED.to_be_bytes());
    payload.extend_from_slice(&length(hint.len()).to_be_bytes());
    payload.extend_from_slice(hint.as_bytes());
    payload.extend_from_slice(&0_u32.to_be_bytes());
    // Four bytes of padding at least, and a multiple of eight in all.
    let padding = 8 + (8 - (4 + 1 + payload.len() + 8) % 8) % 8;
    let mut bytes = b"SSH-2.0-postern\r\n".to_vec();
    bytes.extend_from_slice(&length(1 + payload.len() + padding).to_be_bytes());
    bytes.push(u8::try_from(padding).unwrap_or(u8::MAX));
    bytes.extend_from_slice(&payload);
    bytes.resize(bytes.len() + padding, 0);
    bytes
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Writes, and lets the other side read it: closing with bytes unread would throw the answer away. Best effort.
async fn say(mut socket: TcpStream, bytes: &[u8]) {
    let exchange = async {
        socket.write_all(bytes).await?;
        socket.shutdown().await?;
        let mut sink = [0; 1024];
        let mut left = UNREAD_BYTES_MAX;
        while left > 0 {
            match socket.read(&mut sink).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        Ok::<_, io::Error>(())
    };
    match timeout(SAY_WITHIN, exchange).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::trace!(%error, "a stray did not wait for its answer"),
        Err(_) => tracing::trace!("a stray did not take its answer in time"),
    }
}

/// A second is enough for one packet and its acknowledgement.
const SAY_WITHIN: Duration = Duration::from_secs(1);
/// A request's head, or an SSH client's key exchange offer.
const UNREAD_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ssh_packet_is_well_formed() {
        for hint in ["", "x", "this port speaks TLS", "a longer sentence of another length"] {
            let bytes = ssh_goodbye(hint);
            let packet = bytes.strip_prefix(b"SSH-2.0-postern\r\n").unwrap();
            let (header, rest) = packet.split_at(4);
            let length = u32::from_be_bytes(header.try_into().unwrap()) as usize;
            assert_eq!(rest.len(), length);
            assert_eq!(packet.len() % 8, 0, "{hint:?}");
            let padding = usize::from(rest[0]);
            assert!((4..=255).contains(&padding));
            let payload = &rest[1..rest.len() - padding];
            assert_eq!(payload[0], 1);
            assert_eq!(&payload[9..9 + hint.len()], hint.as_bytes());
            assert_eq!(payload.len(), 1 + 4 + 4 + hint.len() + 4);
        }
    }
}
