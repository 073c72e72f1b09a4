//! A session with rules: this program, marked, asked line by line; and what capture tells of it.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use capture::rules::model::Ruleset;
use capture::{Capture, Sink, Tier, Wanted, Watch};
use futures::future::BoxFuture;
use proto::capture_rules::CaptureRules;
use proto::event;
use proto::id::{HostId, Login, NodeName, RoleName, SessionId, UserName};
use tokio::runtime::Runtime;

use super::deeds;

/// Capture, and what it runs on.
pub(super) struct Stage {
    runtime: Runtime,
    capture: Capture,
}

/// Keeps what is told.
#[derive(Debug, Default)]
struct Told {
    denied: Mutex<Vec<event::SessionDenied>>,
    lost: Mutex<Vec<event::SessionLoss>>,
    /// One of its own.
    roles: Vec<RoleName>,
}

impl Sink for Told {
    fn facts(&self) -> event::Session {
        event::Session {
            sid: SessionId::from_random([1; 16]),
            namespace: "default".into(),
            user: UserName::parse("alice").unwrap(),
            login: Login::parse("root").unwrap(),
            server_id: HostId::from_random([2; 16]),
            server_hostname: NodeName::parse("guest").unwrap(),
            server_labels: proto::resource::Labels::new(),
            server_version: "0".into(),
            addr_remote: String::new(),
            proto: "ssh".into(),
        }
    }

    fn roles(&self) -> &[RoleName] {
        &self.roles
    }

    fn record(&self, happened: Vec<event::Happened>) -> BoxFuture<'_, bool> {
        for happened in happened {
            match happened.body {
                event::Body::SessionDenied(denied) => {
                    self.denied.lock().unwrap_or_else(PoisonError::into_inner).push(denied);
                }
                event::Body::SessionLoss(loss) => {
                    self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(loss);
                }
                _ => {}
            }
        }
        Box::pin(std::future::ready(true))
    }
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

    /// Whether a session with these rules may be.
    pub(super) fn watch(&self, rules: &CaptureRules) -> io::Result<()> {
        self.watched(rules).map(drop)
    }

    fn watched(&self, rules: &CaptureRules) -> io::Result<(Option<Watch>, Arc<Told>)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let role = format!("role-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let roles = vec![RoleName::parse(&role).unwrap()];
        let told = Arc::new(Told { roles, ..Told::default() });
        let sink: Arc<dyn Sink> = Arc::<Told>::clone(&told);
        // Denials are told whatever else is wanted.
        let wanted = Wanted {
            command: false,
            disk: false,
            network: false,
            strict: false,
            rules: rules.clone(),
        };
        let watch = self.runtime.block_on(async { self.capture.watch(&sink, wanted) })?;
        Ok((watch, told))
    }
}

/// A program that does deeds.
pub(super) struct Session {
    watch: Option<Watch>,
    told: Arc<Told>,
    seen: usize,
    child: Child,
    deeds: ChildStdin,
    results: BufReader<ChildStdout>,
}

impl Session {
    pub(super) fn begin(stage: &Stage, rules: &CaptureRules) -> Self {
        let (watch, told) = stage.watched(rules).unwrap();
        Self::with(watch, told)
    }

    /// The same outside sessions.
    pub(super) fn outside() -> Self {
        Self::with(None, Arc::default())
    }

    fn with(mut watch: Option<Watch>, told: Arc<Told>) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command.arg(deeds::ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = match &mut watch {
            Some(watch) => watch.spawn(&mut command).unwrap(),
            None => command.spawn().unwrap(),
        };
        let deeds = child.stdin.take().unwrap();
        let results = BufReader::new(child.stdout.take().unwrap());
        Self { watch, told, seen: 0, child, deeds, results }
    }

    /// Has it do a deed; what came of it, or nothing where it did not live to say.
    pub(super) fn ask(&mut self, line: &str) -> String {
        writeln!(self.deeds, "{line}").unwrap();
        let mut result = String::new();
        self.results.read_line(&mut result).unwrap();
        result.trim().to_owned()
    }

    /// Its role, and no other's, says something else now.
    pub(super) fn renew_rules(&self, stage: &Stage, rules: &CaptureRules) {
        let of = |roles: &[RoleName]| (roles == self.told.roles()).then(|| rules.clone());
        stage.capture.renew_rules(&of);
    }

    /// Its client is gone.
    pub(super) fn leave_alone(&mut self) {
        self.watch = None;
    }

    /// The rules that were told of since the last call: so many, and a moment later no more.
    pub(super) fn told(&mut self, expect: usize) -> Vec<String> {
        let until = Instant::now() + TOLD_WITHIN;
        while self.denials().len() < self.seen + expect && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        let told = self.denials();
        let new = told[self.seen.min(told.len())..].iter().map(|denied| denied.rule.clone());
        self.seen = told.len();
        new.collect()
    }

    /// All that was told.
    pub(super) fn denials(&self) -> Vec<event::SessionDenied> {
        self.told.denied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was told as lost, as soon as there is something.
    pub(super) fn lost(&self) -> event::SessionLoss {
        let until = Instant::now() + TOLD_WITHIN;
        loop {
            let lost =
                self.told.lost.lock().unwrap_or_else(PoisonError::into_inner).first().cloned();
            if let Some(lost) = lost {
                return lost;
            }
            assert!(Instant::now() < until, "nothing is told as lost");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it was killed by.
    pub(super) fn signal(&mut self) -> Option<i32> {
        let status = self.child.wait().unwrap();
        self.told(1);
        self.seen = 0;
        status.signal()
    }

    pub(super) fn end(self) {
        let Self { mut child, deeds, .. } = self;
        drop(deeds);
        child.wait().unwrap();
    }
}

/// As events have it.
pub(super) fn name_of(set: &Ruleset, rule: u32) -> String {
    capture::rules::name_of(&set.names, rule)
}

/// Of a file, in hexadecimal digits.
pub(super) fn sha256(path: &str) -> String {
    let output = Command::new("/bin/busybox").args(["sha256sum", path]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}

/// Far longer than it takes.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// Nothing is kept, so that nothing goes on.
fn no_sessions(_: proto::event::Session) -> Arc<dyn Sink> {
    unreachable!("a session of a node before")
}
