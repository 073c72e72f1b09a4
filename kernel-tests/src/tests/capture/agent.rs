//! A node's part in cases in which the node dies: the capture with a home, in a process of its own, as
//! `kernel-tests agent NUMBER FOLDER`, or with `begin` behind it for the first, which starts the deed in a session.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use capture::{Capture, Home, Sink, Wanted};
use futures::future::BoxFuture;
use proto::capture_rules::CaptureRules;
use proto::event;

use super::stage::facts_of;

/// See the module.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let [number, folder, begin @ ..] = arguments else { return ExitCode::FAILURE };
    let (number, folder) = (number.to_string_lossy().into_owned(), PathBuf::from(folder));
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    let home = Home { name: format!("kernel-tests-{number}"), folder: folder.join("agent") };
    let log = |folder: &Path, facts| -> Arc<dyn Sink> {
        Arc::new(Log { path: folder.join(TOLD), facts })
    };
    let to = folder.clone();
    let capture =
        runtime.block_on(async { Capture::start(Some(&home), &move |facts| log(&to, facts)) });
    println!("pid {}", std::process::id());
    let watch = (!begin.is_empty()).then(|| {
        let sink: Arc<dyn Sink> = log(&folder, facts_of([number.parse().unwrap(), 1]));
        let rules = CaptureRules::default();
        let wanted = Wanted { command: true, disk: true, network: true, strict: false, rules };
        let mut watch = capture.watch(&sink, wanted).unwrap().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["deed", &number, ""]).arg(&folder).current_dir(&folder);
        let facts = fs::File::create(folder.join(".facts")).unwrap();
        command.stdin(Stdio::null()).stderr(facts.try_clone().unwrap()).stdout(facts);
        println!("leader {}", watch.spawn(&mut command).unwrap().id());
        watch
    });
    println!("ready");
    while !folder.join(STOP).exists() {
        thread::sleep(Duration::from_millis(5));
    }
    drop(watch);
    capture.leave();
    ExitCode::SUCCESS
}

/// Events, a line each.
pub(super) const TOLD: &str = "told.jsonl";
/// A file that ends it.
pub(super) const STOP: &str = "stop";

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

    fn record(&self, bodies: Vec<event::Body>) -> BoxFuture<'_, bool> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).unwrap();
        // In one write, so that lines stay whole.
        let line = |body| format!("{}\n", serde_json::to_string(body).unwrap());
        let lines: String = bodies.iter().map(line).collect();
        file.write_all(lines.as_bytes()).unwrap();
        Box::pin(std::future::ready(true))
    }
}
