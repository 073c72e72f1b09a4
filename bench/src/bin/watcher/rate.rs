//! So many events per second: how many are told, how many lost, what it takes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use net::spool::Spool;

use crate::session::Watched;
use crate::usage::{cpu_ns, memory_kib};
use crate::{Arguments, Figures};

pub(crate) async fn measure(
    arguments: &Arguments,
    per_second: u32,
    seconds: u32,
    threads: u32,
    spool: Option<&Path>,
) -> Result<Figures> {
    let spool = spool.map(|dir| Spool::open(dir.to_owned(), "bench".parse()?).context("the spool"));
    let mut watched = Watched::begin(spool.transpose()?)?;
    let mut deeds = Command::new(&arguments.deeds);
    deeds.arg("rate").arg("--secret").arg(arguments.dir.join("secret")).stdout(Stdio::piped());
    deeds.args(["--per-second", &per_second.to_string(), "--seconds", &seconds.to_string()]);
    deeds.args(["--threads", &threads.to_string()]);
    // As a node that was not started just now.
    tokio::time::sleep(SETTLED).await;
    let before = cpu_ns()?;
    let mut child = watched.spawn(&mut deeds)?;
    let (mut anonymous, mut resident): (f64, f64) = (0.0, 0.0);
    while child.try_wait()?.is_none() {
        anonymous = anonymous.max(memory_kib("Pss_Anon")?);
        resident = resident.max(memory_kib("Pss")?);
        tokio::time::sleep(LOOK_EVERY).await;
    }
    watched.counted.over().await?;
    let cpu = cpu_ns()? - before;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "deeds: {}", output.status);
    let failed = watched.counted.failed.load(Ordering::Relaxed);
    ensure!(failed == 0, "{failed} events are not durable");
    let said = String::from_utf8(output.stdout)?;
    let (produced, took) = said.trim().split_once(' ').context("how many, and how long")?;
    let (produced, took): (f64, f64) = (produced.parse()?, took.parse()?);
    let opened = watched.counted.opened.load(Ordering::Relaxed) as f64;
    let lost = watched.counted.lost.load(Ordering::Relaxed) as f64;
    let figures = [
        ("produced", produced),
        ("rate", produced / took),
        ("lost", lost),
        ("silently_lost", (produced - opened - lost).abs()),
        ("cpu_us_per_event", cpu as f64 / 1e3 / opened),
        ("anonymous_mib", anonymous / 1024.0),
        // Proportional: rings are mapped twice, one behind the other.
        ("resident_mib", resident / 1024.0),
    ];
    Ok(figures.map(|(name, value)| (name.to_owned(), value)).into())
}

const SETTLED: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(100);
