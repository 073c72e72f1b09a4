//! Puts auth together and runs it. The order is: folder, store, authorities, log, policy, services, listeners.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use net::shutdown::Shutdown;
use net::tls::ClientAuth;
use proto::id::ClusterName;
use proto::resource::HostRole;
use proto::rpc::admin_server::AdminServer;
use proto::rpc::audit_server::AuditServer;
use proto::rpc::inventory_server::InventoryServer;
use proto::rpc::join_server::JoinServer;
use proto::rpc::policy_server::PolicyServer;
use proto::rpc::sign_in_server::SignInServer;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use crate::attempts::Attempts;
use crate::ca::{Ca, CaError};
use crate::clock::Clock;
use crate::credentials::Credentials;
use crate::fault::{Fault, told};
use crate::hostnames::Hostnames;
use crate::inventory::Inventory;
use crate::invites::Invites;
use crate::join::Joining;
use crate::limits::CallLimit;
use crate::log::{Log, LogError};
use crate::own_certificate::OwnCertificate;
use crate::passwords::Hasher;
use crate::recordings::Recordings;
use crate::resources::Resources;
use crate::server::{Acceptor, Connection};
use crate::service::admin::{Addresses, AdminService};
use crate::service::audit::AuditService;
use crate::service::caller::{Gate, local_admin, proven};
use crate::service::inventory::InventoryService;
use crate::service::join::JoinService;
use crate::service::policy::PolicyService;
use crate::service::sign_in::SignInService;
use crate::sign_in::SignIn;
use crate::snapshot::Snapshots;
use crate::store::sqlite::SqliteStore;
use crate::store::{Expect, Store};
use crate::tokens::{NewToken, Tokens, Uses, no_labels};
use crate::users::Users;

/// What auth needs to know.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// Auth's own folder, `<data_dir>/auth`; made private.
    pub data_dir: PathBuf,
    /// The cluster's name at first start.
    pub cluster_name: ClusterName,
    /// True when somebody wrote the name down: it must then be the existing cluster's. Otherwise an existing cluster
    /// keeps its own.
    pub cluster_name_given: bool,
    pub listen: SocketAddr,
    /// Further names and addresses for auth's own certificate.
    pub names: Vec<String>,
    /// Shown in invites and join commands.
    pub proxy_address: String,
    pub auth_address: String,
}

/// Why auth does not start.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error(
        "the cluster in {path} is called {existing}, not {configured}: a cluster cannot be renamed"
    )]
    Cluster { path: PathBuf, existing: ClusterName, configured: ClusterName },
    #[error("another auth service uses {path}")]
    InUse { path: PathBuf },
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Failed(String),
}

impl From<Fault> for AuthError {
    fn from(fault: Fault) -> Self {
        Self::Failed(told(&fault))
    }
}

impl From<CaError> for AuthError {
    fn from(error: CaError) -> Self {
        match error {
            CaError::File { path, source } => Self::File { path, source },
            CaError::Material { .. } | CaError::Incomplete { .. } | CaError::Unusable(_) => {
                Self::Failed(error.to_string())
            }
        }
    }
}

impl From<LogError> for AuthError {
    fn from(error: LogError) -> Self {
        Self::Failed(told(&error))
    }
}

/// A running auth service.
#[derive(Debug)]
pub struct Auth {
    ca: Arc<Ca>,
    cluster: ClusterName,
    local_addr: SocketAddr,
    socket_path: PathBuf,
    tokens: Arc<Tokens>,
    tasks: Vec<JoinHandle<()>>,
    /// Held until the end: one auth per folder.
    _lock: std::fs::File,
}

impl Auth {
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
    /// The local administration socket, for `tctl`.
    pub fn socket_path(&self) -> &Path {
        &self.socket_path
    }
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }
    /// `sha256:<hex>`, what `--ca-pin` takes.
    pub fn ca_pin(&self) -> &str {
        self.ca.pin()
    }
    /// A token for a role in the same process: good once, for five minutes.
    ///
    /// # Errors
    /// The store or the log fails.
    pub async fn local_join_token(&self, role: HostRole) -> Result<Zeroizing<String>, AuthError> {
        let new = NewToken {
            roles: vec![role],
            ttl_seconds: LOCAL_TOKEN_SECONDS,
            value: Zeroizing::default(),
            labels: no_labels(),
            uses: Uses::One,
        };
        Ok(self.tokens.create(new, local_admin()).await?.0)
    }
    /// Waits for the end, which begins with [`Shutdown::stop`]: while others drain, their events still come in.
    pub async fn finished(self) {
        for task in self.tasks {
            if let Err(error) = task.await {
                error!(%error, "a task of auth failed");
            }
        }
        if let Err(error) = std::fs::remove_file(&self.socket_path) {
            warn!(%error, path = %self.socket_path.display(), "cannot remove the local socket");
        }
    }
}

/// Starts auth. It serves until `shutdown` stops.
///
/// # Errors
/// See [`AuthError`].
pub async fn start(config: AuthConfig, shutdown: Shutdown) -> Result<Auth, AuthError> {
    start_at(config, shutdown, Clock::system()).await
}

pub(crate) async fn start_at(
    config: AuthConfig,
    shutdown: Shutdown,
    clock: Clock,
) -> Result<Auth, AuthError> {
    let dir = &config.data_dir;
    let file = |source| AuthError::File { path: dir.clone(), source };
    net::file::private_dir(dir).map_err(file)?;
    let lock = lock(dir)?;
    let store: Arc<dyn Store> =
        Arc::new(SqliteStore::open(&dir.join("auth.db"), clock.clone()).map_err(Fault::from)?);
    let (cluster, ca) = cluster(&config, &*store, &clock).await?;
    let ca = Arc::new(ca);
    let log = Log::open(&dir.join("log"), &dir.join("events.db"), cluster.clone(), clock.clone())?;
    let parts =
        Parts::new(&config, cluster.clone(), ca.clone(), store.clone(), log, &clock).await?;

    let own = OwnCertificate::issue(ca.clone(), clock.clone(), &cluster, &config.names)?;
    let own = Arc::new(own);
    let failed = |error: String| AuthError::Failed(error);
    let verifier = pki::Verifier::new(&cluster, ca.authorities()).map_err(failed)?;
    let roots = ClientAuth::Optional(Arc::new(verifier.client_roots()));
    let tls = net::tls::server_config(own.clone(), &roots, &[b"h2"])
        .map_err(|error| failed(error.to_string()))?;
    let listen = |source| AuthError::Listen { address: config.listen.to_string(), source };
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    let local_addr = listener.local_addr().map_err(listen)?;
    let socket_path = dir.join("admin.sock");
    let local = listen_local(&socket_path)?;

    let (acceptor, accepted) = Acceptor::new(clock, tls, Arc::new(verifier));
    let tokens = parts.tokens.clone();
    let snapshots = parts.snapshots.clone();
    let tasks = vec![
        tokio::spawn(acceptor.clone().accept_tls(listener, shutdown.clone())),
        tokio::spawn(acceptor.accept_local(local, shutdown.clone())),
        tokio::spawn(serve(parts, accepted, shutdown.clone())),
        tokio::spawn(until_stopped(shutdown.clone(), async move { snapshots.follow().await })),
        tokio::spawn(until_stopped(shutdown.clone(), purge(store))),
        tokio::spawn(async move { own.keep_fresh(&shutdown).await }),
    ];
    info!(%cluster, %local_addr, pin = ca.pin(), "auth is ready");
    Ok(Auth { ca, cluster, local_addr, socket_path, tokens, tasks, _lock: lock })
}

/// The domain's parts, each with just what it needs.
struct Parts {
    addresses: Addresses,
    ca: Arc<Ca>,
    cluster: ClusterName,
    gate: Arc<Gate>,
    inventory: Arc<Inventory>,
    invites: Arc<Invites>,
    joining: Arc<Joining>,
    log: Log,
    recordings: Arc<Recordings>,
    resources: Arc<Resources>,
    sign_in: Arc<SignIn>,
    snapshots: Arc<Snapshots>,
    tokens: Arc<Tokens>,
    users: Arc<Users>,
}

impl Parts {
    // tidy: long-function: one flat list of parts, in which nothing is decided.
    async fn new(
        config: &AuthConfig,
        cluster: ClusterName,
        ca: Arc<Ca>,
        store: Arc<dyn Store>,
        log: Log,
        clock: &Clock,
    ) -> Result<Self, AuthError> {
        let snapshots =
            Snapshots::start(store.clone(), ca.clone(), cluster.clone(), clock.clone()).await?;
        let snapshots = Arc::new(snapshots);
        let attempts = Attempts::new(store.clone(), clock.clone());
        let credentials = Credentials::new(store.clone());
        let hasher = Hasher::new()?;
        let hostnames = Arc::new(Hostnames::new(cluster.clone(), store.clone()));
        let inventory = Inventory::start(store.clone(), hostnames.clone(), clock.clone()).await?;
        let inventory = Arc::new(inventory);
        let tokens =
            Arc::new(Tokens { clock: clock.clone(), log: log.clone(), store: store.clone() });
        let users = Arc::new(Users {
            attempts: attempts.clone(),
            credentials: credentials.clone(),
            store: store.clone(),
        });
        let recordings_dir = config.data_dir.join("recordings");
        let recordings = Recordings::open(recordings_dir.clone(), log.clone(), store.clone())
            .map_err(|source| AuthError::File { path: recordings_dir, source })?;
        Ok(Self {
            addresses: Addresses {
                auth: config.auth_address.clone(),
                proxy: config.proxy_address.clone(),
            },
            gate: Arc::new(Gate {
                clock: clock.clone(),
                limit: CallLimit::new(clock.clone()),
                snapshots: snapshots.clone(),
            }),
            invites: Arc::new(Invites {
                attempts: attempts.clone(),
                clock: clock.clone(),
                cluster: cluster.clone(),
                credentials: credentials.clone(),
                hasher: hasher.clone(),
                log: log.clone(),
                store: store.clone(),
            }),
            joining: Arc::new(Joining {
                ca: ca.clone(),
                clock: clock.clone(),
                cluster: cluster.clone(),
                hostnames,
                log: log.clone(),
                snapshots: snapshots.clone(),
                tokens: tokens.clone(),
            }),
            recordings: Arc::new(recordings),
            resources: Arc::new(Resources {
                clock: clock.clone(),
                inventory: inventory.clone(),
                log: log.clone(),
                snapshots: snapshots.clone(),
                store,
                tokens: tokens.clone(),
                users: users.clone(),
            }),
            sign_in: Arc::new(SignIn {
                attempts,
                ca: ca.clone(),
                clock: clock.clone(),
                cluster: cluster.clone(),
                credentials,
                hasher,
                log: log.clone(),
                snapshots: snapshots.clone(),
                users: users.clone(),
            }),
            ca,
            cluster,
            inventory,
            log,
            snapshots,
            tokens,
            users,
        })
    }
}

/// Serves what is accepted, until `shutdown` stops; then calls in progress get a moment to end.
async fn serve(parts: Parts, accepted: mpsc::Receiver<Connection>, shutdown: Shutdown) {
    let incoming = ReceiverStream::new(accepted).map(Ok::<_, std::io::Error>);
    let gate = parts.gate.clone();
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .add_service(
            SignInServer::new(SignInService {
                gate: gate.clone(),
                invites: parts.invites.clone(),
                sign_in: parts.sign_in.clone(),
            })
            .max_decoding_message_size(ANONYMOUS_BYTES_MAX),
        )
        .add_service(
            JoinServer::new(JoinService { gate: gate.clone(), joining: parts.joining.clone() })
                .max_decoding_message_size(ANONYMOUS_BYTES_MAX),
        )
        .add_service(for_proven(PolicyServer::new(PolicyService {
            gate: gate.clone(),
            shutdown: shutdown.clone(),
            snapshots: parts.snapshots.clone(),
        })))
        .add_service(for_proven(
            InventoryServer::new(InventoryService {
                gate: gate.clone(),
                inventory: parts.inventory.clone(),
                snapshots: parts.snapshots.clone(),
            })
            .max_decoding_message_size(ANONYMOUS_BYTES_MAX),
        ))
        .add_service(for_proven(
            AuditServer::new(AuditService {
                gate: gate.clone(),
                log: parts.log.clone(),
                recordings: parts.recordings,
                shutdown: shutdown.clone(),
            })
            .max_decoding_message_size(net::auth_client::MESSAGE_BYTES_MAX),
        ))
        .add_service(for_proven(AdminServer::new(AdminService {
            addresses: parts.addresses,
            ca: parts.ca,
            cluster: parts.cluster,
            gate,
            inventory: parts.inventory,
            invites: parts.invites,
            joining: parts.joining,
            log: parts.log,
            resources: parts.resources,
            sign_in: parts.sign_in,
            snapshots: parts.snapshots,
            tokens: parts.tokens,
            users: parts.users,
        })));
    let stopped = shutdown.clone();
    let serving =
        server.serve_with_incoming_shutdown(incoming, async move { stopped.stopped().await });
    let late = async {
        shutdown.stopped().await;
        tokio::time::sleep(END_WITHIN).await;
    };
    tokio::select! {
        ended = serving => if let Err(failure) = ended {
            error!(error = %failure, "the gRPC server ended");
        },
        () = late => warn!("calls were still open at the end"),
    }
}

/// A service that reads no message of somebody without any proof.
fn for_proven<S>(service: S) -> InterceptedService<S, Ask> {
    InterceptedService::new(service, proven)
}

/// [`proven`] as a type.
type Ask = fn(tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status>;

/// The cluster's name and its authorities: made at first start, afterwards as they are.
async fn cluster(
    config: &AuthConfig,
    store: &dyn Store,
    clock: &Clock,
) -> Result<(ClusterName, Ca), AuthError> {
    let dir = config.data_dir.join("ca");
    if let Some(item) = store.get(CLUSTER_KEY).await.map_err(Fault::from)? {
        let existing = String::from_utf8(item.value).ok().and_then(|n| ClusterName::parse(n).ok());
        let existing =
            existing.ok_or_else(|| AuthError::Failed("the cluster's name is damaged".into()))?;
        if config.cluster_name_given && existing != config.cluster_name {
            return Err(AuthError::Cluster {
                path: config.data_dir.clone(),
                existing,
                configured: config.cluster_name.clone(),
            });
        }
        // New authorities would lock out everybody who trusts the old ones: they are never made for an old cluster.
        if !dir.exists() {
            return Err(CaError::Incomplete { path: dir }.into());
        }
        let ca = Ca::open(&dir, &existing, clock.now())?;
        return Ok((existing, ca));
    }
    let name = config.cluster_name.clone();
    let ca = Ca::open(&dir, &name, clock.now())?;
    crate::presets::create(store).await?;
    store
        .put_if(CLUSTER_KEY, name.as_str().into(), Expect::Absent, None)
        .await
        .map_err(Fault::from)?;
    info!(cluster = %name, "a new cluster");
    Ok((name, ca))
}

/// One auth per folder.
fn lock(dir: &Path) -> Result<std::fs::File, AuthError> {
    let path = dir.join("lock");
    let fail = |source| AuthError::File { path: path.clone(), source };
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(fail)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(AuthError::InUse { path: dir.to_owned() }),
        Err(std::fs::TryLockError::Error(error)) => Err(fail(error)),
    }
}

/// The local socket. One that a crash left behind is replaced; one that answers is not.
fn listen_local(path: &Path) -> Result<UnixListener, AuthError> {
    let fail = |source| AuthError::Listen { address: path.display().to_string(), source };
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(AuthError::InUse { path: path.to_owned() });
        }
        std::fs::remove_file(path).map_err(fail)?;
    }
    // The folder is ours alone, so nobody comes in between.
    let listener = UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

async fn purge(store: Arc<dyn Store>) {
    let mut tick = tokio::time::interval(PURGE_EVERY);
    loop {
        tick.tick().await;
        if let Err(failure) = store.purge().await {
            error!(error = %failure, "expired items could not be removed");
        }
    }
}

async fn until_stopped(shutdown: Shutdown, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = shutdown.stopped() => {}
    }
}

/// Where the cluster's name stands; written last at first start.
const CLUSTER_KEY: &str = "meta/cluster";
/// Requests of callers without a certificate, and heartbeats: a password and keys, or a proxy's 32 names, or labels.
/// Times the streams of a connection it is what a stranger's connection can have us hold: 512 KiB.
const ANONYMOUS_BYTES_MAX: usize = 16 * 1024;
/// Calls at once on one connection: a machine has a handful.
const STREAMS_PER_CONNECTION: u32 = 32;
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// A peer that does not answer a ping is gone.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
/// For calls in progress when everything stops.
const END_WITHIN: Duration = Duration::from_secs(3);
/// Expiry counts at once; this only cleans up and tells watchers.
const PURGE_EVERY: Duration = Duration::from_secs(10);
const LOCAL_TOKEN_SECONDS: u64 = 300;
