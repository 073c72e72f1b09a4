//! Who is believed and who is not, over real handshakes; and what a proxy's ping says.

use proto::preamble::{ALPN_HTTP, ALPN_SSH};
use proto::resource::HostRole;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::dial;
use crate::ping::{self, Ping, PingError};
use crate::testing::{Cluster, accept, listener};

/// Accepts one connection after the other; each reads one byte, so that a refused client certificate is seen.
async fn serve(listener: TcpListener, config: Arc<ServerConfig>) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let config = config.clone();
        tokio::spawn(async move {
            if let Ok(mut tls) = accept(socket, config).await {
                tls.write_all(b"!").await.ok();
                tls.flush().await.ok();
                tls.read_u8().await.ok();
            }
        });
    }
}

async fn proxy_of(cluster: &Cluster) -> String {
    let proxy = cluster.machine(HostRole::Proxy, "p1", &["127.0.0.1", "door.example.org"]);
    let (listener, address) = listener().await;
    tokio::spawn(serve(listener, cluster.server(&proxy, &[ALPN_SSH])));
    address
}

async fn handshake(address: &str, name: &str, trust: &Trust) -> bool {
    let config = client_config(trust, None, &[ALPN_SSH]).unwrap();
    match dial::tls(address, name, config).await {
        Ok(mut tls) => tls.read_u8().await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn servers_are_believed_for_their_names_only() {
    let (ours, other) = (Cluster::new("example.com"), Cluster::new("example.com"));
    let address = proxy_of(&ours).await;
    let check = async |name: &str, trust: Trust, expect: bool| {
        assert_eq!(handshake(&address, name, &trust).await, expect, "{name} {trust:?}");
    };
    for name in ["proxy.example.com", "p1.example.com", "door.example.org", "127.0.0.1"] {
        check(name, Trust::Pin(ours.pin()), true).await;
        check(name, Trust::HostAuthority(ours.host_roots()), true).await;
        check(name, Trust::Pin(other.pin()), false).await;
        check(name, Trust::HostAuthority(other.host_roots()), false).await;
        check(name, Trust::Platform, false).await;
    }
    for name in ["auth.example.com", "proxy.example.org", "127.0.0.2"] {
        check(name, Trust::Pin(ours.pin()), false).await;
        check(name, Trust::HostAuthority(ours.host_roots()), false).await;
        check(name, Trust::DangerousAnyone, true).await;
    }
}

/// The pinned authority's certificate is public: showing it beside a leaf that it did not sign proves nothing.
#[tokio::test]
async fn a_pinned_authority_must_have_signed_the_leaf() {
    let (ours, attacker) = (Cluster::new("example.com"), Cluster::new("example.com"));
    let mut machine = attacker.machine(HostRole::Proxy, "p1", &[]);
    let mut forged = (*machine.tls).clone();
    forged.cert.truncate(1);
    forged.cert.extend(certificates(ours.host_tls.certificate_pem()).unwrap());
    machine.tls = Arc::new(forged);
    let (listener, address) = listener().await;
    tokio::spawn(serve(listener, attacker.server(&machine, &[ALPN_SSH])));
    assert!(!handshake(&address, "proxy.example.com", &Trust::Pin(ours.pin())).await);
    assert!(handshake(&address, "proxy.example.com", &Trust::DangerousAnyone).await);
}

#[tokio::test]
async fn client_certificates_are_asked_for_and_checked() {
    let (ours, other) = (Cluster::new("example.com"), Cluster::new("example.com"));
    let proxy = ours.machine(HostRole::Proxy, "p1", &[]);
    let resolver = Arc::new(SingleCertAndKey::from(proxy.tls.clone()));
    for (auth, without) in [
        (ClientAuth::Optional(ours.client_roots()), true),
        (ClientAuth::Required(ours.client_roots()), false),
    ] {
        let config = server_config(resolver.clone(), &auth, &[ALPN_SSH]).unwrap();
        let (listener, address) = listener().await;
        tokio::spawn(serve(listener, config));
        let node = ours.machine(HostRole::Node, "n1", &[]).tls;
        for (key, expect) in [
            (None, without),
            (Some(ours.person("alice")), true),
            (Some(node), true),
            (Some(other.person("alice")), false),
        ] {
            let trust = Trust::HostAuthority(ours.host_roots());
            let config = client_config(&trust, key, &[ALPN_SSH]).unwrap();
            let mut tls = dial::tls(&address, "proxy.example.com", config).await.unwrap();
            assert_eq!(tls.read_u8().await.is_ok(), expect, "{auth:?}");
        }
    }
}

#[tokio::test]
async fn an_unknown_protocol_is_refused() {
    let cluster = Cluster::new("example.com");
    let address = proxy_of(&cluster).await;
    let config = client_config(&Trust::Pin(cluster.pin()), None, &[b"other"]).unwrap();
    assert!(dial::tls(&address, "proxy.example.com", config).await.is_err());
}

#[test]
fn settings_that_cannot_work_are_told() {
    let bad =
        [Trust::Pin("sha256:xyz".into()), Trust::HostAuthority(RootCertStore::empty().into())];
    for trust in bad {
        assert!(matches!(client_config(&trust, None, &[]), Err(TlsError::Trust(_))), "{trust:?}");
    }
    let cluster = Cluster::new("example.com");
    let keys = pki::keys::KeyPairs::generate().unwrap();
    let others = cluster.host_tls.certificate_pem();
    assert!(matches!(certified_key(others, &keys), Err(TlsError::Credentials(_))));
    assert!(matches!(certificates("no PEM"), Err(TlsError::Credentials(_))));
}

/// Answers every request with `body`.
async fn ping_server(cluster: &Cluster, status: &'static str, body: String) -> String {
    let proxy = cluster.machine(HostRole::Proxy, "p1", &["127.0.0.1"]);
    let config = cluster.server(&proxy, &[ALPN_HTTP]);
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = accept(socket, config.clone()).await else { continue };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(tls.read_u8().await.unwrap());
            }
            assert!(request.starts_with(b"GET /webapi/ping HTTP/1.1\r\n"));
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
            tls.write_all((head + &body).as_bytes()).await.unwrap();
            tls.shutdown().await.ok();
        }
    });
    address
}

#[tokio::test]
async fn ping_keeps_only_what_the_pin_vouches_for() {
    let (ours, other) = (Cluster::new("example.com"), Cluster::new("example.com"));
    let said = Ping {
        cluster_name: "example.com".into(),
        server_version: "1".into(),
        proxy_public_addr: "door.example.org:443".into(),
        ssh_jump_addr: String::new(),
        host_ca_pem: [&ours, &other].map(|c| c.host_tls.certificate_pem().to_owned()).into(),
    };
    let body = serde_json::to_string(&said).unwrap();
    let address = ping_server(&ours, "200 OK", body.clone()).await;
    let heard = ping::ping(&address, &Trust::Pin(ours.pin())).await.unwrap();
    assert_eq!(heard.host_ca_pem, [ours.host_tls.certificate_pem()]);
    assert_eq!(heard.cluster_name, "example.com");
    let error = ping::ping(&address, &Trust::Pin(other.pin())).await.unwrap_err();
    assert!(matches!(error, PingError::Dial(dial::DialError::Tls { .. })), "{error:?}");
    assert_eq!(ping::ping(&address, &Trust::DangerousAnyone).await.unwrap(), said);

    for (status, body) in
        [("404 Not Found", body.clone()), ("200 OK", "{}".into()), ("200 OK", "x".repeat(300_000))]
    {
        let address = ping_server(&ours, status, body).await;
        let error = ping::ping(&address, &Trust::DangerousAnyone).await.unwrap_err();
        assert!(matches!(error, PingError::Answer(_)), "{status} {error:?}");
    }
}
