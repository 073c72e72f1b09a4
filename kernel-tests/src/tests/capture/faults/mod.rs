//! Faults and bad input, for real: processes in sessions that do the worst, a node that is stopped, a crowd of sessions. Not
//! about what is seen, which is the cases' matter, but that everything is told, or told as lost, exactly. Each deed is a process:
//! this program as `kernel-tests fault NAME FOLDER …`.
//!
//! - [`argv`]: arguments that vanish while a program is started
//! - [`crowd`]: thousands of sessions at once, and one more than there can be
//! - [`fairness`]: a session that floods, and another beside it
//! - [`paths`]: the longest paths, with every byte
//! - [`stopped`]: a node that is stopped while its sessions go on

mod argv;
mod crowd;
mod fairness;
mod paths;
mod stopped;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use capture::{Sink, Wanted, Watch};
use proto::capture_rules::CaptureRules;
use serde_json::Value;

use super::super::attach::kernel;
use super::stage::{self, Memory, Stage};

crate::tests![
    paths_are_told_byte_by_byte,
    arguments_are_told_as_the_program_got_them,
    a_stopped_node_says_what_it_lost,
    a_full_ring_is_told_by_number,
    a_flood_is_nobody_elses_loss,
    thousands_of_sessions_are_told_apart,
    one_session_too_many_is_refused,
];

use self::argv::arguments_are_told_as_the_program_got_them;
use self::crowd::{one_session_too_many_is_refused, thousands_of_sessions_are_told_apart};
use self::fairness::a_flood_is_nobody_elses_loss;
use self::paths::paths_are_told_byte_by_byte;
use self::stopped::{a_full_ring_is_told_by_number, a_stopped_node_says_what_it_lost};

/// See the module.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let [name, folder, more @ ..] = arguments else { return ExitCode::FAILURE };
    let folder = Path::new(folder);
    let more: Vec<&str> = more.iter().map(|word| word.to_str().unwrap()).collect();
    match (name.to_str(), more.as_slice()) {
        (Some("argv"), []) => argv::deed(folder),
        (Some("witness"), [number, argument]) => argv::witness(folder, number, argument),
        (Some("bystander"), []) => fairness::bystander(),
        (Some("flood"), []) => fairness::flood(folder),
        (Some("paths"), []) => paths::deed(folder),
        (Some("node"), [sessions]) => stopped::node(folder, sessions.parse().unwrap()),
        (Some("opens"), [number]) => stopped::opens(folder, number),
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// This program, as a deed.
fn command(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("fault").arg(name).arg(folder).current_dir(folder).stdin(Stdio::null());
    command
}

/// Where a fault is played: the capture, and a folder.
struct Room {
    stage: Stage,
    folder: PathBuf,
}

impl Room {
    /// Nothing where nothing can be captured, which is said.
    fn open(name: &str) -> Option<Self> {
        let folder = place(name)?;
        let stage = Stage::new();
        if stage.tier().is_none() {
            crate::not_here("this kernel captures nothing");
            return None;
        }
        Some(Self { stage, folder })
    }

    /// Begins a deed in a session of its own; what it says goes to a file, for when it goes wrong.
    fn begin(&self, number: u8, mut command: Command) -> Session {
        let said = self.folder.join(format!("said-{number}"));
        let file = File::create(&said).unwrap();
        command.stderr(file.try_clone().unwrap()).stdout(file);
        let memory = Arc::new(Memory::new([200, number]));
        let mut watch = watch(&self.stage, &memory);
        let child = watch.spawn(&mut command).unwrap();
        Session { memory, watch, child, said }
    }
}

/// A session of which everything is wanted.
fn watch(stage: &Stage, memory: &Arc<Memory>) -> Watch {
    let sink: Arc<dyn Sink> = Arc::clone(memory) as _;
    let rules = CaptureRules::default();
    let wanted = Wanted { command: true, disk: true, network: true, strict: false, rules };
    stage.capture.watch(&sink, wanted).unwrap().unwrap()
}

/// A folder for a fault's files, in memory.
fn place(name: &str) -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        crate::not_here("only root loads kernel programs");
        return None;
    }
    // An emulated machine takes a minute for what is done here in seconds; one of them has the longest paths.
    if stage::is_guest() && !(name == "paths" && kernel() == (6, 12)) {
        crate::not_here("played on the machine itself");
        return None;
    }
    stage::prepare();
    let folder = Path::new("/mnt/faults").join(name);
    fs::create_dir_all(&folder).unwrap();
    Some(folder)
}

struct Session {
    memory: Arc<Memory>,
    watch: Watch,
    child: Child,
    said: PathBuf,
}

impl Session {
    /// Waits for the good end of the deed, and until all of it has been told.
    fn end(mut self, stage: &Stage) -> Told {
        let status = wait(&mut self.child);
        let said = || fs::read_to_string(&self.said).unwrap_or_default();
        assert!(status.success(), "{status}: {}", said());
        settle(stage, &mut self.watch, &self.memory);
        Told(self.memory.events())
    }
}

fn wait(child: &mut Child) -> std::process::ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(started.elapsed() < DEED_WITHIN, "the deed is not over");
        thread::sleep(LOOK_EVERY);
    }
}

fn settle(stage: &Stage, watch: &mut Watch, memory: &Memory) {
    stage.runtime.block_on(watch.settled());
    until("the session's end", || memory.is_over());
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < DEED_WITHIN, "no {what}");
        thread::sleep(LOOK_EVERY);
    }
}

/// What was told of a session.
struct Told(Vec<Value>);

impl Told {
    fn of<'t>(&'t self, event: &'t str) -> impl Iterator<Item = &'t Value> {
        self.0.iter().filter(move |told| told["event"] == event)
    }

    /// The number in a field of `session.capture`.
    fn in_all(&self, field: &str) -> u64 {
        self.of("session.capture").last().and_then(|event| event[field].as_u64()).unwrap()
    }

    /// How many were told as lost.
    fn lost(&self) -> u64 {
        self.of("session.loss").filter_map(|loss| loss["count"].as_u64()).sum()
    }
}

/// The longest deed on an emulated machine.
const DEED_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(5);
