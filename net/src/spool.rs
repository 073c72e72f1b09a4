//! Audit events on their way to auth: durable here before [`Spool::record`] returns, sent in order, removed after auth has
//! acknowledged them. One writer thread, group commit; segments on disk with one JSON line per event and its sequence.
//! What a segment looks like and how a crash is repaired is [`disk`]'s; this file is the handle, the thread and the sender.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use proto::event::{Body, Event, Happened};
use proto::id::ClusterName;
use proto::rpc::audit_client::AuditClient;
use proto::rpc::{AppendRequest, SequencedEvent};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::auth_client::{MESSAGE_BYTES_MAX, explain};
use crate::backoff::Backoff;
use crate::shutdown::Shutdown;
use crate::spool::disk::{Disk, Limits, Line, Room};

mod disk;
#[cfg(test)]
mod tests;

/// Why an event is not durable. Whoever grants access must then refuse.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the audit spool holds {bytes} bytes, its limit, because auth does not take them")]
    Full { bytes: u64 },
    #[error("an audit event of {bytes} bytes, more than {max}", max = disk::EVENT_BYTES_MAX)]
    TooLong { bytes: usize },
    #[error("the audit spool has stopped")]
    Stopped,
}

/// Handle to the writer; cheap to clone. When the last one goes, the writer ends and the folder is free again.
#[derive(Debug, Clone)]
pub struct Spool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cluster: ClusterName,
    /// `None` only while being dropped.
    jobs: Option<mpsc::Sender<Job>>,
    /// The newest sequence on disk.
    written: watch::Receiver<u64>,
    acknowledged: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
}

/// Events as they will stand on the disk: to be written as often as it takes, they stay the same events.
#[derive(Debug, Clone)]
pub struct Batch(Arc<[Vec<u8>]>);

/// What the writer is asked to do. It answers each, unless it has died.
enum Job {
    Write {
        batch: Batch,
        room: Room,
        done: oneshot::Sender<Result<(), SpoolError>>,
    },
    /// The events behind the last that was read, as many as one request to auth may carry.
    Read {
        done: oneshot::Sender<Result<Vec<Line>, SpoolError>>,
    },
    /// Auth's highest sequence, by auth's counting, before anything is sent to it.
    Meet {
        highest: u64,
        done: oneshot::Sender<Result<u64, SpoolError>>,
    },
    /// Auth holds all up to here, by our counting.
    Acknowledge {
        sequence: u64,
        done: oneshot::Sender<Result<(), SpoolError>>,
    },
}

impl Spool {
    /// Opens `<dir>`, repairs a torn tail (the torn line was never acknowledged), starts the writer.
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub fn open(dir: PathBuf, cluster: ClusterName) -> Result<Self, SpoolError> {
        Self::open_with(dir, cluster, Limits::default())
    }

    fn open_with(dir: PathBuf, cluster: ClusterName, limits: Limits) -> Result<Self, SpoolError> {
        let disk = Disk::open(dir.clone(), limits)?;
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let (wrote, written) = watch::channel(disk.written());
        let acknowledged = Arc::new(AtomicU64::new(disk.acknowledged()));
        let mut writer = Writer { disk, queue, wrote, acknowledged: acknowledged.clone() };
        let writer = std::thread::Builder::new()
            .name("audit-spool".into())
            .spawn(move || writer.run())
            .map_err(|source| SpoolError::File { path: dir, source })?;
        let (jobs, writer) = (Some(jobs), Some(writer));
        Ok(Self { shared: Arc::new(Shared { cluster, jobs, written, acknowledged, writer }) })
    }

    /// Makes `body` an event (id, time, `ei`), writes and syncs it; returns once it survives a power cut.
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub async fn record(&self, body: impl Into<Body>, ei: u64) -> Result<Event, SpoolError> {
        let event = self.event(Happened::now(body), ei);
        let batch = Batch(Arc::new([json(&event)?]));
        self.ask(|done| Job::Write { batch, room: Room::Whole, done }).await?;
        Ok(event)
    }

    /// Makes events of what happened and their `ei`, to be written together.
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub fn batch(
        &self,
        happened: impl IntoIterator<Item = (Happened, u64)>,
    ) -> Result<Batch, SpoolError> {
        let lines = happened.into_iter().map(|(happened, ei)| json(&self.event(happened, ei)));
        Ok(Batch(lines.collect::<Result<_, _>>()?))
    }

    /// Writes and syncs all of a batch or nothing; returns once it survives a power cut. Of what there may be much of, which
    /// must not take the room of the decisions that [`Self::record`] is for.
    ///
    /// # Errors
    /// See [`SpoolError`]. The batch may be tried again.
    pub async fn write(&self, batch: &Batch) -> Result<(), SpoolError> {
        self.ask(|done| Job::Write { batch: batch.clone(), room: Room::Shared, done }).await
    }

    fn event(&self, happened: Happened, ei: u64) -> Event {
        Event::new(happened, ei, crate::random16(), self.shared.cluster.clone())
    }

    /// Sends to auth until `shutdown` stops, with back-off. At [`Shutdown::drain`] it goes on; run it once.
    pub async fn ship(self, auth: Channel, shutdown: Shutdown) {
        let sender = Sender { spool: self, client: client(auth) };
        tokio::select! {
            () = shutdown.stopped() => {}
            error = sender.run() => tracing::error!("audit events are no longer sent: {error}"),
        }
    }

    /// Events not yet acknowledged by auth.
    pub fn pending(&self) -> u64 {
        let written = *self.shared.written.borrow();
        written.saturating_sub(self.shared.acknowledged.load(Ordering::Acquire))
    }

    async fn ask<R>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<R, SpoolError>>) -> Job,
    ) -> Result<R, SpoolError> {
        let (done, answer) = oneshot::channel();
        let jobs = self.shared.jobs.as_ref().ok_or(SpoolError::Stopped)?;
        jobs.send(job(done)).await.map_err(|_| SpoolError::Stopped)?;
        answer.await.map_err(|_| SpoolError::Stopped)?
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // It ends after what is queued, within a few writes. A panic there has been told by the thread itself.
            writer.join().ok();
        }
    }
}

/// The thread. The only one that touches the folder.
struct Writer {
    disk: Disk,
    queue: mpsc::Receiver<Job>,
    wrote: watch::Sender<u64>,
    acknowledged: Arc<AtomicU64>,
}

impl Writer {
    fn run(&mut self) {
        let mut next = None;
        while let Some(job) = next.take().or_else(|| self.queue.blocking_recv()) {
            match job {
                Job::Write { batch, room, done } => next = self.write_group((&batch, room), done),
                Job::Read { done } => answer(done, self.disk.read()),
                Job::Meet { highest, done } => answer(done, self.disk.meet(highest)),
                Job::Acknowledge { sequence, done } => {
                    let outcome = self.disk.acknowledge(sequence);
                    self.acknowledged.store(self.disk.acknowledged(), Ordering::Release);
                    answer(done, outcome);
                }
            }
        }
        if let Err(error) = self.disk.close() {
            tracing::warn!(
                "the audit spool's place is not kept, events will be sent again: {error}"
            );
        }
    }

    /// One write and one sync for all that is queued. Gives back the job that ended the group.
    fn write_group(
        &mut self,
        first: (&Batch, Room),
        done: oneshot::Sender<Result<(), SpoolError>>,
    ) -> Option<Job> {
        let mut waiting = Vec::new();
        let mut ended_by = None;
        self.add(first, done, &mut waiting);
        while waiting.len() < GROUP_JOBS_MAX && self.disk.staged_bytes() < GROUP_BYTES_MAX {
            match self.queue.try_recv() {
                Ok(Job::Write { batch, room, done }) => {
                    self.add((&batch, room), done, &mut waiting);
                }
                Ok(other) => {
                    ended_by = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let outcome = self.disk.commit();
        if outcome.is_ok() {
            self.wrote.send_replace(self.disk.written());
        }
        for done in waiting {
            answer(done, outcome.as_ref().copied().map_err(|error| error.again()));
        }
        ended_by
    }

    fn add(
        &mut self,
        (batch, room): (&Batch, Room),
        done: oneshot::Sender<Result<(), SpoolError>>,
        waiting: &mut Vec<oneshot::Sender<Result<(), SpoolError>>>,
    ) {
        match self.disk.stage(&batch.0, room) {
            Ok(()) => waiting.push(done),
            Err(error) => answer(done, Err(error)),
        }
    }
}

impl SpoolError {
    /// The same error for each who waits for the same write.
    fn again(&self) -> Self {
        match self {
            Self::File { path, source } => Self::File {
                path: path.clone(),
                source: io::Error::new(source.kind(), source.to_string()),
            },
            Self::Full { bytes } => Self::Full { bytes: *bytes },
            Self::TooLong { bytes } => Self::TooLong { bytes: *bytes },
            Self::Stopped => Self::Stopped,
        }
    }
}

/// Who asked may have gone; what was asked is done all the same.
fn answer<R>(done: oneshot::Sender<Result<R, SpoolError>>, outcome: Result<R, SpoolError>) {
    done.send(outcome).ok();
}

fn json(event: &Event) -> Result<Vec<u8>, SpoolError> {
    serde_json::to_vec(event).map_err(|source| SpoolError::File {
        path: PathBuf::from("an event"),
        source: io::Error::other(source),
    })
}

/// Brings events to auth.
struct Sender {
    spool: Spool,
    client: AuditClient<Channel>,
}

impl Sender {
    /// Ends only when the writer has died.
    async fn run(mut self) -> SpoolError {
        match self.run_or_fail().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn run_or_fail(&mut self) -> Result<std::convert::Infallible, SpoolError> {
        // Nothing is sent before it is known what auth has: see `Disk::meet`.
        let highest = self.append(Vec::new()).await;
        let mut backoff = send_backoff();
        let offset = loop {
            match self.spool.ask(|done| Job::Meet { highest, done }).await {
                Ok(offset) => break offset,
                Err(SpoolError::Stopped) => return Err(SpoolError::Stopped),
                Err(error) => tracing::error!("cannot write in the audit spool: {error}"),
            }
            backoff.wait().await;
        };
        backoff.reset();
        let mut written = self.spool.shared.written.clone();
        loop {
            let lines = match self.spool.ask(|done| Job::Read { done }).await {
                Ok(lines) => lines,
                Err(SpoolError::Stopped) => return Err(SpoolError::Stopped),
                Err(error) => {
                    tracing::error!("cannot read the audit spool: {error}");
                    backoff.wait().await;
                    continue;
                }
            };
            if lines.is_empty() {
                written.changed().await.map_err(|_| SpoolError::Stopped)?;
                continue;
            }
            let last = self.deliver(lines, offset).await;
            match self.spool.ask(|done| Job::Acknowledge { sequence: last, done }).await {
                Ok(()) => backoff.reset(),
                Err(SpoolError::Stopped) => return Err(SpoolError::Stopped),
                // The events are at auth; their files go with a later acknowledgement.
                Err(error) => tracing::error!("cannot clean the audit spool: {error}"),
            }
        }
    }

    /// Sends until auth has acknowledged the last of `lines`. Gives its sequence, by our counting.
    async fn deliver(&mut self, mut lines: Vec<Line>, offset: u64) -> u64 {
        let last = lines.last().map_or(0, |line| line.sequence);
        let mut backoff = send_backoff();
        while !lines.is_empty() {
            let events = lines.iter().map(|line| SequencedEvent {
                sequence: line.sequence.saturating_add(offset),
                json: line.json.clone(),
            });
            let highest = self.append(events.collect()).await.saturating_sub(offset);
            let before = lines.len();
            lines.retain(|line| line.sequence > highest);
            if lines.len() == before {
                tracing::error!(highest, "auth answers but does not take audit events");
                backoff.wait().await;
            }
        }
        last
    }

    /// Auth's answer, however long it takes: the highest sequence that it holds from this machine.
    async fn append(&mut self, events: Vec<SequencedEvent>) -> u64 {
        let mut backoff = send_backoff();
        let request = AppendRequest { events };
        loop {
            match timeout(CALL_WITHIN, self.client.append(request.clone())).await {
                Ok(Ok(answer)) => return answer.into_inner().acknowledged,
                Ok(Err(status)) => tracing::warn!(
                    pending = self.spool.pending(),
                    "auth does not take audit events: {}",
                    explain(&status)
                ),
                Err(_) => tracing::warn!(
                    pending = self.spool.pending(),
                    "auth does not answer when sent audit events"
                ),
            }
            backoff.wait().await;
        }
    }
}

fn client(auth: Channel) -> AuditClient<Channel> {
    AuditClient::new(auth)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn send_backoff() -> Backoff {
    Backoff::new(RETRY_WAIT_FIRST, RETRY_WAIT_MAX)
}

/// Jobs that wait for the writer. More than one group, so that it never starves; whoever comes later waits in line.
const QUEUE_MAX: usize = 2 * GROUP_JOBS_MAX;
/// Batches per sync: at a few hundred events the sync's own cost has vanished.
const GROUP_JOBS_MAX: usize = 256;
/// Staged in memory before a sync, plus one batch.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;
/// One batch, connecting included.
const CALL_WITHIN: Duration = Duration::from_secs(30);
const RETRY_WAIT_FIRST: Duration = Duration::from_millis(200);
/// The longest that events wait after auth is back.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(15);
