//! `cargo xtask bench`: installs the peers, builds everything optimised, and runs the program of the `bench` package,
//! which measures and writes the report. How it measures is that package's; here is only what has to be there before.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{demo, process, setup, test};

/// Arguments of `cargo xtask bench`, as the program takes them.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these workloads, with commas between; see --list.
    #[arg(long, value_name = "WORKLOAD")]
    only: Option<String>,
    /// Little load and two rounds: to see that it works.
    #[arg(long)]
    quick: bool,
    /// Says what changed since an older report.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Lists the workloads and their goals.
    #[arg(long)]
    list: bool,
    /// Rounds, each of which measures everybody once [default: 5; 2 with --quick].
    #[arg(long, value_name = "N")]
    pairs: Option<u32>,
    /// Where the report goes [default: bench/report; with --quick a folder in the build folder].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.list {
        return list(options);
    }
    setup::prepare(setup::Purpose::Bench)?;
    let mut cargo = crate::cargo();
    process::show(cargo.args(["build", "--locked", "--release", "--package", "bench", "--bins"]))?;
    // A name that is none is found out before minutes of building.
    let (known, said) = process::output(program(options)?.arg("--list"))?;
    if !known {
        bail!("{}", said.trim_end().trim_start_matches("ERROR: "));
    }
    // What the others measure is in the bench's own package.
    if options.only.as_ref().is_none_or(|only| only.contains("sh-") || only.contains("capture")) {
        test::build(demo::Profile::Release)?;
    }
    process::quiet(&mut program(options)?)
}

/// Nothing is measured: the program as it is built most quickly.
fn list(options: &Options) -> Result<()> {
    let mut cargo = crate::cargo();
    process::quiet(cargo.args([
        "build",
        "--locked",
        "--package",
        "bench",
        "--bin",
        "postern-bench",
    ]))?;
    let program = demo::Profile::Dev.programs().join("postern-bench");
    let mut list = std::process::Command::new(program);
    list.arg("--list");
    if let Some(only) = &options.only {
        list.args(["--only", only]);
    }
    process::quiet(&mut list)
}

/// The program with its arguments. Paths are made absolute here: they mean what they mean where the person is.
fn program(options: &Options) -> Result<std::process::Command> {
    let programs = demo::Profile::Release.programs();
    let mut bench = std::process::Command::new(programs.join("postern-bench"));
    bench.arg("--programs").arg(&programs).arg("--envoy").arg(setup::envoy());
    bench.arg("--out").arg(match &options.out {
        Some(dir) => std::path::absolute(dir)?,
        // Figures of a quick run are not to be taken for a report.
        None if options.quick => crate::target_dir().join("bench-quick"),
        None => crate::root().join("bench/report"),
    });
    if let Some(only) = &options.only {
        bench.args(["--only", only]);
    }
    if let Some(file) = &options.compare {
        bench.arg("--compare").arg(std::path::absolute(file)?);
    }
    if let Some(pairs) = options.pairs {
        bench.args(["--pairs", &pairs.to_string()]);
    }
    if options.quick {
        bench.arg("--quick");
    }
    Ok(bench)
}
