//! A stream through a proxy: TCP, TLS, preamble, reply, and then TLS is left or stays.

use std::sync::Arc;
use std::time::Duration;

use proto::id::ClusterName;
use proto::preamble::{Dial, Inner, Refusal, Reply};
use proto::resource::HostRole;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::exact::ExactRecords;
use crate::frame::{self, FrameIoError};
use crate::stream::{Prefixed, Stream, Tls};

/// Whole way to the reply. Generous for slow links; a dead proxy is known by TCP long before.
pub const DIAL_WITHIN: Duration = Duration::from_secs(20);

/// What goes wrong, by whose fault.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("TLS with {address} failed")]
    Tls {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{address} is no valid host:port")]
    Address { address: String },
    #[error("no answer from {address} within {within:?}")]
    TimedOut { address: String, within: Duration },
    /// `message` is the proxy's sentence for the user.
    #[error("{message}")]
    Refused { reason: Refusal, message: String },
    #[error(transparent)]
    Frame(#[from] FrameIoError),
    #[error("the other side left TLS in the middle of a record")]
    Boundary,
}

/// TCP (nodelay) and TLS to `address` (`host:port`), record-exact. `server_name` is sent as SNI and checked.
///
/// # Errors
/// See [`DialError`].
pub async fn tls(
    address: &str,
    server_name: &str,
    config: Arc<ClientConfig>,
) -> Result<Tls, DialError> {
    timeout(DIAL_WITHIN, tls_whenever(address, server_name, config))
        .await
        .map_err(|_| DialError::TimedOut { address: address.into(), within: DIAL_WITHIN })?
}

/// A user's stream to an SSH target: `config` carries the user's certificate and ALPN `postern-ssh`.
///
/// # Errors
/// See [`DialError`]; a refusal carries the proxy's sentence.
pub async fn ssh(proxy: &str, config: Arc<ClientConfig>, dial: &Dial) -> Result<Stream, DialError> {
    timeout(DIAL_WITHIN, ssh_whenever(proxy, config, dial))
        .await
        .map_err(|_| DialError::TimedOut { address: proxy.into(), within: DIAL_WITHIN })?
}

async fn ssh_whenever(
    proxy: &str,
    config: Arc<ClientConfig>,
    dial: &Dial,
) -> Result<Stream, DialError> {
    let mut tls = tls_whenever(proxy, &proxy_name(&dial.cluster), config).await?;
    frame::write(&mut tls, dial, DIAL_WITHIN).await?;
    match frame::read(&mut tls, DIAL_WITHIN).await? {
        Reply::Ok { inner: Inner::Plain } if dial.inner == Inner::Tls => Err(downgrade()),
        Reply::Ok { inner } => Stream::after_reply(tls, inner).map_err(|_| DialError::Boundary),
        Reply::Refused { reason, message } => {
            Err(DialError::Refused { reason, message: printable(&message) })
        }
    }
}

async fn tls_whenever(
    address: &str,
    server_name: &str,
    config: Arc<ClientConfig>,
) -> Result<Tls, DialError> {
    let bad = || DialError::Address { address: address.into() };
    host_of(address).ok_or_else(bad)?;
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|_| DialError::Address { address: server_name.into() })?;
    let socket = connect(address).await?;
    TlsConnector::from(config)
        .connect(name, ExactRecords::new(Prefixed::new(bytes::Bytes::new(), socket)))
        .await
        .map(Tls::Client)
        .map_err(|source| DialError::Tls { address: address.into(), source })
}

async fn connect(address: &str) -> Result<TcpStream, DialError> {
    let failed = |source| DialError::Connect { address: address.into(), source };
    let socket = TcpStream::connect(address).await.map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    Ok(socket)
}

/// The host of `host:port`, without the brackets of an IPv6 address.
pub(crate) fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then_some(host)
}

/// The name in the certificate of every proxy of a cluster.
pub(crate) fn proxy_name(cluster: &ClusterName) -> String {
    format!("{}.{cluster}", HostRole::Proxy.as_str())
}

/// Text from the other side that people will see in a terminal: no control characters.
fn printable(message: &str) -> String {
    message.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect()
}

fn downgrade() -> DialError {
    DialError::Frame(FrameIoError::Io(std::io::Error::new(
        std::io::ErrorKind::InvalidData,
        "the proxy would leave TLS, which was asked to stay",
    )))
}

/// A sentence or two.
const MESSAGE_CHARS_MAX: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        fn check(address: &str, expect: Option<&str>) {
            assert_eq!(host_of(address), expect, "{address:?}");
        }
        check("example.com:3080", Some("example.com"));
        check("127.0.0.1:1", Some("127.0.0.1"));
        check("[::1]:3080", Some("::1"));
        check("::1:3080", None);
        check("[::1:3080", None);
        check("example.com", None);
        check("example.com:", None);
        check("example.com:65536", None);
        check(":3080", None);
    }

    #[test]
    fn messages_cannot_drive_a_terminal() {
        assert_eq!(printable("no\x1b[2J such\r\n target"), "no[2J such target");
    }
}
