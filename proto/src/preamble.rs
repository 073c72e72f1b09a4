//! The frames that say where a stream wants to go, and the tunnel's control messages.
//! A frame is a four-byte big-endian length and that much JSON. Parsers here get bytes and give values; sockets are
//! `net::frame`'s business. Fields may be added; a change of meaning raises [`VERSION`], and another version is refused.
//!
//! Order on every stream: the dialing side sends one request frame, the other answers one [`Reply`]. When that says
//! [`Inner::Plain`], the record that carried it is the last TLS record in its direction, and the request's record was
//! the last in the other: what follows is the inner protocol, which is encrypted and authenticated end to end.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::{ClusterName, HostId, Login, NodeName};
use crate::resource::Labels;

/// Version of these messages.
pub const VERSION: u32 = 1;
/// Longest frame body: names, labels and addresses fit many times; a pre-authentication peer can't make us hold more.
/// Below TLS' 16 KiB record, so that a frame never spans records.
pub const FRAME_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a frame's length prefix.
pub const FRAME_HEADER_BYTES: usize = 4;

/// ALPN: a user's stream to an SSH target.
pub const ALPN_SSH: &[u8] = b"postern-ssh";
/// ALPN: a node's control stream.
pub const ALPN_TUNNEL: &[u8] = b"postern-tunnel";
/// ALPN: a node's data connection.
pub const ALPN_STREAM: &[u8] = b"postern-stream";
/// ALPN: browsers and `tsh` before login.
pub const ALPN_HTTP: &[u8] = b"http/1.1";
/// SNI label under which auth is reached through a proxy: `auth.<cluster>`.
pub const SNI_AUTH_LABEL: &str = "auth";

/// What goes wrong with a frame; always the peer's fault.
#[derive(Debug, Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes, more than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    #[error("not a message of this protocol")]
    Malformed(#[source] serde_json::Error),
    #[error("protocol version {0}; this build speaks {VERSION}")]
    Version(u32),
}

/// Length prefix and body of a message.
///
/// # Errors
/// The message is longer than a frame may be.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(message).map_err(FrameError::Malformed)?;
    if body.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(body.len()));
    }
    let length = u32::try_from(body.len()).map_err(|_| FrameError::TooLong(body.len()))?;
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Length of the body that follows this header.
///
/// # Errors
/// Longer than a frame may be.
pub fn body_length(header: [u8; FRAME_HEADER_BYTES]) -> Result<usize, FrameError> {
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX { Err(FrameError::TooLong(length)) } else { Ok(length) }
}

/// The message in a frame's body.
///
/// # Errors
/// Not JSON of this type.
pub fn decode<M: DeserializeOwned>(body: &[u8]) -> Result<M, FrameError> {
    serde_json::from_slice(body).map_err(FrameError::Malformed)
}

/// Whether what follows the preamble stays inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inner {
    /// Both ends leave TLS: the inner protocol brings its own encryption.
    Plain,
    /// TLS stays around the inner protocol.
    Tls,
}

/// Client to proxy, first frame under [`ALPN_SSH`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dial {
    pub version: u32,
    pub cluster: ClusterName,
    /// Node name or host id.
    pub target: String,
    /// What the client asks for; the cluster's setting may insist on [`Inner::Tls`].
    pub inner: Inner,
    /// Ties the log lines of client, proxy and node together: 32 hexadecimal digits.
    pub trace: String,
}

/// Proxy to node, first frame on a data connection. The node trusts it as far as it trusts the proxy's certificate:
/// for addresses, never for identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    pub version: u32,
    pub service: Service,
    /// As the user wrote it; for messages and events.
    pub target: String,
    /// The user's address as the proxy saw it.
    pub client_addr: String,
    pub inner: Inner,
    pub trace: String,
}

/// Which of the node's engines a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    Ssh,
}

/// The answer to [`Dial`] and to [`Open`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Reply {
    Ok { inner: Inner },
    Refused { reason: Refusal, message: String },
}

/// Why a stream was refused; `message` beside it is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Locked, expired, wrong kind of certificate.
    Identity,
    /// Too many streams.
    Limit,
    /// No such target, or one that this caller may not know of.
    NoTarget,
    /// The target's tunnel did not answer in time.
    Unreachable,
    /// Another protocol version.
    Version,
}

/// Node to proxy on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromNode {
    /// First message. Host id and name are in the certificate too; the proxy takes them from there.
    Hello { version: u32, host_id: HostId, nodename: NodeName, labels: Labels },
    /// Every [`HEARTBEAT_SECONDS`], with the labels as they are now.
    Heartbeat { labels: Labels },
    /// No new streams, please; those open go on.
    Draining,
}

/// Proxy to node on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromProxy {
    /// First message: keep so many idle data connections.
    Welcome { version: u32, pool: u32 },
    /// Dial so many data connections now, beyond the pool.
    Need { count: u32 },
    /// Answers a heartbeat.
    Alive,
    /// This proxy goes away: dial again after `retry_after_ms` (another instance may answer at the same address).
    Draining { retry_after_ms: u64 },
}

/// Between heartbeats on a control stream; three missed in a row mean that it is dead.
pub const HEARTBEAT_SECONDS: u64 = 10;

/// Asks for a login's target: what `user@host` splits into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginAt {
    pub login: Option<Login>,
    pub host: String,
}

impl LoginAt {
    /// Splits `[login@]host` at the last `@`.
    ///
    /// # Errors
    /// An empty host, or a login with characters that no login has.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (login, host) = match text.rsplit_once('@') {
            Some((login, host)) => (Some(Login::parse(login).map_err(|e| e.to_string())?), host),
            None => (None, text),
        };
        if host.is_empty() {
            return Err("the host is missing: write [login@]host".into());
        }
        Ok(Self { login, host: host.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip() {
        let message =
            Reply::Refused { reason: Refusal::NoTarget, message: "no such target".into() };
        let frame = encode(&message).unwrap();
        let (header, body) = frame.split_at(FRAME_HEADER_BYTES);
        assert_eq!(body_length(header.try_into().unwrap()).unwrap(), body.len());
        assert_eq!(decode::<Reply>(body).unwrap(), message);
        assert_eq!(
            body,
            br#"{"status":"refused","reason":"no_target","message":"no such target"}"#
        );
    }

    #[test]
    fn long_frames_are_refused_on_both_sides() {
        let too_long = u32::try_from(FRAME_BYTES_MAX).unwrap() + 1;
        assert!(body_length(too_long.to_be_bytes()).is_err());
        assert!(body_length([0xff; 4]).is_err());
        assert!(encode(&"x".repeat(FRAME_BYTES_MAX)).is_err());
    }

    #[test]
    fn login_at_host() {
        assert_eq!(LoginAt::parse("root@db").unwrap().login.unwrap().as_str(), "root");
        assert_eq!(LoginAt::parse("db").unwrap().login, None);
        assert!(LoginAt::parse("root@").is_err());
        assert!(LoginAt::parse("-oX@db").is_err());
    }
}
