//! The command line, as clap sees it. What the flags mean is each command's business.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use proto::resource::Span;

use cli::output::Format;

/// Administers a cluster.
#[derive(Debug, Parser)]
#[command(name = "tctl", version = proto::VERSION, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to reach auth.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Data folder of the auth service on this machine.
    #[arg(long, global = true, env = "POSTERN_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Reach auth by the `tsh login` at this proxy, also where auth runs. Without it TELEPORT_PROXY names the proxy,
    /// where no auth runs.
    #[arg(long, global = true, value_name = "HOST[:PORT]")]
    pub(crate) proxy: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Certificates and authorities.
    Auth {
        #[command(subcommand)]
        command: AuthCommand,
    },
    /// What nodes' kernels tell of sessions.
    Capture {
        #[command(subcommand)]
        command: CaptureCommand,
    },
    /// Print a completion script for a shell.
    Completion { shell: clap_complete::Shell },
    /// Create resources from YAML.
    Create(CreateArgs),
    /// The audit log.
    Events {
        #[command(subcommand)]
        command: EventsCommand,
    },
    /// Print resources.
    Get(GetArgs),
    /// Keep a target out at once.
    Lock(LockArgs),
    /// Machines.
    Nodes {
        #[command(subcommand)]
        command: NodesCommand,
    },
    /// Remove a resource.
    Rm {
        /// Which one: `user/alice`, `role/developers`, `lock/ID`.
        #[arg(value_name = "KIND/NAME")]
        resource: String,
    },
    /// What sessions did.
    Session {
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// The cluster, its authorities and pins.
    Status {
        #[arg(long, default_value = "text")]
        format: Format,
    },
    /// Join tokens.
    Tokens {
        #[command(subcommand)]
        command: TokensCommand,
    },
    /// People.
    Users {
        #[command(subcommand)]
        command: UsersCommand,
    },
    /// Print the version.
    Version,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuthCommand {
    /// Print the public half of an authority.
    Export(ExportArgs),
    /// Sign certificates for new keys.
    Sign(SignArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Which authority.
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: ExportKind,
    /// Only print those authorities that have this fingerprint.
    #[arg(long, value_name = "FINGERPRINT")]
    pub(crate) fingerprint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportKind {
    /// SSH host authority, as a line for known_hosts.
    Host,
    /// TLS host authority, PEM.
    TlsHost,
    /// TLS user authority, PEM.
    TlsUser,
    /// SSH user authority, for TrustedUserCAKeys.
    User,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("whom").required(true).args(["user", "host"])))]
pub(crate) struct SignArgs {
    /// For a user.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// For a host: names and addresses, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) host: Vec<String>,
    /// Where to write; `--format` says what is added to the name.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    #[arg(long, default_value = "file")]
    pub(crate) format: SignFormat,
    /// Life of the certificates.
    #[arg(long, default_value = "12h")]
    pub(crate) ttl: Span,
    /// Replace files that exist.
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SignFormat {
    /// All in one file.
    File,
    /// OUT and OUT-cert.pub.
    Openssh,
    /// OUT.key, OUT.crt and OUT.cas.
    Tls,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Replace what exists.
    #[arg(short, long)]
    pub(crate) force: bool,
    /// YAML with one or more resources; `-` for standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// Print past events, oldest first.
    Ls(EventsArgs),
    /// Print events as they happen.
    Tail(TailArgs),
}

#[derive(Debug, Args)]
pub(crate) struct EventFilter {
    /// Only these types: `session.start,session.end`.
    #[arg(long = "type", value_name = "TYPES", value_delimiter = ',')]
    pub(crate) types: Vec<String>,
    /// Only this user's.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) user: String,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    pub(crate) filter: EventFilter,
    /// From then: RFC 3339 time, or so far back: `1h`, `7d`.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Until then, as `--since`.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Only of this session.
    #[arg(long, value_name = "SID", default_value = "")]
    pub(crate) session: String,
    /// At most so many, the newest.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) limit: u32,
    #[arg(long, default_value = "text")]
    pub(crate) format: EventFormat,
}

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    #[command(flatten)]
    pub(crate) filter: EventFilter,
    #[arg(long, default_value = "text")]
    pub(crate) format: EventFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EventFormat {
    /// One JSON object per line.
    Json,
    Text,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    #[arg(long, default_value = "yaml")]
    pub(crate) format: Format,
    /// `role`, `user`, `token`, `lock`, `node`; with a name only that one; several with commas. All if absent.
    #[arg(value_name = "KIND[/NAME]")]
    pub(crate) what: Option<String>,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("target").required(true).args(["user", "role", "login", "node"])))]
pub(crate) struct LockArgs {
    /// A user.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Everybody who has this role.
    #[arg(long, value_name = "NAME")]
    pub(crate) role: Option<String>,
    /// An account on hosts.
    #[arg(long, value_name = "LOGIN")]
    pub(crate) login: Option<String>,
    /// Host id.
    #[arg(long, value_name = "ID")]
    pub(crate) node: Option<String>,
    /// How long; for good if absent.
    #[arg(long, value_name = "SPAN")]
    pub(crate) ttl: Option<Span>,
    /// Why.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) message: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodesCommand {
    /// List them, and when they were last heard of.
    Ls {
        #[arg(long, default_value = "text")]
        format: Format,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaptureCommand {
    /// Per node: how much its kernel tells and what it refuses, what comes, what is lost.
    Status {
        #[arg(long, default_value = "text")]
        format: Format,
        /// Name or id of a node; all of them if absent.
        node: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// Its processes, with their files and connections, as the kernel told of them. What is missing comes first.
    Tree(TreeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TreeArgs {
    /// Whole lines, and all files and connections of a process.
    #[arg(long)]
    pub(crate) full: bool,
    #[arg(long, default_value = "text")]
    pub(crate) format: Format,
    /// Session id.
    #[arg(value_name = "SID")]
    pub(crate) session: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokensCommand {
    /// Make one.
    Add(TokensAddArgs),
    /// List those that are still good.
    Ls {
        #[arg(long, default_value = "text")]
        format: Format,
    },
    /// Take one back: nothing joins with it any more.
    Rm {
        /// The token, as `tctl tokens ls` prints it.
        token: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TokensAddArgs {
    /// What joins with it may be: `node`, `proxy`.
    #[arg(long = "type", value_name = "ROLES", value_delimiter = ',', required = true)]
    pub(crate) roles: Vec<String>,
    /// How long it is good.
    #[arg(long, default_value = "1h")]
    pub(crate) ttl: Span,
    /// The token itself; made by chance if absent. Visible to other users of this machine.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) value: String,
    /// Labels that the joined machines get: `env=prod,team=web`.
    #[arg(long, value_delimiter = ',')]
    pub(crate) labels: Vec<String>,
    #[arg(long, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UsersCommand {
    /// Invite a new one.
    Add(UsersAddArgs),
    /// List them, with roles and logins.
    Ls {
        #[arg(long, default_value = "text")]
        format: Format,
    },
    /// Invite an existing one to choose a new password and second factor.
    Reset(UsersResetArgs),
    /// Remove one. Certificates stay good until they end: lock the user first.
    Rm {
        /// Name of the user.
        name: String,
    },
    /// Change roles and logins.
    Update(UsersUpdateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct UsersAddArgs {
    /// Name of the user.
    pub(crate) name: String,
    /// Roles, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) roles: Vec<String>,
    /// Accounts on hosts, where roles say `{{internal.logins}}`.
    #[arg(long, value_delimiter = ',')]
    pub(crate) logins: Vec<String>,
    /// Life of the invite, at most 48h.
    #[arg(long, default_value = "1h")]
    pub(crate) ttl: Span,
    #[arg(long, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct UsersResetArgs {
    /// Name of the user.
    pub(crate) name: String,
    /// Life of the invite, at most 48h.
    #[arg(long, default_value = "1h")]
    pub(crate) ttl: Span,
    #[arg(long, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct UsersUpdateArgs {
    /// Name of the user.
    pub(crate) name: String,
    /// The new roles, separated by commas; the old ones go.
    #[arg(long, value_delimiter = ',', required_unless_present = "set_logins")]
    pub(crate) set_roles: Vec<String>,
    /// The new logins, separated by commas; the old ones go, but for certificates that are there already.
    #[arg(long, value_delimiter = ',')]
    pub(crate) set_logins: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        for flag in ["-V", "--version"] {
            let told = Cli::try_parse_from(["tctl", flag]).unwrap_err();
            assert_eq!(told.kind(), clap::error::ErrorKind::DisplayVersion);
            assert_eq!(told.to_string(), format!("tctl {}\n", proto::VERSION));
        }
    }

    #[test]
    fn exactly_one_target_of_a_lock() {
        assert!(Cli::try_parse_from(["tctl", "lock", "--user=a", "--message", "x"]).is_ok());
        assert!(Cli::try_parse_from(["tctl", "lock", "--user=a", "--role=b"]).is_err());
        assert!(Cli::try_parse_from(["tctl", "lock"]).is_err());
        assert!(Cli::try_parse_from(["tctl", "create", "-f", "-"]).is_ok());
        assert!(Cli::try_parse_from(["tctl", "auth", "sign", "-o", "x"]).is_err());
    }
}
