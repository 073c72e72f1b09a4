//! Joining, coming back and being renewed, against a fake auth behind real TLS.

use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use pki::claims::HostClaims;
use proto::preamble::ALPN_HTTP;
use proto::rpc::join_server::{Join, JoinServer};
use proto::rpc::{HostCertificates, RegisterRequest, TrustBundle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::ping::Ping;
use crate::testing::{Cluster, PeerChain, Served, accept, listener, validity};

#[derive(Clone)]
struct FakeAuth {
    cluster: Arc<Cluster>,
    /// So many calls fail first.
    unavailable: Arc<AtomicUsize>,
    life_s: Arc<AtomicI64>,
    host_id: HostId,
    /// Leaf certificates that callers of `Renew` showed.
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl FakeAuth {
    fn new(life_s: i64) -> Self {
        Self {
            cluster: Arc::new(Cluster::new("example.com")),
            unavailable: Arc::default(),
            life_s: Arc::new(AtomicI64::new(life_s)),
            host_id: HostId::from_random(crate::random16()),
            seen: Arc::default(),
        }
    }

    fn issue(&self, ssh: &str, spki: &[u8], principals: &[String]) -> HostCertificates {
        let claims = HostClaims {
            cluster: self.cluster.name.clone(),
            host_id: self.host_id.clone(),
            nodename: "n1".parse().unwrap(),
            roles: vec![HostRole::Node],
        };
        let validity = validity(self.life_s.load(Ordering::SeqCst));
        let cluster = &self.cluster;
        HostCertificates {
            host_id: self.host_id.to_string(),
            cluster: cluster.name.to_string(),
            ssh_certificate: cluster
                .host_ssh
                .issue_host(&claims, principals, ssh, validity)
                .unwrap(),
            tls_certificate_pem: cluster
                .host_tls
                .issue_host(&claims, principals, spki, validity)
                .unwrap(),
            trust: Some(TrustBundle {
                host_tls_ca_pem: cluster.authorities.host_tls.clone(),
                user_tls_ca_pem: cluster.authorities.user_tls.clone(),
                host_ssh_ca: cluster.authorities.host_ssh.clone(),
                user_ssh_ca: cluster.authorities.user_ssh.clone(),
            }),
            valid_until: validity.not_after,
        }
    }

    /// Serves the service, and a ping as a proxy would, on one port.
    async fn serve(&self) -> String {
        let names = ["127.0.0.1", "auth.postern.local"];
        let machine = self.cluster.machine(HostRole::Auth, "a1", &names);
        let config = self.cluster.server(&machine, &[b"h2", ALPN_HTTP]);
        let ping = serde_json::to_string(&Ping {
            cluster_name: self.cluster.name.to_string(),
            server_version: "1".into(),
            proxy_public_addr: String::new(),
            ssh_jump_addr: String::new(),
            host_ca_pem: self.cluster.authorities.host_tls.clone(),
        })
        .unwrap();
        let (listener, address) = listener().await;
        let (accepted, incoming) = tokio::sync::mpsc::channel(8);
        tokio::spawn(accept_all(listener, config, ping, accepted));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(JoinServer::new(self.clone()))
                .serve_with_incoming(ReceiverStream::new(incoming)),
        );
        address
    }
}

async fn accept_all(
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    ping: String,
    accepted: tokio::sync::mpsc::Sender<std::io::Result<Served>>,
) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let Ok(mut tls) = accept(socket, config.clone()).await else { continue };
        if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
            accepted.send(Ok(Served(tls))).await.ok();
            continue;
        }
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(tls.read_u8().await.unwrap());
        }
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", ping.len());
        tls.write_all((head + &ping).as_bytes()).await.unwrap();
        tls.shutdown().await.ok();
    }
}

#[tonic::async_trait]
impl Join for FakeAuth {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<HostCertificates>, Status> {
        let left = self.unavailable.load(Ordering::SeqCst);
        if left > 0 {
            self.unavailable.store(left - 1, Ordering::SeqCst);
            return Err(Status::unavailable("starting"));
        }
        assert!(request.extensions().get::<PeerChain>().unwrap().0.is_empty());
        let it = request.into_inner();
        if it.token != "good" || it.role != "node" {
            return Err(Status::permission_denied("the token is not valid"));
        }
        Ok(Response::new(self.issue(&it.ssh_public_key, &it.tls_public_key, &it.principals)))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<HostCertificates>, Status> {
        let chain = request.extensions().get::<PeerChain>().unwrap().0.clone();
        let leaf = chain.first().ok_or_else(|| Status::unauthenticated("no certificate"))?;
        self.seen.lock().unwrap().push(leaf.to_vec());
        let it = request.into_inner();
        Ok(Response::new(self.issue(&it.ssh_public_key, &it.tls_public_key, &it.principals)))
    }
}

fn settings(dir: &Path, route: Route, token: Option<&str>, pin: Option<String>) -> HostSettings {
    HostSettings {
        dir: dir.join("node"),
        role: HostRole::Node,
        nodename: "n1".parse().unwrap(),
        token: token.map(|token| Zeroizing::new(token.to_owned())),
        route,
        ca_pin: pin,
        principals: vec![],
    }
}

async fn start(settings: HostSettings) -> Result<Host, HostError> {
    timeout(Duration::from_secs(30), Host::start(settings, Shutdown::new())).await.unwrap()
}

#[tokio::test]
async fn joins_once_and_comes_back_without_auth() {
    let dir = tempfile::tempdir().unwrap();
    let auth = FakeAuth::new(3600);
    auth.unavailable.store(2, Ordering::SeqCst);
    let route = Route::Direct(auth.serve().await);
    assert!(!is_joined(&dir.path().join("node")));
    let pin = Some(auth.cluster.pin());
    let host = start(settings(dir.path(), route, Some("good"), pin)).await.unwrap();
    let first = host.credentials();
    assert_eq!((&first.cluster, &first.host_id), (&auth.cluster.name, &auth.host_id));
    assert!(is_joined(&dir.path().join("node")));
    let file = dir.path().join("node/identity.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let nowhere = Route::Direct("127.0.0.1:1".into());
    let host = start(settings(dir.path(), nowhere, None, None)).await.unwrap();
    let again = host.credentials();
    assert_eq!(again.host_id, first.host_id);
    assert_eq!(again.keys.ssh_public_line(), first.keys.ssh_public_line());
    assert_eq!(again.tls.cert, first.tls.cert);
    assert!(format!("{:?}", host).find("PRIVATE").is_none());
}

#[tokio::test]
async fn joins_through_a_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let auth = FakeAuth::new(3600);
    let route = Route::Proxy(auth.serve().await);
    let pin = Some(auth.cluster.pin());
    let host = start(settings(dir.path(), route, Some("good"), pin)).await.unwrap();
    assert_eq!(host.credentials().cluster, auth.cluster.name);
}

#[tokio::test]
async fn without_token_or_trust_nothing_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let auth = FakeAuth::new(3600);
    let address = auth.serve().await;
    let direct = || Route::Direct(address.clone());
    let check = async |settings, expect: &str| {
        let error = start(settings).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(expect), "{error:?}");
    };
    let pin = || Some(auth.cluster.pin());
    check(settings(dir.path(), direct(), None, pin()), "NoToken").await;
    check(settings(dir.path(), direct(), Some("good"), None), "NoTrust").await;
    check(settings(dir.path(), Route::Proxy(address.clone()), Some("good"), None), "NoTrust").await;
    check(settings(dir.path(), direct(), Some("good"), Some("sha256:1".into())), "Refused").await;
    check(settings(dir.path(), direct(), Some("bad"), pin()), "Refused(\"the token is").await;
    assert!(!is_joined(&dir.path().join("node")));
}

/// The token must not reach an auth that the pin does not vouch for.
#[tokio::test]
async fn another_clusters_auth_gets_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let auth = FakeAuth::new(3600);
    let address = auth.serve().await;
    let other = Some(Cluster::new("example.com").pin());
    for route in [Route::Direct(address.clone()), Route::Proxy(address)] {
        let settings = settings(dir.path(), route, Some("good"), other.clone());
        let tried = join::try_join(&settings, settings.token.as_ref().unwrap(), &keys()).await;
        let error = tried.err().unwrap();
        assert!(matches!(error, HostError::WrongPin), "{error:?}");
    }
}

fn keys() -> KeyPairs {
    KeyPairs::generate().unwrap()
}

#[tokio::test]
async fn renewed_with_new_keys_and_new_connections_use_them() {
    let dir = tempfile::tempdir().unwrap();
    let auth = FakeAuth::new(4);
    let route = Route::Direct(auth.serve().await);
    let pin = Some(auth.cluster.pin());
    let host = start(settings(dir.path(), route.clone(), Some("good"), pin)).await.unwrap();
    let first = host.credentials();
    let resolver = host.server_certificate();
    auth.life_s.store(3600, Ordering::SeqCst);
    let mut watch = host.watch();
    timeout(Duration::from_secs(30), watch.changed()).await.unwrap().unwrap();
    let second = host.credentials();
    assert_eq!(second.host_id, first.host_id);
    assert_ne!(second.keys.tls_spki(), first.keys.tls_spki());
    assert!(second.valid_until > first.valid_until);
    assert_eq!(*auth.seen.lock().unwrap(), [first.tls.cert[0].to_vec()]);
    drop(resolver);

    // The connection with the old certificate is not used again.
    let request = || RenewRequest {
        ssh_public_key: second.keys.ssh_public_line(),
        tls_public_key: second.keys.tls_spki(),
        principals: vec![],
    };
    timeout(Duration::from_secs(30), async {
        while JoinClient::new(host.auth()).renew(request()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let seen = auth.seen.lock().unwrap().clone();
    assert_eq!(seen.last().unwrap(), &second.tls.cert[0].to_vec());

    let stored = Stored::load(&dir.path().join("node"), HostRole::Node).unwrap().unwrap();
    assert_eq!(stored.valid_until(), second.valid_until);
}

#[tokio::test]
async fn other_principals_are_a_reason_to_renew() {
    let dir = tempfile::tempdir().unwrap();
    let auth = FakeAuth::new(3600);
    let route = Route::Direct(auth.serve().await);
    let pin = Some(auth.cluster.pin());
    start(settings(dir.path(), route.clone(), Some("good"), pin)).await.unwrap();
    let mut changed = settings(dir.path(), route, None, None);
    changed.principals = vec!["n1.example.org".into()];
    let host = start(changed).await.unwrap();
    timeout(Duration::from_secs(30), host.watch().changed()).await.unwrap().unwrap();
    let leaf = host.credentials().tls.cert[0].to_vec();
    assert!(leaf.windows(14).any(|part| part == b"n1.example.org"));
}

#[tokio::test]
async fn expired_and_damaged_identities_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let auth = FakeAuth::new(3600);
    let route = Route::Direct(auth.serve().await);
    let pin = || Some(auth.cluster.pin());
    start(settings(dir.path(), route.clone(), Some("good"), pin())).await.unwrap();
    let file = dir.path().join("node/identity.json");
    let good = std::fs::read_to_string(&file).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&good).unwrap();

    for (field, bad) in [
        ("format", serde_json::json!(2)),
        ("role", serde_json::json!("proxy")),
        ("tls_private_key", serde_json::json!(*keys().tls_pem())),
        ("host_id", serde_json::json!(HostId::from_random([9; 16]))),
        ("cluster", serde_json::json!("example.org")),
    ] {
        let kept = value[field].take();
        value[field] = bad;
        std::fs::write(&file, value.to_string()).unwrap();
        let error = start(settings(dir.path(), route.clone(), Some("good"), pin())).await;
        assert!(matches!(error, Err(HostError::Damaged { .. })), "{field}: {error:?}");
        assert!(is_joined(&dir.path().join("node")));
        value[field] = kept;
    }
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    let error = start(settings(dir.path(), route.clone(), None, None)).await.unwrap_err();
    assert!(matches!(&error, HostError::Damaged { .. }) && !error.to_string().contains("PRIVATE"));

    value["valid_until"] = serde_json::json!(crate::unix_now() - 1);
    std::fs::write(&file, value.to_string()).unwrap();
    assert!(!is_joined(&dir.path().join("node")));
    let error = start(settings(dir.path(), route.clone(), None, None)).await.unwrap_err();
    assert!(matches!(error, HostError::Expired { .. }), "{error:?}");
    start(settings(dir.path(), route, Some("good"), pin())).await.unwrap();
}

#[test]
fn renewal_comes_before_half_of_the_life() {
    let dir = tempfile::tempdir().unwrap();
    let auth = FakeAuth::new(1000);
    let keys = keys();
    let answer = auth.issue(&keys.ssh_public_line(), &keys.tls_spki(), &[]);
    let settings = settings(dir.path(), Route::Direct(String::new()), None, None);
    let stored = Stored::new(&settings, &keys, answer).unwrap();
    let now = crate::unix_now();
    let due = |age: i64, random: u64| {
        stored.renewal_due_in(&[], now + age, random.to_ne_bytes()).as_secs()
    };
    let near = |got: u64, expect: u64| assert!(got.abs_diff(expect) <= 2, "{got} {expect}");
    near(due(0, 0), 500);
    near(due(0, 99), 401);
    near(due(0, 100), 500);
    near(due(300, 0), 200);
    near(due(700, 0), 1);
    near(due(5000, 0), 1);
    let other = ["x.org".to_owned()];
    near(stored.renewal_due_in(&other, now, [0; 8]).as_secs(), 1);
}

#[test]
fn an_answer_for_other_keys_or_roles_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let auth = FakeAuth::new(1000);
    let (own, others) = (keys(), keys());
    let mut settings = settings(dir.path(), Route::Direct(String::new()), None, None);
    let answer = auth.issue(&own.ssh_public_line(), &own.tls_spki(), &[]);
    assert!(Stored::new(&settings, &others, answer.clone()).is_err());
    let mut renamed = answer.clone();
    renamed.host_id = HostId::from_random([1; 16]).to_string();
    assert!(Stored::new(&settings, &own, renamed).is_err());
    settings.role = HostRole::Proxy;
    assert!(Stored::new(&settings, &own, answer).is_err());
}
