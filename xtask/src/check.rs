//! `cargo xtask check`: everything that can be said about the sources without running them. Runs all of it even when
//! an early part fails, so that one run shows everything that is wrong.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{advisories, process, setup, tidy};

pub(crate) fn run() -> Result<()> {
    setup::prepare(setup::Purpose::Check)?;
    let mut failed = Vec::new();
    let mut part = |name: &'static str, work: &dyn Fn() -> Result<()>| {
        println!("== {name}");
        let started = Instant::now();
        let done = work();
        let seconds = started.elapsed().as_secs_f32();
        match done {
            Ok(()) => println!("== {name}: passed in {seconds:.1} s\n"),
            Err(error) => {
                println!("== {name}: FAILED in {seconds:.1} s: {error:#}\n");
                failed.push(name);
            }
        }
    };
    part("formatting", &|| process::show(&mut cargo(&["fmt", "--all", "--check"])));
    part("tidy", &tidy::run);
    part("lints", &|| {
        let arguments =
            ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        process::show(&mut cargo(&arguments))
    });
    part("dependencies", &dependencies);
    part("advisories", &known_vulnerabilities);
    if failed.is_empty() {
        println!("check: all passed");
        return Ok(());
    }
    bail!("check failed: {}", failed.join(", "))
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = crate::cargo();
    command.args(arguments);
    command
}

fn dependencies() -> Result<()> {
    process::show(&mut cargo(&["deny", "--locked", "check", "bans", "licenses", "sources"]))
}

fn known_vulnerabilities() -> Result<()> {
    let database = advisories::choose()?;
    println!("database: {}", database.description);
    // Without a network cargo-deny reads every crate's manifest from cargo's cache.
    process::quiet(&mut cargo(&["fetch", "--locked", "--quiet"]))?;
    let config = database.config.to_string_lossy().into_owned();
    process::show(&mut cargo(&[
        "deny",
        "--locked",
        "--offline",
        "--config",
        &config,
        "check",
        "advisories",
    ]))
}
