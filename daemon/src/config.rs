//! Configuration: file and flags > [`Config`], checked as a whole; all mistakes are reported together and no socket is
//! opened here. Every default is a named constant with its reason. What runs with it: [`crate::start`].

mod read;
mod yaml;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use proto::id::{ClusterName, NodeName};
use proto::preamble::Inner;
use proto::resource::{HostRole, Labels};
use zeroize::Zeroizing;

pub(crate) use read::{Flags, host_port, load, pin};

/// Auth's port, as people know it.
pub(crate) const AUTH_PORT: u16 = 3025;
/// The proxy's one public port, as people know it.
pub(crate) const WEB_PORT: u16 = 3080;
/// The jump listener for `ssh -J`, as people know it.
pub(crate) const JUMP_PORT: u16 = 3023;
/// How long SIGTERM waits for sessions to end: below systemd's 90 s, after which it would kill.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// A working day: what could not be handed over is somebody's session.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(12 * 3600);
/// The file that `postern start` reads when it exists and no other is named.
pub(crate) const DEFAULT_FILE: &str = "/etc/postern.yaml";

/// Everything that `postern start` needs.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) nodename: NodeName,
    pub(crate) data_dir: PathBuf,
    pub(crate) diag_addr: Option<SocketAddr>,
    pub(crate) log: LogConfig,
    pub(crate) drain_timeout: Duration,
    /// How long what cannot be handed over goes on in the old process after an upgrade.
    pub(crate) upgrade_timeout: Duration,
    pub(crate) join: JoinConfig,
    pub(crate) auth: Option<AuthSection>,
    pub(crate) proxy: Option<ProxySection>,
    pub(crate) node: Option<NodeSection>,
}

impl Config {
    /// The roles that run here.
    pub(crate) fn roles(&self) -> Vec<HostRole> {
        [
            (self.auth.is_some(), HostRole::Auth),
            (self.proxy.is_some(), HostRole::Proxy),
            (self.node.is_some(), HostRole::Node),
        ]
        .into_iter()
        .filter_map(|(runs, role)| runs.then_some(role))
        .collect()
    }
}

/// How this machine gets its identity when auth runs elsewhere.
#[derive(Debug, Default)]
pub(crate) struct JoinConfig {
    pub(crate) token: Option<Zeroizing<String>>,
    pub(crate) auth_server: Option<String>,
    pub(crate) proxy_server: Option<String>,
    pub(crate) ca_pin: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogConfig {
    pub(crate) json: bool,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a tracing filter such as `info,node=debug`.
    pub(crate) severity: String,
}

#[derive(Debug)]
pub(crate) struct AuthSection {
    pub(crate) cluster_name: ClusterName,
    /// False when the name is only the default: an existing cluster then keeps its own.
    pub(crate) cluster_name_given: bool,
    pub(crate) listen_addr: SocketAddr,
    pub(crate) public_addr: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct ProxySection {
    pub(crate) web_listen_addr: SocketAddr,
    /// `host:port`s; the first is told to clients, all are in the certificate.
    pub(crate) public_addr: Vec<String>,
    pub(crate) ssh_listen_addr: Option<SocketAddr>,
    pub(crate) ssh_public_addr: Option<String>,
    pub(crate) https_keypairs: Vec<(PathBuf, PathBuf)>,
    pub(crate) inner: Inner,
    pub(crate) data_plane: proxy::DataPlane,
}

#[derive(Debug)]
pub(crate) struct NodeSection {
    pub(crate) labels: Labels,
    pub(crate) environment_allow: Vec<String>,
}

/// All that is wrong with the configuration.
#[derive(Debug)]
pub(crate) struct Mistakes {
    pub(crate) file: Option<PathBuf>,
    pub(crate) list: Vec<yaml::Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(out, "the configuration in {} cannot be used:", file.display())?,
            None => write!(out, "the configuration cannot be used:")?,
        }
        for mistake in &self.list {
            write!(out, "\n  - {mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}
