//! `tsh ssh`: link > authenticate > forwards > session > exit status. The node's SSH server is at the other end of the
//! leg; the proxy between only moves bytes.
//!
//! - [`link`]: the leg through the proxy and the SSH connection inside it, host certificate checked
//! - [`options`]: the flag `-o`
//! - [`session`]: the shell or command on a channel
//! - [`output`]: what the session says, written
//! - [`terminal`]: raw mode and size, restored on every way out
//! - [`escape`]: the way out, `~.`
//! - [`forward`]: the flags `-L` and `-D`
//! - [`socks`]: the SOCKS5 messages

pub(crate) mod escape;
pub(crate) mod forward;
pub(crate) mod link;
pub(crate) mod options;
pub(crate) mod output;
pub(crate) mod session;
pub(crate) mod socks;
pub(crate) mod terminal;
#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;

use proto::preamble::Inner;

use crate::flags::{Global, SshArgs};
use crate::signed_in::SignedIn;
use crate::ssh::forward::Forward;
use crate::ssh::link::{Link, LinkSettings};
use crate::ssh::options::{Options, Tty};
use crate::ssh::session::SessionSettings;
use crate::target::Target;
use cli::failure::{EXIT_USAGE, Failure};

/// Own errors, as ssh has it; a remote command's status passes through beside it.
pub(crate) const EXIT_SSH: u8 = 255;

/// The map. Gives the remote command's exit status.
///
/// # Errors
/// Our own, all with exit code 255 as ssh has it.
pub(crate) async fn run(
    signed_in: &SignedIn,
    global: &Global,
    args: &SshArgs,
) -> Result<u8, Failure> {
    run_inner(signed_in, global, args).await.map_err(own)
}

/// Failures of ours, told apart from the remote command's by their exit code.
pub(crate) fn own(failure: Failure) -> Failure {
    match failure.exit_code() {
        EXIT_USAGE => failure,
        _ => failure.code(EXIT_SSH),
    }
}

async fn run_inner(signed_in: &SignedIn, global: &Global, args: &SshArgs) -> Result<u8, Failure> {
    let options = Options::parse(&args.options)?;
    let forwards = Forward::parse_all(&args.local_forward, &args.dynamic_forward)?;
    let target = Target::choose(&args.target, global.login.as_deref(), signed_in)?;
    let agent = (args.forward_agent || options.forward_agent).then(crate::agent::socket).flatten();
    let settings = LinkSettings {
        inner: if args.tls_always { Inner::Tls } else { Inner::Plain },
        window_bytes: WINDOW_BYTES,
        agent: agent.clone(),
    };
    let link = Link::open(signed_in, &target, settings).await?;
    for forward in forwards {
        forward.start(link.handle()).await?;
    }
    if args.no_command {
        return link.until_ended().await.map(|()| 0);
    }
    let session = SessionSettings {
        command: (!args.command.is_empty()).then(|| args.command.join(" ")),
        terminal: wants_terminal(args, &options),
        forward_agent: agent.is_some(),
    };
    let status = session::run(&link, session).await?;
    link.close().await;
    Ok(status)
}

/// As ssh decides: for shells on a terminal, unless told otherwise.
fn wants_terminal(args: &SshArgs, options: &Options) -> bool {
    let on_terminal = std::io::stdin().is_terminal();
    match options.tty {
        _ if args.no_terminal => false,
        _ if args.terminal > 0 => true,
        Some(Tty::No) => false,
        Some(Tty::Force | Tty::Yes) => true,
        Some(Tty::Auto) | None => args.command.is_empty() && on_terminal,
    }
}

/// What may be under way towards us; more than the bandwidth-delay product of usual links.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;
