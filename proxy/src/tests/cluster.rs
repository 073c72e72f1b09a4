//! A cluster on loopback. Its auth knows no users and believes everybody who joins; everything else is real.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use net::auth_client::Route;
use net::dial::DialError;
use net::host::{Host, HostSettings};
use net::policy_feed::PolicyFeed;
use net::shutdown::Shutdown;
use net::spool::Spool;
use net::stream::Stream;
use net::tls::{ClientAuth, Trust};
use net::tunnel::{self, Incoming, State};
use pki::authority::{AuthorityKind, SshAuthority, TlsAuthority, Validity};
use pki::claims::{HostClaims, UserClaims};
use pki::keys::KeyPairs;
use pki::{Identity, UserIdentity, Verifier};
use policy::Policy;
use proto::event::Event;
use proto::id::{ClusterName, HostId};
use proto::preamble::{ALPN_SSH, Dial, Inner, VERSION};
use proto::resource::{HostRole, Labels, Lock, Role};
use proto::rpc::audit_server::{Audit, AuditServer};
use proto::rpc::inventory_server::{Inventory, InventoryServer};
use proto::rpc::join_server::{Join, JoinServer};
use proto::rpc::policy_server::{Policy as PolicyService, PolicyServer};
use proto::rpc::{self, HostCertificates, SignedSnapshot, TrustBundle};
use proto::snapshot::{Authorities, FORMAT, SIGNATURE_CONTEXT, Snapshot};
use rustls::ClientConfig;
use rustls::sign::SingleCertAndKey;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream as Streaming, StreamExt};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use crate::{Limits, Proxy, ProxyConfig};

/// Everything here happens within this, or the test fails.
pub(crate) const SOON: Duration = Duration::from_secs(30);
const CLUSTER: &str = "example.com";

/// The authorities and what they have signed.
pub(crate) struct Authority {
    host_tls: TlsAuthority,
    user_tls: TlsAuthority,
    host_ssh: SshAuthority,
    user_ssh: SshAuthority,
    pub(crate) public: Authorities,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let cluster = cluster();
        let tls = |kind| {
            let (key, certificate) =
                TlsAuthority::generate(kind, &cluster, net::unix_now()).unwrap();
            TlsAuthority::load(kind, &key, &certificate).unwrap()
        };
        let ssh = |kind| SshAuthority::load(kind, &SshAuthority::generate(kind).unwrap()).unwrap();
        let (host_tls, user_tls) = (tls(AuthorityKind::Host), tls(AuthorityKind::User));
        let (host_ssh, user_ssh) = (ssh(AuthorityKind::Host), ssh(AuthorityKind::User));
        let line = |authority: &SshAuthority| authority.public_key().to_openssh().unwrap();
        let public = Authorities {
            host_tls: vec![host_tls.certificate_pem().to_owned()],
            user_tls: vec![user_tls.certificate_pem().to_owned()],
            host_ssh: vec![line(&host_ssh)],
            user_ssh: vec![line(&user_ssh)],
        };
        Self { host_tls, user_tls, host_ssh, user_ssh, public }
    }

    pub(crate) fn verifier(&self) -> Verifier {
        Verifier::new(&cluster(), &self.public).unwrap()
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::HostAuthority(Arc::new(self.verifier().host_roots()))
    }

    pub(crate) fn pin(&self) -> String {
        pki::verify::ca_pin(self.host_tls.certificate_pem()).unwrap()
    }

    pub(crate) fn person(&self, user: &str) -> Person {
        let keys = KeyPairs::generate().unwrap();
        let claims = UserClaims {
            cluster: cluster(),
            user: user.parse().unwrap(),
            roles: vec!["dev".parse().unwrap()],
            traits: [("logins".to_owned(), vec!["root".to_owned()])].into(),
            logins: vec!["root".parse().unwrap()],
        };
        let tls = self.user_tls.issue_user(&claims, &keys.tls_spki(), hour()).unwrap();
        let ssh = self.user_ssh.issue_user(&claims, &keys.ssh_public_line(), hour()).unwrap();
        Person { keys, tls, ssh }
    }

    fn host(&self, claims: &HostClaims, names: &[String], ssh: &str, spki: &[u8]) -> [String; 2] {
        [
            self.host_ssh.issue_host(claims, names, ssh, hour()).unwrap(),
            self.host_tls.issue_host(claims, names, spki, hour()).unwrap(),
        ]
    }

    pub(crate) fn identity(&self, person: &Person) -> UserIdentity {
        let chain = net::tls::certificates(&person.tls).unwrap();
        match self.verifier().tls_peer(&chain, net::unix_now()).unwrap() {
            Identity::User(user) => user,
            Identity::Host(host) => panic!("{host:?}"),
        }
    }

    fn signed(&self, revision: u64, locks: Vec<Lock>) -> SignedSnapshot {
        let snapshot = snapshot(&self.public, revision, locks);
        let payload = serde_json::to_vec(&snapshot).unwrap();
        let signature = self.host_tls.sign(SIGNATURE_CONTEXT, &payload).unwrap();
        SignedSnapshot { payload, signature }
    }
}

/// A user's keys and certificates.
pub(crate) struct Person {
    pub(crate) keys: KeyPairs,
    pub(crate) tls: String,
    pub(crate) ssh: String,
}

impl Person {
    pub(crate) fn config(&self, trust: &Trust, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let key = net::tls::certified_key(&self.tls, &self.keys).unwrap();
        net::tls::client_config(trust, Some(key), alpn).unwrap()
    }
}

/// A policy, a user whom it permits nodes with `env: dev`, and one who is locked.
pub(crate) struct People {
    pub(crate) policy: Policy,
    pub(crate) alice: UserIdentity,
    pub(crate) mallory: UserIdentity,
}

pub(crate) fn people() -> People {
    let authority = Authority::new();
    let policy = Policy::new(snapshot(&authority.public, 1, vec![lock("mallory")])).unwrap();
    let identity = |user| authority.identity(&authority.person(user));
    People { policy, alice: identity("alice"), mallory: identity("mallory") }
}

fn snapshot(authorities: &Authorities, revision: u64, locks: Vec<Lock>) -> Snapshot {
    let role = r#"{"kind":"role","version":"v7","metadata":{"name":"dev"},"spec":{"allow":
        {"logins":["{{internal.logins}}"],"node_labels":{"env":"dev"}}}}"#;
    let role: Role = serde_json::from_str(role).unwrap();
    Snapshot {
        format: FORMAT,
        cluster: cluster(),
        revision,
        issued_at: net::unix_now(),
        authorities: authorities.clone(),
        roles: vec![role],
        locks,
    }
}

pub(crate) fn lock(user: &str) -> Lock {
    let lock = format!(
        r#"{{"kind":"lock","version":"v2","metadata":{{"name":"l"}},"spec":{{"target":{{"user":"{user}"}}}}}}"#
    );
    serde_json::from_str(&lock).unwrap()
}

fn cluster() -> ClusterName {
    CLUSTER.parse().unwrap()
}

fn hour() -> Validity {
    let now = net::unix_now();
    Validity { not_before: now - 60, not_after: now + 3600 }
}

/// See the module.
pub(crate) struct Bench {
    pub(crate) authority: Arc<Authority>,
    pub(crate) proxy: Proxy,
    pub(crate) shutdown: Shutdown,
    policy: watch::Sender<SignedSnapshot>,
    revisions: watch::Receiver<Arc<net::policy_feed::Current<Policy>>>,
    events: watch::Receiver<Vec<Event>>,
    dir: TempDir,
}

/// A node that echoes what it gets; gone when dropped.
pub(crate) struct Node {
    pub(crate) host_id: HostId,
    pub(crate) opened: mpsc::Receiver<proto::preamble::Open>,
    pub(crate) shutdown: Shutdown,
    pub(crate) state: watch::Receiver<State>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.stop();
    }
}

impl Bench {
    pub(crate) async fn start() -> Self {
        Self::with(Limits::default(), Inner::Plain).await
    }

    pub(crate) async fn with(limits: Limits, inner: Inner) -> Self {
        let authority = Arc::new(Authority::new());
        let (policy, snapshots) = watch::channel(authority.signed(1, vec![]));
        let (event, events) = watch::channel(Vec::new());
        let auth = FakeAuth { authority: authority.clone(), snapshots, event: Arc::new(event) };
        let auth_address = auth.serve().await;
        let dir = tempfile::tempdir().unwrap();
        let shutdown = Shutdown::new();
        let route = Route::Direct(auth_address.clone());
        let folder = dir.path().join("proxy");
        let settings = settings(folder.clone(), HostRole::Proxy, "proxy1", route, &authority);
        let host = within(Host::start(settings, shutdown.clone())).await.unwrap();
        let feed =
            within(PolicyFeed::start(folder.clone(), host.clone(), compile, shutdown.clone()))
                .await
                .unwrap();
        let spool = Spool::open(folder.join("spool"), cluster()).unwrap();
        tokio::spawn(spool.clone().ship(host.auth(), shutdown.clone()));
        let any = "127.0.0.1:0".parse().unwrap();
        let config = ProxyConfig {
            web_listen: any,
            ssh_jump_listen: Some(any),
            public_addr: "proxy.test:3080".into(),
            ssh_public_addr: "proxy.test:3023".into(),
            auth_address,
            data_dir: folder,
            inner,
            web_keypairs: vec![],
            data_plane: crate::DataPlane::Auto,
            limits,
        };
        let revisions = feed.watch();
        let proxy = crate::start(config, None, host, feed, spool, shutdown.clone()).await.unwrap();
        Self { authority, proxy, shutdown, policy, revisions, events, dir }
    }

    pub(crate) fn address(&self) -> String {
        self.proxy.web_addr().to_string()
    }

    /// Joins through the proxy, and so through its way to auth.
    pub(crate) async fn node(&self, name: &str, env: &str) -> Node {
        let folder = self.dir.path().join(net::unix_now().to_string()).join(name);
        let route = Route::Proxy(self.address());
        let settings = settings(folder, HostRole::Node, name, route, &self.authority);
        let shutdown = Shutdown::new();
        let host = within(Host::start(settings, shutdown.clone())).await.unwrap();
        self.tunnel(host, env, shutdown).await
    }

    pub(crate) async fn tunnel(&self, host: Host, env: &str, shutdown: Shutdown) -> Node {
        let labels = Labels::from([("env".to_owned(), env.to_owned())]);
        let (_, labels) = watch::channel(labels);
        let (sink, incoming) = mpsc::channel(16);
        let (tell, mut state) = watch::channel(State::Connecting);
        let (open, opened) = mpsc::channel(100);
        let host_id = host.credentials().host_id.clone();
        tokio::spawn(tunnel::run(self.address(), host, labels, sink, tell, shutdown.clone()));
        tokio::spawn(echo(incoming, open));
        within(state.wait_for(|state| *state == State::Connected)).await.unwrap();
        Node { host_id, opened, shutdown, state }
    }

    pub(crate) fn config(&self, user: &str) -> Arc<ClientConfig> {
        self.authority.person(user).config(&self.authority.trust(), &[ALPN_SSH])
    }

    pub(crate) async fn dial(&self, user: &str, target: &str) -> Result<Stream, DialError> {
        self.dial_as(user, &dial(target)).await
    }

    pub(crate) async fn dial_as(&self, user: &str, dial: &Dial) -> Result<Stream, DialError> {
        within(net::dial::ssh(&self.address(), self.config(user), dial)).await
    }

    /// Pushes a policy with these locks and waits until the proxy has it.
    pub(crate) async fn push(&self, revision: u64, locks: Vec<Lock>) {
        self.policy.send_replace(self.authority.signed(revision, locks));
        let mut revisions = self.revisions.clone();
        within(revisions.wait_for(|current| current.revision == revision)).await.unwrap();
    }

    /// The first event of this name that auth gets.
    pub(crate) async fn event(&self, name: &str) -> serde_json::Value {
        let mut events = self.events.clone();
        let has = |events: &Vec<Event>| events.iter().any(|event| event.name() == name);
        let events = within(events.wait_for(has)).await.unwrap().clone();
        let event = events.iter().find(|event| event.name() == name).unwrap();
        serde_json::to_value(event).unwrap()
    }
}

pub(crate) fn dial(target: &str) -> Dial {
    Dial {
        version: VERSION,
        cluster: cluster(),
        target: target.to_owned(),
        inner: Inner::Plain,
        trace: "0123456789abcdef0123456789abcdef".into(),
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("in time")
}

/// Sends and gets the same back.
pub(crate) async fn echoes(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), text: &[u8]) {
    within(stream.write_all(text)).await.unwrap();
    within(stream.flush()).await.unwrap();
    let mut back = vec![0; text.len()];
    within(stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(back, text);
}

async fn echo(mut incoming: mpsc::Receiver<Incoming>, opened: mpsc::Sender<proto::preamble::Open>) {
    while let Some(Incoming { open, stream, proxy }) = incoming.recv().await {
        assert!(proxy.has_role(HostRole::Proxy));
        opened.try_send(open).unwrap();
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
                writer.shutdown().await.ok();
            }
        });
    }
}

fn compile(snapshot: Snapshot) -> Result<Policy, String> {
    Policy::new(snapshot).map_err(|error| error.to_string())
}

fn settings(
    dir: std::path::PathBuf,
    role: HostRole,
    name: &str,
    route: Route,
    authority: &Authority,
) -> HostSettings {
    HostSettings {
        dir,
        role,
        nodename: name.parse().unwrap(),
        token: Some("believed".to_owned().into()),
        route,
        ca_pin: Some(authority.pin()),
        principals: match role {
            HostRole::Proxy => vec!["localhost".into(), "127.0.0.1".into()],
            HostRole::Auth | HostRole::Node => vec![],
        },
    }
}

/// Issues what is asked for, pushes what the test says, keeps the events.
#[derive(Clone)]
struct FakeAuth {
    authority: Arc<Authority>,
    snapshots: watch::Receiver<SignedSnapshot>,
    event: Arc<watch::Sender<Vec<Event>>>,
}

impl FakeAuth {
    async fn serve(self) -> String {
        let keys = KeyPairs::generate().unwrap();
        let claims = HostClaims {
            cluster: cluster(),
            host_id: HostId::from_random(net::random16()),
            nodename: "auth1".parse().unwrap(),
            roles: vec![HostRole::Auth],
        };
        let names = ["auth.postern.local".to_owned()];
        let [_, chain] =
            self.authority.host(&claims, &names, &keys.ssh_public_line(), &keys.tls_spki());
        let key = net::tls::certified_key(&chain, &keys).unwrap();
        let roots = Arc::new(self.authority.verifier().client_roots());
        let config = net::tls::server_config(
            Arc::new(SingleCertAndKey::from(key)),
            &ClientAuth::Optional(roots),
            &[b"h2"],
        )
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (accepted, connections) = mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (config, accepted) = (config.clone(), accepted.clone());
                tokio::spawn(async move {
                    if let Ok(tls) = TlsAcceptor::from(config).accept(socket).await {
                        accepted.send(Ok::<_, std::io::Error>(TlsIo(tls))).await.ok();
                    }
                });
            }
        });
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(JoinServer::new(self.clone()))
                .add_service(PolicyServer::new(self.clone()))
                .add_service(InventoryServer::new(self.clone()))
                .add_service(AuditServer::new(self))
                .serve_with_incoming(tokio_stream::wrappers::ReceiverStream::new(connections)),
        );
        address
    }
}

struct TlsIo(tokio_rustls::server::TlsStream<TcpStream>);

impl Connected for TlsIo {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for TlsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }
    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Stream_<T> = Pin<Box<dyn Streaming<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Join for FakeAuth {
    async fn register(&self, request: Request<rpc::RegisterRequest>) -> Answer<HostCertificates> {
        let request = request.into_inner();
        let role = if request.role == "proxy" { HostRole::Proxy } else { HostRole::Node };
        let claims = HostClaims {
            cluster: cluster(),
            host_id: HostId::from_random(net::random16()),
            nodename: request.nodename.parse().unwrap(),
            roles: vec![role],
        };
        let [ssh, tls] = self.authority.host(
            &claims,
            &request.principals,
            &request.ssh_public_key,
            &request.tls_public_key,
        );
        let public = self.authority.public.clone();
        Ok(Response::new(HostCertificates {
            host_id: claims.host_id.to_string(),
            cluster: CLUSTER.into(),
            ssh_certificate: ssh,
            tls_certificate_pem: tls,
            trust: Some(TrustBundle {
                host_tls_ca_pem: public.host_tls,
                user_tls_ca_pem: public.user_tls,
                host_ssh_ca: public.host_ssh,
                user_ssh_ca: public.user_ssh,
            }),
            valid_until: hour().not_after,
        }))
    }
    async fn renew(&self, _: Request<rpc::RenewRequest>) -> Answer<HostCertificates> {
        Err(Status::unimplemented("renew"))
    }
}

#[tonic::async_trait]
impl PolicyService for FakeAuth {
    type WatchStream = Stream_<SignedSnapshot>;
    async fn watch(&self, _: Request<rpc::WatchRequest>) -> Answer<Self::WatchStream> {
        Ok(Response::new(Box::pin(WatchStream::new(self.snapshots.clone()).map(Ok))))
    }
}

#[tonic::async_trait]
impl Inventory for FakeAuth {
    async fn heartbeat(&self, _: Request<rpc::HeartbeatRequest>) -> Answer<rpc::HeartbeatResponse> {
        Ok(Response::new(rpc::HeartbeatResponse { now: net::unix_now() }))
    }
    async fn list_nodes(
        &self,
        _: Request<rpc::ListNodesRequest>,
    ) -> Answer<rpc::ListNodesResponse> {
        Err(Status::unimplemented("list_nodes"))
    }
    async fn list_capture(
        &self,
        _: Request<rpc::ListCaptureRequest>,
    ) -> Answer<rpc::ListCaptureResponse> {
        Err(Status::unimplemented("list_capture"))
    }
}

#[tonic::async_trait]
impl Audit for FakeAuth {
    async fn append(&self, request: Request<rpc::AppendRequest>) -> Answer<rpc::AppendResponse> {
        let events = request.into_inner().events;
        let acknowledged = events.last().map_or(0, |event| event.sequence);
        self.event.send_modify(|all| {
            all.extend(events.iter().map(|e| serde_json::from_slice::<Event>(&e.json).unwrap()));
        });
        Ok(Response::new(rpc::AppendResponse { acknowledged }))
    }
    async fn search(&self, _: Request<rpc::SearchRequest>) -> Answer<rpc::SearchResponse> {
        Err(Status::unimplemented("search"))
    }
    type TailStream = Stream_<rpc::EventLine>;
    async fn tail(&self, _: Request<rpc::TailRequest>) -> Answer<Self::TailStream> {
        Err(Status::unimplemented("tail"))
    }
    async fn upload_recording(
        &self,
        _: Request<tonic::Streaming<rpc::UploadRequest>>,
    ) -> Answer<rpc::UploadResponse> {
        Err(Status::unimplemented("upload"))
    }
    async fn recording_status(
        &self,
        _: Request<rpc::RecordingStatusRequest>,
    ) -> Answer<rpc::UploadResponse> {
        Err(Status::unimplemented("status"))
    }
    async fn list_recordings(
        &self,
        _: Request<rpc::ListRecordingsRequest>,
    ) -> Answer<rpc::ListRecordingsResponse> {
        Err(Status::unimplemented("list"))
    }
    type DownloadRecordingStream = Stream_<rpc::RecordingChunk>;
    async fn download_recording(
        &self,
        _: Request<rpc::DownloadRequest>,
    ) -> Answer<Self::DownloadRecordingStream> {
        Err(Status::unimplemented("download"))
    }
    type SessionEventsStream = Stream_<rpc::EventLine>;
    async fn session_events(
        &self,
        _: Request<rpc::SessionEventsRequest>,
    ) -> Answer<Self::SessionEventsStream> {
        Err(Status::unimplemented("session_events"))
    }
}
