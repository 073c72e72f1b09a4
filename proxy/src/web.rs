//! HTTP on the public port: what clients ask before sign-in. `GET /webapi/ping` and nothing else; the web interface comes
//! in this file's place later. One request per connection, bounded in time and size.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use net::ping::{self, Ping};
use relay::tls::TlsStream;
use tokio::time::{Instant, timeout_at};

use crate::Core;

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebError {
    #[error("the HTTP exchange failed")]
    Http(#[from] hyper::Error),
    #[error("the request was not made or the answer not taken in time")]
    TimedOut,
}

/// Answers one request until `deadline`.
pub(crate) async fn serve(core: &Core, tls: TlsStream, deadline: Instant) -> Result<(), WebError> {
    let exchange = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(REQUEST_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(
            TokioIo::new(tls),
            service_fn(|request| async move { Ok::<_, Infallible>(answer(core, &request)) }),
        );
    timeout_at(deadline, exchange).await.map_err(|_| WebError::TimedOut)??;
    Ok(())
}

fn answer(core: &Core, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.uri().path() != ping::PATH {
        return text(StatusCode::NOT_FOUND, "not found\n");
    }
    if request.method() != Method::GET {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    match serde_json::to_vec(&ping(core)) {
        Ok(body) => response(StatusCode::OK, "application/json", body.into()),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n"),
    }
}

fn ping(core: &Core) -> Ping {
    let jump = core.config.ssh_jump_listen.is_some();
    Ping {
        cluster_name: core.cluster.to_string(),
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        proxy_public_addr: core.config.public_addr.clone(),
        ssh_jump_addr: if jump { core.config.ssh_public_addr.clone() } else { String::new() },
        host_ca_pem: core.policy.current().policy.snapshot().authorities.host_tls.clone(),
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// A request without a body, in one or two packets.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// hyper's smallest buffer; a browser's request without cookies is below 2 KiB.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// A browser sends some twenty.
const HEADERS_MAX: usize = 64;
