//! The sessions that are watched: whose record it is, what becomes of it, and what the kernel says that it has lost.
//!
//! - [`before`]: what a node before us did not tell
//! - [`blind`]: when the kernel does not ask any more
//! - [`left`]: those without their first process
//! - [`programs`]: the programs of a node before us, until no session runs
//! - [`restore`]: those of a node before us
//! - [`rules`]: what they must not do, also when that changes

mod before;
mod blind;
mod left;
mod programs;
mod restore;
mod rules;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ebpf_abi::{Credit, Header, SESSIONS_MAX, Session as Counts, class, kind};
use futures::future::join_all;
use proto::event;
use proto::id::SessionId;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use zerocopy::FromBytes as _;

use self::before::Before;
use self::left::Left;
use crate::clock::boot_ns;
use crate::loss::{CLASS_NAMES, Lost, loss, losses, summary};
use crate::object::{LoadError, Maps, Object, PROGRAMS, Refusal};
use crate::pins;
use crate::pins::{Home, Kept, Pins};
use crate::record::{Body, Record};
use crate::rules::enforcer::{Enforcer, KEEP_IDLE};
use crate::translate::Translator;
use crate::writer::{self, Item, Records};
use crate::{Restore, Sink, Tier, Totals, Wanted, lock, reader};

/// See the module.
#[derive(Debug)]
pub(crate) struct Live {
    maps: Maps,
    tier: Tier,
    sessions: Mutex<Sessions>,
    next: AtomicU64,
    /// Held while rules are asked for and put in force, so that older ones never come after newer ones.
    renewing: Mutex<()>,
    runtime: Handle,
    /// Where it outlives us.
    pins: Option<Pins>,
    /// Holds programs and links.
    object: Mutex<Object>,
}

#[derive(Debug, Default)]
struct Sessions {
    by_number: HashMap<u64, Watched>,
    /// Those whose last task has ended, the oldest first: what others do with what they wrote is still theirs.
    over: VecDeque<u64>,
    /// Those that may be over, the oldest first.
    left: VecDeque<Left>,
    /// Records that are older have been read: nanoseconds since the machine's start.
    read: u64,
    looked: Option<Instant>,
    /// It is to be looked again soon.
    is_asked: bool,
    /// How often programs of ours were not run so far.
    passed_over: u64,
    totals: Totals,
    /// Those that have something pending.
    pending: Vec<u64>,
}

/// A session that is watched.
#[derive(Debug)]
struct Watched {
    /// The fields that all its events have.
    facts: event::Session,
    items: mpsc::UnboundedSender<Vec<Item>>,
    /// What was read and is not yet the writer's: to wake it for each record is dearer than the record.
    pending: Vec<Item>,
    /// The first process, whose end the session's waits for.
    leader: Option<u32>,
    settled: Option<oneshot::Sender<()>>,
    is_over: bool,
    /// Where its rules come from.
    rules: rules::Source,
    /// Where a node before us had come to.
    before: Option<Before>,
    /// What was told as lost so far.
    told: Counts,
}

impl Watched {
    fn send(&mut self, event: impl Into<event::Body>) {
        self.pending.push(Item::Event(Box::new(event::Happened::now(event))));
        self.flush();
    }

    fn flush(&mut self) {
        if !self.pending.is_empty() {
            // Fails only when the runtime stops.
            self.items.send(std::mem::take(&mut self.pending)).ok();
        }
    }

    /// Where the next record goes.
    fn records(&mut self) -> &mut Records {
        let is_open = matches!(self.pending.last(), Some(Item::Records(last)) if !last.is_full());
        if !is_open {
            self.pending.push(Item::Records(Records::default()));
        }
        match self.pending.last_mut() {
            Some(Item::Records(last)) => last,
            Some(Item::Event(_) | Item::Settled(_)) | None => unreachable!("pushed just now"),
        }
    }

    fn lost(&mut self, class: &str, reason: &str, count: u64) {
        self.send(loss(&self.facts, class, reason, Lost::of(count)));
    }

    /// Tells whoever waits when everything so far is durable.
    fn settle(&mut self) {
        if let Some(settled) = self.settled.take() {
            self.pending.push(Item::Settled(settled));
            self.flush();
        }
    }
}

/// A session that begins.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) number: u64,
    /// That its first process's doings are durable.
    pub(crate) settled: oneshot::Receiver<()>,
    /// That it must end, and why.
    pub(crate) unkept: oneshot::Receiver<String>,
}

/// What of a session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    FirstProcess,
    LastTask,
}

impl Live {
    /// Loads the programs and begins to read.
    pub(crate) fn start(home: Option<&Home>, restore: &Restore) -> Result<Arc<Self>, LoadError> {
        let runtime = Handle::try_current().map_err(|_| LoadError::Missing("a runtime"))?;
        let kept = home.map(|home| {
            let pins = Pins::open(home).map_err(LoadError::Pins)?;
            let loaded = Object::load(home.programs, Some(&pins)).inspect_err(|_| pins.remove())?;
            Ok((Some(pins), loaded))
        });
        let (pins, (object, maps, rings)) = match kept {
            Some(Ok(kept)) => kept,
            Some(Err(error)) => {
                let error: &dyn std::error::Error = &error as &LoadError;
                tracing::warn!(error, "sessions are lost sight of when this node ends");
                (None, Object::load(PROGRAMS, None)?)
            }
            None => (None, Object::load(PROGRAMS, None)?),
        };
        let live = Arc::new(Self {
            maps,
            tier: if object.has_lsm() { Tier::A } else { Tier::B },
            sessions: Mutex::default(),
            next: AtomicU64::new(1),
            renewing: Mutex::default(),
            runtime,
            pins,
            object: Mutex::new(object),
        });
        live.restore(restore);
        if let Some(home) = home {
            programs::replace(&live, home.programs).map_err(LoadError::Thread)?;
        }
        reader::start(Arc::downgrade(&live), rings).map_err(LoadError::Thread)?;
        live.runtime.spawn(give_back());
        Ok(live)
    }

    pub(crate) fn tier(&self) -> Tier {
        self.tier
    }

    pub(crate) fn coverage(&self) -> BTreeMap<String, Result<(), Refusal>> {
        lock(&self.object).coverage.clone()
    }

    pub(crate) fn totals(&self) -> Totals {
        let sessions = lock(&self.sessions);
        Totals { sessions: u64::try_from(sessions.live()).unwrap_or(u64::MAX), ..sessions.totals }
    }

    pub(crate) fn marks(&self) -> RawFd {
        self.maps.marks()
    }

    /// No task is watched.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.sessions).is_idle()
    }

    /// A new session.
    pub(crate) fn watch(
        self: &Arc<Self>,
        sink: Arc<dyn Sink>,
        wanted: Wanted,
    ) -> io::Result<Begun> {
        let unwatched = self.can_keep(&wanted.rules)?;
        if let Err(error) = self.tell_if_blind(&mut lock(&self.sessions))
            && (wanted.strict || wanted.rules.enforces())
        {
            return Err(crate::unenforced(&format!("the kernel does not ask any more: {error}")));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let counts = Counts {
            tasks: 1,
            classes: wanted.classes(),
            strict: wanted.strict.into(),
            ..Counts::default()
        };
        self.maps.rules.assign(number, &wanted.rules)?;
        if let Err(error) = self.insert(number, &counts) {
            self.maps.rules.release(number);
            return Err(error);
        }
        let (say, settled) = oneshot::channel();
        if let Err(error) = self.remember(number, &*sink, &wanted) {
            self.forget(number);
            return Err(error);
        }
        let mut watched = self.watched(number, sink, wanted.classes(), Some(say));
        watched.told = counts;
        watched.rules_unwatched(unwatched);
        let unkept = watched.rules.listen();
        lock(&self.sessions).by_number.insert(number, watched);
        Ok(Begun { number, settled, unkept })
    }

    /// Makes room where those that are over take it.
    fn insert(&self, number: u64, counts: &Counts) -> io::Result<()> {
        let mut sessions = lock(&self.sessions);
        while u32::try_from(sessions.by_number.len()).is_ok_and(|all| all >= SESSIONS_MAX) {
            if !self.forget_oldest(&mut sessions) {
                let why = format!("{SESSIONS_MAX} sessions are watched, and no more can be");
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, why));
            }
        }
        drop(sessions);
        self.maps.insert(number, counts)
    }

    /// Of those that are over; false where none is.
    fn forget_oldest(&self, sessions: &mut Sessions) -> bool {
        let Some(oldest) = sessions.over.pop_front() else { return false };
        sessions.by_number.remove(&oldest);
        self.remove(oldest);
        true
    }

    fn watched(
        self: &Arc<Self>,
        number: u64,
        sink: Arc<dyn Sink>,
        classes: u32,
        settled: Option<oneshot::Sender<()>>,
    ) -> Watched {
        let (items, received) = mpsc::unbounded_channel();
        let (weak, facts) = (Arc::downgrade(self), sink.facts());
        let rules = rules::Source::new(sink.roles());
        let base = self.maps.credit_of(number);
        let to = (sink, Translator::new(classes));
        self.runtime.spawn(writer::write(weak, number, to, received, base));
        Watched {
            facts,
            items,
            pending: Vec::new(),
            leader: None,
            settled,
            is_over: false,
            rules,
            before: None,
            told: Counts::default(),
        }
    }

    /// For a node after us.
    fn remember(&self, number: u64, sink: &dyn Sink, wanted: &Wanted) -> io::Result<()> {
        let Some(pins) = &self.pins else { return Ok(()) };
        pins.remember(&Kept {
            number,
            facts: sink.facts(),
            classes: wanted.classes(),
            roles: sink.roles().to_vec(),
            rules: serde_json::to_value(&wanted.rules)?,
            boot: pins::boot(),
        })
    }

    pub(crate) fn started(&self, number: u64, leader: u32) {
        if let Some(watched) = lock(&self.sessions).by_number.get_mut(&number) {
            watched.leader = Some(leader);
        }
    }

    pub(crate) fn forget(&self, number: u64) {
        let mut sessions = lock(&self.sessions);
        sessions.by_number.remove(&number);
        // What could not be executed has ended, too.
        sessions.over.retain(|over| *over != number);
        drop(sessions);
        self.remove(number);
    }

    fn remove(&self, number: u64) {
        self.maps.remove(number);
        if let Some(pins) = &self.pins {
            pins.forget(number);
        }
    }

    /// The node ends: what was read is made durable first; what goes on stays, and what could not be made so.
    pub(crate) async fn leave(&self) {
        let mut settled = Vec::new();
        for watched in lock(&self.sessions).by_number.values_mut() {
            let (say, hear) = oneshot::channel();
            watched.pending.push(Item::Settled(say));
            watched.flush();
            settled.push(hear);
        }
        let is_settled = timeout(SETTLE_WITHIN, join_all(settled)).await.is_ok();
        let sessions = lock(&self.sessions);
        if let Some(pins) = &self.pins
            && is_settled
            && sessions.is_idle()
        {
            for number in &sessions.over {
                pins.forget(*number);
            }
            pins.remove();
        }
    }

    /// What of a session's records is done with.
    pub(crate) fn done(&self, number: u64, credit: Credit) {
        self.maps.credit(number, credit);
    }

    /// Records, in the order of time.
    pub(crate) fn take<'a>(&self, records: impl Iterator<Item = &'a [u8]>) {
        let mut sessions = lock(&self.sessions);
        let mut ended = Vec::new();
        for bytes in records {
            match Record::read(bytes) {
                Ok(record) => ended.extend(sessions.take(&self.maps.rules, &record, bytes)),
                Err(error) => {
                    tracing::error!(%error, "a record of the kernel cannot be read");
                    sessions.unreadable(bytes);
                }
            }
        }
        for number in std::mem::take(&mut sessions.pending) {
            if let Some(watched) = sessions.by_number.get_mut(&number) {
                watched.flush();
            }
        }
        for (number, what) in ended {
            self.ended(&mut sessions, number, what);
        }
    }

    fn ended(&self, sessions: &mut Sessions, number: u64, what: Ended) {
        let counts = self.account(sessions, number);
        if what == Ended::LastTask {
            self.tell_passed_over(sessions);
        }
        let tier = self.tier.name().to_owned();
        let Some(watched) = sessions.by_number.get_mut(&number) else { return };
        watched.settle();
        match what {
            Ended::FirstProcess => sessions.left.push_back(Left::now(number, false)),
            Ended::LastTask => {
                if let Some(counts) = counts {
                    watched.compare_last(records_of(&counts));
                    watched.send(summary(watched.facts.clone(), tier, &counts));
                }
                if !std::mem::replace(&mut watched.is_over, true) {
                    sessions.over.push_back(number);
                }
                while sessions.over.len() > OVER_MAX && self.forget_oldest(sessions) {}
            }
        }
    }

    /// Looks after all sessions, from time to time: which go on without their first process, and what was lost of those of
    /// which nothing comes any more. Where the rings are empty, `read` says up to when they have been read.
    pub(crate) fn look(&self, read: Option<u64>) {
        let mut sessions = lock(&self.sessions);
        sessions.read = read.unwrap_or(sessions.read);
        while let Some(left) = sessions.left.front().copied()
            && left.had_time(sessions.read)
        {
            sessions.left.pop_front();
            self.left_alone(&mut sessions, left);
        }
        let wait = if sessions.is_asked { LOOK_WHEN_ASKED } else { LOOK_EVERY };
        if sessions.looked.is_some_and(|looked| looked.elapsed() < wait) {
            return;
        }
        sessions.is_asked = false;
        sessions.looked = Some(Instant::now());
        self.maps.rules.sweep(KEEP_IDLE);
        let live = sessions.by_number.iter().filter(|(_, watched)| !watched.is_over);
        let numbers: Vec<_> = live.map(|(number, _)| *number).collect();
        for number in numbers {
            // The record of its end may have been beyond the budget, or is still on its way.
            if self.account(&mut sessions, number).is_some_and(|counts| counts.tasks == 0) {
                sessions.left.push_back(Left::now(number, true));
            }
        }
        if !sessions.is_idle() {
            self.tell_passed_over(&mut sessions);
            // Of what fails all are told.
            self.tell_if_blind(&mut sessions).ok();
        }
    }

    /// Programs of ours that the kernel did not run: whose record it was to be is not known.
    fn tell_passed_over(&self, sessions: &mut Sessions) {
        let passed_over = lock(&self.object).passed_over();
        let count = passed_over.saturating_sub(sessions.passed_over);
        sessions.passed_over = passed_over;
        if count > 0 {
            for watched in sessions.by_number.values_mut().filter(|watched| !watched.is_over) {
                watched.lost("program", "preempted", count);
            }
        }
    }

    /// Somebody has taken a session out of the kernel's map: it is put back, and told of.
    fn heal(&self, number: u64, watched: &mut Watched) {
        let counts = Counts { tasks: watched.told.tasks.max(1), ..watched.told };
        if let Err(error) = self.maps.restore(number, &counts) {
            tracing::error!(%error, number, "a session that was taken out of the kernel's map");
        }
        watched.lost("task", "tamper", 1);
    }

    /// Tells what the kernel has lost of a session since the last time.
    fn account(&self, sessions: &mut Sessions, number: u64) -> Option<Counts> {
        let watched = sessions.by_number.get_mut(&number)?;
        let Some(counts) = self.maps.counts(number) else {
            self.heal(number, watched);
            return None;
        };
        // A task of the session had it put back already.
        if counts
            .tallies
            .iter()
            .zip(&watched.told.tallies)
            .any(|(now, told)| now.records < told.records)
        {
            watched.lost("task", "tamper", 1);
            watched.told = counts;
            watched.before = None;
        }
        watched.compare_all(boot_ns(), sessions.read, records_of(&counts));
        for loss in losses(&watched.facts, &watched.told, &counts) {
            sessions.totals.lost += loss.count;
            watched.send(loss);
        }
        watched.told = counts;
        Some(counts)
    }
}

impl Sessions {
    /// How many have a task, as far as is known.
    fn live(&self) -> usize {
        self.by_number.len().saturating_sub(self.over.len())
    }

    /// No task is watched.
    fn is_idle(&self) -> bool {
        self.live() == 0
    }

    /// What a record means for whom; the session, where its first process or its last task has ended.
    fn take(
        &mut self,
        rules: &Enforcer,
        record: &Record<'_>,
        bytes: &[u8],
    ) -> Option<(u64, Ended)> {
        let header = record.header;
        let number = header.session;
        self.read = header.boot_ns;
        let other = if let Body::Trace { trace, .. } = &record.body {
            Some(self.sid(trace.other_session))
        } else {
            None
        };
        let class = class_of(header.kind);
        if let Some(records) = self.totals.records.get_mut(class) {
            *records += 1;
        }
        if header.kind == kind::KERNEL {
            // It may be about our maps.
            self.is_asked = true;
        }
        let watched = self.by_number.get_mut(&number)?;
        // The first that is heard of it, also where its parent has not told us yet.
        watched.leader.get_or_insert(header.tgid);
        let ended = if record.body == Body::Over {
            Some(Ended::LastTask)
        } else if header.kind == kind::EXIT && watched.leader == Some(header.tgid) {
            Some(Ended::FirstProcess)
        } else {
            None
        };
        if watched.is_over && ended != Some(Ended::LastTask) && header.kind != kind::NET {
            // Somebody else does what it has prepared. Its connections may outlive it.
            watched.is_over = false;
            self.over.retain(|over| *over != number);
        }
        watched.compare(class, header.sequence);
        if watched.pending.is_empty() {
            self.pending.push(number);
        }
        let records = watched.records();
        records.push(bytes);
        if let Some(other) = other {
            records.about_two(other);
        }
        if let Body::Denial { denial, .. } = &record.body {
            records.about_rule(rules.name(denial.policy, denial.rule));
        }
        ended.map(|ended| (number, ended))
    }

    /// A record that is none: nothing of ours, or nothing like it, writes into the rings.
    fn unreadable(&mut self, bytes: &[u8]) {
        let Ok((header, _)) = Header::read_from_prefix(bytes) else { return };
        let class = CLASS_NAMES.get(class_of(header.kind)).copied().unwrap_or_default();
        if let Some(watched) = self.by_number.get_mut(&header.session) {
            watched.lost(class, "unreadable", 1);
        }
    }

    fn sid(&self, number: u64) -> Option<SessionId> {
        self.by_number.get(&number).map(|watched| watched.facts.sid.clone())
    }
}

fn records_of(counts: &Counts) -> [u64; 3] {
    counts.tallies.map(|tally| tally.records)
}

/// In which ring records of a kind come.
pub(crate) fn class_of(record_kind: u16) -> usize {
    match record_kind {
        kind::FILE => class::FILE,
        kind::NET => class::NET,
        _ => class::CONTROL,
    }
}

/// What the kernel says of its types takes 30 MiB to be read, once. The allocator keeps what was freed for a second, and then
/// gives it back to the machine when a large block is freed, which may be never.
async fn give_back() {
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(std::hint::black_box(Vec::<u8>::with_capacity(64 << 20)));
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_WHEN_ASKED: Duration = Duration::from_millis(100);
/// How long a node that ends waits for its disk.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);
/// Sessions that are over and not yet forgotten.
const OVER_MAX: usize = 4096;
