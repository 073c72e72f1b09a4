//! Capture with as little before and behind it as possible, to be measured: the node's own code and kernel programs, of
//! one session, whose events are counted and go nowhere. Says what it measured as one JSON object of figures by name.
//!
//! - [`session`]: the session, and where its events are counted
//! - [`costs`]: what the kernel programs take
//! - [`rate`]: what is told and lost at a rate
//! - [`command`]: a command inside or outside
//! - [`usage`]: what this process has used

mod command;
mod costs;
mod rate;
mod session;
mod usage;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Watches one session, and measures what that costs.
#[derive(Debug, Parser)]
struct Arguments {
    /// What does things in the session.
    #[arg(long)]
    deeds: PathBuf,
    /// For files.
    #[arg(long)]
    dir: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What the kernel programs take, by the kernel's own count.
    Costs {
        /// How often each is measured; the figures are the medians.
        #[arg(long)]
        batches: u32,
    },
    /// What is told and lost, and what it takes, at so many events per second.
    Rate {
        #[arg(long)]
        per_second: u32,
        #[arg(long)]
        seconds: u32,
        #[arg(long, default_value_t = 1)]
        threads: u32,
        /// Where events are made durable before they count as told; without, they are only counted.
        #[arg(long)]
        spool: Option<PathBuf>,
    },
    /// Runs a command, and says what CPU it took.
    Run {
        /// In a session, outside of one, or with nothing loaded.
        #[arg(long, value_enum)]
        place: Place,
        #[arg(last = true)]
        command: Vec<String>,
    },
}

/// Where a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Place {
    Inside,
    Outside,
    Unloaded,
}

type Figures = BTreeMap<String, f64>;

fn main() -> ExitCode {
    let done = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(run(&Arguments::parse())));
    match done.and_then(|figures| Ok(serde_json::to_string(&figures)?)) {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("ERROR: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<Figures> {
    match &arguments.what {
        What::Costs { batches } => costs::measure(arguments, *batches).await,
        What::Rate { per_second, seconds, threads, spool } => {
            rate::measure(arguments, *per_second, *seconds, *threads, spool.as_deref()).await
        }
        What::Run { place, command } => command::measure(*place, command).await,
    }
}
