//! `tsh`, the client. This file is the map: command line in, one module per command, exit code out.
//!
//! - before login: [`first_contact`], [`login`], [`invite`]
//! - what a login leaves: [`home`] (files), [`profile`], [`known_hosts`], [`agent`]; [`signed_in`] loads it
//! - sessions: [`target`], [`ssh`], [`scp`], [`proxy_ssh`], [`config_text`]
//! - recordings: [`play`], [`play_events`], [`asciicast`], [`recordings`]
//! - people: [`flags`], [`prompt`], [`status`], [`ls`], [`logout`], [`address`]; how it fails and lists is the crate `cli`
#![forbid(unsafe_code)]

mod address;
mod agent;
mod asciicast;
mod config_text;
mod first_contact;
mod flags;
mod home;
mod invite;
mod known_hosts;
mod login;
mod logout;
mod ls;
mod play;
mod play_events;
mod profile;
mod prompt;
mod proxy_ssh;
mod recordings;
mod scp;
mod signed_in;
mod ssh;
mod status;
mod target;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::flags::{Cli, Command, ConfigArgs, Global, ProxyCommand, RecordingsCommand};
use crate::home::Home;
use crate::signed_in::SignedIn;
use cli::failure::Failure;
use cli::output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("{}", failure.text());
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Commands that stay on this machine run at once; the others get a runtime.
fn run(cli: Cli) -> Result<u8, Failure> {
    match &cli.command {
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "tsh", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
        }
        Command::Config(args) => output::print(&config(&Home::locate()?, &cli.global, args)?)?,
        Command::Logout => logout::run(&Home::locate()?, &cli.global)?,
        Command::Status { format } => status::run(&Home::locate()?, *format)?,
        Command::Version => output::print(&format!("tsh v{}\n", proto::VERSION))?,
        Command::Invite(_)
        | Command::Login(_)
        | Command::Ls(_)
        | Command::Play(_)
        | Command::Proxy { .. }
        | Command::Recordings { .. }
        | Command::Scp(_)
        | Command::Ssh(_) => return with_runtime(&cli),
    }
    Ok(0)
}

/// One thread: quick to start, and one connection needs no more.
fn with_runtime(cli: &Cli) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(connected(cli));
    // A thread that waits for the terminal cannot be joined.
    runtime.shutdown_background();
    result
}

async fn connected(cli: &Cli) -> Result<u8, Failure> {
    let global = &cli.global;
    let signed_in = || SignedIn::load(&Home::locate()?, global.proxy.as_ref());
    match &cli.command {
        Command::Invite(args) => invite::run(&Home::locate()?, global, args).await?,
        Command::Login(args) => login::run(&Home::locate()?, global, args).await?,
        Command::Ls(args) => ls::run(&signed_in()?, args).await?,
        Command::Play(args) => play::run(signed_in, args).await?,
        Command::Proxy { command: ProxyCommand::Ssh(args) } => {
            proxy_ssh::run(&signed_in()?, args).await?;
        }
        Command::Recordings { command: RecordingsCommand::Ls(args) } => {
            recordings::list(&signed_in()?, args).await?;
        }
        Command::Scp(args) => scp::run(&signed_in()?, global, args).await?,
        Command::Ssh(args) => {
            let signed_in = signed_in().map_err(ssh::own)?;
            return ssh::run(&signed_in, global, args).await;
        }
        Command::Completion { .. }
        | Command::Config(_)
        | Command::Logout
        | Command::Status { .. }
        | Command::Version => {}
    }
    Ok(0)
}

/// The paths of `tsh config`.
fn config(home: &Home, global: &Global, args: &ConfigArgs) -> Result<String, Failure> {
    let signed_in = SignedIn::load(home, global.proxy.as_ref())?;
    let text = |path: &std::path::Path| {
        let bad = || Failure::new(format!("{}: not UTF-8", path.display()));
        path.to_str().map(str::to_owned).ok_or_else(bad)
    };
    let home_text = text(home.dir())?;
    config_text::render(&config_text::Parts {
        cluster: signed_in.cluster.as_str(),
        proxy_host: signed_in.proxy.host(),
        proxy: &signed_in.proxy.to_string(),
        jump: &signed_in.profile.ssh_proxy_addr,
        known_hosts: &text(&home.known_hosts())?,
        identity: &text(&signed_in.files.ssh_key)?,
        certificate: &text(&signed_in.files.ssh_certificate)?,
        tsh: &text(&std::env::current_exe()?)?,
        home: home.is_chosen().then_some(home_text.as_str()),
        port: args.port,
    })
}
