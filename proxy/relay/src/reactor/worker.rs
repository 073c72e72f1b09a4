//! One worker: waits for events, then drives each connection that has some, each for a bounded turn. Events are all
//! collected before any is handled, so that handling one cannot make another stale. A connection has one entry in
//! the table; an event for a connection that has gone is known by its generation.
//!
//! - [`listen`]: where they come from; [`end`]: how they end

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;
use tokio::sync::oneshot;

use super::inbox::Inbox;
use super::opening::{Opening, Ready, Step};
use super::poller::{Event, Key, Kind, Poller};
use super::timers::{Timers, Who};
use crate::chunk::Chunk;
use crate::direction::Kit;
use crate::pipes::{PIPES_MAX, Pipes};
use crate::port::Port;
use crate::port::socket::Readiness;
use crate::service::{OpeningFault, Place, Service};
use crate::stream::{Stream, Turn};
use crate::upgrade::Moved;
use crate::{End, Meters, Outcome, Shared, StreamId};

mod end;
mod listen;

use self::listen::Listener;

/// What the control plane asks.
pub(crate) enum Command {
    /// Relay.
    Carry(Box<Carry>),
    Cut(StreamId),
    /// Accept there.
    Listen(OwnedFd, Arc<dyn Service>),
    /// Accept no more.
    Unlisten,
    /// Give away what another process can go on with.
    Leave(oneshot::Sender<Vec<Moved>>),
    /// End everything.
    Stop,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Carry(_) => "Carry",
            Self::Cut(_) => "Cut",
            Self::Leave(_) => "Leave",
            Self::Listen(..) => "Listen",
            Self::Stop => "Stop",
            Self::Unlisten => "Unlisten",
        })
    }
}

/// A stream from the control plane.
pub(crate) struct Carry {
    pub(crate) id: StreamId,
    pub(crate) stream: Stream<Port>,
    pub(crate) tag: Bytes,
    pub(crate) done: oneshot::Sender<Outcome>,
}

/// A worker's state.
pub(crate) struct Worker {
    poller: Poller,
    inbox: Arc<Inbox<Command>>,
    shared: Arc<Shared>,
    number: usize,
    table: Slab<Entry>,
    generation: u32,
    ids: HashMap<StreamId, Who>,
    listeners: Vec<Listener>,
    timers: Timers,
    /// Connections that have something to do.
    ready: Queues,
    kit: Kit<Pipes>,
    meters: Meters,
    now: Instant,
    /// Accepting rests until then.
    paused_until: Option<Instant>,
    stopping: bool,
}

/// A connection's place in the table.
struct Entry {
    generation: u32,
    stage: Option<Stage>,
    deadline: Option<Instant>,
    queued: bool,
    /// The target's socket is watched.
    watches_target: bool,
}

enum Stage {
    Opening(Box<Opening>),
    Relaying(Box<Relaying>),
}

struct Relaying {
    id: StreamId,
    stream: Stream<Port>,
    tag: Bytes,
    report: Report,
}

/// Who learns of the end.
enum Report {
    Asker(oneshot::Sender<Outcome>),
    Service { service: Arc<dyn Service>, from: SocketAddr, _place: Option<Place> },
}

impl Worker {
    pub(crate) fn new(
        mut poller: Poller,
        inbox: Arc<Inbox<Command>>,
        shared: Arc<Shared>,
        number: usize,
    ) -> io::Result<Self> {
        poller.watch(Key::WAKE, inbox.wake())?;
        Ok(Self {
            poller,
            inbox,
            shared,
            number,
            table: Slab::new(),
            generation: 0,
            ids: HashMap::new(),
            listeners: Vec::new(),
            timers: Timers::default(),
            ready: Queues::default(),
            kit: Kit { chunk: Chunk::new(), pipes: Pipes::new(PIPES_MAX), held: 0 },
            meters: Meters::new(),
            now: Instant::now(),
            paused_until: None,
            stopping: false,
        })
    }

    /// Runs until [`Command::Stop`].
    pub(crate) fn run(mut self) {
        let mut events = Vec::new();
        while !self.stopping {
            let timeout = self.timeout();
            if let Err(error) = self.poller.wait(timeout, &mut events) {
                self.give_up("wait for events", &error);
            }
            self.inbox.awake();
            self.now = Instant::now();
            for event in events.drain(..) {
                self.note(event);
            }
            self.obey();
            self.expire();
            self.turns();
            if let Err(error) = self.poller.settle() {
                self.give_up("submit", &error);
            }
        }
        self.end_all();
    }

    /// Nothing that trying again would mend. A worker that is gone would leave its share of the listeners' connections
    /// waiting for ever, with nobody the wiser: the process ends, for its service manager to start it anew.
    fn give_up(&self, what: &str, error: &io::Error) -> ! {
        tracing::error!(%error, worker = self.number, "a worker of the data plane cannot {what}; the process ends");
        std::process::exit(EXIT_SOFTWARE);
    }

    /// How long to wait: not at all while there is something to do.
    fn timeout(&mut self) -> Option<Duration> {
        if !self.ready.is_empty() || !self.inbox.sleep() {
            return Some(Duration::ZERO);
        }
        let pause = self.paused_until.map(|until| until.saturating_duration_since(self.now));
        // Never zero by rounding, or a deadline a moment away would be waited for by spinning.
        let next = [self.timers.next_in(self.now), pause].into_iter().flatten().min();
        next.map(|wait| wait.max(Duration::from_millis(1)))
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Accepted { key, socket } => match socket {
                Ok(socket) => self.accepted(key, socket),
                Err(error) => self.accept_failed(&error),
            },
            Event::Ready { key, says } => {
                if key.kind() == Kind::Wake {
                    self.inbox.woken();
                } else {
                    self.socket_ready(key, says);
                }
            }
            Event::Unarmed { key } => self.rearm(key),
        }
    }

    fn socket_ready(&mut self, key: Key, says: Readiness) {
        let who = (key.index(), key.generation());
        let Some(entry) = live(&mut self.table, who) else { return };
        match (&mut entry.stage, key.kind()) {
            (Some(Stage::Opening(opening)), Kind::Client) => {
                opening.port.ready(says);
            }
            (Some(Stage::Opening(opening)), Kind::Target) => opening.target_ready(says),
            (Some(Stage::Relaying(relaying)), Kind::Client) => {
                relaying.stream.client.ready(says);
            }
            (Some(Stage::Relaying(relaying)), Kind::Target) => {
                relaying.stream.target.ready(says);
            }
            (Some(Stage::Opening(_)), _) | (Some(Stage::Relaying(_)), _) | (None, _) => {}
        }
        queue(&mut self.ready, entry, who);
    }

    /// A watch or an accept ended by itself.
    fn rearm(&mut self, key: Key) {
        let done = match key.kind() {
            Kind::Wake => self.poller.watch(Key::WAKE, self.inbox.wake()),
            Kind::Listener => {
                if let Some(listener) = self.listeners.get_mut(key.index() as usize) {
                    listener.armed = false;
                }
                self.arm_listeners();
                self.drop_closed_listeners();
                Ok(())
            }
            kind @ (Kind::Client | Kind::Target) => {
                let who = (key.index(), key.generation());
                let Some(entry) = live(&mut self.table, who) else { return };
                let socket = match (&entry.stage, kind) {
                    (Some(Stage::Opening(opening)), Kind::Client) => Some(opening.port.socket()),
                    (Some(Stage::Opening(opening)), _) => opening.target().map(AsFd::as_fd),
                    (Some(Stage::Relaying(relaying)), Kind::Client) => {
                        Some(relaying.stream.client.socket())
                    }
                    (Some(Stage::Relaying(relaying)), _) => Some(relaying.stream.target.socket()),
                    (None, _) => None,
                };
                socket.map_or(Ok(()), |socket| self.poller.watch(key, socket))
            }
        };
        if let Err(error) = done {
            tracing::error!(%error, "a socket could not be watched again");
        }
    }

    /// A fresh entry.
    fn insert(&mut self) -> Who {
        self.generation = self.generation.wrapping_add(1);
        let entry = Entry {
            generation: self.generation,
            stage: None,
            deadline: None,
            queued: false,
            watches_target: false,
        };
        let index = self.table.insert(entry);
        // The number of streams is bounded far below 2^30.
        (u32::try_from(index).unwrap_or(u32::MAX), self.generation)
    }

    /// What the control plane wants.
    fn obey(&mut self) {
        for _ in 0..COMMANDS_PER_TURN {
            let Some(command) = self.inbox.pop() else { return };
            match command {
                Command::Carry(carry) => {
                    let Carry { id, stream, tag, done } = *carry;
                    stream.count_held(&mut self.kit);
                    let who = self.insert();
                    self.relay(who, id, (stream, tag), Report::Asker(done));
                }
                Command::Cut(id) => {
                    if let Some(who) = self.ids.get(&id).copied() {
                        self.finish(who, End::Cut);
                    }
                }
                Command::Listen(socket, service) => {
                    self.listeners.push(Listener { socket, service, armed: false, closing: false });
                    self.arm_listeners();
                }
                Command::Unlisten => self.unlisten(),
                // Whoever asked may be gone: then the streams end here.
                Command::Leave(taker) => drop(taker.send(self.leave())),
                Command::Stop => self.stopping = true,
            }
        }
    }

    /// Whoever has waited too long.
    fn expire(&mut self) {
        if self.paused_until.is_some_and(|until| until <= self.now) {
            self.paused_until = None;
            self.arm_listeners();
        }
        while let Some(who) = self.timers.due(self.now) {
            let Some(entry) = live(&mut self.table, who) else { continue };
            entry.deadline = None;
            match &entry.stage {
                Some(Stage::Relaying(relaying)) => {
                    let deadline = relaying.stream.deadline();
                    if deadline.is_none_or(|deadline| deadline > self.now) {
                        self.set_deadline(who, deadline);
                    } else {
                        let end = relaying.stream.timed_out();
                        self.finish(who, end);
                    }
                }
                Some(Stage::Opening(_)) => {
                    if let Some(Stage::Opening(opening)) = entry.stage.take() {
                        let fault = match opening.target() {
                            Some(_) => OpeningFault::Dial(io::ErrorKind::TimedOut.into()),
                            None => OpeningFault::TimedOut,
                        };
                        tell(|| opening.service.failed(opening.from, &fault));
                        self.discard(who, opening.port.socket(), opening.target().map(AsFd::as_fd));
                    }
                }
                None => {}
            }
        }
    }

    /// Every stream with something to do has a turn, and a few of the connections that are not relayed yet: a flood of
    /// handshakes must not hold up those who are. Whoever is not done then comes again after the next look at events.
    fn turns(&mut self) {
        for _ in 0..self.ready.streams.len() {
            let Some(who) = self.ready.streams.pop_front() else { break };
            self.turn_of(who);
        }
        for _ in 0..OPENINGS_PER_TURN.min(self.ready.openings.len()) {
            let Some(who) = self.ready.openings.pop_front() else { break };
            self.turn_of(who);
        }
    }

    fn turn_of(&mut self, who: Who) {
        let Some(entry) = live(&mut self.table, who) else { return };
        entry.queued = false;
        match entry.stage.take() {
            Some(Stage::Opening(opening)) => {
                let chunk = &mut self.kit.chunk;
                let step = guarded(|| opening.step(chunk));
                self.took(who, step);
            }
            Some(Stage::Relaying(relaying)) => self.turn(who, relaying),
            None => {}
        }
    }

    fn turn(&mut self, who: Who, mut relaying: Box<Relaying>) {
        let (up, down) = relaying.stream.moved();
        let (kit, now) = (&mut self.kit, self.now);
        let stream = &mut relaying.stream;
        let turn = guarded(|| stream.turn(kit, now));
        let (up_now, down_now) = relaying.stream.moved();
        self.meters.from_client.increment(up_now.saturating_sub(up));
        self.meters.from_target.increment(down_now.saturating_sub(down));
        let Some(entry) = live(&mut self.table, who) else { return };
        let deadline = relaying.stream.deadline();
        entry.stage = Some(Stage::Relaying(relaying));
        match turn {
            Some(Turn::Waits) => {
                // Later deadlines are looked at when the earlier one has passed.
                let sooner = match (entry.deadline, deadline) {
                    (Some(set), Some(new)) => new < set,
                    (None, new) => new.is_some(),
                    (Some(_), None) => false,
                };
                if sooner {
                    self.set_deadline(who, deadline);
                }
            }
            Some(Turn::Again) => queue(&mut self.ready, entry, who),
            Some(Turn::Ended(end)) => self.finish(who, end),
            None => self.finish(who, End::Failed(io::Error::other("a fault of the relay"))),
        }
    }

    fn set_deadline(&mut self, who: Who, deadline: Option<Instant>) {
        let Some(entry) = live(&mut self.table, who) else { return };
        match deadline {
            Some(deadline) => self.timers.set(who, entry.deadline, deadline),
            None => self.timers.clear(who, entry.deadline),
        }
        entry.deadline = deadline;
    }

    /// What an opening's step came to.
    fn took(&mut self, who: Who, step: Option<Step>) {
        match step {
            Some(Step::Waits(opening)) => {
                let Some(entry) = live(&mut self.table, who) else { return };
                let again = opening.wants_turn();
                entry.stage = Some(Stage::Opening(Box::new(opening)));
                if again {
                    queue(&mut self.ready, entry, who);
                }
            }
            Some(Step::Dialing(opening)) => self.dialing(who, opening),
            Some(Step::Failed(opening, fault)) => {
                tell(|| opening.service.failed(opening.from, &fault));
                self.discard(who, opening.port.socket(), opening.target().map(AsFd::as_fd));
            }
            Some(Step::Relay(ready)) => self.relay_ready(who, *ready),
            Some(Step::Give(service, given)) => {
                self.discard(who, given.socket.as_fd(), None);
                tell(|| service.give(*given));
            }
            Some(Step::Refused(opening)) => self.discard(who, opening.port.socket(), None),
            None => self.forget(who),
        }
    }

    fn dialing(&mut self, who: Who, opening: Opening) {
        let key = Key::new(Kind::Target, who.0, who.1);
        let Some(entry) = live(&mut self.table, who) else { return };
        let watched = match opening.target() {
            Some(target) => self.poller.watch(key, target.as_fd()),
            None => Ok(()),
        };
        match watched {
            Ok(()) => {
                entry.watches_target = true;
                let deadline = opening.deadline;
                entry.stage = Some(Stage::Opening(Box::new(opening)));
                self.set_deadline(who, Some(deadline));
            }
            Err(error) => {
                let fault = OpeningFault::Dial(error);
                tell(|| opening.service.failed(opening.from, &fault));
                self.discard(who, opening.port.socket(), None);
            }
        }
    }

    fn relay_ready(&mut self, who: Who, ready: Ready) {
        let Ready { client, target, limits, place, tag, from, service } = ready;
        let id = self.shared.next_id();
        if let Err(_full) = self.shared.enter_worker(id, self.number) {
            tell(|| service.failed(from, &OpeningFault::Full));
            client.abort();
            self.discard(who, client.socket(), Some(target.socket()));
            return;
        }
        let stream = Stream::new(client, target, limits, self.now);
        self.relay(who, id, (stream, tag), Report::Service { service, from, _place: place });
    }

    /// Puts a stream into its entry and lets it begin.
    fn relay(
        &mut self,
        who: Who,
        id: StreamId,
        (stream, tag): (Stream<Port>, Bytes),
        report: Report,
    ) {
        let Some(entry) = live(&mut self.table, who) else { return };
        let keys = [Kind::Client, Kind::Target].map(|kind| Key::new(kind, who.0, who.1));
        let of_asker = matches!(report, Report::Asker(_));
        let watched =
            (if of_asker { self.poller.watch(keys[0], stream.client.socket()) } else { Ok(()) })
                .and_then(|()| {
                    if entry.watches_target {
                        Ok(())
                    } else {
                        self.poller.watch(keys[1], stream.target.socket())
                    }
                });
        entry.watches_target = true;
        let deadline = stream.deadline();
        entry.stage = Some(Stage::Relaying(Box::new(Relaying { id, stream, tag, report })));
        queue(&mut self.ready, entry, who);
        self.ids.insert(id, who);
        self.set_deadline(who, deadline);
        if let Err(error) = watched {
            self.finish(who, End::Failed(error));
        }
    }
}

impl Shared {
    fn next_id(&self) -> StreamId {
        StreamId(self.next_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }
}

/// Runs a connection's step; a fault of ours in one must not end the others.
fn guarded<T>(step: impl FnOnce() -> T) -> Option<T> {
    match std::panic::catch_unwind(AssertUnwindSafe(step)) {
        Ok(done) => Some(done),
        Err(_) => {
            tracing::error!("a connection ended by a fault of the relay");
            None
        }
    }
}

/// Tells a service something; its faults are not the worker's.
fn tell(what: impl FnOnce()) {
    if guarded(what).is_none() {
        tracing::error!("a service did not hear what became of a connection");
    }
}

fn live(table: &mut Slab<Entry>, (index, generation): Who) -> Option<&mut Entry> {
    table.get_mut(index as usize).filter(|entry| entry.generation == generation)
}

fn queue(ready: &mut Queues, entry: &mut Entry, who: Who) {
    if !entry.queued {
        entry.queued = true;
        match entry.stage {
            Some(Stage::Opening(_)) => ready.openings.push_back(who),
            Some(Stage::Relaying(_)) | None => ready.streams.push_back(who),
        }
    }
}

/// Connections that have something to do.
#[derive(Debug, Default)]
struct Queues {
    openings: VecDeque<Who>,
    streams: VecDeque<Who>,
}

impl Queues {
    fn is_empty(&self) -> bool {
        self.openings.is_empty() && self.streams.is_empty()
    }
}

/// Connections that are not relayed yet, between two turns of those that are: a handshake is some 0.2 ms with an ECDSA
/// certificate, and some 2 ms with a large RSA one.
const OPENINGS_PER_TURN: usize = 4;

/// `EX_SOFTWARE` of sysexits.h.
const EXIT_SOFTWARE: i32 = 70;
/// Commands between two looks at the sockets.
const COMMANDS_PER_TURN: usize = 256;
