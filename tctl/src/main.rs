//! `tctl`, the administrator's client. This file is the map: command line in, one module per command, exit code out.
//!
//! - [`reach`]: the way to auth
//! - [`users`], [`tokens`], [`nodes`], [`resources`] (get, create, rm, lock), [`authorities`] (auth, status), [`events`]
//! - [`session`]: what a session did; [`capture`]: what nodes' kernels tell
//! - people: [`flags`], [`join_line`]; how it fails and lists is the crate `cli`
#![forbid(unsafe_code)]

mod authorities;
mod capture;
mod events;
mod flags;
mod join_line;
mod nodes;
mod reach;
mod resources;
mod session;
mod tokens;
mod users;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use net::auth_client::MESSAGE_BYTES_MAX;
use proto::rpc::admin_client::AdminClient;
use tonic::transport::Channel;

use crate::flags::{AuthCommand, Cli, Command};
use cli::failure::Failure;
use cli::output;

/// gRPC to auth's Admin service.
pub(crate) type Admin = AdminClient<Channel>;

/// A request with a deadline: every wait ends.
pub(crate) fn call<M>(message: M) -> tonic::Request<M> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(ANSWER_WITHIN);
    request
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.text());
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "tctl", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
        Command::Version => output::print(&format!("tctl v{}\n", proto::VERSION)),
        Command::Auth { .. }
        | Command::Capture { .. }
        | Command::Create(_)
        | Command::Events { .. }
        | Command::Get(_)
        | Command::Lock(_)
        | Command::Nodes { .. }
        | Command::Rm { .. }
        | Command::Session { .. }
        | Command::Status { .. }
        | Command::Tokens { .. }
        | Command::Users { .. } => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(asked(cli))
        }
    }
}

async fn asked(cli: &Cli) -> Result<(), Failure> {
    let channel = reach::channel(&cli.global)?;
    let admin = &mut Admin::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    match &cli.command {
        Command::Auth { command: AuthCommand::Export(args) } => {
            authorities::export(admin, args).await
        }
        Command::Auth { command: AuthCommand::Sign(args) } => authorities::sign(admin, args).await,
        Command::Capture { command } => capture::run(channel, command).await,
        Command::Create(args) => resources::create(admin, args).await,
        Command::Events { command } => events::run(channel, command).await,
        Command::Get(args) => resources::get(admin, args).await,
        Command::Lock(args) => resources::lock(admin, args).await,
        Command::Nodes { command } => nodes::run(admin, command).await,
        Command::Rm { resource } => resources::remove(admin, resource).await,
        Command::Session { command } => session::run(channel, command).await,
        Command::Status { format } => authorities::status(admin, *format).await,
        Command::Tokens { command } => tokens::run(admin, command).await,
        Command::Users { command } => users::run(admin, command).await,
        Command::Completion { .. } | Command::Version => Ok(()),
    }
}

/// Auth answers in milliseconds; password hashing behind others in its queue takes longest.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
