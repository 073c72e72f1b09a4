//! What a process and its descendants have used, as the kernel accounts it: CPU time, memory. And how busy the rest of
//! the machine was meanwhile, which says how far a figure can be trusted.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// One process's line in `/proc`.
#[derive(Debug, Clone)]
struct Stat {
    pid: u32,
    parent: u32,
    name: String,
    /// User and system time of all its threads, and of the children that it has waited for.
    ticks: u64,
}

/// Fields of proc_pid_stat(5), counted from the state, which is field 3.
const PARENT: usize = 4 - 3;
const TIMES: std::ops::RangeInclusive<usize> = 14 - 3..=17 - 3;

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name may hold anything, parentheses too.
        let (before, after) = text.rsplit_once(')')?;
        let (pid, name) = before.split_once('(')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let number = |field: &&str| field.parse::<i64>().ok();
        let times: Vec<i64> = fields.get(TIMES)?.iter().filter_map(number).collect();
        Some(Self {
            pid: pid.trim().parse().ok()?,
            parent: fields.get(PARENT)?.parse().ok()?,
            name: name.to_owned(),
            // Never negative.
            ticks: u64::try_from(times.iter().sum::<i64>()).ok()?,
        })
    }

    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
}

/// The process and all its descendants that run now.
fn tree(root: u32) -> Vec<Stat> {
    let mut children: HashMap<u32, Vec<Stat>> = HashMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if let Some(stat) = Stat::read(pid) {
            children.entry(stat.parent).or_default().push(stat);
        }
    }
    let mut found: Vec<Stat> = Stat::read(root).into_iter().collect();
    let mut waiting = vec![root];
    while let Some(pid) = waiting.pop() {
        let below = children.remove(&pid).unwrap_or_default();
        waiting.extend(below.iter().map(|stat| stat.pid));
        found.extend(below);
    }
    found
}

/// A process's name, as the kernel knows it.
#[cfg(test)]
pub(crate) fn command_name(pid: u32) -> Option<String> {
    Some(Stat::read(pid)?.name)
}

/// Seconds of CPU that the process, its threads and its descendants have used so far, those that have ended and were
/// waited for included.
pub(crate) fn cpu_seconds(root: u32) -> f64 {
    let ticks: u64 = tree(root).iter().map(|stat| stat.ticks).sum();
    seconds(ticks)
}

fn seconds(ticks: u64) -> f64 {
    as_f64(ticks) / as_f64(rustix::param::clock_ticks_per_second())
}

/// Bytes of memory that the process and its descendants hold: proportional set size, so that what several share is
/// counted once; without pages of files, such as a program's text, which the kernel drops and fetches as it likes. `only` leaves out programs of other names, such as a session's shell.
pub(crate) fn memory_bytes(root: u32, only: Option<&[&str]>) -> Result<f64> {
    let mut bytes = 0.0;
    for stat in tree(root) {
        if only.is_some_and(|names| !names.contains(&stat.name.as_str())) {
            continue;
        }
        // One that has ended meanwhile holds nothing.
        let Ok(text) = fs::read_to_string(format!("/proc/{}/smaps_rollup", stat.pid)) else {
            continue;
        };
        for kind in ["Pss_Anon:", "Pss_Shmem:"] {
            let line = text.lines().find_map(|line| line.strip_prefix(kind));
            let kilobytes = line.and_then(|rest| rest.trim().strip_suffix("kB"));
            let kilobytes = kilobytes.with_context(|| format!("no {kind} in smaps_rollup"))?;
            bytes += kilobytes.trim().parse::<f64>()? * 1024.0;
        }
    }
    Ok(bytes)
}

/// How busy the machine is with what is not ours.
#[derive(Debug)]
pub(crate) struct Quiet {
    started: Instant,
    all: f64,
    ours: f64,
}

impl Quiet {
    pub(crate) fn watch() -> Self {
        Self {
            started: Instant::now(),
            all: busy_seconds().unwrap_or_default(),
            ours: cpu_seconds(std::process::id()),
        }
    }

    /// Cores that others kept busy since then.
    pub(crate) fn others(&self) -> f64 {
        let all = busy_seconds().unwrap_or_default() - self.all;
        let ours = cpu_seconds(std::process::id()) - self.ours;
        ((all - ours) / self.started.elapsed().as_secs_f64()).max(0.0)
    }
}

/// Others may keep so much of a core busy while we measure.
const OTHERS_BUSY_MAX: f64 = 0.3;
/// How long one look at the machine takes.
const LOOK: Duration = Duration::from_millis(250);

/// Waits until others leave the machine to us, or until `patience` has run out, which it takes from.
pub(crate) fn wait_for_quiet(patience: &mut Duration) {
    while !patience.is_zero() {
        let quiet = Quiet::watch();
        std::thread::sleep(LOOK);
        if quiet.others() < OTHERS_BUSY_MAX {
            return;
        }
        *patience = patience.saturating_sub(LOOK);
    }
}

/// From the first line of proc_stat(5): everything but idle and waiting for disks.
fn busy_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> =
        text.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    const IDLE: usize = 3;
    const WAITING: usize = 4;
    // Guests are counted in user time already.
    const GUESTS_FROM: usize = 8;
    let busy = fields.iter().take(GUESTS_FROM).enumerate();
    Some(seconds(busy.filter(|(i, _)| *i != IDLE && *i != WAITING).map(|(_, n)| n).sum()))
}

/// Runnable tasks, mean of the last minute.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// For counts that are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^52, which no count here reaches")]
pub(crate) fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat() {
        let text = "42 (a (b) c) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 5 6 7";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.pid, stat.parent, stat.ticks), (42, 7, 127));
        assert_eq!(stat.name, "a (b) c");
        assert!(Stat::parse("42 (x) S 7").is_none());
    }

    #[test]
    fn our_own_use_is_seen() {
        let before = cpu_seconds(std::process::id());
        let started = Instant::now();
        while started.elapsed().as_millis() < 300 {
            std::hint::black_box(tree(std::process::id()));
        }
        assert!(cpu_seconds(std::process::id()) > before);
        assert!(memory_bytes(std::process::id(), None).unwrap() > 100_000.0);
        assert!(memory_bytes(std::process::id(), Some(&["no such name"])).unwrap() == 0.0);
    }
}
