//! `cargo xtask check`: everything that can be said about the sources without running them. Runs all of it even when
//! an early part fails, so that one run shows everything that is wrong.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{advisories, ebpf, process, setup, tidy};

/// Arguments of `cargo xtask check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these; all of them where none is named.
    #[arg(value_enum)]
    parts: Vec<Part>,
}

/// What is checked, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Formatting,
    Tidy,
    KernelPrograms,
    Lints,
    Dependencies,
    Advisories,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::prepare(setup::Purpose::Check)?;
    let all = <Part as clap::ValueEnum>::value_variants();
    let mut failed = Vec::new();
    for part in all.iter().filter(|part| options.parts.is_empty() || options.parts.contains(part)) {
        let name = part.name();
        println!("== {name}");
        let started = Instant::now();
        let done = part.check();
        let seconds = started.elapsed().as_secs_f32();
        match done {
            Ok(()) => println!("== {name}: passed in {seconds:.1} s\n"),
            Err(error) => {
                println!("== {name}: FAILED in {seconds:.1} s: {error:#}\n");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        println!("check: passed");
        return Ok(());
    }
    bail!("check failed: {}", failed.join(", "))
}

impl Part {
    /// As on the command line.
    fn name(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn check(self) -> Result<()> {
        match self {
            Self::Formatting => cargo(&["fmt", "--all", "--check"]),
            Self::Tidy => tidy::run(),
            Self::KernelPrograms => ebpf::check(),
            Self::Lints => cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--",
                "-D",
                "warnings",
            ]),
            Self::Dependencies => cargo(&[
                "deny",
                "--locked",
                "check",
                "--hide-inclusion-graph",
                "bans",
                "licenses",
                "sources",
            ]),
            Self::Advisories => known_vulnerabilities(),
        }
    }
}

fn cargo(arguments: &[&str]) -> Result<()> {
    process::show(crate::cargo().args(arguments))
}

fn known_vulnerabilities() -> Result<()> {
    let database = advisories::choose()?;
    println!("database: {}", database.description);
    // Without a network cargo-deny reads every crate's manifest from cargo's cache.
    cargo(&["fetch", "--locked", "--quiet"])?;
    let config = database.config.to_string_lossy();
    cargo(&["deny", "--locked", "--offline", "--config", &config, "check", "advisories"])
}
