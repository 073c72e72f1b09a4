//! What being watched adds to whoever starts programs, opens files and connects: CPU of the same process before and while
//! it is watched, one after the other. Ours beside auditd with rules for these three, and bpftrace with a line for each.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{CORE, Site, figure, figures};
use crate::measure::cpu_seconds;
use crate::metric::{
    ADDED_CONNECT, ADDED_EXEC, ADDED_OPEN, DAEMON_CPU, LOST_MEANWHILE, OUTSIDE_CALL, Sample,
};
use crate::program::{Program, command, find};
use crate::site::client::{self, Talk};
use crate::site::cluster::write_secret;

/// Who tells of the same.
#[derive(Debug)]
pub(super) struct Peer {
    /// Why not, where it cannot.
    pub(super) can_run: fn() -> Result<()>,
    /// Begins to watch a process and its children.
    start: fn(&Path, pid: u32) -> Result<Program>,
    /// What is to be done for that it sees a process, before it starts anything: a shell's commands.
    before: &'static str,
    /// What it has told so far.
    told: fn(&Path) -> Result<f64>,
    /// How many it says that it has lost.
    lost: fn(&Program) -> Result<f64>,
    end: fn() -> Result<()>,
}

pub(super) const PEERS: &[(&str, Peer)] = &[
    (
        "auditd",
        Peer {
            can_run: audit_is_free,
            start: auditd,
            before: LOGIN,
            told: |dir| {
                lines(&dir.join("audit/audit.log"), |line| line.starts_with("type=SYSCALL"))
            },
            lost: |_| audit_status("lost "),
            end: end_auditd,
        },
    ),
    (
        "bpftrace",
        Peer {
            can_run: bpftrace_is_there,
            start: bpftrace,
            before: "",
            told: |dir| {
                lines(&dir.join("bpftrace.log"), |line| {
                    line.starts_with(|c: char| c.is_ascii_digit())
                })
            },
            lost: lost_by_bpftrace,
            end: || Ok(()),
        },
    ),
];

/// Of whoever watches, while it does.
struct Spent {
    cpu_us: f64,
    /// More than was asked for: programs open their libraries.
    told: f64,
    lost: f64,
}

/// As `WORK` of watcher has it, in CPU per operation: exec, open, connect.
const WORK: [(&str, u32); 3] = [("exec", 1000), ("open-told", 20_000), ("connect", 2000)];

/// getppid(2), of which nothing is told.
const CALLS: u32 = 500_000;

/// `deeds serve`, talked with.
struct Deeds {
    talk: Talk,
    done: usize,
}

impl Deeds {
    fn start(command: &Command) -> Result<Self> {
        Ok(Self { talk: Talk::start(CORE, command)?, done: 0 })
    }

    /// Microseconds of CPU per operation, of each.
    fn measure(&mut self) -> Result<[f64; 3]> {
        let mut each = [0.0; 3];
        for ((what, count), each) in WORK.iter().zip(&mut each) {
            *each = self.one(what, *count)?;
        }
        Ok(each)
    }

    fn one(&mut self, what: &str, count: u32) -> Result<f64> {
        self.talk.say(&format!("{what} {count}\n"));
        let place = self.done;
        self.done += 1;
        let ns = self.talk.wait_for(|said| {
            let line = said.split_inclusive('\n').nth(place)?;
            Some(line.strip_suffix('\n')?.strip_prefix("done ")?.to_owned())
        })?;
        Ok(ns.parse::<f64>()? / 1e3 / f64::from(count))
    }
}

/// Somebody who takes connections.
fn listen() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    Ok(port)
}

fn serve(site: &Site, port: u16) -> Vec<String> {
    let path = |name: &str| site.dir.join(name).display().to_string();
    let deeds = site.programs.join("deeds").display().to_string();
    let words = [deeds, "serve".into(), "--secret".into(), path("secret"), "--plain".into()];
    words.into_iter().chain([path("plain"), format!("--port={port}")]).collect()
}

pub(super) fn ours(site: &Site) -> Result<Sample> {
    let words = serve(site, listen()?);
    let run = |place: &str| -> Result<_> {
        let mut watcher = site.watcher();
        watcher.args(["run", "--place", place, "--"]).args(&words);
        let mut deeds = Deeds::start(&watcher)?;
        let (call, each) = (deeds.one("nothing", CALLS)?, deeds.measure()?);
        Ok((call * 1e3, each, figures(&deeds.talk.finish()?)?))
    };
    let (call_before, before, _) = run("unloaded")?;
    let (call_beside, ..) = run("outside")?;
    let (_, with, told) = run("inside")?;
    let (call_after, after, _) = run("unloaded")?;
    let spent = Spent {
        cpu_us: figure(&told, "watcher_cpu")? * 1e6,
        told: figure(&told, "told")?,
        lost: figure(&told, "lost")?,
    };
    let mut sample = sample(&[before, after], &with, &spent);
    sample.push((OUTSIDE_CALL, call_beside - call_before.midpoint(call_after)));
    Ok(sample)
}

pub(super) fn theirs(site: &Site, peer: &Peer) -> Result<Sample> {
    let script = format!("{} exec \"$@\"", peer.before);
    let mut shell = command("sh", ["-c", &script, "sh"]);
    shell.args(serve(site, listen()?));
    let mut deeds = Deeds::start(&shell)?;
    let before = deeds.measure()?;
    let pid = deeds.talk.pid();
    let watched = while_watched(site, peer, &mut deeds, pid);
    // Whatever came of it: the kernel is left as it was.
    (peer.end)()?;
    let (with, spent) = watched?;
    let after = deeds.measure()?;
    Ok(sample(&[before, after], &with, &spent))
}

fn while_watched(
    site: &Site,
    peer: &Peer,
    deeds: &mut Deeds,
    pid: u32,
) -> Result<([f64; 3], Spent)> {
    // Before the daemon is started, so that each round counts and writes what is its own.
    fs::remove_file(site.dir.join("audit/audit.log")).ok();
    let daemon = (peer.start)(&site.dir, pid)?;
    let (spent, before) = (cpu_seconds(daemon.pid()), (peer.told)(&site.dir)?);
    let with = deeds.measure()?;
    // What it has not yet written is part of its cost.
    let mut told = (peer.told)(&site.dir)?;
    loop {
        std::thread::sleep(QUIET);
        let now = (peer.told)(&site.dir)?;
        if now == told {
            break;
        }
        told = now;
    }
    let cpu_us = (cpu_seconds(daemon.pid()) - spent) * 1e6;
    let spent = Spent { cpu_us, told: told - before, lost: (peer.lost)(&daemon)? };
    ensure!(spent.told + spent.lost >= done(), "it told {} of {}", spent.told, done());
    Ok((with, spent))
}

/// How much there is to tell.
fn done() -> f64 {
    WORK.iter().map(|(_, count)| f64::from(*count)).sum()
}

fn lines(path: &Path, counts: impl Fn(&str) -> bool) -> Result<f64> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&text).lines().filter(|line| counts(line)).count() as f64)
}

/// Nothing written for so long: all is.
const QUIET: Duration = Duration::from_millis(500);

fn sample(without: &[[f64; 3]; 2], with: &[f64; 3], spent: &Spent) -> Sample {
    let [before, after] = without;
    let added: Vec<f64> =
        with.iter().zip(before.iter().zip(after)).map(|(w, (b, a))| w - b.midpoint(*a)).collect();
    let mut sample: Sample =
        [ADDED_EXEC, ADDED_OPEN, ADDED_CONNECT].into_iter().zip(added).collect();
    sample.push((DAEMON_CPU, spent.cpu_us / spent.told));
    sample.push((LOST_MEANWHILE, spent.lost));
    sample
}

/// By the login's number, as rules for people's sessions go.
const LOGIN: &str = "echo 54321 >/proc/self/loginuid;";

/// The kernel has one listener, and whoever has it keeps it.
fn audit_is_free() -> Result<()> {
    ensure!(find("auditd").is_some(), "auditd is not there");
    ensure!(audit_status("pid ")? == 0.0, "the machine's own auditd runs");
    Ok(())
}

fn audit_status(name: &str) -> Result<f64> {
    let said = client::run(&command("auditctl", ["-s"]), "").context("the kernel has no audit")?;
    let value = said.lines().find_map(|line| line.strip_prefix(name));
    Ok(value.with_context(|| format!("auditctl says no {name}"))?.parse()?)
}

fn auditd(dir: &Path, _pid: u32) -> Result<Program> {
    let folder = dir.join("audit");
    fs::create_dir_all(folder.join("plugins.d"))?;
    let config = format!(
        "log_file = {0}/audit.log\nplugin_dir = {0}/plugins.d\nlog_format = ENRICHED\nflush = INCREMENTAL_ASYNC\n\
         freq = 50\nmax_log_file = 500\nnum_logs = 2\nspace_left = 75\nadmin_space_left = 50\nspace_left_action = IGNORE\nadmin_space_left_action = IGNORE\n\
         disk_full_action = IGNORE\ndisk_error_action = IGNORE\nlog_group = root\n",
        folder.display()
    );
    write_secret(&folder.join("auditd.conf"), &config)?;
    let mut daemon = command("auditd", ["-n", "-s", "enable", "-c"]);
    daemon.arg(&folder);
    let mut program = Program::start("auditd", CORE, &daemon, dir.join("auditd.log"))?;
    let pid = format!("pid {}", program.pid());
    program.wait_until("listener", || {
        client::run(&command("auditctl", ["-s"]), "").is_ok_and(|said| said.contains(&pid))
    })?;
    client::run(&command("auditctl", ["--reset-lost"]), "")?;
    // Bigger than the default of Debian's rules: so that what is measured is work and not waiting.
    client::run(&command("auditctl", ["-b", "65536"]), "")?;
    let rule = ["-a", "always,exit", "-F", "arch=b64", "-F", "auid=54321"];
    for call in ["execve", "openat", "connect"] {
        client::run(command("auditctl", rule).args(["-S", call]), "")?;
    }
    Ok(program)
}

fn end_auditd() -> Result<()> {
    for words in [["-D"], ["-e0"]] {
        client::run(&command("auditctl", words), "")?;
    }
    Ok(())
}

fn bpftrace_is_there() -> Result<()> {
    ensure!(find("bpftrace").is_some(), "bpftrace is not there");
    Ok(())
}

/// Programs of everybody: whose child it is, a line of bpftrace cannot cheaply say.
fn bpftrace(dir: &Path, pid: u32) -> Result<Program> {
    let script = format!(
        r#"BEGIN {{ printf("ready\n"); }}
        tracepoint:syscalls:sys_enter_execve {{ printf("%d %s ", pid, str(args->filename)); join(args->argv); }}
        tracepoint:syscalls:sys_enter_openat /pid == {pid}/ {{ printf("%d open %s %d\n", pid, str(args->filename), args->flags); }}
        tracepoint:syscalls:sys_enter_connect /pid == {pid}/ {{ printf("%d connect %d %r\n", pid, args->fd, buf(args->uservaddr, 16)); }}"#
    );
    // It finds tracepoints in tracefs, which not every machine has mounted.
    let mut tracer = command("unshare", ["-m", "sh", "-c", WITH_TRACEFS, "sh"]);
    tracer.args(["bpftrace", "-e", &script]);
    let log = dir.join("bpftrace.log");
    let mut program = Program::start("bpftrace", CORE, &tracer, log.clone())?;
    program.wait_until("start", || {
        fs::read_to_string(&log).is_ok_and(|said| said.contains("ready"))
    })?;
    Ok(program)
}

const WITH_TRACEFS: &str = "mount -t tracefs tracefs /sys/kernel/tracing && exec \"$@\"";

/// It says `Lost 7 events` from time to time.
fn lost_by_bpftrace(program: &Program) -> Result<f64> {
    let said = program.said();
    let lost = said.lines().filter_map(|line| line.strip_prefix("Lost ")?.split(' ').next());
    Ok(lost.map(str::parse::<u32>).sum::<Result<u32, _>>()?.into())
}
