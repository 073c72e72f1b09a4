//! Measures Postern against its peers; `cargo xtask bench` builds it, installs the peers and runs it. The main path, in
//! reading order:
//!
//! - [`workload`]: what is measured, one file per family
//! - [`run`]: rounds, everybody once in each
//! - [`peer`]: each program, told to do the same job
//! - [`load`]: clients that make the load; [`upstream`]: what stands behind every peer
//! - [`site`]: a Postern cluster and OpenSSH servers to SSH to
//! - [`measure`]: CPU and memory of a process, as the kernel accounts them; [`metric`]: what a figure means
//! - [`goal`]: what it has to come to; [`report`]: JSON, page, drawings
//! - [`certificate`], [`program`]: keys for everybody; starting and ending programs
#![forbid(unsafe_code)]

mod certificate;
mod goal;
mod load;
mod measure;
mod metric;
mod peer;
mod program;
mod report;
mod run;
mod site;
mod upstream;
mod workload;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use rustix::fs::FlockOperation;

use crate::peer::Places;
use crate::report::document::Document;
use crate::report::environment::Environment;
use crate::report::{compare, judge, markdown};
use crate::run::Stop;
use crate::workload::{Bench, Effort, WORKLOADS, Workload};

/// Measures Postern against its peers.
#[derive(Debug, Parser)]
#[command(name = "postern-bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    helper: Option<Helper>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Helper {
    /// Keeps a core awake.
    #[command(hide = true)]
    Spin,
    /// What stands behind the peers.
    #[command(hide = true)]
    Upstream { addr: std::net::SocketAddr },
}

#[derive(Debug, clap::Args)]
struct Options {
    /// Only these workloads, with commas between.
    #[arg(long, value_delimiter = ',', value_name = "WORKLOAD")]
    only: Vec<String>,
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
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pairs: Option<u32>,
    /// Where the report goes; workloads in it that are not run stay as they are.
    #[arg(long, value_name = "DIR", default_value = "bench/report")]
    out: PathBuf,
    /// Where our programs are [default: beside this one].
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// The Envoy to run.
    #[arg(long, value_name = "FILE", default_value = "envoy")]
    envoy: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.helper {
        Some(Helper::Spin) => loop {
            std::hint::spin_loop();
        },
        Some(Helper::Upstream { addr }) => upstream::serve(addr.port()),
        None if arguments.options.list => {
            chosen(&arguments.options.only).and_then(|chosen| list(&chosen))
        }
        None => bench(&arguments.options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The map: prepare, run each workload, write what was found after each.
fn bench(options: &Options) -> Result<()> {
    let chosen = chosen(&options.only)?;
    let older = options.compare.as_deref().map(Document::read).transpose()?;
    let stop = Stop::on_interrupt()?;
    let _alone = alone()?;
    program::pin(program::Core::Load)?;
    let folder = tempfile::Builder::new().prefix("postern-bench-").tempdir()?;
    let bench = prepare(options, folder.path())?;
    let pairs = options.pairs.unwrap_or(if options.quick { 2 } else { 5 });
    let environment = Environment::look(&bench.places);
    let mut document = existing(&options.out, environment)?;
    let order: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
    for workload in chosen {
        if stop.asked() {
            break;
        }
        let outcome = run::run(workload, &bench, pairs, &stop)?;
        let measured = judge::measured(&outcome, workload.about, options.quick);
        let rows = judge::rows(&outcome);
        println!("{}", markdown::section(&measured, &rows));
        document.put(measured, rows, &order);
        report::write(&document, &options.out)?;
    }
    if let Some(older) = older {
        println!("{}", compare::compare(&older, &document));
    }
    println!("the report is in {}", options.out.display());
    ensure!(!stop.asked(), "stopped early; what was measured is in the report");
    Ok(())
}

/// Waits until no other bench runs: two would measure each other. Held until dropped.
fn alone() -> Result<std::fs::File> {
    let path = std::env::temp_dir().join("postern-bench.lock");
    let file = std::fs::File::create(&path).with_context(|| {
        format!("cannot write {}; another user's bench made it", path.display())
    })?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        eprintln!("another bench is running; waiting for its end");
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    }
    Ok(file)
}

fn prepare(options: &Options, dir: &Path) -> Result<Bench> {
    let ourselves = std::env::current_exe().context("where are we?")?;
    let beside = ourselves.parent().map(Path::to_path_buf).unwrap_or_default();
    let upstream = upstream::Upstream::start(dir, program::Core::Load)?;
    upstream::check(upstream.addr())?;
    Ok(Bench {
        dir: dir.to_path_buf(),
        places: Places {
            programs: options.programs.clone().unwrap_or(beside),
            envoy: options.envoy.clone(),
        },
        certificates: certificate::Certificates::make(dir)?,
        upstream,
        cluster: site::cluster::LazyCluster::default(),
        effort: if options.quick { Effort::Quick } else { Effort::Full },
    })
}

/// The report that is there, under the new header; an empty one where there is none.
fn existing(out: &Path, environment: Environment) -> Result<Document> {
    let file = out.join("latest.json");
    if !file.exists() {
        return Ok(Document::new(environment));
    }
    let mut document = Document::read(&file)
        .context("the report there cannot be added to; give another folder with --out")?;
    document.environment = environment;
    Ok(document)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Workload>> {
    if names.is_empty() {
        return Ok(WORKLOADS.iter().collect());
    }
    let known = |name: &String| WORKLOADS.iter().find(|workload| workload.name == *name);
    if let Some(unknown) = names.iter().find(|name| known(name).is_none()) {
        let names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
        bail!("there is no workload {unknown}; there are {}", names.join(", "));
    }
    Ok(names.iter().filter_map(known).collect())
}

/// The workloads and their goals; whoever reads may have read enough.
fn list(chosen: &[&Workload]) -> Result<()> {
    let mut text = String::new();
    for workload in chosen {
        text.push_str(&format!("{:<16} {}\n", workload.name, workload.about));
        for goal in goal::GOALS.iter().filter(|goal| goal.workload == workload.name) {
            let bound = goal.bound.map(|bound| match bound {
                goal::Bound::AtLeast(least) => format!("at least {least} {}", goal.metric.unit),
                goal::Bound::AtMost(most) => format!("at most {most} {}", goal.metric.unit),
            });
            let against = goal.against.iter().map(|(peer, times)| format!("{times}x {peer}"));
            let goals: Vec<String> = bound.into_iter().chain(against).collect();
            text.push_str(&format!("{:<16}   {}: {}\n", "", goal.metric.name, goals.join(", ")));
        }
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}
