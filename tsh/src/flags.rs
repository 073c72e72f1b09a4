//! The command line, as clap sees it. What the flags mean is each command's business.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::address::ProxyAddress;
use crate::agent::AddKeys;
use cli::output::Format;

/// Signs in, then opens shells, copies files and makes stock SSH clients work.
#[derive(Debug, Parser)]
#[command(name = "tsh", version = proto::VERSION, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Address of the proxy.
    #[arg(long, global = true, env = "TELEPORT_PROXY", value_name = "HOST[:PORT]")]
    pub(crate) proxy: Option<ProxyAddress>,
    /// Name of the user.
    #[arg(long, global = true, env = "TELEPORT_USER", value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Account on the target host.
    #[arg(short, long, global = true, env = "TELEPORT_LOGIN", value_name = "LOGIN")]
    pub(crate) login: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print a completion script for a shell.
    Completion { shell: clap_complete::Shell },
    /// Print OpenSSH client configuration.
    Config(ConfigArgs),
    /// Accept an invite: choose a password and enrol a second factor.
    Invite(InviteArgs),
    /// Sign in.
    Login(LoginArgs),
    /// Delete keys, certificates and profiles.
    Logout,
    /// List hosts.
    Ls(LsArgs),
    /// Replay a recorded session.
    Play(PlayArgs),
    /// Local ends for stock clients.
    Proxy {
        #[command(subcommand)]
        command: ProxyCommand,
    },
    /// Recorded sessions.
    Recordings {
        #[command(subcommand)]
        command: RecordingsCommand,
    },
    /// Copy files.
    Scp(ScpArgs),
    /// Run a shell or a command on a host.
    Ssh(SshArgs),
    /// Show who is signed in where.
    Status {
        #[arg(short, long, default_value = "text")]
        format: Format,
    },
    /// Print the version.
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Port that the printed hosts get.
    #[arg(short, long, default_value_t = 3022)]
    pub(crate) port: u16,
}

/// How the proxy proves itself before anything is known of it.
#[derive(Debug, Args)]
pub(crate) struct TrustArgs {
    /// Pin of the cluster's authority (`tctl status` prints it).
    #[arg(long, value_name = "sha256:HEX")]
    pub(crate) ca_pin: Option<String>,
    /// Do not check the proxy's certificate. Whoever answers then gets what you type.
    #[arg(long, conflicts_with = "ca_pin")]
    pub(crate) insecure: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InviteArgs {
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    /// File with the invite's token, in place of asking for it.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    /// Life of the certificates in minutes; the roles' longest if absent.
    #[arg(long, value_name = "MINUTES")]
    pub(crate) ttl: Option<u32>,
    /// Give the keys to the running ssh-agent.
    #[arg(short = 'k', long, env = "TELEPORT_ADD_KEYS_TO_AGENT", default_value = "auto")]
    pub(crate) add_keys_to_agent: AddKeys,
    /// Name of the cluster.
    #[arg(env = "TELEPORT_CLUSTER")]
    pub(crate) cluster: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// With host ids and versions.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    #[arg(short, long, default_value = "text")]
    pub(crate) format: ListFormat,
    /// Labels that hosts must have: `env=prod,team=web`.
    #[arg(value_name = "LABELS")]
    pub(crate) labels: Option<String>,
}

/// As [`Format`], and bare names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    Json,
    Names,
    Text,
    Yaml,
}

#[derive(Debug, Args)]
pub(crate) struct PlayArgs {
    #[arg(short, long, default_value = "pty")]
    pub(crate) format: PlayFormat,
    /// Print what the kernel told of the session, between the lines that it showed.
    #[arg(long, conflicts_with_all = ["speed", "skip_idle_time"])]
    pub(crate) events: bool,
    /// How fast.
    #[arg(long, default_value = "1x", value_parser = ["0.5x", "1x", "2x", "4x", "8x"])]
    pub(crate) speed: String,
    /// Do not wait through quiet stretches.
    #[arg(long)]
    pub(crate) skip_idle_time: bool,
    /// Session id, or a file with a recording.
    #[arg(value_name = "SESSION")]
    pub(crate) session: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlayFormat {
    /// One JSON object per line.
    Json,
    /// On the terminal, as it was.
    Pty,
    /// What was shown, without control sequences, at once.
    Text,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProxyCommand {
    /// Standard input and output to a host's SSH server, for `ProxyCommand`.
    Ssh(ProxySshArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ProxySshArgs {
    /// Name of the cluster.
    #[arg(long)]
    pub(crate) cluster: Option<String>,
    /// Keep TLS around the SSH protocol.
    #[arg(long)]
    pub(crate) tls_always: bool,
    /// The host, by name or id; account and port are not needed.
    #[arg(value_name = "[USER@]HOST[:PORT]")]
    pub(crate) target: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RecordingsCommand {
    /// List them, newest first.
    Ls(RecordingsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RecordingsArgs {
    /// First day, UTC.
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub(crate) from_utc: Option<String>,
    /// Last day, UTC.
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub(crate) to_utc: Option<String>,
    /// Only so far back: `5h`, `7d`.
    #[arg(long, value_name = "SPAN", conflicts_with_all = ["from_utc", "to_utc"])]
    pub(crate) last: Option<proto::resource::Span>,
    /// At most so many, the newest.
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: u32,
    #[arg(short, long, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct ScpArgs {
    /// Folders with all that is in them.
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Keep times and permissions.
    #[arg(short, long)]
    pub(crate) preserve: bool,
    /// Ignored: hosts are reached by name.
    #[arg(short = 'P', long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// No progress.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Keep TLS around the SSH protocol.
    #[arg(long)]
    pub(crate) tls_always: bool,
    /// Sources and, last, the destination; remote ones as `[user@]host:path`.
    #[arg(required = true, num_args = 2.., value_name = "PATH")]
    pub(crate) paths: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SshArgs {
    /// Forward the ssh-agent.
    #[arg(short = 'A')]
    pub(crate) forward_agent: bool,
    /// Forward a local port: `[bind:]port:host:hostport`.
    #[arg(short = 'L', value_name = "SPEC")]
    pub(crate) local_forward: Vec<String>,
    /// SOCKS5 on a local port: `[bind:]port`.
    #[arg(short = 'D', value_name = "SPEC")]
    pub(crate) dynamic_forward: Vec<String>,
    /// No command: only forward.
    #[arg(short = 'N')]
    pub(crate) no_command: bool,
    /// With a terminal, also for a command; -tt means the same.
    #[arg(short = 't', action = ArgAction::Count, conflicts_with = "no_terminal")]
    pub(crate) terminal: u8,
    /// Without a terminal.
    #[arg(short = 'T')]
    pub(crate) no_terminal: bool,
    /// Ignored: hosts are reached by name.
    #[arg(short, long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Options in the form of ssh_config: `ForwardAgent=yes`, `RequestTTY=force`.
    #[arg(short = 'o', long = "option", value_name = "OPTION")]
    pub(crate) options: Vec<String>,
    /// Keep TLS around the SSH protocol.
    #[arg(long)]
    pub(crate) tls_always: bool,
    /// The host, by name or id; the account is `--login` or the only one if absent.
    #[arg(value_name = "[USER@]HOST")]
    pub(crate) target: String,
    /// What to run; a shell if absent.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        for flag in ["-V", "--version"] {
            let told = Cli::try_parse_from(["tsh", flag]).unwrap_err();
            assert_eq!(told.kind(), clap::error::ErrorKind::DisplayVersion);
            assert_eq!(told.to_string(), format!("tsh {}\n", proto::VERSION));
        }
    }

    #[test]
    fn a_remote_command_keeps_its_own_flags() {
        let cli = Cli::try_parse_from(["tsh", "ssh", "-l", "root", "web1", "ls", "-la", "--help"]);
        let Command::Ssh(ssh) = cli.unwrap().command else { panic!("not ssh") };
        assert_eq!(ssh.target, "web1");
        assert_eq!(ssh.command, ["ls", "-la", "--help"]);
        let cli = Cli::try_parse_from(["tsh", "ssh", "-N", "-D", "1080", "root@web1"]).unwrap();
        let Command::Ssh(ssh) = cli.command else { panic!("not ssh") };
        assert!(ssh.no_command && ssh.command.is_empty());
        let cli = Cli::try_parse_from(["tsh", "ssh", "web1", "--", "id; hostname"]).unwrap();
        let Command::Ssh(ssh) = cli.command else { panic!("not ssh") };
        assert_eq!(ssh.command, ["id; hostname"]);
    }

    #[test]
    fn bad_addresses_are_refused_by_the_parser() {
        assert!(Cli::try_parse_from(["tsh", "--proxy=../x", "status"]).is_err());
        assert!(Cli::try_parse_from(["tsh", "scp", "one"]).is_err());
    }
}
