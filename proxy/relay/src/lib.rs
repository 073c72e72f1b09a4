//! Moves bytes between two legs, with as little work as the kernel allows. Knows nothing of certificates' meaning, targets
//! or protocols, and nothing of our other crates.
//!
//! Invariants: no unbounded buffer, half-close is mapped, a reset arrives as a reset, every stream can be cut by id, each
//! ends by its idle timeout; and all that on every rung of the ladder. `unsafe` in [`sys`] only.
//!
//! The path of a stream: a listener's connection is asked about ([`service`]) while it is an [`reactor::opening`], or the
//! control plane brings two legs ([`leg`]); then
//! - [`ladder`]: which way bytes move here, found out once at start
//! - [`reactor`]: a thread per core that drives
//! - [`stream`]: two directions and the stream's end, each a
//! - [`direction`]: small copies, then splices through [`pipes`], and back; between two
//! - [`port`]s: sockets, with [`tls`] over them or not; through a [`chunk`]
//!
//! Where the kernel does TLS for bulk, a port gives it the keys by [`ktls`].
//!
//! A leg that is no socket (an SSH channel) is moved by tokio: [`copy`] with buffers of [`pool`].

mod chunk;
mod copy;
mod direction;
pub mod ktls;
mod ladder;
mod leg;
mod pipes;
mod pool;
mod port;
mod reactor;
mod service;
mod socket;
mod stream;
mod sys;
pub mod tls;
pub mod upgrade;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::{Counter, counter, gauge};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use crate::ladder::{DataPlane, Ladder, LadderError, Rung, UnknownDataPlane};
pub use crate::leg::{Io, Leg};
pub use crate::service::{Given, Next, OpeningFault, Place, Service};
pub use crate::socket::prepare;

use crate::copy::Transfer;
use crate::pool::Pool;
use crate::reactor::inbox::Inbox;
use crate::reactor::worker::{Carry, Command, Worker};
use crate::stream::Stream;

/// Names a relayed stream for [`Relay::cut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// Limits of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Ended after so long without a byte in either direction.
    pub idle_timeout: Option<Duration>,
}

/// How a stream ended, and what it moved.
#[derive(Debug)]
pub struct Outcome {
    pub bytes_from_client: u64,
    pub bytes_from_target: u64,
    pub end: End,
}

/// Why it ended.
#[derive(Debug)]
pub enum End {
    /// Both directions were closed.
    Closed,
    /// By [`Relay::cut`] or the relay's own end.
    Cut,
    Failed(io::Error),
    Idle,
    /// It goes on in another process.
    Moved,
}

impl End {
    /// For metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Cut => "cut",
            Self::Failed(_) => "failed",
            Self::Idle => "idle",
            Self::Moved => "moved",
        }
    }
}

/// What a relay is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Streams at once.
    pub streams_max: usize,
    /// Threads that move bytes; `None` is one per core that this process may use.
    pub workers: Option<usize>,
    pub data_plane: DataPlane,
}

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Ladder(#[from] LadderError),
    #[error("a worker of the data plane cannot start")]
    Worker(#[source] io::Error),
}

/// The relay; cheap to clone. Its workers end with the last clone.
#[derive(Debug, Clone)]
pub struct Relay {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    workers: Vec<Arc<Inbox<Command>>>,
    /// What the workers accept on, for another process.
    listeners: Mutex<Vec<OwnedFd>>,
    /// Whose turn it is.
    next_worker: AtomicUsize,
    pool: Pool,
}

/// What the workers and the control plane both see.
#[derive(Debug)]
struct Shared {
    ladder: Ladder,
    streams_max: usize,
    next_id: AtomicU64,
    streams: Mutex<HashMap<StreamId, Mover>>,
}

/// Who moves a stream's bytes.
#[derive(Debug)]
enum Mover {
    Task(CancellationToken),
    Worker(usize),
}

impl Relay {
    /// Starts it.
    ///
    /// # Errors
    /// The rung that was asked for does not work here, or a thread could not be started.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        let ladder = Ladder::probe(settings.data_plane)?;
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let count = settings.workers.unwrap_or_else(cores).clamp(1, WORKERS_MAX);
        let (rung, why) = (ladder.rung(), ladder.why());
        tracing::info!(%rung, why, workers = count, streams_max = settings.streams_max, "the data plane moves bytes");
        gauge!("postern_data_plane_rung", "rung" => rung.to_string()).set(1.0);
        show_series();
        let shared = Arc::new(Shared {
            ladder,
            streams_max: settings.streams_max,
            next_id: AtomicU64::new(1),
            streams: Mutex::default(),
        });
        let workers = (0..count)
            .map(|number| start_worker(&shared, number))
            .collect::<io::Result<Vec<_>>>()
            .map_err(StartError::Worker)?;
        let handle = Handle {
            shared,
            workers,
            listeners: Mutex::default(),
            next_worker: AtomicUsize::new(0),
            pool: Pool::new(),
        };
        Ok(Self { handle: Arc::new(handle) })
    }

    /// The rung that runs, and why.
    pub fn ladder(&self) -> &Ladder {
        &self.handle.shared.ladder
    }

    /// Accepts connections at `address`, a listener per worker, and lets `service` decide about each. Gives the address
    /// back, with the port that was taken where it was 0.
    ///
    /// # Errors
    /// The address is taken or not ours, or a worker is too busy to be told.
    pub fn listen(
        &self,
        address: SocketAddr,
        service: &Arc<dyn Service>,
    ) -> io::Result<SocketAddr> {
        // Sharing a port must not mean sharing it with another program of this user's.
        let exclusive = std::net::TcpListener::bind(address)?;
        let address = exclusive.local_addr()?;
        drop(exclusive);
        let listeners = (0..self.handle.workers.len())
            .map(|_| socket::listener(address))
            .collect::<io::Result<Vec<_>>>()?;
        self.listen_on(listeners, service)?;
        Ok(address)
    }

    /// Accepts on listeners that another process had, so that no connection that waits there is lost. Gives their
    /// address.
    ///
    /// # Errors
    /// There is none, or a worker is too busy to be told.
    pub fn listen_on(
        &self,
        mut listeners: Vec<OwnedFd>,
        service: &Arc<dyn Service>,
    ) -> io::Result<SocketAddr> {
        let first = listeners.first().ok_or(io::ErrorKind::NotFound)?;
        let address = SocketAddr::try_from(rustix::net::getsockname(first)?)?;
        while listeners.len() < self.handle.workers.len() {
            listeners.push(socket::listener(address)?);
        }
        for (listener, inbox) in listeners.into_iter().zip(self.handle.workers.iter().cycle()) {
            let kept = listener.try_clone()?;
            self.handle.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
            inbox
                .push(Command::Listen(listener, Arc::clone(service)))
                .map_err(|_| io::Error::other("a worker is too busy to be told"))?;
        }
        Ok(address)
    }

    /// What is accepted on, for another process's [`Relay::listen_on`]. Accepting goes on here until
    /// [`Relay::unlisten`].
    ///
    /// # Errors
    /// No descriptors are to be had.
    pub fn listeners(&self) -> io::Result<Vec<OwnedFd>> {
        let listeners = self.handle.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().map(OwnedFd::try_clone).collect()
    }

    /// Takes every stream that another process can go on with. Whoever waits for one hears [`End::Moved`]; the others
    /// go on here.
    pub async fn leave(&self) -> Vec<upgrade::Moved> {
        let mut all = Vec::new();
        for inbox in &self.handle.workers {
            let (give, taken) = oneshot::channel();
            let mut command = Command::Leave(give);
            for _ in 0..PUSH_TRIES {
                match inbox.push(command) {
                    Ok(()) => {
                        match tokio::time::timeout(LEAVE_WITHIN, taken).await {
                            Ok(taken) => all.extend(taken.unwrap_or_default()),
                            Err(_) => tracing::error!("a worker gave no streams; they are lost"),
                        }
                        break;
                    }
                    Err(full) => command = full,
                }
                tokio::time::sleep(PUSH_PAUSE).await;
            }
        }
        all
    }

    /// Goes on with a stream of another process, until its end; see [`Relay::run`].
    pub async fn adopt(&self, id: StreamId, moved: upgrade::Moved) -> Outcome {
        let tag = moved.tag().clone();
        failed(self.hand_to_worker(id, moved.into_stream(Instant::now()), tag).await)
    }

    /// Accepts no more; what is relayed goes on.
    pub fn unlisten(&self) {
        self.handle.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for inbox in &self.handle.workers {
            if inbox.push(Command::Unlisten).is_err() {
                tracing::warn!("a worker is too busy to stop accepting");
            }
        }
    }

    /// A new id; never given twice.
    pub fn next_id(&self) -> StreamId {
        StreamId(self.handle.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Moves bytes until the end. A stream beyond `streams_max`, or with an id that runs already, fails at once. When the
    /// returned future is dropped, the stream is cut. `tag` goes with the stream to another process, if it does.
    pub async fn run(
        &self,
        id: StreamId,
        (client, target): (Leg, Leg),
        limits: Limits,
        tag: Bytes,
    ) -> Outcome {
        let moved = if client.is_on_socket() && target.is_on_socket() {
            self.carry(id, (client, target), limits, tag).await
        } else {
            self.copy(id, client, target, limits).await
        };
        failed(moved)
    }

    /// Moves it as a task of tokio's.
    async fn copy(
        &self,
        id: StreamId,
        client: Leg,
        target: Leg,
        limits: Limits,
    ) -> io::Result<Outcome> {
        let handle = &self.handle;
        let cut = CancellationToken::new();
        handle.shared.enter(id, Mover::Task(cut.clone()))?;
        let _running = Running { handle, id };
        let meters = Meters::new();
        Ok(Transfer::new(client, target, &handle.pool, &meters, limits).run(&cut).await)
    }

    /// Lets a worker move it.
    async fn carry(
        &self,
        id: StreamId,
        (client, target): (Leg, Leg),
        limits: Limits,
        tag: Bytes,
    ) -> io::Result<Outcome> {
        let features = self.handle.shared.ladder.kernel_tls();
        let (client, target) = (client.into_port(features)?, target.into_port(features)?);
        self.hand_to_worker(id, Stream::new(client, target, limits, Instant::now()), tag).await
    }

    async fn hand_to_worker(
        &self,
        id: StreamId,
        stream: Stream<port::Port>,
        tag: Bytes,
    ) -> io::Result<Outcome> {
        let handle = &self.handle;
        let number = handle.next_worker.fetch_add(1, Ordering::Relaxed) % handle.workers.len();
        let inbox = handle.workers.get(number).ok_or(io::ErrorKind::NotFound)?;
        handle.shared.enter(id, Mover::Worker(number))?;
        let _running = Running { handle, id };
        let (done, outcome) = oneshot::channel();
        let mut command = Command::Carry(Box::new(Carry { id, stream, tag, done }));
        for _ in 0..PUSH_TRIES {
            match inbox.push(command) {
                Ok(()) => {
                    let lost = |_| io::Error::other("the relay has ended");
                    return outcome.await.map_err(lost);
                }
                Err(full) => command = full,
            }
            tokio::time::sleep(PUSH_PAUSE).await;
        }
        Err(io::Error::other("a worker is too busy for a new stream"))
    }

    /// Ends a stream; false when there is none of that id.
    pub fn cut(&self, id: StreamId) -> bool {
        self.handle.cut(id)
    }
    /// Streams that run now.
    pub fn active(&self) -> usize {
        self.handle.shared.streams().len()
    }
    /// Whether a further stream would fail now; to be asked before a client is told that it may go on.
    pub fn is_full(&self) -> bool {
        self.active() >= self.handle.shared.streams_max
    }
}

fn failed(moved: io::Result<Outcome>) -> Outcome {
    moved.unwrap_or_else(|error| Outcome {
        bytes_from_client: 0,
        bytes_from_target: 0,
        end: End::Failed(error),
    })
}

fn start_worker(shared: &Arc<Shared>, number: usize) -> io::Result<Arc<Inbox<Command>>> {
    let inbox = Arc::new(Inbox::new(INBOX_COMMANDS)?);
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let (for_worker, shared) = (Arc::clone(&inbox), Arc::clone(shared));
    // A ring belongs to the thread that made it.
    std::thread::Builder::new().name(format!("relay-{number}")).spawn(move || {
        let made = shared
            .ladder
            .poller()
            .and_then(|poller| Worker::new(poller, for_worker, Arc::clone(&shared), number));
        match made {
            Ok(worker) => {
                drop(ready.send(Ok(())));
                worker.run();
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    })?;
    started.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))?;
    Ok(inbox)
}

impl Handle {
    fn cut(&self, id: StreamId) -> bool {
        match self.shared.streams().get(&id) {
            Some(Mover::Task(cut)) => {
                cut.cancel();
                true
            }
            Some(Mover::Worker(number)) => {
                self.tell(*number, id);
                true
            }
            None => false,
        }
    }

    /// Tells a worker to cut. Must not fail: it tries until the worker takes it, which is a turn at most.
    fn tell(&self, number: usize, id: StreamId) {
        let Some(inbox) = self.workers.get(number) else { return };
        let mut command = Command::Cut(id);
        for _ in 0..CUT_TRIES {
            match inbox.push(command) {
                Ok(()) => return,
                Err(full) => command = full,
            }
            std::thread::sleep(PUSH_PAUSE);
        }
        tracing::error!(?id, "a worker does not take the order to cut a stream");
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        for inbox in &self.workers {
            let mut command = Command::Stop;
            while let Err(full) = inbox.push(command) {
                command = full;
                std::thread::sleep(PUSH_PAUSE);
            }
        }
    }
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, HashMap<StreamId, Mover>> {
        // Every critical section is one map operation: a panic elsewhere leaves the map whole.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, id: StreamId, mover: Mover) -> io::Result<()> {
        let mut streams = self.streams();
        if streams.len() >= self.streams_max {
            return Err(io::Error::other("the relay carries as many streams as it may"));
        }
        if streams.contains_key(&id) {
            return Err(io::Error::other("a stream of this id runs already"));
        }
        streams.insert(id, mover);
        gauge!("postern_relay_streams").set(count(&streams));
        Ok(())
    }

    fn enter_worker(&self, id: StreamId, number: usize) -> io::Result<()> {
        self.enter(id, Mover::Worker(number))
    }

    fn leave(&self, id: StreamId) -> Option<Mover> {
        let mut streams = self.streams();
        let mover = streams.remove(&id);
        gauge!("postern_relay_streams").set(count(&streams));
        mover
    }
}

/// Series that change only when something happens are there from the beginning: what is missing cannot be told from what
/// has not happened.
fn show_series() {
    drop(Meters::new());
    gauge!("postern_relay_streams").increment(0.0);
    counter!("postern_relay_accept_pauses_total").increment(0);
    for direction in ["receive", "transmit"] {
        counter!("postern_relay_ktls_total", "direction" => direction).increment(0);
    }
}

fn count(streams: &HashMap<StreamId, Mover>) -> f64 {
    u32::try_from(streams.len()).map_or(f64::MAX, f64::from)
}

/// A stream that somebody waits for; when they no longer do, it is cut.
struct Running<'a> {
    handle: &'a Handle,
    id: StreamId,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // A worker's stream that has ended is out of the table already.
        if let Some(Mover::Worker(number)) = self.handle.shared.leave(self.id) {
            self.handle.tell(number, self.id);
        }
    }
}

/// What streams report while they run.
#[derive(Debug)]
struct Meters {
    from_client: Counter,
    from_target: Counter,
}

impl Meters {
    fn new() -> Self {
        Self {
            from_client: counter!("postern_relay_bytes_total", "from" => "client"),
            from_target: counter!("postern_relay_bytes_total", "from" => "target"),
        }
    }
}

/// More threads than any machine's network needs.
const WORKERS_MAX: usize = 64;
/// Commands that wait for a worker: some thousand streams opened within a turn.
const INBOX_COMMANDS: usize = 4096;
/// With [`PUSH_PAUSE`]: a worker that takes nothing for a second is not well.
const PUSH_TRIES: usize = 1000;
const CUT_TRIES: usize = 5000;
/// A worker takes a turn at most to answer.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
const PUSH_PAUSE: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests;
