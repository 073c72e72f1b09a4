//! What the kernel programs take, by the kernel's own count of their time (BPF statistics): for each operation in a
//! session, and for what others do. Whatever else runs on the machine passes the programs, too, outside of sessions: how
//! often is known, since it is known how often we passed them, and it is taken off at what one such pass costs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

use crate::session::Watched;
use crate::{Arguments, Figures};

/// Nanoseconds and runs.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    ns: f64,
    runs: f64,
}

impl Spent {
    fn each(self) -> f64 {
        if self.runs > 0.0 { self.ns / self.runs } else { 0.0 }
    }
}

/// By name, as the kernel cuts it: fifteen bytes. Another of the same name has a number behind it.
type ByProgram = BTreeMap<String, Spent>;

/// Our programs in the kernel: what it says of their descriptors.
struct Programs(Vec<(String, PathBuf)>);

impl Programs {
    /// All that this process holds.
    fn ours() -> Result<Self> {
        let mut names = BTreeMap::new();
        for info in loaded_programs() {
            // One that has gone meanwhile is none of ours.
            let Ok(info) = info else { continue };
            names.insert(info.id(), String::from_utf8_lossy(info.name()).into_owned());
        }
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc/self/fd")? {
            let entry = entry?;
            let is_program = fs::read_link(entry.path())
                .is_ok_and(|link| link.to_string_lossy().contains("bpf-prog"));
            if !is_program {
                continue;
            }
            let path = PathBuf::from("/proc/self/fdinfo").join(entry.file_name());
            let id: u32 = field(&fs::read_to_string(&path)?, "prog_id")?;
            found.push((id, path));
        }
        // Some are held by more than one descriptor.
        found.sort();
        found.dedup_by_key(|(id, _)| *id);
        let mut seen = BTreeMap::<String, u32>::new();
        let mut name_of = |id| {
            let name = names.get(&id).cloned().unwrap_or_default();
            let number = seen.entry(name.clone()).or_default();
            *number += 1;
            if *number == 1 { name } else { format!("{name}_{number}") }
        };
        let found: Vec<_> = found.into_iter().map(|(id, path)| (name_of(id), path)).collect();
        if found.is_empty() {
            bail!("no programs");
        }
        Ok(Self(found))
    }

    fn so_far(&self) -> Result<ByProgram> {
        let mut all = ByProgram::new();
        for (name, path) in &self.0 {
            let text = fs::read_to_string(path)?;
            let spent = all.entry(name.clone()).or_default();
            spent.ns += field::<f64>(&text, "run_time_ns")?;
            spent.runs += field::<f64>(&text, "run_cnt")?;
        }
        Ok(all)
    }
}

fn field<T: std::str::FromStr>(text: &str, name: &str) -> Result<T> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = line.with_context(|| format!("no {name} of a program"))?.trim();
    value.parse().ok().with_context(|| format!("{name} is {value}"))
}

/// `deeds serve`, inside or outside.
struct Deeds {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Deeds {
    fn start(mut child: Child) -> Result<Self> {
        let input = child.stdin.take().context("its input")?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { child, input, output })
    }

    fn run(&mut self, what: &str, count: u32) -> Result<()> {
        writeln!(self.input, "{what} {count}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        anyhow::ensure!(line.starts_with("done"), "deeds said {line:?}");
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        drop(self.input);
        self.child.wait()?;
        Ok(())
    }
}

/// What one batch took.
fn batch(programs: &Programs, deeds: &mut Deeds, what: &str, count: u32) -> Result<ByProgram> {
    let before = programs.so_far()?;
    deeds.run(what, count)?;
    let mut spent = programs.so_far()?;
    for (name, spent) in &mut spent {
        let before = before.get(name).copied().unwrap_or_default();
        spent.ns -= before.ns;
        spent.runs -= before.runs;
    }
    Ok(spent)
}

pub(crate) async fn measure(arguments: &Arguments, batches: u32) -> Result<Figures> {
    let _counting = enable_stats(Stats::RunTime)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let mut command = Command::new(&arguments.deeds);
    command.arg("serve").arg("--secret").arg(arguments.dir.join("secret")).arg("--plain");
    command.arg(arguments.dir.join("plain")).args(["--port", &port.to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut watched = Watched::begin(None)?;
    let programs = Programs::ours()?;

    let mut outside = Deeds::start(command.spawn()?)?;
    let mut series = Series::default();
    let mut passing = ByProgram::new();
    for _ in 0..batches {
        for (what, count) in WORK {
            let spent = batch(&programs, &mut outside, what, count)?;
            if what == "nothing" {
                series.add("outside_syscall_ns", of(&spent, SYS_EXIT).each());
            }
            for (name, spent) in spent {
                let sum = passing.entry(name).or_default();
                sum.ns += spent.ns;
                sum.runs += spent.runs;
            }
        }
    }
    outside.end()?;
    let mut worst = 0.0_f64;
    for (name, spent) in passing.iter().filter(|(_, spent)| spent.runs >= RUNS_MIN) {
        series.add(&format!("outside_{name}_ns"), spent.each());
        worst = worst.max(spent.each());
    }
    series.add("outside_worst_ns", worst);

    let mut inside = Deeds::start(watched.spawn(&mut command)?)?;
    // The first of each are told; those after them are folded.
    inside.run("open-folded", 100)?;
    for _ in 0..batches {
        for (what, count) in WORK {
            let spent = batch(&programs, &mut inside, what, count)?;
            series.inside(what, f64::from(count), &spent, &passing);
            // What is on its way is not to meet the budget.
            tokio::time::sleep(REST).await;
        }
    }
    inside.end()?;
    watched.counted.over().await?;
    let mut figures = series.medians();
    let lost = watched.counted.lost.load(std::sync::atomic::Ordering::Relaxed);
    figures.insert("lost".to_owned(), lost as f64);
    Ok(figures)
}

/// Figures by name, batch by batch.
#[derive(Default)]
struct Series(BTreeMap<String, Vec<f64>>);

impl Series {
    fn add(&mut self, name: &str, value: f64) {
        self.0.entry(name.to_owned()).or_default().push(value);
    }

    fn median(&self, name: &str) -> f64 {
        self.0.get(name).map(|values| middle(values)).unwrap_or_default()
    }

    fn medians(&self) -> Figures {
        self.0.iter().map(|(name, values)| (name.clone(), middle(values))).collect()
    }

    /// One batch of operations in the session.
    fn inside(&mut self, what: &str, count: f64, spent: &ByProgram, passing: &ByProgram) {
        // Of `runs` those that are ours are known, and the others passed outside.
        let ours = |name: &str, runs: f64| {
            let spent = of(spent, name);
            let others = (spent.runs - runs).max(0.0);
            (spent.ns - others * of(passing, name).each()) / count
        };
        let unhooked = self.median("inside_syscall_ns");
        match what {
            "nothing" => self.add("inside_syscall_ns", ours(SYS_EXIT, count)),
            "exec" => {
                let parts = PROCESS.map(|name| (name, ours(name, count)));
                self.add("exec_ns", parts.iter().map(|(_, ns)| ns).sum());
                for (name, ns) in parts {
                    self.add(&format!("exec_{name}_ns"), ns);
                }
                let all: f64 = spent.values().map(|spent| spent.ns).sum();
                self.add("exec_all_ns", all / count);
                self.add("exec_syscalls", of(spent, SYS_EXIT).runs / count);
            }
            // Each with a close(2), which tells nothing.
            "open-told" => self.add("open_told_ns", ours(SYS_EXIT, 2.0 * count) - unhooked),
            "open-folded" => self.add("open_folded_ns", ours(SYS_EXIT, 2.0 * count) - unhooked),
            _ => {
                // Told are the connection and its end, by the states of both its ends, which are on this machine.
                let states = of(spent, "inet_sock_set_s").ns / count;
                let calls = ours(SYS_EXIT, 3.0 * count) - 2.0 * unhooked;
                let packets = of(spent, "net_dev_queue").ns / count;
                self.add("connect_ns", states + calls + packets);
                self.add("connect_states_ns", states);
                self.add("connect_packets_ns", packets);
            }
        }
    }
}

fn of(spent: &ByProgram, name: &str) -> Spent {
    spent.get(name).copied().unwrap_or_default()
}

fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

const SYS_EXIT: &str = "sys_exit";
/// Fork, exec and exit: the names of the last two begin with the same fifteen bytes.
const PROCESS: [&str; 3] = ["task_newtask", "sched_process_e", "sched_process_e_2"];
/// In this order: others are judged by the first. How many make a batch.
const WORK: [(&str, u32); 5] = [
    ("nothing", 50_000),
    ("exec", 100),
    ("open-told", 2_000),
    ("open-folded", 10_000),
    ("connect", 300),
];
/// Fewer say nothing of what one costs.
const RUNS_MIN: f64 = 500.0;
const REST: std::time::Duration = std::time::Duration::from_millis(100);
