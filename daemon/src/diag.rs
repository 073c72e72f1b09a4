//! `/healthz`, `/readyz`, `/metrics` on `--diag-addr`, and the same with `/status` on `<data_dir>/postern.sock`, which
//! `postern status` asks. Read-only; nothing here changes the daemon.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::health::Health;

/// Connections at once: scrapers and probes are few; more would only be an attack on memory.
const CONNECTIONS_MAX: usize = 64;
/// A scraper that sends no complete request head for so long is gone.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Longest life of a connection.
const CONNECTION_WITHIN: Duration = Duration::from_secs(300);

/// File name of the local status socket.
pub(crate) const SOCKET: &str = "postern.sock";

/// What the answers are made of.
#[derive(Clone)]
pub(crate) struct Diag {
    health: Arc<Health>,
    metrics: PrometheusHandle,
    connections: Arc<Semaphore>,
}

impl Diag {
    /// Installs the metrics recorder; once per process.
    pub(crate) fn new(health: Arc<Health>) -> anyhow::Result<Self> {
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new()
            .install_recorder()
            .context("the metrics recorder")?;
        Ok(Self { health, metrics, connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)) })
    }

    /// Serves on a TCP address.
    pub(crate) async fn listen(&self, address: SocketAddr) -> anyhow::Result<SocketAddr> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (--diag-addr)"))?;
        let local = listener.local_addr()?;
        let diag = self.clone();
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((socket, _)) => diag.serve(socket),
                    Err(error) => accept_failed(&error).await,
                }
            }
        });
        Ok(local)
    }

    /// Serves on the local socket, for our own user and root.
    pub(crate) fn listen_socket(&self, data_dir: &Path) -> anyhow::Result<PathBuf> {
        let path = data_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("{}", path.display())),
        }
        // The folder is private, so nobody can connect between bind and chmod.
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let diag = self.clone();
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((socket, _)) => diag.serve(socket),
                    Err(error) => accept_failed(&error).await,
                }
            }
        });
        Ok(path)
    }

    fn serve(&self, socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Ok(permit) = self.connections.clone().try_acquire_owned() else { return };
        let diag = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let answer = diag.answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .serve_connection(TokioIo::new(socket), service);
            match tokio::time::timeout(CONNECTION_WITHIN, connection).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => tracing::debug!(%error, "diagnostics connection failed"),
            }
        });
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".into());
        }
        match request.uri().path() {
            "/healthz" => {
                respond(StatusCode::OK, "application/json", "{\"status\":\"ok\"}\n".into())
            }
            "/metrics" => {
                let text = self.metrics.render();
                respond(StatusCode::OK, "text/plain; version=0.0.4", text)
            }
            path @ ("/readyz" | "/status") => {
                let report = self.health.report();
                let ready = report.ready || path == "/status";
                let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let mut text = serde_json::to_string(&report).unwrap_or_default();
                text.push('\n');
                respond(code, "application/json", text)
            }
            _ => respond(
                StatusCode::NOT_FOUND,
                "text/plain",
                "not found; here are /healthz, /readyz and /metrics\n".into(),
            ),
        }
    }
}

fn respond(code: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// Out of descriptors, most likely: wait instead of spinning.
async fn accept_failed(error: &std::io::Error) {
    tracing::warn!(%error, "diagnostics listener");
    tokio::time::sleep(Duration::from_millis(200)).await;
}
