//! The life of the daemon, on one page: settings > auth > proxy > node > signal > drain > stop.
//! Every role reaches auth the same way, over gRPC, also when auth runs in the same process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use net::auth_client::Route;
use net::host::{Host, HostSettings};
use net::policy_feed::PolicyFeed;
use net::shutdown::Shutdown;
use net::spool::Spool;
use policy::Policy;
use proto::resource::HostRole;
use proto::snapshot::Snapshot;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::config::{Config, NodeSection, ProxySection};
use crate::diag::Diag;
use crate::health::Health;

/// After the drain, tasks get so long to end by themselves: longer than a node waits for a program that ignores SIGHUP
/// before it kills it (5 s), and for its client to read why (2 s).
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// For blocking calls under way; with the drain and [`STOP_WITHIN`] less than the 90 s of the unit file in the guide.
const THREADS_END_WITHIN: Duration = Duration::from_secs(5);

/// Runs until a signal.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    crate::logging::install(&config.log)?;
    // Files that roles make are private unless they say otherwise; children set their own.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(live(config));
    runtime.shutdown_timeout(THREADS_END_WITHIN);
    result
}

/// One daemon per data folder: a second one would take the first one's sockets away. Held until the process ends.
fn lock(data_dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = data_dir.join("postern.lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot use {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => anyhow::bail!(
            "another postern uses {d}: see `postern status --data-dir {d}`, or pass another --data-dir",
            d = data_dir.display()
        ),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// As many open files as the system lets us have: a session costs a few, and the bounds of every role are far above the
/// usual soft limit of 1024, which the programs of sessions get back (`node::sys`).
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!(%error, "the limit of open files stays as it is");
    }
}

async fn live(config: Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    let mut signals = Signals::new()?;
    let roles: Vec<&str> = config.roles().into_iter().map(HostRole::as_str).collect();
    let health = Arc::new(Health::new(config.nodename.as_str(), &roles));
    net::file::private_dir(&config.data_dir)
        .with_context(|| format!("cannot use {}", config.data_dir.display()))?;
    let _lock = lock(&config.data_dir)?;
    let diag = Diag::new(health.clone())?;
    let socket = diag.listen_socket(&config.data_dir)?;
    if let Some(address) = config.diag_addr {
        let address = diag.listen(address).await?;
        info!(%address, "diagnostics: /healthz /readyz /metrics");
    }
    info!(version = proto::VERSION, roles = roles.join(","), data_dir = %config.data_dir.display(), "starting");
    let running = tokio::select! {
        started = start_roles(&config, &health, &shutdown) => started?,
        () = signals.next() => return Ok(()),
    };
    notify(&[sd_notify::NotifyState::Ready]);
    info!(roles = roles.join(","), "started");

    signals.next().await;
    health.draining();
    notify(&[sd_notify::NotifyState::Stopping]);
    info!(timeout = ?config.drain_timeout, "draining: no new sessions; a second signal ends those that run");
    shutdown.drain();
    tokio::select! {
        () = running.idle() => info!("all sessions have ended"),
        () = tokio::time::sleep(config.drain_timeout) => warn!("sessions are still open after the drain timeout"),
        () = signals.next() => warn!("second signal"),
    }
    shutdown.stop();
    if tokio::time::timeout(STOP_WITHIN, running.finished()).await.is_err() {
        warn!("some tasks did not end in time");
    }
    remove_socket(&socket);
    info!("stopped");
    Ok(())
}

/// The roles that run here.
#[derive(Debug, Default)]
struct Running {
    auth: Option<auth::Auth>,
    proxy: Option<proxy::Proxy>,
    node: Option<node::Node>,
}

impl Running {
    /// Waits until no session and no relayed stream is left.
    async fn idle(&self) {
        const LOOK_EVERY: Duration = Duration::from_millis(100);
        loop {
            let sessions = self.node.as_ref().map_or(0, node::Node::sessions);
            let streams = self.proxy.as_ref().map_or(0, proxy::Proxy::streams);
            if sessions == 0 && streams == 0 {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits for every role's end; auth last, for the others' last events.
    async fn finished(self) {
        if let Some(node) = self.node {
            node.finished().await;
        }
        if let Some(proxy) = self.proxy {
            proxy.finished().await;
        }
        if let Some(auth) = self.auth {
            auth.finished().await;
        }
    }
}

async fn start_roles(
    config: &Config,
    health: &Arc<Health>,
    shutdown: &Shutdown,
) -> anyhow::Result<Running> {
    let mut running =
        Running { auth: start_auth(config, health, shutdown).await?, ..Running::default() };
    if let Some(section) = &config.proxy {
        running.proxy =
            Some(start_proxy(config, section, running.auth.as_ref(), health, shutdown).await?);
    }
    if let Some(section) = &config.node {
        running.node = Some(start_node(config, section, &running, health, shutdown).await?);
    }
    Ok(running)
}

async fn start_auth(
    config: &Config,
    health: &Health,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<auth::Auth>> {
    let Some(section) = &config.auth else { return Ok(None) };
    let proxy_address = config.proxy.as_ref().and_then(|proxy| proxy.public_addr.first().cloned());
    let names: Vec<String> =
        section.public_addr.iter().map(|address| host_of(address).to_owned()).collect();
    let auth_address =
        section.public_addr.first().cloned().unwrap_or_else(|| section.listen_addr.to_string());
    let auth = auth::start(
        auth::AuthConfig {
            data_dir: config.data_dir.join("auth"),
            cluster_name: section.cluster_name.clone(),
            cluster_name_given: section.cluster_name_given,
            listen: section.listen_addr,
            names,
            proxy_address: proxy_address
                .or_else(|| config.join.proxy_server.clone())
                .unwrap_or_default(),
            auth_address,
        },
        shutdown.clone(),
    )
    .await
    .context("auth")?;
    health.cluster(auth.cluster().as_str());
    health.role("auth", true, format!("listening on {}", auth.local_addr()));
    Ok(Some(auth))
}

/// Joins (or loads) the identity of a role.
async fn start_host(
    config: &Config,
    role: HostRole,
    auth: Option<&auth::Auth>,
    principals: Vec<String>,
    shutdown: &Shutdown,
) -> anyhow::Result<Host> {
    let dir = config.data_dir.join(role.as_str());
    let (token, route, ca_pin) = match auth {
        Some(auth) => {
            let token = if net::host::is_joined(&dir) {
                None
            } else {
                Some(auth.local_join_token(role).await?)
            };
            let address = loopback_of(auth.local_addr()).to_string();
            (token, Route::Direct(address), Some(auth.ca_pin().to_owned()))
        }
        None => {
            let join = &config.join;
            let route = match (&join.auth_server, &join.proxy_server) {
                (Some(auth), _) => Route::Direct(auth.clone()),
                (None, Some(proxy)) => Route::Proxy(proxy.clone()),
                (None, None) => anyhow::bail!("neither auth_server nor proxy_server is set"),
            };
            (join.token.clone(), route, join.ca_pin.clone())
        }
    };
    let nodename = config.nodename.clone();
    Ok(Host::start(
        HostSettings { dir, role, nodename, token, route, ca_pin, principals },
        shutdown.clone(),
    )
    .await?)
}

fn compile(snapshot: Snapshot) -> Result<Policy, String> {
    Policy::new(snapshot).map_err(|error| error.to_string())
}

/// What proxy and node both need besides their identity.
async fn start_common(
    dir: &Path,
    host: &Host,
    shutdown: &Shutdown,
) -> anyhow::Result<(PolicyFeed<Policy>, Spool)> {
    let policy = PolicyFeed::start(dir.to_owned(), host.clone(), compile, shutdown.clone()).await?;
    let spool = Spool::open(dir.join("spool"), host.credentials().cluster.clone())?;
    tokio::spawn(spool.clone().ship(host.auth(), shutdown.clone()));
    Ok((policy, spool))
}

async fn start_proxy(
    config: &Config,
    section: &ProxySection,
    auth: Option<&auth::Auth>,
    health: &Health,
    shutdown: &Shutdown,
) -> anyhow::Result<proxy::Proxy> {
    let mut principals: Vec<String> = section
        .public_addr
        .iter()
        .chain(&section.ssh_public_addr)
        .map(|a| host_of(a).to_owned())
        .collect();
    if section.web_listen_addr.ip().is_loopback() {
        principals.extend(["localhost".into(), section.web_listen_addr.ip().to_string()]);
    }
    principals.sort();
    principals.dedup();
    let host =
        start_host(config, HostRole::Proxy, auth, principals, shutdown).await.context("proxy")?;
    health.cluster(host.credentials().cluster.as_str());
    let dir = config.data_dir.join("proxy");
    let (policy, spool) = start_common(&dir, &host, shutdown).await.context("proxy")?;
    let auth_address = match auth {
        Some(auth) => loopback_of(auth.local_addr()).to_string(),
        None => config.join.auth_server.clone().unwrap_or_default(),
    };
    let public_addr = section.public_addr.first().cloned().unwrap_or_default();
    let ssh_public_addr = section.ssh_public_addr.clone().unwrap_or_else(|| {
        section
            .ssh_listen_addr
            .map_or_else(String::new, |jump| format!("{}:{}", host_of(&public_addr), jump.port()))
    });
    let proxy = proxy::start(
        proxy::ProxyConfig {
            web_listen: section.web_listen_addr,
            ssh_jump_listen: section.ssh_listen_addr,
            public_addr,
            ssh_public_addr,
            auth_address,
            data_dir: dir,
            inner: section.inner,
            web_keypairs: section.https_keypairs.clone(),
            data_plane: section.data_plane,
            limits: proxy::Limits::default(),
        },
        host,
        policy,
        spool,
        shutdown.clone(),
    )
    .await
    .context("proxy")?;
    let plane = proxy.data_plane();
    health.role(
        "proxy",
        true,
        format!("listening on {}, data plane {} ({})", proxy.web_addr(), plane.rung(), plane.why()),
    );
    Ok(proxy)
}

async fn start_node(
    config: &Config,
    section: &NodeSection,
    running: &Running,
    health: &Arc<Health>,
    shutdown: &Shutdown,
) -> anyhow::Result<node::Node> {
    let host = start_host(config, HostRole::Node, running.auth.as_ref(), Vec::new(), shutdown)
        .await
        .context("node")?;
    health.cluster(host.credentials().cluster.as_str());
    let dir = config.data_dir.join("node");
    let (policy, spool) = start_common(&dir, &host, shutdown).await.context("node")?;
    let proxy = match (&running.proxy, &config.join.proxy_server) {
        (Some(proxy), _) => loopback_of(proxy.web_addr()).to_string(),
        (None, Some(proxy)) => proxy.clone(),
        (None, None) => anyhow::bail!(
            "node: a node is reached through a proxy: pass --proxy (or set proxy_server)"
        ),
    };
    let node = node::start(
        node::NodeConfig {
            data_dir: dir,
            labels: section.labels.clone(),
            proxy: proxy.clone(),
            environment_allow: section.environment_allow.clone(),
            shell_helper: SELF.into(),
        },
        host,
        policy,
        spool,
        shutdown.clone(),
    )
    .await
    .context("node")?;
    follow_tunnel(node.tunnel_state(), proxy, health.clone());
    Ok(node)
}

/// This very program for children: also after its file was replaced, and where the session's user can't reach the file.
const SELF: &str = "/proc/self/exe";

/// Keeps the node's readiness as its tunnel is.
fn follow_tunnel(
    mut state: tokio::sync::watch::Receiver<net::tunnel::State>,
    proxy: String,
    health: Arc<Health>,
) {
    tokio::spawn(async move {
        loop {
            match *state.borrow_and_update() {
                net::tunnel::State::Connected => {
                    health.role("node", true, format!("tunnel to {proxy}"))
                }
                net::tunnel::State::Connecting => {
                    health.role("node", false, format!("connecting to {proxy}"));
                }
            }
            if state.changed().await.is_err() {
                return;
            }
        }
    });
}

fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// A wildcard listener, reached from this machine.
fn loopback_of(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
    } else {
        address
    }
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "systemd could not be told");
    }
}

fn remove_socket(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        warn!(%error, path = %path.display(), "the status socket stays behind");
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
