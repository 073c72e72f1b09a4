//! A node's part in cases in which the node dies: the capture with a home, in a process of its own, as
//! `kernel-tests agent NUMBER FOLDER`, with words behind it that say more.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use capture::{Capture, Home, Sink, Wanted};
use futures::future::BoxFuture;
use proto::capture_rules::CaptureRules;
use proto::event;

use super::stage::facts_of;

/// See the module.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let [number, folder, how @ ..] = arguments else { return ExitCode::FAILURE };
    let (number, folder) = (number.to_string_lossy().into_owned(), PathBuf::from(folder));
    let is = |what: &str| how.iter().any(|word| word == what);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    let programs = if is(OTHER) { others() } else { capture::PROGRAMS };
    let name = format!("kernel-tests-{number}");
    let home = Home { name, folder: folder.join("agent"), programs };
    let to = folder.join(TOLD);
    let restore = move |facts| -> Arc<dyn Sink> { Arc::new(Log { path: to.clone(), facts }) };
    let capture = runtime.block_on(async { Capture::start(Some(&home), &restore) });
    println!("pid {}", std::process::id());
    println!("behind {}", capture.is_behind());
    let deed = |part: &str, told: &str| {
        let facts = facts_of([number.parse().unwrap(), 1]);
        let sink: Arc<dyn Sink> = Arc::new(Log { path: folder.join(told), facts });
        let rules = CaptureRules::default();
        let wanted = Wanted { command: true, disk: true, network: true, strict: false, rules };
        let mut watch = capture.watch(&sink, wanted).unwrap().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["deed", &number, part]).arg(&folder).current_dir(&folder);
        let facts = fs::File::create(folder.join(format!("{part}.facts"))).unwrap();
        command.stdin(Stdio::null()).stderr(facts.try_clone().unwrap()).stdout(facts);
        let child = watch.spawn(&mut command).unwrap();
        (watch, child)
    };
    let first = is(BEGIN).then(|| {
        let (watch, child) = deed("", TOLD);
        println!("leader {}", child.id());
        watch
    });
    println!("ready");
    await_file(&folder.join(STOP));
    if is(OTHER) {
        let began = Instant::now();
        while capture.is_behind() && began.elapsed() < REPLACED_WITHIN {
            thread::sleep(Duration::from_millis(5));
        }
        println!("behind-still {}", capture.is_behind());
        let (mut watch, mut child) = deed(AGAIN, TOLD_AGAIN);
        child.wait().unwrap();
        runtime.block_on(watch.settled());
        println!("again {}", child.id());
    }
    drop(first);
    runtime.block_on(capture.leave());
    ExitCode::SUCCESS
}

fn await_file(path: &Path) {
    while !path.exists() {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Programs that do the same, and are others: behind an object nobody reads.
fn others() -> &'static [u8] {
    Vec::leak([capture::PROGRAMS, &[0]].concat())
}

/// It starts the deed in a session.
pub(super) const BEGIN: &str = "begin";
/// It has other programs; when it is to end and has put them in the place of those before, it plays another part of the deed.
pub(super) const OTHER: &str = "other";
pub(super) const AGAIN: &str = "again";
/// Events, a line each; and those of the other part.
pub(super) const TOLD: &str = "told.jsonl";
pub(super) const TOLD_AGAIN: &str = "again.jsonl";
/// A file that ends it.
pub(super) const STOP: &str = "stop";
/// Half a minute on an emulated machine.
const REPLACED_WITHIN: Duration = Duration::from_secs(80);

/// A sink that another process can read.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    facts: event::Session,
}

impl Sink for Log {
    fn facts(&self) -> event::Session {
        self.facts.clone()
    }

    fn record(&self, happened: Vec<event::Happened>) -> BoxFuture<'_, bool> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).unwrap();
        // In one write, so that lines stay whole.
        let line = |happened: &event::Happened| {
            format!("{}\n", serde_json::to_string(&happened.body).unwrap())
        };
        let lines: String = happened.iter().map(line).collect();
        file.write_all(lines.as_bytes()).unwrap();
        Box::pin(std::future::ready(true))
    }
}
