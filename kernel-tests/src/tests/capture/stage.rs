//! Where deeds are played: the real capture, sessions that are watched into memory, and processes outside of them. On a
//! machine that is not a guest everything happens in a mount namespace of its own, with empty folders over the system's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use serde_json::json;

use capture::{Capture, Sink, Tier, Wanted, Watch};
use proto::capture_rules::CaptureRules;
use proto::event;

use super::agent;
use super::cases::Case;
use super::told::Told;

/// Folders of the system's that deeds write to: memory, where the machine is not ours alone.
const SYSTEM_FOLDERS: &[&str] = &["/etc", "/run", "/root", "/var/spool"];
/// Memory in which everything else of the deeds is.
const STAGE: &str = "/mnt";

/// Whether the machine is there for these tests only; said by its init.
pub(crate) fn is_guest() -> bool {
    std::env::var_os("KERNEL_TESTS_GUEST").is_some()
}

/// Makes the place. To be called before other threads are begun that have to do with it.
pub(super) fn prepare() {
    if !is_guest() {
        crate::sys::process::unshare(libc::CLONE_NEWNS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    }
    for folder in SYSTEM_FOLDERS.iter().copied().chain([STAGE]) {
        mount("tmpfs", folder, "tmpfs", MountFlags::empty(), c"mode=755").unwrap();
    }
    let groups = cgroups();
    fs::create_dir(&groups).unwrap();
    if !is_bpf(Path::new("/sys/fs/bpf")) {
        mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None).unwrap();
    }
    mount("none", &groups, "cgroup2", MountFlags::empty(), None).unwrap();
}

/// Whether the BPF file system is mounted there.
fn is_bpf(path: &Path) -> bool {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == BPF_FS_MAGIC)
}

/// The machine's control groups.
pub(super) fn cgroups() -> PathBuf {
    Path::new(STAGE).join("cgroups")
}

/// A case's folder.
pub(super) fn folder(number: u8) -> PathBuf {
    Path::new(STAGE).join(number.to_string())
}

/// What is captured, for all cases.
pub(super) struct Stage {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) capture: Capture,
}

impl Stage {
    pub(super) fn new() -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let capture = runtime.block_on(async { Capture::start(None, &no_sessions) });
        Self { runtime, capture }
    }

    pub(super) fn tier(&self) -> Option<Tier> {
        self.capture.tier()
    }

    /// How often the kernel did not run a program of ours so far, since the same one ran on that CPU and was preempted.
    pub(super) fn passed_over(&self) -> u64 {
        let files = fs::read_dir("/proc/self/fdinfo").unwrap();
        let texts = files.filter_map(|file| fs::read_to_string(file.ok()?.path()).ok());
        let count = |text: String| {
            let line = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
            line.and_then(|count| count.trim().parse::<u64>().ok())
        };
        texts.filter_map(count).sum()
    }
}

/// A case that is being played.
pub(super) struct Scene<'s> {
    stage: &'s Stage,
    case: &'static Case,
    /// Why the deed cannot be done here.
    impossible: RefCell<Vec<String>>,
    /// What went wrong with the deed itself.
    mistakes: RefCell<Vec<String>>,
    outside: RefCell<Vec<Child>>,
}

impl<'s> Scene<'s> {
    pub(super) fn new(stage: &'s Stage, case: &'static Case) -> Self {
        let folder = folder(case.number);
        // Of an earlier try.
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(&folder).unwrap();
        Self {
            stage,
            case,
            impossible: RefCell::default(),
            mistakes: RefCell::default(),
            outside: RefCell::default(),
        }
    }

    pub(super) fn tier(&self) -> Option<Tier> {
        self.stage.tier()
    }

    /// A file of the case's.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        folder(self.case.number).join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(super) fn impossible(&self) -> Vec<String> {
        self.impossible.borrow().clone()
    }

    pub(super) fn mistakes(&self) -> Vec<String> {
        self.mistakes.borrow().clone()
    }

    fn command(&self, part: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let (number, folder) = (self.case.number.to_string(), folder(self.case.number));
        command.args(["deed", &number, part]).arg(&folder).current_dir(&folder);
        command.stdin(Stdio::null());
        let facts = File::create(self.facts(part)).unwrap();
        command.stderr(facts.try_clone().unwrap()).stdout(facts);
        command
    }

    /// What a part says goes here.
    fn facts(&self, part: &str) -> PathBuf {
        self.path(&format!("{part}.facts"))
    }

    /// Plays a part in a session of its own, to its end.
    pub(super) fn session(&self, part: &str) -> Told {
        self.start(part).end()
    }

    /// Begins a part in a session of its own.
    pub(super) fn start(&self, part: &str) -> Running<'_, 's> {
        let number = 1 + part.bytes().fold(0_u8, u8::wrapping_add);
        let memory = Arc::new(Memory::new([self.case.number, number]));
        let sink: Arc<dyn Sink> = Arc::clone(&memory) as _;
        let wanted = Wanted {
            command: true,
            disk: true,
            network: true,
            strict: false,
            rules: CaptureRules::default(),
        };
        let mut watch = self.stage.capture.watch(&sink, wanted).unwrap().unwrap();
        let child = watch.spawn(&mut self.command(part)).unwrap();
        Running { scene: self, part: part.to_owned(), memory, watch: Some(watch), child }
    }

    /// Begins a part outside of all sessions, and waits until it says `ready`. It is ended with the case.
    pub(super) fn outside(&self, part: &str) -> Outside {
        let child = self.command(part).spawn().unwrap();
        let outside = Outside { pid: child.id(), facts: self.facts(part) };
        self.outside.borrow_mut().push(child);
        outside.fact("ready");
        outside
    }

    /// A node of its own, which begins the deed in a session, or goes on with it after another, as [`agent`] says; waits until
    /// it is there.
    pub(super) fn agent(&self, name: &str, how: &[&str]) -> Agent {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["agent", &self.case.number.to_string()]).arg(folder(self.case.number));
        command.args(how);
        let facts = self.facts(name);
        let file = File::create(&facts).unwrap();
        command.stdin(Stdio::null()).stderr(file.try_clone().unwrap()).stdout(file);
        let agent = Agent { child: command.spawn().unwrap(), facts };
        await_within(&agent.facts, "ready", NODE_WITHIN);
        agent
    }

    /// Waits until a node has told the end of the deed's last task, and ends the node.
    pub(super) fn told_by_one(&self, agent: Agent) -> Told {
        let leader = await_fact(&agent.facts, "leader");
        self.told_in_the_end(leader.parse().unwrap(), agent)
    }

    /// The same where the first node is no more.
    pub(super) fn told_by(&self, first: &Agent, last: Agent) -> Told {
        let leader = await_fact(&first.facts, "leader");
        self.told_in_the_end(leader.parse().unwrap(), last)
    }

    fn told_in_the_end(&self, leader: u32, mut last: Agent) -> Told {
        let path = self.path(agent::TOLD);
        let is_whole = || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            text.contains("session.capture").then_some(text)
        };
        let started = Instant::now();
        let text = loop {
            if let Some(text) = is_whole().or_else(|| {
                (started.elapsed() > DEED_WITHIN).then(|| fs::read_to_string(&path).unwrap())
            }) {
                break text;
            }
            thread::sleep(LOOK_EVERY);
        };
        File::create(self.path(agent::STOP)).unwrap();
        wait_within(&mut last.child, NODE_WITHIN);
        let facts = Facts::read(&self.facts(""));
        self.hear("node", &Facts::read(&last.facts));
        self.hear("", &facts);
        let sid = facts_of([self.case.number, 1]).sid.to_string();
        Told { events: events_of(&text), leader, facts, sid }
    }

    /// What somebody has said who is no more.
    pub(super) fn said(&self, name: &str, key: &str) -> String {
        Facts::read(&self.facts(name)).text(key)
    }

    /// What a node has told of the other part of its deed.
    pub(super) fn told_again(&self) -> Told {
        let facts = Facts::read(&self.facts(agent::AGAIN));
        self.hear(agent::AGAIN, &facts);
        let text = fs::read_to_string(self.path(agent::TOLD_AGAIN)).unwrap_or_default();
        Told { events: events_of(&text), leader: facts.number("pid"), facts, sid: String::new() }
    }

    /// What the deed says, as soon as it does.
    pub(super) fn fact(&self, key: &str) -> String {
        await_fact(&self.facts(""), key)
    }

    /// Plays a part outside of all sessions, to its end.
    pub(super) fn afterwards(&self, part: &str) -> Outside {
        let mut child = self.command(part).spawn().unwrap();
        let outside = Outside { pid: child.id(), facts: self.facts(part) };
        wait(&mut child);
        // A session that was over already may be told of again, once its program's digest is there.
        thread::sleep(QUIET_FOR_LONG);
        self.hear(part, &outside.all());
        outside
    }

    /// Ends what is outside of all sessions.
    fn clear(&self) {
        for mut child in self.outside.borrow_mut().drain(..) {
            // Gone already, or ended now.
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Takes what a part says of itself that is not for the case.
    fn hear(&self, part: &str, facts: &Facts) {
        self.impossible.borrow_mut().extend(facts.all("impossible"));
        let mistakes = facts.all("mistake").into_iter().map(|said| format!("{part}: {said}"));
        self.mistakes.borrow_mut().extend(mistakes);
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A node that can die.
pub(super) struct Agent {
    child: Child,
    facts: PathBuf,
}

impl Agent {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn kill(&mut self) {
        // By the deed already, perhaps.
        self.child.kill().ok();
        self.child.wait().unwrap();
    }

    /// What it says, as soon as it does.
    pub(super) fn fact(&self, key: &str) -> String {
        await_fact(&self.facts, key)
    }

    /// Waits until somebody has killed it.
    pub(super) fn killed(&mut self) {
        wait(&mut self.child);
    }
}

/// A process that is in no session.
pub(super) struct Outside {
    pub(super) pid: u32,
    facts: PathBuf,
}

impl Outside {
    pub(super) fn all(&self) -> Facts {
        Facts::read(&self.facts)
    }

    /// What it says, as soon as it does.
    pub(super) fn fact(&self, key: &str) -> String {
        await_fact(&self.facts, key)
    }
}

/// A session that goes on.
pub(super) struct Running<'c, 's> {
    scene: &'c Scene<'s>,
    part: String,
    memory: Arc<Memory>,
    watch: Option<Watch>,
    child: Child,
}

impl Running<'_, '_> {
    pub(super) fn fact(&self, key: &str) -> String {
        await_fact(&self.scene.facts(&self.part), key)
    }

    /// Waits for the session's end: that of its first process, and of all the others where that comes soon.
    pub(super) fn end(mut self) -> Told {
        let leader = self.child.id();
        wait(&mut self.child);
        if let Some(mut watch) = self.watch.take() {
            self.scene.stage.runtime.block_on(watch.settled());
        }
        // Those that were reached into may be the session's now.
        self.scene.clear();
        let started = Instant::now();
        while !self.memory.is_over() && started.elapsed() < OTHERS_WITHIN {
            thread::sleep(LOOK_EVERY);
        }
        let facts = Facts::read(&self.scene.facts(&self.part));
        self.scene.hear(&self.part, &facts);
        let events = self.memory.events();
        if std::env::var_os("KERNEL_TESTS_EVENTS").is_some() {
            for event in &events {
                println!("event {} {}: {event}", self.scene.case.number, self.part);
            }
        }
        Told { events, leader, facts, sid: self.memory.facts.sid.to_string() }
    }
}

/// What a process said, a key and a value on each line.
#[derive(Debug, Default)]
pub(super) struct Facts(BTreeMap<String, Vec<String>>);

impl Facts {
    fn read(path: &Path) -> Self {
        let mut facts = Self::default();
        let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            // A panic is a mistake of ours; its message stands below.
            let (key, value) = if line.contains("panicked at") {
                ("mistake", format!("{line} {}", lines.next().unwrap_or_default()))
            } else {
                let (key, value) = line.split_once(' ').unwrap_or((line, ""));
                (key, value.to_owned())
            };
            facts.0.entry(key.to_owned()).or_default().push(value);
        }
        facts
    }

    pub(super) fn all(&self, key: &str) -> Vec<String> {
        self.0.get(key).cloned().unwrap_or_default()
    }

    /// The first of them; empty where there is none.
    pub(super) fn text(&self, key: &str) -> String {
        self.all(key).into_iter().next().unwrap_or_default()
    }

    /// 0 where there is none.
    pub(super) fn number(&self, key: &str) -> u32 {
        self.text(key).parse().unwrap_or_default()
    }
}

fn events_of(lines: &str) -> Vec<serde_json::Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn await_fact(facts: &Path, key: &str) -> String {
    await_within(facts, key, DEED_WITHIN)
}

fn await_within(facts: &Path, key: &str, within: Duration) -> String {
    let started = Instant::now();
    loop {
        // Only whole lines count.
        let text = fs::read_to_string(facts).unwrap_or_default();
        let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let mut found = lines.filter_map(|line| line.strip_prefix(key));
        if let Some(value) = found.next() {
            return value.trim_start().to_owned();
        }
        assert!(started.elapsed() < within, "{key} is not told: {text}");
        thread::sleep(LOOK_EVERY);
    }
}

fn wait(child: &mut Child) {
    wait_within(child, DEED_WITHIN);
}

fn wait_within(child: &mut Child, within: Duration) {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > within {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the deed is not over after {within:?}");
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Whose events those of a part of a case are.
pub(super) fn facts_of([case, part]: [u8; 2]) -> event::Session {
    let mut id = [0; 16];
    [id[0], id[1]] = [case, part];
    let facts = json!({
        "sid": proto::id::SessionId::from_random(id), "namespace": "default", "user": "bypass", "login": "root",
        "server_id": "00000000-0000-4000-8000-000000000001", "server_hostname": "guest",
        "server_version": "0", "addr.remote": "", "proto": "ssh",
    });
    serde_json::from_value(facts).unwrap()
}

/// A sink that keeps everything.
#[derive(Debug)]
pub(super) struct Memory {
    facts: event::Session,
    told: Mutex<ToldSoFar>,
}

#[derive(Debug, Default)]
struct ToldSoFar {
    events: Vec<event::Body>,
    last: Option<Instant>,
}

impl Memory {
    pub(super) fn new(number: [u8; 2]) -> Self {
        Self { facts: facts_of(number), told: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, ToldSoFar> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was told that the last task has ended, and nobody took up what it left since; a program whose hash took long may
    /// be told of after that.
    pub(super) fn is_over(&self) -> bool {
        let told = self.lock();
        let is_summary = |event: &event::Body| matches!(event, event::Body::SessionCapture(_));
        let wait = if told.events.last().is_some_and(is_summary) { QUIET } else { QUIET_FOR_LONG };
        told.events.iter().any(is_summary) && told.last.is_some_and(|last| last.elapsed() > wait)
    }

    pub(super) fn events(&self) -> Vec<serde_json::Value> {
        self.lock().events.iter().map(|event| serde_json::to_value(event).unwrap()).collect()
    }
}

impl Sink for Memory {
    fn facts(&self) -> event::Session {
        self.facts.clone()
    }

    fn record(&self, happened: Vec<event::Happened>) -> BoxFuture<'_, bool> {
        let mut told = self.lock();
        told.events.extend(happened.into_iter().map(|happened| happened.body));
        told.last = Some(Instant::now());
        Box::pin(std::future::ready(true))
    }
}

/// Where a program of the machine's is, by its real path.
pub(super) fn find(name: &str) -> io::Result<PathBuf> {
    let folders = ["/bin", "/usr/bin", "/sbin", "/usr/sbin"].map(Path::new);
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.exists());
    found.ok_or(io::ErrorKind::NotFound)?.canonicalize()
}

/// A deed on an emulated machine takes a second or two.
const DEED_WITHIN: Duration = Duration::from_secs(30);
/// A node on one may need a minute and a half for the kernel to take its programs.
const NODE_WITHIN: Duration = Duration::from_secs(240);
/// For processes that outlive the first, and for what outside of the session is adopted.
const OTHERS_WITHIN: Duration = Duration::from_secs(4);
/// A record is read within some hundredths of a second.
const QUIET: Duration = Duration::from_millis(100);
/// And the longest of our programs is hashed in less, also on an emulated machine.
const QUIET_FOR_LONG: Duration = Duration::from_millis(800);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Nothing is kept, so that nothing goes on.
fn no_sessions(_: proto::event::Session) -> Arc<dyn Sink> {
    unreachable!("a session of a node before")
}
