//! The proxy role: the only public door. It learns where a connection wants to go, and moves bytes; what is inside is
//! encrypted end to end wherever the inner protocol can do that. Main path: [`serve`].
//!
//! - [`door`]: what becomes of a connection that the relay has accepted; [`listen`]: bounds per source before any
//!   cryptography, and the jump listener's accept loop
//! - [`sniff`]: the ClientHello; [`stray`] answers what is none
//! - [`route`]: what its names ask for
//! - [`handshake`]: settings of TLS, and who the client is
//! - [`serve`]: the map from there on
//! - [`user`]: a user's stream; [`jump`]: the same through `ssh -J`
//! - [`dial`]: name > decision > data connection of the node
//! - [`carry`]: through the relay, cut by a lock
//! - [`moved`]: streams that another process had before
//! - [`tunnel`], [`register`]: the nodes' side
//! - [`web`]: what clients ask before sign-in
//! - [`audit`], [`heartbeat`]: what others learn of it
//! - [`limits`], [`quota`]: bounds
#![forbid(unsafe_code)]

mod audit;
mod carry;
mod dial;
mod door;
mod handshake;
mod heartbeat;
mod jump;
mod limits;
mod listen;
mod moved;
mod quota;
mod register;
mod route;
mod serve;
pub mod sniff;
mod stray;
mod tunnel;
mod user;
mod web;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use net::host::Host;
use net::policy_feed::PolicyFeed;
use net::shutdown::Shutdown;
use net::spool::Spool;
use net::tls::TlsError;
use policy::Policy;
use proto::id::{ClusterName, UserName};
use proto::preamble::Inner;
use relay::Relay;
use relay::upgrade::Moved;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

pub use relay::DataPlane;

pub use crate::handshake::check_keypairs;
pub use crate::limits::Limits;

use crate::audit::Audit;
use crate::door::Door;
use crate::handshake::Settings;
use crate::listen::{Admission, Gate, Source};
use crate::quota::Counts;
use crate::register::Register;
use crate::tunnel::Idle;

/// What a proxy is told.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    pub web_listen: SocketAddr,
    pub ssh_jump_listen: Option<SocketAddr>,
    /// `host:port` that clients use.
    pub public_addr: String,
    /// `host:port` of the jump listener as clients reach it.
    pub ssh_public_addr: String,
    /// `host:port` to which SNI `auth.<cluster>` is relayed.
    pub auth_address: String,
    /// `<data_dir>/proxy`.
    pub data_dir: PathBuf,
    /// The cluster's setting `inner_encrypted`.
    pub inner: Inner,
    /// Public key and certificate files (PEM), served to browsers for the names that they cover.
    pub web_keypairs: Vec<(PathBuf, PathBuf)>,
    /// Which way bytes move: the best that works, or a rung by name.
    pub data_plane: DataPlane,
    pub limits: Limits,
}

/// What a proxy accepts on, for the process that goes on with it.
#[derive(Debug, Default)]
pub struct Listeners {
    pub web: Vec<OwnedFd>,
    pub jump: Option<OwnedFd>,
}

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the data plane cannot start")]
    DataPlane(#[from] relay::StartError),
    #[error("https_keypairs cannot be used")]
    Keypairs(#[source] TlsError),
}

/// What every step of the path may use.
#[derive(Debug)]
struct Core {
    config: ProxyConfig,
    cluster: ClusterName,
    host: Host,
    policy: PolicyFeed<Policy>,
    audit: Audit,
    relay: Relay,
    register: Arc<Register<Idle>>,
    tls: Settings,
    /// Users' streams, from the dialing to the end; only counted.
    streams: TaskTracker,
    /// Streams and jump connections by user.
    users: Counts<UserName>,
    /// Connections relayed to auth, by source and in all.
    auth_sources: Counts<Source>,
    auth_streams: Arc<Semaphore>,
    /// Where auth is, as far as its name could be resolved.
    auth_at: watch::Receiver<Option<SocketAddr>>,
    jump_connections: Semaphore,
    gate: Gate,
    /// After an upgrade: nodes are still on their way here from the old process.
    tunnels_return_until: Instant,
    /// A new process has our listeners.
    replaced: AtomicBool,
    tasks: TaskTracker,
    shutdown: Shutdown,
}

impl Core {
    /// A new process has taken our listeners.
    fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    core: Arc<Core>,
    web_addr: SocketAddr,
    jump_addr: Option<SocketAddr>,
    /// The jump listener again, for another process.
    jump_listener: Mutex<Option<OwnedFd>>,
}

/// Starts listening, or takes the `inherited` listeners of another process, and serves until `shutdown` stops. Draining
/// ends the listeners and tells the nodes; what is relayed goes on.
///
/// # Errors
/// An address is taken, or a certificate file cannot be used.
pub async fn start(
    config: ProxyConfig,
    inherited: Option<Listeners>,
    host: Host,
    policy: PolicyFeed<Policy>,
    spool: Spool,
    shutdown: Shutdown,
) -> Result<Proxy, ProxyError> {
    let tls = Settings::new(host.clone(), &config.web_keypairs).map_err(ProxyError::Keypairs)?;
    let relay = Relay::start(relay::Settings {
        streams_max: config.limits.streams_max,
        workers: None,
        data_plane: config.data_plane,
    })?;
    let (auth_known, auth_at) = watch::channel(resolve(&config.auth_address).await);
    let mut inherited = inherited.unwrap_or_default();
    let jump = jump_listener(config.ssh_jump_listen, &mut inherited).await?;
    let core = Arc::new(Core {
        cluster: host.credentials().cluster.clone(),
        audit: Audit::new(spool, host.clone()),
        relay,
        register: Register::new(&config.limits),
        tls,
        streams: TaskTracker::new(),
        users: Counts::new(),
        auth_sources: Counts::new(),
        auth_streams: Arc::new(Semaphore::new(config.limits.auth_streams_max)),
        auth_at,
        jump_connections: Semaphore::new(config.limits.jump_connections_max),
        gate: Gate::new(&config.limits),
        tunnels_return_until: Instant::now()
            + if inherited.web.is_empty() { Duration::ZERO } else { TUNNELS_RETURN_WITHIN },
        replaced: AtomicBool::new(false),
        tasks: TaskTracker::new(),
        config,
        host,
        policy,
        shutdown,
    });
    let web_addr = open_door(&core, inherited.web)?;
    spawn(&core, |core| async move {
        core.shutdown.draining().await;
        core.relay.unlisten();
    });
    spawn(&core, |core| async move { keep_resolving(&core.config.auth_address, auth_known).await });
    let (mut jump_addr, mut jump_listener) = (None, None);
    if let Some((listener, asked)) = jump {
        jump_addr = Some(address_of(&listener, asked)?);
        jump_listener = rustix::io::fcntl_dupfd_cloexec(&listener, 0).ok();
        spawn(&core, move |core| async move { listen_jump(&core, listener).await });
    }
    spawn(&core, |core| async move { heartbeat::run(&core).await });
    spawn(&core, |core| async move {
        core.shutdown.stopped().await;
        core.register.clear();
    });
    core.tasks.close();
    info!(%web_addr, ?jump_addr, cluster = %core.cluster, "the proxy listens");
    Ok(Proxy { core, web_addr, jump_addr, jump_listener: Mutex::new(jump_listener) })
}

/// Where `ssh -J` comes in, and the address that was asked for.
async fn jump_listener(
    asked: Option<SocketAddr>,
    inherited: &mut Listeners,
) -> Result<Option<(TcpListener, SocketAddr)>, ProxyError> {
    Ok(match (asked, inherited.jump.take()) {
        (Some(address), Some(listener)) => Some((inherit(listener, address)?, address)),
        (Some(address), None) => match listener(address).await {
            Ok(listener) => Some((listener, address)),
            // Sessions of another process wait for us: they are worth more than a listener that it did not have.
            Err(error) if !inherited.web.is_empty() => {
                warn!(%error, "the jump listener is left out");
                None
            }
            Err(error) => return Err(error),
        },
        (None, _) => None,
    })
}

/// Lets the relay accept on the public port.
fn open_door(core: &Arc<Core>, inherited: Vec<OwnedFd>) -> Result<SocketAddr, ProxyError> {
    let door: Arc<dyn relay::Service> = Arc::new(Door::new(core));
    let address = core.config.web_listen;
    let listening = if inherited.is_empty() {
        core.relay.listen(address, &door)
    } else {
        core.relay.listen_on(inherited, &door)
    };
    listening.map_err(|source| ProxyError::Listen { address, source })
}

impl Proxy {
    /// Where it listens for TLS.
    pub fn web_addr(&self) -> SocketAddr {
        self.web_addr
    }
    /// Where it listens for `ssh -J`.
    pub fn jump_addr(&self) -> Option<SocketAddr> {
        self.jump_addr
    }
    /// The rung of the ladder that moves the bytes, and why it is that one.
    pub fn data_plane(&self) -> &relay::Ladder {
        self.core.relay.ladder()
    }
    /// The listeners again, for another process; this one goes on accepting until it is drained.
    ///
    /// # Errors
    /// No descriptors are to be had.
    pub fn listeners(&self) -> std::io::Result<Listeners> {
        let jump = self.jump_listener.lock().unwrap_or_else(PoisonError::into_inner);
        let jump = jump.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Listeners { web: self.core.relay.listeners()?, jump })
    }
    /// Another process has the listeners; to be called before this one is drained.
    pub fn replaced(&self) {
        self.core.replaced.store(true, Ordering::Relaxed);
        drop(self.jump_listener.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
    /// Lets go of the audit spool; to be called when draining, before another process opens it.
    pub fn close_audit(&self) {
        self.core.audit.close();
    }
    /// Takes every stream that another process can go on with.
    pub async fn leave(&self) -> Vec<Moved> {
        self.core.relay.leave().await
    }
    /// Users' streams that are still here behind [`Self::leave`]: those that are gone are counted for a moment longer.
    pub async fn stayed(&self) -> usize {
        let until = Instant::now() + COUNTED_WITHIN;
        while self.streams() > self.core.relay.active() && Instant::now() < until {
            tokio::time::sleep(COUNT_AGAIN).await;
        }
        self.streams()
    }
    /// Goes on with a stream of another process.
    pub fn adopt(&self, stream: Moved) {
        spawn(&self.core, |core| async move { moved::adopt(&core, stream).await });
    }
    /// Nodes with a tunnel.
    pub fn tunnels(&self) -> usize {
        self.core.register.len()
    }
    /// Users' streams now, those through the jump listener too. What is relayed to auth is not counted: nodes keep that
    /// for as long as they live.
    pub fn streams(&self) -> usize {
        self.core.streams.len()
    }
    /// Waits for the end of everything, after `shutdown` has stopped.
    pub async fn finished(self) {
        self.core.tasks.wait().await;
    }
}

/// Runs a task that ends with the proxy, wherever it stands.
fn spawn<F>(core: &Arc<Core>, task: impl FnOnce(Arc<Core>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let shutdown = core.shutdown.clone();
    let task = task(Arc::clone(core));
    core.tasks.spawn(async move {
        tokio::select! {
            () = task => {}
            () = shutdown.stopped() => {}
        }
    });
}

async fn listen_jump(core: &Arc<Core>, listener: TcpListener) {
    let serve = |socket: TcpStream, from: SocketAddr, admission: Admission| {
        spawn(core, move |core| async move {
            if let Err(error) = jump::serve(&core, socket, from, admission).await {
                core.audit.stranger(from, error.kind(), &error);
            }
        });
    };
    listen::accept(listener, &core.gate, &core.shutdown, serve).await;
}

/// The first address behind a `host:port`.
async fn resolve(address: &str) -> Option<SocketAddr> {
    match timeout(RESOLVE_WITHIN, tokio::net::lookup_host(address)).await {
        Ok(Ok(mut found)) => found.next(),
        Ok(Err(error)) => {
            warn!(address, %error, "the address of auth cannot be resolved");
            None
        }
        Err(_) => {
            warn!(address, "the address of auth was not resolved in time");
            None
        }
    }
}

/// Follows auth when its name comes to mean another address. The last one that was known stays.
async fn keep_resolving(address: &str, known: watch::Sender<Option<SocketAddr>>) {
    if address.parse::<SocketAddr>().is_ok() {
        return;
    }
    loop {
        tokio::time::sleep(RESOLVE_EVERY).await;
        if let Some(found) = resolve(address).await {
            known.send_if_modified(|at| at.replace(found) != Some(found));
        }
    }
}

async fn listener(address: SocketAddr) -> Result<TcpListener, ProxyError> {
    TcpListener::bind(address).await.map_err(|source| ProxyError::Listen { address, source })
}

fn inherit(listener: OwnedFd, address: SocketAddr) -> Result<TcpListener, ProxyError> {
    TcpListener::from_std(listener.into()).map_err(|source| ProxyError::Listen { address, source })
}

fn address_of(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, ProxyError> {
    listener.local_addr().map_err(|source| ProxyError::Listen { address, source })
}

/// Nodes are told to come back within a second; one that was about to dial anyway takes a little longer.
const TUNNELS_RETURN_WITHIN: Duration = Duration::from_secs(4);
/// For tasks to see that their streams are gone; one that is being dialed is not in the relay either, and is not waited for.
const COUNTED_WITHIN: Duration = Duration::from_millis(250);
const COUNT_AGAIN: Duration = Duration::from_millis(5);
/// A resolver that takes longer is down.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
/// Names change rarely, and a wrong address is found out by every node at once.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
