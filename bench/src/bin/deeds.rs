//! What is done in a session that is watched, and outside of one for comparison: the same few operations again and again,
//! on demand, or so many per second. It tells what CPU they took; what was seen of them is others' to tell.

use std::fs::File;
use std::io::{BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use rustix::net::{AddressFamily, SocketType, connect, socket};

/// Does things to be told of.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Reads lines such as `open-told 500`, does that, and says `done` with the nanoseconds of CPU that it took.
    Serve {
        /// A file that only its owner may read: each opening is told.
        #[arg(long)]
        secret: PathBuf,
        /// A file that everybody may read: openings are told once and then counted.
        #[arg(long)]
        plain: PathBuf,
        /// Where somebody accepts connections.
        #[arg(long)]
        port: u16,
    },
    /// Opens a file so many times per second, and says how often it did.
    Rate {
        #[arg(long)]
        secret: PathBuf,
        #[arg(long)]
        per_second: u32,
        #[arg(long)]
        seconds: u32,
        /// Threads that share it.
        #[arg(long, default_value_t = 1)]
        threads: u32,
    },
    /// Starts a program from time to time, with the time (nanoseconds since 1970) as its argument.
    Told {
        #[arg(long)]
        count: u32,
        #[arg(long)]
        every_ms: u64,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().what {
        What::Serve { secret, plain, port } => serve(&secret, &plain, port),
        What::Rate { secret, per_second, seconds, threads } => {
            rate(&secret, per_second, seconds, threads)
        }
        What::Told { count, every_ms } => told(count, Duration::from_millis(every_ms)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ERROR: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(secret: &Path, plain: &Path, port: u16) -> Result<()> {
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (what, count) = line.split_once(' ').context("what, and how often")?;
        let count: u32 = count.parse()?;
        let before = cpu_ns()?;
        for _ in 0..count {
            match what {
                "connect" => meet(port)?,
                "exec" => run(&mut Command::new(PROGRAM))?,
                "nothing" => drop(rustix::process::getppid()),
                "open-folded" => drop(File::open(plain)?),
                "open-told" => drop(File::open(secret)?),
                other => bail!("{other} is not known"),
            }
        }
        writeln!(output, "done {}", cpu_ns()? - before)?;
        output.flush()?;
    }
    Ok(())
}

/// A connection, made and closed.
fn meet(port: u16) -> Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    Ok(connect(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    anyhow::ensure!(status.success(), "{PROGRAM}: {status}");
    Ok(())
}

fn rate(secret: &Path, per_second: u32, seconds: u32, threads: u32) -> Result<()> {
    let started = Instant::now();
    let each = per_second / threads;
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| open_often(secret, started, each, seconds)))
            .collect();
        running
            .into_iter()
            .try_for_each(|one| one.join().unwrap_or_else(|_| bail!("a thread panicked")))
    })?;
    println!(
        "{} {}",
        u64::from(each * threads) * u64::from(seconds),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

fn open_often(secret: &Path, started: Instant, per_second: u32, seconds: u32) -> Result<()> {
    let all = u128::from(per_second) * u128::from(seconds);
    let mut done = 0;
    while done < all {
        let due = started.elapsed().as_nanos() * u128::from(per_second) / 1_000_000_000;
        if due <= done {
            std::thread::sleep(REST);
        }
        while done < due.min(all) {
            drop(File::open(secret)?);
            done += 1;
        }
    }
    Ok(())
}

fn told(count: u32, every: Duration) -> Result<()> {
    for _ in 0..count {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        run(Command::new(PROGRAM).arg(format!("{NONCE}{now}")))?;
        std::thread::sleep(every);
    }
    Ok(())
}

/// CPU of this process, and of its children that have ended, these to 10 ms.
fn cpu_ns() -> Result<u64> {
    let own = std::fs::read_to_string("/proc/self/schedstat")?;
    let own: u64 = own.split(' ').next().unwrap_or_default().parse()?;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // After the name: the state is field 3, times of children are 16 and 17.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let ticks = fields.split_whitespace().skip(16 - 3).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<u64, _>>()?;
    Ok(own + ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second())
}

const PROGRAM: &str = "/bin/true";
/// By which the time is found in the audit log.
const NONCE: &str = "deed-at-";
/// Between bursts: 50 of them at 50,000 per second.
const REST: Duration = Duration::from_millis(1);
