//! The event log: one JSON object per line in `log/YYYY-MM-DD.00:00:00.log`, the symlink `events.log` on the newest.
//! An event is on disk before its writer is answered. Hosts' events come through [`Log::append`], auth's own through
//! [`Log::record`]; readers search by the index and read the lines where they stand. What was not acceptable from a host
//! is kept in `rejected.log`, so that nothing is lost and nobody's spool stands still.
//!
//! - `admit`: which events a host may send
//! - `writer`: the one thread that writes

mod admit;
mod writer;

use std::collections::VecDeque;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pki::HostIdentity;
use proto::event::{Body, Event, Happened};
use proto::id::{ClusterName, SessionId};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::store::StoreError;
use crate::store::events::{EventIndex, Found, Place};
pub(crate) use crate::store::events::{Filter, From};

/// Why an event is not durable, or cannot be found. Whoever grants must then refuse.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("the event log cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the index of the event log: {0}")]
    Index(#[from] StoreError),
    #[error("an event cannot be written: {0}")]
    Event(String),
    #[error("the event log failed: {0}")]
    Failed(String),
    #[error("the event log has stopped")]
    Stopped,
}

/// Handle to the writer and to the index; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    dir: Arc<Path>,
    cluster: ClusterName,
    clock: Clock,
    writer: mpsc::Sender<writer::Command>,
    index: Arc<Mutex<EventIndex>>,
    newest: watch::Receiver<u64>,
}

/// An event from a host, with the number that its spool gave it.
#[derive(Debug)]
pub(crate) struct Sequenced {
    pub(crate) sequence: u64,
    pub(crate) json: Vec<u8>,
}

/// Part of what a search finds.
#[derive(Debug)]
pub(crate) struct Page {
    /// Oldest first.
    pub(crate) events: VecDeque<Vec<u8>>,
    /// There are others, from `next` on.
    pub(crate) more: bool,
    pub(crate) next: From,
}

impl Default for Page {
    fn default() -> Self {
        Self { events: VecDeque::new(), more: false, next: From::Newest }
    }
}

impl Log {
    /// Opens the folder and the index, indexes what a crash left out, cuts off a torn last line, starts the writer.
    ///
    /// # Errors
    /// See [`LogError`].
    pub(crate) fn open(
        dir: &Path,
        index_path: &Path,
        cluster: ClusterName,
        clock: Clock,
    ) -> Result<Self, LogError> {
        net::file::private_dir(dir)
            .map_err(|source| LogError::File { path: dir.to_owned(), source })?;
        let writer = writer::Writer::open(dir, EventIndex::open(index_path)?, clock.clone())?;
        let index = Arc::new(Mutex::new(EventIndex::open(index_path)?));
        let newest = writer.newest();
        let (sender, queue) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("event-log".into())
            .spawn(move || writer.run(queue))
            .map_err(|error| LogError::Failed(error.to_string()))?;
        Ok(Self { dir: dir.into(), cluster, clock, writer: sender, index, newest })
    }

    /// Writes events of auth itself, together; returns once they survive a power cut.
    ///
    /// # Errors
    /// See [`LogError`]; then none may be taken for written.
    pub(crate) async fn record(
        &self,
        bodies: impl IntoIterator<Item = Body>,
    ) -> Result<(), LogError> {
        let time = self.clock.time();
        let mut lines = Vec::new();
        for body in bodies {
            let event =
                Event::new(Happened { time, body }, 0, net::random16(), self.cluster.clone());
            let value = serde_json::to_value(&event).map_err(|e| LogError::Event(e.to_string()))?;
            lines.push(admit::line(&event, &value));
        }
        let (reply, answer) = oneshot::channel();
        self.send(writer::Command::Own { lines, reply }).await?;
        answer.await.map_err(|_| LogError::Stopped)?
    }

    /// Writes a host's events. Gives the highest sequence of this request: all of it is then stored, here or among the
    /// rejected. Without events it gives the highest that is stored of this host, so that its spool finds its place.
    /// An event is stored once, however often it is sent: it is known by its uid, which also holds when a spool was lost
    /// and counts anew.
    ///
    /// # Errors
    /// See [`LogError`]; then the host must send them again.
    pub(crate) async fn append(
        &self,
        host: &HostIdentity,
        events: Vec<Sequenced>,
    ) -> Result<u64, LogError> {
        let source = host.host_id().to_string();
        if events.is_empty() {
            return self.on_index(move |_, index| Ok(index.newest_sequence(&source)?)).await;
        }
        let mut lines = Vec::new();
        let mut rejected = Vec::new();
        let mut highest = 0;
        for Sequenced { sequence, json } in events {
            highest = highest.max(sequence);
            match admit::admit(host, &self.cluster, &json) {
                Ok(line) => lines.push((sequence, line)),
                Err(reason) => rejected.push(writer::Rejected { sequence, reason, json }),
            }
        }
        let (reply, answer) = oneshot::channel();
        self.send(writer::Command::Foreign { source, lines, rejected, reply }).await?;
        answer.await.map_err(|_| LogError::Stopped)??;
        Ok(highest)
    }

    async fn send(&self, command: writer::Command) -> Result<(), LogError> {
        self.writer.send(command).await.map_err(|_| LogError::Stopped)
    }

    /// At most `limit` matching events from `from` on; fewer when they would fill more than [`ANSWER_BYTES_MAX`].
    ///
    /// # Errors
    /// See [`LogError`].
    pub(crate) async fn search(
        &self,
        filter: Filter,
        from: From,
        limit: usize,
    ) -> Result<Page, LogError> {
        let limit = limit.min(SEARCH_MAX);
        self.on_index(move |dir, index| {
            let mut page = Page::default();
            let mut bytes = 0;
            let mut reader = LineReader::new(dir);
            // One more than is given, to know whether there is more.
            for Found { id, time_ms, place } in index.search(&filter, from, limit + 1)? {
                let length = usize::try_from(place.length).unwrap_or(usize::MAX);
                let is_full = bytes + length > ANSWER_BYTES_MAX && !page.events.is_empty();
                if page.events.len() >= limit || is_full {
                    page.more = true;
                    break;
                }
                bytes += length;
                let line = reader.line(&place)?;
                match from {
                    From::After(_) => {
                        page.events.push_back(line);
                        page.next = From::After(id);
                    }
                    From::Before { .. } | From::Newest => {
                        page.events.push_front(line);
                        page.next = From::Before { time_ms, id };
                    }
                }
            }
            Ok(page)
        })
        .await
    }

    /// Follows matching events from now on.
    pub(crate) fn follow(&self, filter: Filter) -> Follow {
        let newest = self.newest.clone();
        let seen = *newest.borrow();
        Follow { log: self.clone(), filter, newest, seen }
    }

    /// Whether another host than `source` was the first to send an event of this session.
    ///
    /// # Errors
    /// See [`LogError`].
    pub(crate) async fn session_is_foreign(
        &self,
        sid: &SessionId,
        source: &str,
    ) -> Result<bool, LogError> {
        let (sid, source) = (sid.to_string(), source.to_owned());
        self.on_index(move |_, index| Ok(index.session_is_foreign(&sid, &source)?)).await
    }

    async fn on_index<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path, &EventIndex) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let (dir, index) = (self.dir.clone(), self.index.clone());
        tokio::task::spawn_blocking(move || {
            let index = index.lock().map_err(|_| LogError::Failed("a reader panicked".into()))?;
            work(&dir, &index)
        })
        .await
        .map_err(|error| LogError::Failed(error.to_string()))?
    }
}

/// New events that match, none left out: who falls behind reads them again from the index.
#[derive(Debug)]
pub(crate) struct Follow {
    log: Log,
    filter: Filter,
    newest: watch::Receiver<u64>,
    seen: u64,
}

impl Follow {
    /// Waits for the next events; never gives an empty list.
    ///
    /// # Errors
    /// See [`LogError`].
    pub(crate) async fn next(&mut self) -> Result<Vec<Vec<u8>>, LogError> {
        loop {
            let newest = *self.newest.borrow_and_update();
            if newest > self.seen {
                let (filter, seen) = (self.filter.clone(), self.seen);
                let found = self.log.on_index(move |dir, index| {
                    let mut reader = LineReader::new(dir);
                    index
                        .search(&filter, From::After(seen), FOLLOW_BATCH)?
                        .iter()
                        .map(|found| Ok((found.id, reader.line(&found.place)?)))
                        .collect::<Result<Vec<_>, LogError>>()
                });
                let found = found.await?;
                match found.last() {
                    Some((last, _)) => {
                        self.seen = *last;
                        return Ok(found.into_iter().map(|(_, line)| line).collect());
                    }
                    None => self.seen = newest,
                }
            }
            self.newest.changed().await.map_err(|_| LogError::Stopped)?;
        }
    }
}

/// Reads lines where the index says that they stand; keeps the last file open.
struct LineReader<'a> {
    dir: &'a Path,
    open: Option<(String, std::fs::File)>,
}

impl<'a> LineReader<'a> {
    fn new(dir: &'a Path) -> Self {
        Self { dir, open: None }
    }

    fn line(&mut self, place: &Place) -> Result<Vec<u8>, LogError> {
        let path = self.dir.join(&place.file);
        let fail = |source| LogError::File { path: path.clone(), source };
        let mut file = match self.open.take() {
            Some((name, file)) if name == place.file => file,
            Some(_) | None => std::fs::File::open(&path).map_err(fail)?,
        };
        file.seek(SeekFrom::Start(place.offset)).map_err(fail)?;
        let mut line = Vec::new();
        (&mut file).take(place.length).read_to_end(&mut line).map_err(fail)?;
        self.open = Some((place.file.clone(), file));
        Ok(line)
    }
}

/// Writes waiting for the writer's thread; beyond it callers wait, and so do their clients.
const QUEUE: usize = 256;
/// Most events of one search: what somebody can look at; for more there is `--since`.
pub(crate) const SEARCH_MAX: usize = 10_000;
/// Most bytes of one search: half a gRPC message, so that the framing fits too.
const ANSWER_BYTES_MAX: usize = net::auth_client::MESSAGE_BYTES_MAX / 2;
/// Events per read of a [`Follow`].
const FOLLOW_BATCH: usize = 64;
/// Longest event. Twice the longest that a node writes (a command line can have 128 KiB and JSON escapes grow it).
pub(crate) const EVENT_BYTES_MAX: usize = 1024 * 1024;

#[cfg(test)]
mod tests;
