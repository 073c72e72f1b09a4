//! The public port: who is let in for what, and what strays are told.

use std::time::Duration;

use net::ping;
use net::tls::Trust;
use proto::preamble::{ALPN_HTTP, ALPN_SSH, ALPN_STREAM, ALPN_TUNNEL, FromNode, Inner, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::cluster::{Bench, within};
use crate::Limits;

const NAME: &str = "proxy.example.com";

async fn said(bench: &Bench, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(bench.proxy.web_addr()).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    within(socket.read_to_end(&mut answer)).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strays_are_told_where_to_go() {
    let bench = Bench::start().await;
    let http = said(&bench, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let http = String::from_utf8(http).unwrap();
    assert!(http.starts_with("HTTP/1.1 400 "), "{http}");
    assert!(
        http.ends_with("\r\n\r\nthis port speaks TLS: use https://proxy.test:3080\n"),
        "{http}"
    );
    let ssh = said(&bench, b"SSH-2.0-OpenSSH_9.2\r\n").await;
    let ssh = String::from_utf8_lossy(&ssh);
    assert!(ssh.starts_with("SSH-2.0-postern\r\n"), "{ssh}");
    assert!(ssh.contains("ssh -J proxy.test:3023"), "{ssh}");
    assert_eq!(said(&bench, b"\x00\x01\x02\x03\x04").await, b"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_ends_in_time() {
    let limits = Limits { request_within: Duration::from_millis(300), ..Limits::default() };
    let bench = Bench::with(limits, Inner::Plain).await;
    assert_eq!(said(&bench, b"").await, b"");
    assert_eq!(said(&bench, b"\x16\x03\x01\x02\x00").await, b"");
    // A handshake without a request.
    let config = bench.config("alice");
    let mut tls = within(net::dial::tls(&bench.address(), NAME, config)).await.unwrap();
    let mut rest = Vec::new();
    drop(within(tls.read_to_end(&mut rest)).await);
    assert!(rest.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_says_what_clients_need() {
    let bench = Bench::start().await;
    for trust in [bench.authority.trust(), Trust::Pin(bench.authority.pin())] {
        let address = format!("localhost:{}", bench.proxy.web_addr().port());
        let answer = within(ping::ping(&address, &trust)).await.unwrap();
        assert_eq!(answer.cluster_name, "example.com");
        assert_eq!(answer.proxy_public_addr, "proxy.test:3080");
        assert_eq!(answer.ssh_jump_addr, "proxy.test:3023");
        assert_eq!(answer.host_ca_pem, bench.authority.public.host_tls);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_web_answers_nothing_else() {
    async fn check(bench: &Bench, request: &str, expect: &str) {
        let config = net::tls::client_config(&bench.authority.trust(), None, &[ALPN_HTTP]).unwrap();
        let mut tls = within(net::dial::tls(&bench.address(), NAME, config)).await.unwrap();
        // A request that is too long is not read to its end.
        drop(tls.write_all(request.as_bytes()).await);
        let mut answer = Vec::new();
        drop(within(tls.read_to_end(&mut answer)).await);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(expect), "{request:?}: {answer}");
    }
    let bench = Bench::start().await;
    check(&bench, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404").await;
    check(&bench, "GET /webapi/../webapi/ping HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404").await;
    check(&bench, "POST /webapi/ping HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 405").await;
    check(&bench, "nonsense\r\n\r\n", "HTTP/1.1 400").await;
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(9_000));
    check(&bench, &long, "HTTP/1.1 4").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_good_only_for_their_kind() {
    let bench = Bench::start().await;
    let trust = bench.authority.trust();
    // A user who would be a node.
    for alpn in [ALPN_TUNNEL, ALPN_STREAM] {
        let config = bench.authority.person("alice").config(&trust, &[alpn]);
        refused(&bench, config).await;
    }
    // Nobody.
    for alpn in [ALPN_SSH, ALPN_TUNNEL, ALPN_STREAM] {
        let config = net::tls::client_config(&trust, None, &[alpn]).unwrap();
        refused(&bench, config).await;
    }
    // A user of another cluster with the same name.
    let stranger = super::cluster::Authority::new().person("alice");
    refused(&bench, stranger.config(&trust, &[ALPN_SSH])).await;
    // A protocol that is not spoken here.
    let config = net::tls::client_config(&trust, None, &[b"h2"]).unwrap();
    let error = within(net::dial::tls(&bench.address(), NAME, config)).await.unwrap_err();
    let net::dial::DialError::Tls { source, .. } = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("NoApplicationProtocol"), "{source}");
    assert_eq!(bench.proxy.tunnels(), 0);
}

/// In TLS 1.3 the client's handshake may end before the server has seen its certificate; nothing comes after it.
async fn refused(bench: &Bench, config: std::sync::Arc<rustls::ClientConfig>) {
    let Ok(mut tls) = within(net::dial::tls(&bench.address(), NAME, config)).await else { return };
    let hello = FromNode::Hello {
        version: VERSION,
        host_id: proto::id::HostId::from_random([7; 16]),
        nodename: "evil".parse().unwrap(),
        labels: Default::default(),
    };
    drop(net::frame::write(&mut tls, &hello, Duration::from_secs(5)).await);
    let mut rest = Vec::new();
    drop(within(tls.read_to_end(&mut rest)).await);
    assert!(rest.is_empty(), "{rest:?}");
}
