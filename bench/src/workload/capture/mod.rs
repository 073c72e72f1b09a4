//! What it costs to tell what a session does. Ours is `watcher` (`src/bin/watcher`): the node's own capture, of one session,
//! whose events are counted; only in `told` it is a cluster. `deeds` (`src/bin/deeds.rs`) is what the session does.
//!
//! - [`added`]: what being watched adds to whoever does things, beside auditd and bpftrace
//! - [`build`]: a real build inside and outside
//! - [`told`]: how long it takes until the audit log has it

mod added;
mod build;
mod told;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Bench, Contender, Contest, Effort};
use crate::metric::{
    ANONYMOUS_MEMORY, CPU_PER_EVENT, CPU_PER_EVENT_BURST, CPU_PER_EVENT_DURABLE, KERNEL_CONNECT,
    KERNEL_FLOOR, KERNEL_FOLDED, KERNEL_INSIDE_CALL, KERNEL_OPEN, KERNEL_OUTSIDE,
    KERNEL_OUTSIDE_CALL, KERNEL_PROCESS, KERNEL_PROCESS_ALL, LOST_BURST, LOST_DURABLE,
    LOST_SUSTAINED, RATE_BURST, RATE_SUSTAINED, RESIDENT_MEMORY, SILENT, Sample,
};
use crate::program::Core;
use crate::site::client::{self, Talk};

/// Where everything of this workload is.
#[derive(Debug, Clone)]
struct Site {
    dir: PathBuf,
    programs: PathBuf,
    effort: Effort,
}

type Figures = BTreeMap<String, f64>;

pub(super) fn open(bench: &Bench) -> Result<Contest<'_>> {
    let mut contest = Contest::empty();
    let site = Site::new(bench)?;
    let ours = site.clone();
    contest.ours(|| {
        ensure!(rustix::process::geteuid().is_root(), "kernel programs need root");
        let cluster = bench.cluster()?;
        Ok(Box::new(move || {
            let mut sample = ours.kernel()?;
            sample.extend(ours.rates()?);
            sample.extend(build::measure(&ours)?);
            sample.extend(told::measure(&ours, cluster)?);
            sample.extend(added::ours(&ours)?);
            Ok(sample)
        }))
    });
    for (name, peer) in added::PEERS {
        let site = site.clone();
        match (peer.can_run)() {
            Ok(()) => contest.contenders.push(Contender {
                name: (*name).to_owned(),
                rung: None,
                sample: Box::new(move || added::theirs(&site, peer)),
            }),
            Err(error) => contest.absent.push(((*name).to_owned(), format!("{error:#}"))),
        }
    }
    let published = PUBLISHED.iter().map(|(name, what)| ((*name).to_owned(), (*what).to_owned()));
    contest.absent.extend(published);
    Ok(contest)
}

impl Site {
    fn new(bench: &Bench) -> Result<Self> {
        let dir = bench.dir.join("capture");
        fs::create_dir_all(&dir)?;
        for (name, mode) in [("secret", 0o600), ("plain", 0o644)] {
            fs::write(dir.join(name), "x")?;
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode))?;
        }
        Ok(Self { dir, programs: bench.places.programs.clone(), effort: bench.effort })
    }

    fn watcher(&self) -> Command {
        let mut watcher = Command::new(self.programs.join("watcher"));
        watcher.arg("--deeds").arg(self.programs.join("deeds")).arg("--dir").arg(&self.dir);
        watcher
    }

    fn kernel(&self) -> Result<Sample> {
        let mut watcher = self.watcher();
        watcher.args(["costs", "--batches", self.effort.choose("15", "5")]);
        let figures = figures(&client::run(&watcher, "")?)?;
        let us = |name: &str| Ok::<_, anyhow::Error>(figure(&figures, name)? / 1e3);
        Ok(vec![
            (KERNEL_PROCESS, us("exec_ns")?),
            (KERNEL_PROCESS_ALL, us("exec_all_ns")?),
            (KERNEL_OPEN, us("open_told_ns")?),
            (KERNEL_FOLDED, us("open_folded_ns")?),
            (KERNEL_CONNECT, us("connect_ns")?),
            (KERNEL_OUTSIDE, figure(&figures, "outside_worst_ns")?),
            (KERNEL_OUTSIDE_CALL, figure(&figures, "outside_syscall_ns")?),
            (KERNEL_FLOOR, figure(&figures, "outside_net_dev_queue_ns")?),
            (KERNEL_INSIDE_CALL, figure(&figures, "inside_syscall_ns")?),
        ])
    }

    fn rates(&self) -> Result<Sample> {
        let spool = self.dir.join("spool");
        let rate = |per_second: &str, seconds: &str, threads: &str, to_disk: bool| {
            let mut watcher = self.watcher();
            watcher.args(["rate", "--per-second", per_second, "--seconds", seconds]);
            watcher.args(["--threads", threads]);
            if to_disk {
                watcher.arg("--spool").arg(&spool);
            }
            let said = Talk::start(CORE, &watcher)?.finish();
            fs::remove_dir_all(&spool).ok();
            figures(&said?)
        };
        let sustained = rate("50000", self.effort.choose("60", "10"), "1", false)?;
        // In a minute the spool would be full: nobody takes them.
        let durable = rate("50000", self.effort.choose("50", "10"), "1", true)?;
        let burst = rate("200000", "1", "2", false)?;
        let mut silent = 0.0;
        for figures in [&sustained, &durable, &burst] {
            silent += figure(figures, "silently_lost")?;
        }
        let both = |name| {
            Ok::<_, anyhow::Error>(
                figure(&sustained, name)?.max(figure(&burst, name)?).max(figure(&durable, name)?),
            )
        };
        Ok(vec![
            (RATE_SUSTAINED, figure(&sustained, "rate")?),
            (LOST_SUSTAINED, figure(&sustained, "lost")?),
            (CPU_PER_EVENT, figure(&sustained, "cpu_us_per_event")?),
            (LOST_DURABLE, figure(&durable, "lost")?),
            (CPU_PER_EVENT_DURABLE, figure(&durable, "cpu_us_per_event")?),
            (RATE_BURST, figure(&burst, "rate")?),
            (LOST_BURST, figure(&burst, "lost")?),
            (CPU_PER_EVENT_BURST, figure(&burst, "cpu_us_per_event")?),
            (SILENT, silent),
            (RESIDENT_MEMORY, both("resident_mib")?),
            (ANONYMOUS_MEMORY, both("anonymous_mib")?),
        ])
    }
}

/// What `watcher` says last.
fn figures(said: &str) -> Result<Figures> {
    let line = said.lines().next_back().context("watcher said nothing")?;
    serde_json::from_str(line).with_context(|| format!("no figures: {line}"))
}

fn figure(figures: &Figures, name: &str) -> Result<f64> {
    figures.get(name).copied().with_context(|| format!("watcher did not measure {name}"))
}

/// What others have measured elsewhere, of programs that cannot run on every machine: to be read, not to be compared.
const PUBLISHED: [(&str, &str); 3] = [
    (
        "falco (published, not measured here)",
        "two empty programs at each system call 66 and 62 ns, redis 13 % slower; 15 kinds of calls traced, 35 % \
         (falcosecurity/libs, proposals/20240901; Linux 6.5)",
    ),
    (
        "tetragon (published, not measured here)",
        "make -j16 with openat and close told: 10.6 % more time; 42,000 events lost with a queue of 65,536 \
         (cilium/tetragon, files/12366787; Linux 6.5)",
    ),
    (
        "laurel, auditbeat, sysmon (published, not measured here)",
        "of a t2.small with 1,000 programs started per second, user space alone: 21.0, 54.5 and 36.6 % of the CPU; \
         auditd 10.3 (laurel, performance.md)",
    ),
];

/// Both cores: the sessions and whoever watches them share them in real life.
const CORE: Core = Core::Any;
