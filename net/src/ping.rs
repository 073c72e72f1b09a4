//! What a proxy says of its cluster before sign-in: `GET /webapi/ping`. The server half is the proxy's.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use proto::preamble::ALPN_HTTP;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::dial::{self, DialError};
use crate::stream::Tls;
use crate::tls::{self, Trust};
use crate::trust::Pin;

/// Path of the answer.
pub const PATH: &str = "/webapi/ping";

/// The answer. Unknown fields are ignored: newer proxies may say more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    pub cluster_name: String,
    pub server_version: String,
    /// `host:port` that clients should use.
    pub proxy_public_addr: String,
    /// `host:port` of the SSH jump listener; empty when there is none.
    pub ssh_jump_addr: String,
    /// PEM of the host TLS authorities. Worth as much as the trust with which it was fetched.
    pub host_ca_pem: Vec<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PingError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the proxy's answer is not understood: {0}")]
    Answer(String),
}

/// Asks. Under [`Trust::Pin`] the answer's authorities are checked against the pin as well.
///
/// # Errors
/// See [`PingError`].
pub async fn ping(proxy: &str, trust: &Trust) -> Result<Ping, PingError> {
    let host = dial::host_of(proxy).ok_or_else(|| DialError::Address { address: proxy.into() })?;
    let config = tls::client_config(trust, None, &[ALPN_HTTP]).map_err(answer)?;
    let stream = dial::tls(proxy, host, config).await?;
    let body = timeout(ANSWER_WITHIN, fetch(stream, proxy))
        .await
        .map_err(|_| DialError::TimedOut { address: proxy.into(), within: ANSWER_WITHIN })??;
    let mut ping: Ping = serde_json::from_slice(&body).map_err(answer)?;
    if let Trust::Pin(pin) = trust {
        keep_pinned(&mut ping, pin)?;
    }
    Ok(ping)
}

/// Drops the authorities that the pin does not vouch for: the proxy alone is no reason to believe them.
pub(crate) fn keep_pinned(ping: &mut Ping, pin: &str) -> Result<(), PingError> {
    let pin = Pin::parse(pin).map_err(answer)?;
    ping.host_ca_pem.retain(|pem| match tls::certificates(pem).as_deref() {
        Ok([certificate]) => pin.fits(certificate),
        Ok(_) | Err(_) => false,
    });
    if ping.host_ca_pem.is_empty() {
        return Err(answer("none of its authorities has the pinned key"));
    }
    Ok(())
}

async fn fetch(stream: Tls, proxy: &str) -> Result<bytes::Bytes, PingError> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(answer)?;
    let request = Request::get(PATH)
        .header(hyper::header::HOST, proxy)
        .header(hyper::header::USER_AGENT, concat!("postern/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<bytes::Bytes>::new())
        .map_err(answer)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(answer)?;
        if response.status() != StatusCode::OK {
            return Err(answer(format!("status {}", response.status())));
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        Ok(body.collect().await.map_err(answer)?.to_bytes())
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    // The connection's own end is no news while the answer is still being read from its buffer.
    tokio::select! {
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}

fn answer(detail: impl std::fmt::Display) -> PingError {
    PingError::Answer(detail.to_string())
}

/// From the request to the last byte.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Names, addresses and a few certificates.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
