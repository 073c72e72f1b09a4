//! gRPC to auth. The channel connects when first used and again after failures; each new connection takes the newest
//! client certificate. TLS runs end to end to auth (SNI `auth.<cluster>`), also through a proxy.
//! How often a call is tried again, and how long it may take, is its caller's business.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::id::ClusterName;
use proto::preamble::SNI_AUTH_LABEL;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::dial::{self, DialError};
use crate::stream::Tls;
use crate::tls::{self, TlsError, Trust};

/// How to reach auth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `host:port` of auth itself.
    Direct(String),
    /// `host:port` of a proxy, which relays TLS untouched.
    Proxy(String),
    /// Auth's local administration socket; the kernel says who we are.
    Socket(PathBuf),
}

/// Largest message either way: an event or a resource is far smaller, a page of events fits.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A channel to auth. `credentials` is read at each connect; `None` inside means: no client certificate (sign-in, join).
///
/// # Errors
/// Malformed trust settings.
pub fn channel(
    route: &Route,
    cluster: &ClusterName,
    trust: &Trust,
    credentials: watch::Receiver<Option<Arc<CertifiedKey>>>,
) -> Result<Channel, TlsError> {
    let address = match route {
        Route::Direct(address) | Route::Proxy(address) => address.clone(),
        Route::Socket(path) => return Ok(socket_channel(path.clone())),
    };
    // Mistakes in the settings are told now rather than at each connect.
    tls::client_config(trust, None, &[ALPN_H2])?;
    let server_name = format!("{SNI_AUTH_LABEL}.{cluster}");
    let trust = trust.clone();
    let connector = service_fn(move |_: Uri| {
        let (address, server_name) = (address.clone(), server_name.clone());
        let (trust, mut credentials) = (trust.clone(), credentials.clone());
        async move {
            let key = credentials.borrow_and_update().clone();
            let stream = connect(&address, &server_name, &trust, key).await?;
            Ok::<_, io::Error>(TokioIo::new(UntilRenewed::new(stream, credentials)))
        }
    });
    Ok(endpoint().connect_with_connector_lazy(connector))
}

/// A channel over auth's local administration socket.
pub fn socket_channel(path: PathBuf) -> Channel {
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint().connect_with_connector_lazy(connector)
}

async fn connect(
    address: &str,
    server_name: &str,
    trust: &Trust,
    key: Option<Arc<CertifiedKey>>,
) -> io::Result<Tls> {
    let config = tls::client_config(trust, key, &[ALPN_H2]).map_err(io::Error::other)?;
    let mut stream = dial::tls(address, server_name, config).await.map_err(told)?;
    // This stream never leaves TLS.
    stream.get_mut().0.release();
    Ok(stream)
}

/// A connection that ends when the certificate that it was made with has been replaced: auth checks the certificate at
/// each call, and a connection may outlive it. Callers try again anyway, because auth may be restarted at any time.
struct UntilRenewed {
    stream: Tls,
    renewed: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl UntilRenewed {
    fn new(stream: Tls, mut credentials: watch::Receiver<Option<Arc<CertifiedKey>>>) -> Self {
        let renewed = Box::pin(async move {
            // Without anybody to renew it, the certificate stays.
            if credentials.changed().await.is_err() {
                std::future::pending().await
            }
        });
        Self { stream, renewed }
    }
}

impl AsyncRead for UntilRenewed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.renewed.as_mut().poll(context).is_ready() {
            // The future is over and must not be asked again.
            self.renewed = Box::pin(std::future::ready(()));
            let replaced = "the client certificate was replaced";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, replaced)));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for UntilRenewed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// What a failed call says, with all its causes: tonic's own text is only `transport error`.
pub fn explain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let detail = error.to_string();
        if !text.contains(&detail) {
            text = format!("{text}: {detail}");
        }
        cause = error.source();
    }
    text
}

/// A dialing error with its cause in the text, since tonic's users print only the outermost error; the causes below stay
/// what they are, for `tls::is_unknown_authority`.
#[derive(Debug)]
struct Told(DialError);

impl std::fmt::Display for Told {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.0)?;
        match std::error::Error::source(&self.0) {
            Some(cause) => write!(out, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Told {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

fn told(error: DialError) -> io::Error {
    io::Error::other(Told(error))
}

fn endpoint() -> Endpoint {
    // The address is the connector's business; this is only the authority header's text.
    Endpoint::from_static("http://auth.postern.local")
        .connect_timeout(dial::DIAL_WITHIN)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_WITHIN)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
}

/// gRPC's protocol.
const ALPN_H2: &[u8] = b"h2";
/// Short enough to keep address translators from forgetting the connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// A path that is silent for so long is dead.
const KEEP_ALIVE_WITHIN: Duration = Duration::from_secs(10);
/// Receive window: recordings and snapshots at full speed over long paths.
const WINDOW_BYTES: u32 = 1024 * 1024;
