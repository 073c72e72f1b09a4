//! The sessions that are watched: whose record it is, what becomes of it, and what the kernel says that it has lost.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ebpf_abi::{Session as Counts, class, kind};
use proto::event;
use proto::id::SessionId;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::object::{LoadError, Maps, Object, Refusal};
use crate::record::{Body, Record};
use crate::translate::{Context, Translator};
use crate::writer::{self, Item};
use crate::{Sink, Tier, Wanted, reader};

/// See the module.
#[derive(Debug)]
pub(crate) struct Live {
    maps: Maps,
    coverage: BTreeMap<String, Result<(), Refusal>>,
    tier: Tier,
    sessions: Mutex<Sessions>,
    next: AtomicU64,
    runtime: Handle,
    /// Holds programs and links.
    _object: Object,
}

#[derive(Debug, Default)]
struct Sessions {
    by_number: HashMap<u64, Watched>,
    looked: Option<Instant>,
}

/// A session that is watched.
#[derive(Debug)]
struct Watched {
    sink: Arc<dyn Sink>,
    translator: Translator,
    items: mpsc::UnboundedSender<Item>,
    /// The first process, whose end the session's waits for.
    leader: Option<u32>,
    settled: Option<oneshot::Sender<()>>,
    /// What was told as lost so far.
    told: Counts,
}

impl Watched {
    fn send(&self, event: event::Body) {
        // Fails only when the runtime stops.
        self.items.send(Item::Event(Box::new(event))).ok();
    }
}

impl Live {
    /// Loads the programs and begins to read.
    pub(crate) fn start() -> Result<Arc<Self>, LoadError> {
        let runtime = Handle::try_current().map_err(|_| LoadError::Missing("a runtime"))?;
        let (object, maps, rings) = Object::load()?;
        let live = Arc::new(Self {
            maps,
            coverage: object.coverage.clone(),
            tier: if object.has_lsm() { Tier::A } else { Tier::B },
            sessions: Mutex::default(),
            next: AtomicU64::new(1),
            runtime,
            _object: object,
        });
        reader::start(Arc::downgrade(&live), rings).map_err(LoadError::Thread)?;
        Ok(live)
    }

    pub(crate) fn tier(&self) -> Tier {
        self.tier
    }

    pub(crate) fn coverage(&self) -> BTreeMap<String, Result<(), Refusal>> {
        self.coverage.clone()
    }

    pub(crate) fn marks(&self) -> RawFd {
        self.maps.marks()
    }

    /// Nobody is watched.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.sessions).by_number.is_empty()
    }

    /// A new session: its number, and what says that its first process's doings are durable.
    pub(crate) fn watch(
        self: &Arc<Self>,
        sink: Arc<dyn Sink>,
        wanted: Wanted,
    ) -> io::Result<(u64, oneshot::Receiver<()>)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let counts = Counts {
            tasks: 1,
            classes: wanted.classes(),
            strict: wanted.strict.into(),
            ..Counts::default()
        };
        self.maps.insert(number, &counts)?;
        let (items, received) = mpsc::unbounded_channel();
        let (say, settled) = oneshot::channel();
        let writer = writer::write(self.weak(), number, Arc::clone(&sink), received);
        self.runtime.spawn(writer);
        let watched = Watched {
            sink,
            translator: Translator::new(wanted.classes()),
            items,
            leader: None,
            settled: Some(say),
            told: Counts::default(),
        };
        lock(&self.sessions).by_number.insert(number, watched);
        Ok((number, settled))
    }

    fn weak(self: &Arc<Self>) -> Weak<Self> {
        Arc::downgrade(self)
    }

    pub(crate) fn started(&self, number: u64, leader: u32) {
        if let Some(watched) = lock(&self.sessions).by_number.get_mut(&number) {
            watched.leader = Some(leader);
        }
    }

    pub(crate) fn forget(&self, number: u64) {
        lock(&self.sessions).by_number.remove(&number);
        self.maps.remove(number);
    }

    /// So many bytes of a session's records are done with.
    pub(crate) fn done(&self, number: u64, bytes: [u64; 3]) {
        self.maps.credit(number, bytes);
    }

    /// Records, in the order of time.
    pub(crate) fn take<'a>(&self, records: impl Iterator<Item = &'a [u8]>) {
        let mut sessions = lock(&self.sessions);
        let mut ended = Vec::new();
        for bytes in records {
            match Record::read(bytes) {
                Ok(record) => ended.extend(sessions.take(record, bytes.len())),
                Err(error) => tracing::error!(%error, "a record of the kernel cannot be read"),
            }
        }
        for (number, is_over) in ended {
            self.account(&mut sessions, number);
            sessions.settle(number);
            if is_over {
                sessions.by_number.remove(&number);
                self.maps.remove(number);
            }
        }
    }

    /// Looks after all sessions, from time to time: what was lost of those of which nothing comes any more, and which are
    /// over although nobody could say so.
    pub(crate) fn look(&self) {
        let mut sessions = lock(&self.sessions);
        if sessions.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return;
        }
        sessions.looked = Some(Instant::now());
        let numbers: Vec<_> = sessions.by_number.keys().copied().collect();
        for number in numbers {
            if self.account(&mut sessions, number).is_some_and(|counts| counts.tasks == 0) {
                sessions.settle(number);
            }
        }
    }

    /// Tells what the kernel has lost of a session since the last time.
    fn account(&self, sessions: &mut Sessions, number: u64) -> Option<Counts> {
        let counts = self.maps.counts(number)?;
        let watched = sessions.by_number.get_mut(&number)?;
        for loss in losses(&watched.sink.facts(), &watched.told, &counts) {
            watched.send(loss);
        }
        watched.told = counts;
        Some(counts)
    }
}

impl Sessions {
    /// What a record means for whom; the session, where its first process or its last has ended.
    fn take(&mut self, record: Record<'_>, length: usize) -> Option<(u64, bool)> {
        let header = record.header;
        let number = header.session;
        let others: Option<SessionId> = match &record.body {
            Body::Trace { trace, .. } => self.sid(trace.other_session),
            _ => None,
        };
        let watched = self.by_number.get_mut(&number)?;
        let over = record.body == Body::Over;
        let leader_ends = matches!(record.body, Body::Exit { .. })
            && watched.leader.is_none_or(|leader| leader == header.tgid)
            && watched.settled.is_some();
        let session = watched.sink.facts();
        let context = Context { session: &session, session_of: &|_| others.clone() };
        for event in watched.translator.translate(&context, record) {
            watched.send(event);
        }
        watched.items.send(Item::Done(class_of(header.kind), length)).ok();
        (over || leader_ends).then_some((number, over))
    }

    fn sid(&self, number: u64) -> Option<SessionId> {
        self.by_number.get(&number).map(|watched| watched.sink.facts().sid)
    }

    /// Tells whoever waits when everything so far is durable.
    fn settle(&mut self, number: u64) {
        let Some(watched) = self.by_number.get_mut(&number) else { return };
        if let Some(settled) = watched.settled.take() {
            watched.items.send(Item::Settled(settled)).ok();
        }
    }
}

/// In which ring records of a kind come.
fn class_of(record_kind: u16) -> usize {
    match record_kind {
        kind::FILE => class::FILE,
        kind::NET => class::NET,
        _ => class::CONTROL,
    }
}

/// What was lost between two looks.
fn losses(session: &event::Session, told: &Counts, counts: &Counts) -> Vec<event::Body> {
    let mut losses = Vec::new();
    let mut add = |class: &str, reason: &str, count: u64, first: u64, last: u64| {
        if count > 0 {
            let (class, reason) = (class.to_owned(), reason.to_owned());
            let session = session.clone();
            losses.push(event::SessionLoss { session, class, reason, count, first, last }.into());
        }
    };
    for ((name, before), now) in CLASS_NAMES.iter().zip(&told.tallies).zip(&counts.tallies) {
        let first = if before.lost_last == 0 { now.lost_first } else { before.lost_last + 1 };
        let (ring, budget) = (
            now.lost_ring.saturating_sub(before.lost_ring),
            now.lost_budget.saturating_sub(before.lost_budget),
        );
        add(name, "ring", ring, first, now.lost_last);
        add(name, "budget", budget, first, now.lost_last);
    }
    add("task", "", counts.unmarked.saturating_sub(told.unmarked), 0, 0);
    losses
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const CLASS_NAMES: [&str; 3] = ["control", "file", "network"];
const LOOK_EVERY: Duration = Duration::from_secs(1);
