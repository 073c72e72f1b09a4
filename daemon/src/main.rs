//! `postern`: one binary, three roles. Reads the command line; what runs is in the modules.
//!
//! - [`config`]: file and flags > checked configuration
//! - [`configure`]: prints a configuration to start from
//! - [`logging`]: where log lines go
//! - [`health`]: what the roles say of themselves
//! - [`diag`]: `/healthz`, `/readyz`, `/metrics`, and the local status socket
//! - [`live`]: from settings to the end; [`start`]: auth > proxy > node
//! - [`upgrade`]: gives everything to a new process of this program
//! - [`status`]: asks a running daemon
//! - [`output`]: how commands answer
#![forbid(unsafe_code)]

mod config;
mod configure;
mod diag;
mod health;
mod live;
mod logging;
mod output;
mod start;
mod status;
mod upgrade;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use proto::id::NodeName;
use proto::resource::{HostRole, Labels};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Identity-aware access proxy: auth, proxy and node in one daemon.
#[derive(Debug, Parser)]
#[command(name = "postern", version, about, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the roles of this machine and run until SIGTERM.
    Start(StartArgs),
    /// Print a configuration file to start from.
    Configure(configure::ConfigureArgs),
    /// Ask the daemon on this machine how it is.
    Status(status::StatusArgs),
    /// Start a proxy's program anew from its file and hand everything over: relayed sessions do not notice. Only for a daemon
    /// that runs nothing but the proxy.
    Upgrade(UpgradeArgs),
    /// Print the version.
    Version,
    /// Print a completion script for a shell.
    Completion { shell: clap_complete::Shell },
    /// Serve SFTP on standard input and output, as the node starts it for a session.
    #[command(name = "sftp-server", hide = true)]
    SftpServer,
}

#[derive(Debug, clap::Args)]
struct UpgradeArgs {
    /// Where the daemon keeps its state.
    #[arg(long, value_name = "DIR", env = "POSTERN_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// text or json.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    format: String,
}

#[derive(Debug, clap::Args)]
struct StartArgs {
    /// Configuration file [default: /etc/postern.yaml when it exists].
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Roles to run here: auth, proxy, node [default: all, or as the file says].
    #[arg(short, long, value_delimiter = ',', value_parser = parse_role, value_name = "ROLES")]
    roles: Option<Vec<HostRole>>,
    /// Join token, or the absolute path of a file that holds it.
    #[arg(long, value_name = "TOKEN|FILE", env = "POSTERN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Where auth listens.
    #[arg(long, value_name = "HOST:PORT")]
    auth_server: Option<String>,
    /// A proxy of the cluster: a node's tunnel goes there, and auth is reached through it unless --auth-server is given.
    #[arg(long, value_name = "HOST:PORT")]
    proxy: Option<String>,
    /// Pin of the cluster's host authority, as `tctl status` prints it.
    #[arg(long, value_name = "sha256:HEX")]
    ca_pin: Option<String>,
    /// Name of this machine in the cluster [default: its host name].
    #[arg(long, value_name = "NAME")]
    nodename: Option<NodeName>,
    /// Labels of this node: env=prod,team=db.
    #[arg(long, value_parser = parse_labels, value_name = "K=V,..")]
    labels: Option<Labels>,
    /// Where state is kept [default: /var/lib/postern, or ~/.local/state/postern when not root].
    #[arg(long, value_name = "DIR", env = "POSTERN_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Serve /healthz, /readyz and /metrics here.
    #[arg(long, value_name = "ADDR:PORT")]
    diag_addr: Option<SocketAddr>,
    /// Log at debug level.
    #[arg(short = 'd', long)]
    debug: bool,
}

fn parse_role(text: &str) -> Result<HostRole, String> {
    match text {
        "auth" => Ok(HostRole::Auth),
        "node" | "ssh" => Ok(HostRole::Node),
        "proxy" => Ok(HostRole::Proxy),
        other => Err(format!("{other:?} is not a role; roles are auth, proxy and node")),
    }
}

fn parse_labels(text: &str) -> Result<Labels, String> {
    let mut labels = Labels::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| format!("{pair:?} is not name=value"))?;
        labels.insert(name.trim().to_owned(), value.trim().to_owned());
    }
    Ok(labels)
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Start(args) => run_start(args),
        Command::Configure(args) => done(configure::run(&args)),
        Command::Status(args) => status::run(&args),
        Command::Upgrade(args) => done(upgrade_daemon(args)),
        Command::Version => said(&format!("postern {}\n", proto::VERSION)),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "postern", &mut script);
            said(&String::from_utf8_lossy(&script))
        }
        Command::SftpServer => node::sftp_child_main(),
    }
}

fn said(text: &str) -> ExitCode {
    done(output::print(text).map_err(anyhow::Error::from))
}

fn done(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ERROR: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Asks the running daemon for an upgrade and waits for what comes of it.
fn upgrade_daemon(args: UpgradeArgs) -> anyhow::Result<()> {
    let (head, body) = status::request(args.data_dir, "POST /upgrade", UPGRADE_WITHIN)?;
    if !head.starts_with("HTTP/1.1 200") {
        anyhow::bail!("{body}");
    }
    if args.format == "json" {
        return Ok(output::print(&format!("{body}\n"))?);
    }
    let report: upgrade::Report = serde_json::from_str(&body)?;
    Ok(output::print(&report.to_string())?)
}

/// Longer than all that the two processes may take.
const UPGRADE_WITHIN: std::time::Duration = std::time::Duration::from_secs(240);

fn run_start(args: StartArgs) -> ExitCode {
    let default = PathBuf::from(config::DEFAULT_FILE);
    let file = args.config.or_else(|| default.exists().then_some(default));
    let flags = config::Flags {
        roles: args.roles,
        token: args.token,
        auth_server: args.auth_server,
        proxy: args.proxy,
        ca_pin: args.ca_pin,
        nodename: args.nodename,
        labels: args.labels,
        data_dir: args.data_dir,
        diag_addr: args.diag_addr,
        debug: args.debug,
    };
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    match config::load(file.as_deref(), flags, &hostname) {
        Ok(config) => done(live::run(config)),
        Err(mistakes) => {
            eprintln!("ERROR: {mistakes}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn labels_are_pairs() {
        assert_eq!(parse_labels("env=prod, team=db").unwrap().len(), 2);
        assert!(parse_labels("env").is_err());
    }
}
