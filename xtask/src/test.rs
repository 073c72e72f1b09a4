//! `cargo xtask test`: builds the programs, runs every test of the workspace, the kernel tests in virtual machines, then
//! the demo against the same programs as one more test. The end-to-end tests find the programs in the build folder and the peers in `target/peers`.

use std::time::Instant;

use anyhow::Result;

use crate::{demo, kernel_test, pins, process, setup};

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Run only tests whose names contain one of these words; the kernel tests and the demo are then left out.
    filters: Vec<String>,
    /// Leave out what needs peers, root or the network: the end-to-end tests, the kernel tests and the demo.
    #[arg(long)]
    no_e2e: bool,
    /// Test the optimised build.
    #[arg(long)]
    release: bool,
}

/// The packages whose programs the end-to-end tests and the demo run.
pub(crate) const PROGRAMS: &[&str] = &["postern", "tsh", "tctl"];

pub(crate) fn run(options: &Options) -> Result<()> {
    let profile = if options.release { demo::Profile::Release } else { demo::Profile::Dev };
    if !options.no_e2e {
        stage("setup", || setup::prepare(setup::Purpose::Test))?;
    }
    stage("build", || build(profile))?;
    let tested = stage("tests", || tests(options, profile));
    pins::remove();
    tested?;
    if !options.no_e2e && options.filters.is_empty() {
        stage("kernel tests", || kernel_test::run(&kernel_test::Options::as_test()))?;
        stage("demo", || demo::run(&demo::Options::as_test(profile)))?;
    }
    Ok(())
}

/// Builds `postern`, `tsh` and `tctl`.
pub(crate) fn build(profile: demo::Profile) -> Result<()> {
    let mut cargo = crate::cargo();
    cargo.args(["build", "--locked", "--bins"]);
    cargo.args(PROGRAMS.iter().flat_map(|name| ["--package", name]));
    process::show(cargo.args(profile.cargo_flags()))
}

fn tests(options: &Options, profile: demo::Profile) -> Result<()> {
    let mut cargo = crate::cargo();
    cargo.args(["test", "--locked", "--workspace", "--no-fail-fast"]).args(profile.cargo_flags());
    if options.no_e2e {
        // The end-to-end tests are the integration tests of the `postern` package.
        cargo.args(["--lib", "--bins"]);
    }
    if !options.filters.is_empty() {
        cargo.arg("--").args(&options.filters);
    }
    process::show(&mut cargo)
}

fn stage(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    let started = Instant::now();
    let done = work();
    let verdict = if done.is_ok() { "done" } else { "FAILED" };
    println!("== {name}: {verdict} after {:.1} s\n", started.elapsed().as_secs_f32());
    done
}
