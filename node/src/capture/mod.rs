//! What sessions really do, from the kernel: programs and their ends, whatever a terminal shows. The kernel programs of
//! `ebpf/` write records of tasks that are marked; here they become events of their session.
//!
//! - [`object`]: loads the programs, and says which the kernel takes
//! - [`record`]: bytes to records
//! - [`translate`]: records to events
//!
//! A session's first process is marked before it executes anything ([`crate::sys::child`]); what it starts inherits the
//! mark. The session is watched until the last of its tasks has ended, also after logout. When records come faster than
//! their events become durable, the ring fills, and the kernel counts what it had no room for: `session.loss` says so.

mod object;
mod record;
mod translate;

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use ebpf_abi::Mark;
use futures::StreamExt as _;
use proto::event;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{interval, timeout};
use tokio_stream::wrappers::ReceiverStream;

use self::object::{LoadError, Object};
use self::record::{Body, Record};
use self::translate::Translator;
use crate::session::Session;

/// What this machine's kernel lets us see, and the sessions that are watched.
#[derive(Debug)]
pub(crate) struct Capture(Result<Arc<Live>, LoadError>);

#[derive(Debug)]
struct Live {
    object: Mutex<Object>,
    marks: RawFd,
    sessions: Mutex<HashMap<u64, Watched>>,
    next: AtomicU64,
}

/// A session that is watched.
#[derive(Debug)]
struct Watched {
    session: Arc<Session>,
    translator: Translator,
    events: mpsc::Sender<Item>,
    /// The first process, whose end the session's waits for.
    leader: Option<u32>,
    settled: Option<oneshot::Sender<()>>,
    lost: u64,
    unmarked: u64,
}

/// What a session's writer is given.
#[derive(Debug)]
enum Item {
    Event(Box<event::Body>),
    Settled(oneshot::Sender<()>),
}

/// What the child needs to mark itself, until it runs; dropped before that, nothing is watched.
#[derive(Debug)]
pub(crate) struct Watch {
    live: Arc<Live>,
    number: u64,
    settled: Option<oneshot::Receiver<()>>,
    started: bool,
}

impl Capture {
    /// Loads what the kernel takes, and reads what it tells. Never an error: a machine on which nothing can be captured is
    /// a node all the same, and says why.
    pub(crate) fn start() -> Self {
        let loaded = Object::load().and_then(|(object, ring)| {
            let marks = object.marks().ok_or(LoadError::Missing("marks"))?;
            let live = Arc::new(Live {
                object: Mutex::new(object),
                marks,
                sessions: Mutex::default(),
                next: AtomicU64::new(1),
            });
            let ring =
                crate::sys::poll::register_ring(ring).map_err(aya::maps::MapError::IoError)?;
            tokio::spawn(read(Arc::downgrade(&live), ring));
            Ok(live)
        });
        match &loaded {
            Ok(live) => {
                let object = lock(&live.object);
                let tier = if object.has_lsm() { "A" } else { "B" };
                tracing::info!(tier, "sessions are captured");
                for (name, refusal) in &object.coverage {
                    if let Err(refusal) = refusal {
                        tracing::info!(program = name, %refusal, "the kernel refuses a program");
                    }
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
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(Err(LoadError::Missing("everything")))
    }

    /// Watches a session that is about to begin; `None` where nothing can be captured.
    ///
    /// # Errors
    /// There is no room for another.
    pub(crate) fn watch(&self, session: &Arc<Session>) -> io::Result<Option<Watch>> {
        let Ok(live) = &self.0 else { return Ok(None) };
        let number = live.next.fetch_add(1, Ordering::Relaxed);
        lock(&live.object).sessions.insert(number)?;
        let (events, items) = mpsc::channel(EVENTS_MAX);
        let (say, settled) = oneshot::channel();
        tokio::spawn(write(Arc::clone(session), items));
        let watched = Watched {
            session: Arc::clone(session),
            translator: Translator::default(),
            events,
            leader: None,
            settled: Some(say),
            lost: 0,
            unmarked: 0,
        };
        lock(&live.sessions).insert(number, watched);
        Ok(Some(Watch { live: Arc::clone(live), number, settled: Some(settled), started: false }))
    }
}

impl Watch {
    /// For [`crate::sys::child`]: the map and what is put there.
    pub(crate) fn mark(&self) -> (RawFd, Mark) {
        (self.live.marks, Mark { session: self.number })
    }

    /// The program runs.
    pub(crate) fn started(&mut self, leader: u32) {
        self.started = true;
        if let Some(watched) = lock(&self.live.sessions).get_mut(&self.number) {
            watched.leader = Some(leader);
        }
    }

    /// Waits until what the first process did is durable, so that the session's end comes after it; not for long.
    pub(crate) async fn settled(&mut self) {
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

impl Live {
    fn forget(&self, number: u64) {
        lock(&self.sessions).remove(&number);
        lock(&self.object).sessions.remove(number);
    }

    /// What a record means for whom; nothing where nobody is watched any more.
    fn take(&self, bytes: &[u8]) -> Option<(mpsc::Sender<Item>, Vec<Item>)> {
        let record = match Record::read(bytes) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(%error, "a record of the kernel cannot be read");
                return None;
            }
        };
        let number = record.header.session;
        let mut sessions = lock(&self.sessions);
        let watched = sessions.get_mut(&number)?;
        let over = record.body == Body::Over;
        let leader_ends = matches!(record.body, Body::Exit { .. })
            && watched.leader.is_none_or(|leader| leader == record.header.tgid);
        let facts = watched.session.facts();
        let translated = watched.translator.translate(&facts, record);
        let mut items: Vec<_> = translated.into_iter().map(Box::new).map(Item::Event).collect();
        items.extend(self.losses(number, watched).map(Box::new).map(Item::Event));
        if over || leader_ends {
            items.extend(watched.settled.take().map(Item::Settled));
        }
        let events = watched.events.clone();
        drop(sessions);
        if over {
            self.forget(number);
        }
        Some((events, items))
    }

    /// What the kernel has lost of a session since the last time.
    fn losses(&self, number: u64, watched: &mut Watched) -> Option<event::Body> {
        let counts = lock(&self.object).sessions.counts(number)?;
        let count = counts.lost.saturating_sub(watched.lost);
        let unmarked = counts.unmarked.saturating_sub(watched.unmarked);
        if count == 0 && unmarked == 0 {
            return None;
        }
        let session = watched.session.facts();
        let first = if watched.lost == 0 { counts.lost_first } else { watched.lost };
        (watched.lost, watched.unmarked) = (counts.lost, counts.unmarked);
        let class = if count > 0 { "record" } else { "task" }.to_owned();
        let last = counts.lost_last;
        Some(event::SessionLoss { session, class, count: count.max(unmarked), first, last }.into())
    }

    /// Losses of all sessions, also of those of which nothing comes any more.
    fn all_losses(&self) -> Vec<(mpsc::Sender<Item>, Item)> {
        let mut sessions = lock(&self.sessions);
        let losses = sessions.iter_mut().filter_map(|(number, watched)| {
            let loss = self.losses(*number, watched)?;
            Some((watched.events.clone(), Item::Event(Box::new(loss))))
        });
        losses.collect()
    }
}

/// Reads the ring until the node ends.
async fn read(live: std::sync::Weak<Live>, mut ring: AsyncFd<RingBuf<MapData>>) {
    let mut ticks = interval(LOOK_FOR_LOSSES_EVERY);
    loop {
        let ready = tokio::select! {
            ready = ring.readable_mut() => Some(ready),
            _ = ticks.tick() => None,
        };
        let Some(live) = live.upgrade() else { return };
        match ready {
            Some(Ok(mut ready)) => {
                // All that is there: the ring tells of it once.
                while let Some(bytes) = ready.get_inner_mut().next() {
                    let taken = live.take(&bytes);
                    drop(bytes);
                    let Some((events, items)) = taken else { continue };
                    for item in items {
                        // Fails only when the runtime stops.
                        drop(events.send(item).await);
                    }
                }
                ready.clear_ready();
            }
            Some(Err(error)) => {
                tracing::error!(%error, "the kernel's records cannot be read any more");
                return;
            }
            None => {
                for (events, loss) in live.all_losses() {
                    drop(events.send(loss).await);
                }
            }
        }
    }
}

/// Makes a session's events durable, in order, many at a time.
async fn write(session: Arc<Session>, items: mpsc::Receiver<Item>) {
    let recorded = ReceiverStream::new(items).map(|item| async {
        match item {
            Item::Event(body) => {
                // Logged inside.
                drop(session.record_outcome(*body).await);
                None
            }
            Item::Settled(say) => Some(say),
        }
    });
    let mut recorded = std::pin::pin!(recorded.buffered(EVENTS_AT_ONCE));
    while let Some(settled) = recorded.next().await {
        if let Some(say) = settled {
            // Nobody waits any more after a while.
            say.send(()).ok();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Events of a session that wait to be written.
const EVENTS_MAX: usize = 4096;
/// Of them, how many are under way to the disk together.
const EVENTS_AT_ONCE: usize = 256;
/// The spool's own writing takes some milliseconds.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);
const LOOK_FOR_LOSSES_EVERY: Duration = Duration::from_secs(1);
