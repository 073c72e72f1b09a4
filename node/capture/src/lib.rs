//! What sessions really do, from the kernel: programs and their ends, files, connections, rights, whatever a terminal shows.
//! The kernel programs of `ebpf/` write records of tasks that are marked; here they become events of their session.
//!
//! - [`clock`]: when it happened
//! - [`hash`]: SHA-256 of programs
//! - [`mounts`]: what is mounted where
//! - [`object`]: loads the programs, and says which the kernel takes
//! - [`pins`]: what stays while no node runs
//! - [`reader`]: the rings, in the order of time
//! - [`record`]: bytes to records
//! - [`live`]: the sessions that are watched, and what is lost of them
//! - [`loss`]: what is lost of them, as events
//! - [`rules`]: what sessions must not do, from roles to the kernel's maps
//! - [`translate`]: records to events
//! - [`writer`]: events made durable, one session beside the other
//! - [`sys`]: marking a task
//!
//! A session's first process is marked before it executes anything ([`Marker`]); what it starts inherits the mark. The
//! session is watched until the last of its tasks has ended, also after logout. What a session has on its way to the disk is
//! bounded by the kernel: beyond it, and when a ring is full, the kernel counts what it drops, and `session.loss` says so.
#![deny(unsafe_code)]

mod clock;
mod hash;
mod live;
mod loss;
mod mounts;
mod object;
mod pins;
mod reader;
mod record;
pub mod rules;
mod sys;
mod translate;
mod writer;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::os::fd::RawFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebpf_abi::{Mark, class};
use futures::future::BoxFuture;
use proto::capture_rules::CaptureRules;
use proto::event;
use proto::id::RoleName;
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::live::{Begun, Live};
pub use self::object::{LoadError, PROGRAMS, Refusal, hook_of, stands_in};
pub use self::pins::Home;

/// Where a session's events go.
pub trait Sink: Send + Sync + Debug {
    /// The fields that every event of the session has.
    fn facts(&self) -> event::Session;
    /// The roles that the session's rules come from; where it names none, its rules stay what they are.
    fn roles(&self) -> &[RoleName] {
        &[]
    }
    /// Makes events durable, after those that it was called for before: whether it could. It is as patient as it can be,
    /// since what it does not take is told as lost.
    fn record(&self, happened: Vec<event::Happened>) -> BoxFuture<'_, bool>;
}

/// Makes a sink for a session that was begun under a node before.
pub type Restore = dyn Fn(event::Session) -> Arc<dyn Sink>;

/// What roles together say now that sessions must not do; `None` where they cannot be asked.
pub type RulesOf<'a> = dyn Fn(&[RoleName]) -> Option<CaptureRules> + 'a;

/// What this machine's kernel lets us see, and the sessions that are watched.
#[derive(Debug)]
pub struct Capture(Result<Arc<Live>, LoadError>);

/// How much a kernel can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// It asks before things happen (LSM programs).
    A,
    /// It tells what happened (tracepoints).
    B,
}

impl Tier {
    /// `A` or `B`.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }
}

/// What of a session is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Programs and their ends, rights, the kernel, other processes.
    pub command: bool,
    pub disk: bool,
    pub network: bool,
    /// What cannot be told must not happen (Tier A).
    pub strict: bool,
    /// What it must not do (Tier A).
    pub rules: CaptureRules,
}

impl Wanted {
    /// Classes of records, as bits.
    fn classes(&self) -> u32 {
        u32::from(self.command) << class::CONTROL
            | u32::from(self.disk) << class::FILE
            | u32::from(self.network) << class::NET
    }
}

/// What was told since the start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// By class: programs and what belongs to them, files, the network.
    pub records: [u64; 3],
    pub lost: u64,
    /// Sessions of which tasks live.
    pub sessions: u64,
}

/// A session that is watched; dropped before its program runs, it is forgotten.
#[derive(Debug)]
pub struct Watch {
    live: Arc<Live>,
    number: u64,
    mark: Mark,
    settled: Option<oneshot::Receiver<()>>,
    unkept: oneshot::Receiver<String>,
    started: bool,
}

/// What a child needs to mark itself.
#[derive(Debug)]
pub struct Marker {
    map: RawFd,
    mark: Mark,
}

impl Marker {
    /// Makes the calling process the session's first. Only system calls on numbers: fit for the time between fork and exec.
    ///
    /// # Errors
    /// The kernel's: no memory, no right to it. The program must not run then.
    pub fn mark_self(&self) -> io::Result<()> {
        sys::mark_self(self.map, self.mark)
    }
}

impl Capture {
    /// Loads what the kernel takes, and reads what it tells; within a runtime of tokio, to which the writers belong. Never an
    /// error: a machine on which nothing can be captured is a node all the same, and says why.
    ///
    /// With a home, programs and marks stay when the node ends, for one after it; `restore` gives the sinks of sessions that
    /// still go on.
    pub fn start(home: Option<&Home>, restore: &Restore) -> Self {
        let loaded = Live::start(home, restore);
        match &loaded {
            Ok(live) => {
                let tier = live.tier().name();
                tracing::info!(tier, "sessions are captured");
                // Most are refused for the same reason.
                let mut refused = BTreeMap::<String, Vec<String>>::new();
                for (name, done) in live.coverage() {
                    if let Err(refusal) = done {
                        refused.entry(refusal.to_string()).or_default().push(name);
                    }
                }
                for (reason, programs) in refused {
                    let programs = programs.join(" ");
                    tracing::info!(reason, programs, "the kernel refuses programs");
                }
            }
            Err(error) => {
                let error = error as &dyn std::error::Error;
                tracing::warn!(error, "sessions are not captured");
            }
        }
        Self(loaded)
    }

    /// Of a machine on which nothing can be captured.
    pub fn none() -> Self {
        Self(Err(LoadError::Missing("everything")))
    }

    /// Why nothing is captured; `None` where something is.
    pub fn failure(&self) -> Option<&LoadError> {
        self.0.as_ref().err()
    }

    /// How much can be told; `None` for nothing.
    pub fn tier(&self) -> Option<Tier> {
        self.0.as_ref().ok().map(|live| live.tier())
    }

    /// What came of each program, by name.
    pub fn coverage(&self) -> BTreeMap<String, Result<(), Refusal>> {
        self.0.as_ref().map(|live| live.coverage()).unwrap_or_default()
    }

    /// The programs are of a node before this one, and others: until no session runs.
    pub fn is_behind(&self) -> bool {
        self.0.as_ref().is_ok_and(|live| live.is_behind())
    }

    /// The node ends in an orderly way: what no session needs any more leaves the kernel.
    pub async fn leave(&self) {
        if let Ok(live) = &self.0 {
            live.leave().await;
        }
    }

    /// What was told since the start.
    pub fn totals(&self) -> Totals {
        self.0.as_ref().map(|live| live.totals()).unwrap_or_default()
    }

    /// Watches a session that is about to begin; `None` where nothing can be captured.
    ///
    /// # Errors
    /// There is no room for another; its rules cannot be kept here; or nothing can be held back that cannot be told, which a
    /// strict session asks for.
    pub fn watch(&self, sink: &Arc<dyn Sink>, wanted: Wanted) -> io::Result<Option<Watch>> {
        if wanted.rules.enforces() && self.0.is_err() {
            return Err(unenforced("nothing is captured here"));
        }
        if wanted.strict && self.tier() != Some(Tier::A) {
            return Err(io::Error::other(STRICT_NEEDS_LSM));
        }
        let Ok(live) = &self.0 else { return Ok(None) };
        let (classes, strict) = (wanted.classes(), wanted.strict.into());
        let Begun { number, settled, unkept } = live.watch(Arc::clone(sink), wanted)?;
        let mark = Mark { session: number, begun: 0, classes, strict };
        let (live, settled) = (Arc::clone(live), Some(settled));
        Ok(Some(Watch { live, number, mark, settled, unkept, started: false }))
    }

    /// Puts all sessions under what their roles say now, each from one moment on: those that run, those that go on without
    /// their client, and those that are over and whose work others may do. Of those that cannot be kept, see
    /// [`Watch::unkept`].
    pub fn renew_rules(&self, rules_of: &RulesOf<'_>) {
        if let Ok(live) = &self.0 {
            live.renew_all(rules_of);
        }
    }
}

impl Watch {
    /// For the child, which must not outlive this; see [`Marker::mark_self`].
    pub fn marker(&self) -> Marker {
        Marker { map: self.live.marks(), mark: self.mark }
    }

    /// Starts the session's program, marked before it executes anything, where nothing else is to be done between fork and
    /// exec. To be called once: a command that is started again marks its process again.
    ///
    /// # Errors
    /// The program cannot be started, or not be marked.
    pub fn spawn(&mut self, command: &mut Command) -> io::Result<Child> {
        let Marker { map, mark } = self.marker();
        let child = sys::spawn_marked(command, map, mark)?;
        self.started(child.id());
        Ok(child)
    }

    /// How much is told of the session.
    pub fn tier(&self) -> Tier {
        self.live.tier()
    }

    /// Puts a session that begins under what its roles say now, since they may have changed after they were asked.
    ///
    /// # Errors
    /// They cannot be kept here.
    pub fn renew_rules(&self, rules_of: &RulesOf<'_>) -> io::Result<()> {
        self.live.renew(self.number, rules_of)
    }

    /// Waits until the session's roles have rules that cannot be kept here, and says why: it must end. Where nobody waits
    /// any more, `session.loss` tells of it.
    pub async fn unkept(&mut self) -> String {
        match (&mut self.unkept).await {
            Ok(why) => why,
            Err(_) => std::future::pending().await,
        }
    }

    /// The program runs.
    pub fn started(&mut self, leader: u32) {
        self.started = true;
        self.live.started(self.number, leader);
    }

    /// Waits until what the first process did is durable, so that the session's end comes after it; not for long.
    pub async fn settled(&mut self) {
        if let Some(settled) = self.settled.take()
            && timeout(SETTLE_WITHIN, settled).await.is_err()
        {
            tracing::warn!(session = self.number, "events of a session come after its end");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.started {
            self.live.forget(self.number);
        }
    }
}

/// A session whose rules would not be kept is none.
fn unenforced(why: &str) -> io::Error {
    let text = format!("its roles have capture_rules, which this node cannot keep: {why}");
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Held by what tells of sessions: where that panics, the node ends rather than let them go on unseen. The kernel keeps what it has
/// to tell for the node after it.
#[derive(Debug)]
struct Vital;

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("what sessions do cannot be told any more: the node ends");
            std::process::abort();
        }
    }
}

/// Also after a panic elsewhere, which is no reason to stop telling.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const STRICT_NEEDS_LSM: &str = "a role records strictly, and this kernel cannot hold back what it cannot tell \
     (no BPF LSM programs): boot it with `bpf` among `lsm=`, or give the role `enhanced_recording: []`";
/// The spool's own writing takes some milliseconds.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);
