//! Every command that a developer runs: `cargo xtask <command>`. Uses nothing of ours and next to no dependencies, so
//! that it starts fast and works when the workspace does not. One file or folder per command:
//!
//! - [`setup`]: installs what a command needs and is missing
//! - [`check`]: formatting, lints, dependencies ([`advisories`]), tidy
//! - [`tidy`]: the house rules that no other tool checks
//! - [`ebpf`]: the kernel programs' object and the header of their records
//! - [`kernel_test`]: tests inside Debian's kernels, in virtual machines
//! - [`test`]: every test, real peers and the demo included
//! - [`bench`]: Postern against its peers
//! - [`demo`]: the product on loopback, from nothing to a replayed session
//! - [`totp`]: one-time codes, for the demo's user
//! - [`pins`]: what killed nodes of tests have left in the kernel
//! - [`process`]: running programs with a limit on every wait
#![forbid(unsafe_code)]

mod advisories;
mod bench;
mod check;
mod demo;
mod ebpf;
mod kernel_test;
mod pins;
mod process;
mod setup;
mod test;
mod tidy;
mod totp;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of Postern.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures Postern against its peers, on one core each.
    Bench(bench::Options),
    /// Formatting, lints, licences, sources, advisories and house rules.
    Check(check::Options),
    /// Starts a cluster on loopback and walks the whole path with the real programs.
    Demo(demo::Options),
    /// Builds the kernel programs that capture sessions.
    Ebpf(ebpf::Options),
    /// Ends the demo's processes and removes its folder when the demo is gone.
    #[command(hide = true)]
    Janitor(demo::JanitorOptions),
    /// Boots Debian's kernels in virtual machines and runs the kernel tests there.
    KernelTest(kernel_test::Options),
    /// Prints a one-time code that the demo's cluster has not seen yet.
    #[command(hide = true)]
    Otp(totp::Options),
    /// Installs what is missing for a command.
    Setup(setup::Options),
    /// Builds the programs and runs every test.
    Test(test::Options),
    /// The house rules that no other tool checks.
    Tidy,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Bench(options) => bench::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Ebpf(options) => ebpf::run(&options),
        Command::Janitor(options) => demo::clean_up(&options),
        Command::KernelTest(options) => kernel_test::run(&options),
        Command::Otp(options) => totp::run(&options),
        Command::Setup(options) => setup::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's folder.
fn root() -> &'static Path {
    let member = Path::new(env!("CARGO_MANIFEST_DIR"));
    member.parent().unwrap_or(member)
}

/// Where cargo builds.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cargo that runs us.
fn cargo() -> std::process::Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(program);
    command.current_dir(root());
    command
}
