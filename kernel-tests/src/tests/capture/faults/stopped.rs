//! A node that is stopped while its sessions go on: what was too much is told when it goes on, by number, and not one more or
//! less. The node is a process of its own, and so is each session; they talk with the test by pipes, since files would be told of.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;

use ebpf_abi::{BUDGET_BYTES, RING_BYTES, class};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::super::stage::{Memory, Stage};
use super::{Told, command, place, settle, until, wait, watch};

/// Of each session. Its path makes a record more than 1000 bytes long.
const OPENS: u64 = 9000;
const PATH_BYTES: usize = 1000;
const REPORT: &str = "report.json";

/// More than one session may have on its way.
const _: () = assert!(OPENS * PATH_BYTES as u64 > BUDGET_BYTES[class::FILE] as u64);
/// So many sessions fill the ring before any of them has used up what it may.
const MANY: u64 = 6;
const _: () = assert!(
    MANY * OPENS * PATH_BYTES as u64 > RING_BYTES[class::FILE] as u64
        && RING_BYTES[class::FILE] as u64 / MANY < BUDGET_BYTES[class::FILE] as u64
);

pub(super) fn a_stopped_node_says_what_it_lost() {
    play("stopped", 1, "budget");
}

pub(super) fn a_full_ring_is_told_by_number() {
    play("ring", MANY, "ring");
}

/// Each session's sum is right to one, and someone's loss has this reason.
fn play(name: &str, sessions: u64, reason: &str) {
    let Some(folder) = place(name) else { return };
    if Stage::new().tier().is_none() {
        return crate::not_here("this kernel captures nothing");
    }
    let mut node = Node::start(&folder, sessions);
    node.hear(b'r');
    node.stop();
    node.say(b'g');
    node.hear(b'd');
    node.signal(Signal::CONT);
    node.say(b'e');
    assert!(wait(&mut node.child).success());
    let report = fs::read(folder.join(REPORT)).unwrap();
    let reports: Vec<Value> = serde_json::from_slice(&report).unwrap();
    assert_eq!(reports.len() as u64, sessions);
    let mut reasons = Vec::new();
    for report in reports {
        crate::at(report.to_string());
        let number = |field: &str| report[field].as_u64().unwrap();
        let losses = report["losses"].as_array().unwrap();
        let lost: u64 = losses.iter().map(|loss| loss["count"].as_u64().unwrap()).sum();
        assert!(lost > 0, "nothing was too much");
        // Nobody takes anything out of the ring meanwhile, so that what is lost is one piece.
        for loss in losses {
            assert_eq!(loss["class"], "file");
            let [first, last] = ["first", "last"].map(|field| loss[field].as_u64().unwrap());
            assert_eq!(last - first + 1, lost);
        }
        assert_eq!(number("opens") + lost, OPENS);
        assert_eq!(number("events") + lost, number("records"));
        assert_eq!(number("lost"), lost);
        reasons.extend(losses.iter().map(|loss| loss["reason"].clone()));
    }
    assert!(reasons.contains(&reason.into()), "{reasons:?}");
}

/// The node, and its sessions at the other ends of the pipes.
struct Node {
    child: Child,
    sessions: usize,
    to: ChildStdin,
    from: ChildStdout,
}

impl Node {
    fn start(folder: &Path, sessions: u64) -> Self {
        let mut command = command("node", folder);
        command.arg(sessions.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, sessions: usize::try_from(sessions).unwrap(), to, from }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Until not one of its threads runs.
    fn stop(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        let is_stopped = |task: PathBuf| {
            let stat = fs::read_to_string(task.join("stat")).unwrap();
            stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
        };
        until("stop of the node", || {
            let mut tasks = fs::read_dir(&tasks).unwrap();
            tasks.all(|task| is_stopped(task.unwrap().path()))
        });
    }

    /// A word to each session.
    fn say(&mut self, word: u8) {
        self.to.write_all(&vec![word; self.sessions]).unwrap();
    }

    /// A word from each session.
    fn hear(&mut self, word: u8) {
        let mut words = vec![0; self.sessions];
        self.from.read_exact(&mut words).unwrap();
        assert_eq!(words, vec![word; self.sessions]);
    }
}

/// The node: its sessions, to their end, and what was told of each.
pub(super) fn node(folder: &Path, sessions: u8) {
    let stage = Stage::new();
    let begin = |number: u8| {
        let memory = Arc::new(Memory::new([201, number]));
        let mut watch = watch(&stage, &memory);
        let mut command = command("opens", folder);
        command.arg(number.to_string()).stdin(Stdio::inherit()).stdout(Stdio::inherit());
        let child = watch.spawn(&mut command).unwrap();
        (memory, watch, child)
    };
    let all: Vec<_> = (0..sessions).map(begin).collect();
    let mut reports = Vec::new();
    for (number, (memory, mut watch, mut child)) in all.into_iter().enumerate() {
        assert!(wait(&mut child).success());
        settle(&stage, &mut watch, &memory);
        reports.push(report(&Told(memory.events()), &target(folder, &number.to_string())));
    }
    fs::write(folder.join(REPORT), json!(reports).to_string()).unwrap();
}

fn report(told: &Told, path: &Path) -> Value {
    let path = path.to_str().unwrap();
    let opens = told.of("session.disk").filter(|event| event["path"] == path);
    json!({
        "opens": opens.filter(|event| event["op"] == "open").count(),
        "events": told.of("session.disk").count(),
        "records": told.in_all("file"),
        "lost": told.in_all("lost"),
        "losses": told.of("session.loss").collect::<Vec<_>>(),
    })
}

fn target(folder: &Path, number: &str) -> PathBuf {
    let name = "n".repeat(200);
    let long = folder.join(number);
    (0..PATH_BYTES / 200).fold(long, |path, _| path.join(&name)).join("file")
}

/// A session: opens a file for writing, which is never counted together.
pub(super) fn opens(folder: &Path, number: &str) {
    let path = target(folder, number);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "").unwrap();
    let (mut to, from) = (std::io::stdout(), std::io::stdin());
    let mut say = |word: u8| {
        to.write_all(&[word]).unwrap();
        to.flush().unwrap();
    };
    let hear = |expect: u8| {
        // One byte and no more: the others are for others.
        let mut word = [0];
        rustix::io::read(&from, &mut word).unwrap();
        assert_eq!(word[0], expect);
    };
    say(b'r');
    hear(b'g');
    for _ in 0..OPENS {
        drop(OpenOptions::new().write(true).open(&path).unwrap());
    }
    say(b'd');
    hear(b'e');
}
