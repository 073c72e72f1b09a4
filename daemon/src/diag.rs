//! `/healthz`, `/readyz`, `/metrics` on `--diag-addr`, and the same with `/status` on `<data_dir>/postern.sock`, which
//! `postern status` asks; there, and nowhere else, also `POST /upgrade`.

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
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::health::Health;
use crate::upgrade::Report;

/// Connections at once: scrapers and probes are few; more would only be an attack on memory.
const CONNECTIONS_MAX: usize = 64;
/// A scraper that sends no complete request head for so long is gone.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Longest life of a connection.
const CONNECTION_WITHIN: Duration = Duration::from_secs(300);

/// The local status socket of the daemon that serves.
pub(crate) fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("postern.sock")
}

/// The same of a process that an upgrade has replaced, while it lingers.
pub(crate) fn lingering_socket(data_dir: &Path, pid: u32) -> PathBuf {
    data_dir.join(format!("{LINGERING_PREFIX}{pid}.sock"))
}

/// What names of [`lingering_socket`] begin with.
pub(crate) const LINGERING_PREFIX: &str = "postern-";

/// What the answers are made of.
#[derive(Clone)]
pub(crate) struct Diag {
    health: Arc<Health>,
    metrics: PrometheusHandle,
    /// Apart, so that nobody on the network keeps our own user out.
    local: Arc<Semaphore>,
    network: Arc<Semaphore>,
    upgrades: mpsc::Sender<UpgradeAsked>,
}

/// Where the answer to a request for an upgrade goes: what came of it, or why nothing did.
pub(crate) type UpgradeAsked = oneshot::Sender<Result<Report, String>>;

/// Whom a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// Our own user or root, on the local socket: may also ask for an upgrade.
    Local,
    /// Somebody on the network: reads.
    Network,
}

impl Diag {
    /// Installs the metrics recorder; once per process.
    pub(crate) fn new(
        health: Arc<Health>,
        upgrades: mpsc::Sender<UpgradeAsked>,
    ) -> anyhow::Result<Self> {
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new()
            .install_recorder()
            .context("the metrics recorder")?;
        let bound = || Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Ok(Self { health, metrics, local: bound(), network: bound(), upgrades })
    }

    /// Serves on a TCP address.
    pub(crate) async fn listen(
        &self,
        address: SocketAddr,
    ) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (--diag-addr)"))?;
        let local = listener.local_addr()?;
        let diag = self.clone();
        let task = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((socket, _)) => diag.serve(socket, Asker::Network),
                    Err(error) => accept_failed(&error).await,
                }
            }
        });
        Ok((local, task))
    }

    /// Serves on the local socket, for our own user and root.
    pub(crate) fn listen_socket(&self, path: &Path) -> anyhow::Result<()> {
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("{}", path.display())),
        }
        // The folder is private, so nobody can connect between bind and chmod.
        let listener = UnixListener::bind(path)
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let diag = self.clone();
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((socket, _)) => diag.serve(socket, Asker::Local),
                    Err(error) => accept_failed(&error).await,
                }
            }
        });
        Ok(())
    }

    fn serve(&self, socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, asker: Asker) {
        let connections = match asker {
            Asker::Local => &self.local,
            Asker::Network => &self.network,
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else { return };
        let diag = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let diag = diag.clone();
                async move { Ok::<_, Infallible>(diag.answer(&request, asker).await) }
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

    async fn answer(&self, request: &Request<Incoming>, asker: Asker) -> Response<Full<Bytes>> {
        let asks_upgrade = request.method() == Method::POST && request.uri().path() == "/upgrade";
        if asks_upgrade && asker == Asker::Local {
            return self.upgrade().await;
        }
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

impl Diag {
    async fn upgrade(&self) -> Response<Full<Bytes>> {
        let (answer, answered) = oneshot::channel();
        let busy = || Err("an upgrade is under way".to_owned());
        let came = match self.upgrades.try_send(answer) {
            Ok(()) => answered.await.unwrap_or_else(|_| busy()),
            Err(_) => busy(),
        };
        match came {
            Ok(report) => {
                let text = serde_json::to_string(&report).unwrap_or_default();
                respond(StatusCode::OK, "application/json", text)
            }
            Err(why) => respond(StatusCode::CONFLICT, "text/plain", why),
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
