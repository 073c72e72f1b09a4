//! Starts the roles of this machine: auth > proxy > node. Every role reaches auth the same way, over gRPC, also when auth
//! runs in the same process. Called by [`crate::live`].

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
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::config::{Config, NodeSection, ProxySection};
use crate::health::Health;

/// The roles that run here.
#[derive(Debug, Default)]
pub(crate) struct Running {
    auth: Option<auth::Auth>,
    pub(crate) proxy: Option<proxy::Proxy>,
    node: Option<node::Node>,
    /// The proxy's audit events on their way to auth.
    pub(crate) shipping: Option<Shipping>,
}

/// Sends a spool's events until it is stopped or the daemon is.
#[derive(Debug)]
pub(crate) struct Shipping(Mutex<JoinHandle<()>>);

impl Shipping {
    /// Ends it; the spool is free when nobody else holds it.
    pub(crate) async fn stop(&self) {
        let mut task = self.0.lock().await;
        task.abort();
        // Ended by us or by itself: either way it holds nothing any more.
        drop((&mut *task).await);
    }
}

impl Running {
    /// Whether nothing but a proxy runs here.
    pub(crate) fn is_proxy_alone(&self) -> bool {
        self.auth.is_none() && self.node.is_none()
    }

    /// Users' streams through the proxy, if one runs here.
    pub(crate) fn streams(&self) -> usize {
        self.proxy.as_ref().map_or(0, proxy::Proxy::streams)
    }

    /// Waits until no session and no relayed stream is left.
    pub(crate) async fn idle(&self) {
        const LOOK_EVERY: Duration = Duration::from_millis(100);
        loop {
            let sessions = self.node.as_ref().map_or(0, node::Node::sessions);
            if sessions == 0 && self.streams() == 0 {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits for every role's end; auth last, for the others' last events.
    pub(crate) async fn finished(self) {
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

/// Starts what the configuration says.
pub(crate) async fn start_roles(
    config: &Config,
    listeners: Option<proxy::Listeners>,
    health: &Arc<Health>,
    shutdown: &Shutdown,
) -> anyhow::Result<Running> {
    let mut running =
        Running { auth: start_auth(config, health, shutdown).await?, ..Running::default() };
    if let Some(section) = &config.proxy {
        let auth = running.auth.as_ref();
        let (proxy, shipping) =
            start_proxy(config, section, listeners, auth, health, shutdown).await?;
        (running.proxy, running.shipping) = (Some(proxy), Some(shipping));
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
) -> anyhow::Result<(PolicyFeed<Policy>, Spool, Shipping)> {
    let policy = PolicyFeed::start(dir.to_owned(), host.clone(), compile, shutdown.clone()).await?;
    let spool = Spool::open(dir.join("spool"), host.credentials().cluster.clone())?;
    let shipping = tokio::spawn(spool.clone().ship(host.auth(), shutdown.clone()));
    Ok((policy, spool, Shipping(Mutex::new(shipping))))
}

async fn start_proxy(
    config: &Config,
    section: &ProxySection,
    listeners: Option<proxy::Listeners>,
    auth: Option<&auth::Auth>,
    health: &Health,
    shutdown: &Shutdown,
) -> anyhow::Result<(proxy::Proxy, Shipping)> {
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
    let (policy, spool, shipping) = start_common(&dir, &host, shutdown).await.context("proxy")?;
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
        listeners,
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
    Ok((proxy, shipping))
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
    let (policy, spool, _) = start_common(&dir, &host, shutdown).await.context("node")?;
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
    health.capture(node.capture());
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
