//! Recordings: `recordings/<sid>.cast`, beside it `<sid>.json` with what is known of it. An upload is appended to
//! `<sid>.cast.partial`, flushed, and goes on where it stopped; the seal's length and digest are checked over the whole file
//! before it takes its name. The node deletes its copy only after that was confirmed. Who may read is asked by
//! `service::audit`.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use pki::HostIdentity;
use proto::event::SessionUpload;
use proto::id::{HostId, SessionId};
use proto::recording::Summary;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::io::AsyncWriteExt as _;
use tracing::{info, warn};

use crate::fault::Fault;
use crate::log::Log;
use crate::store::{Expect, Span, Store, from_json, to_json};

/// The recordings.
#[derive(Debug)]
pub(crate) struct Recordings {
    pub(crate) dir: PathBuf,
    pub(crate) log: Log,
    pub(crate) store: Arc<dyn Store>,
    /// Sessions whose recording is being uploaded at this moment, and by whom: one writer per file.
    pub(crate) busy: Arc<Mutex<HashMap<SessionId, HostId>>>,
}

/// What the store knows of a recording, whether it is complete or not.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    owner: HostId,
    complete: bool,
    /// Of the recording, once it is complete.
    length: u64,
}

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) stored_bytes: u64,
    pub(crate) complete: bool,
}

/// An upload that is under way; nobody else can upload this recording meanwhile.
#[derive(Debug)]
pub(crate) struct Upload {
    summary: Summary,
    file: tokio::fs::File,
    length: u64,
    busy: Busy,
}

/// What opening an upload gives.
#[derive(Debug)]
pub(crate) enum Opened {
    /// All is there already.
    Complete(Progress),
    Upload(Box<Upload>),
}

/// Marks a session as being uploaded until dropped.
#[derive(Debug)]
struct Busy {
    sessions: Arc<Mutex<HashMap<SessionId, HostId>>>,
    sid: SessionId,
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Ok(mut sessions) = self.sessions.lock() {
            sessions.remove(&self.sid);
        }
    }
}

impl Recordings {
    /// # Errors
    /// The folder is not private or cannot be made.
    pub(crate) fn open(dir: PathBuf, log: Log, store: Arc<dyn Store>) -> std::io::Result<Self> {
        net::file::private_dir(&dir)?;
        Ok(Self { dir, log, store, busy: Arc::default() })
    }

    /// How many bytes are stored durably.
    pub(crate) async fn progress(&self, host: &HostIdentity, sid: &str) -> Result<Progress, Fault> {
        let sid = session_id(sid)?;
        let _busy = self.busy(&sid, host.host_id())?;
        match self.record(&sid).await? {
            Some(record) if record.owner != *host.host_id() => Err(foreign()),
            Some(Record { complete: true, length, .. }) => {
                Ok(Progress { stored_bytes: length, complete: true })
            }
            Some(_) => {
                let stored_bytes = match tokio::fs::metadata(self.unfinished(&sid)?).await {
                    Ok(found) => found.len(),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
                    Err(error) => return Err(disk(error)),
                };
                Ok(Progress { stored_bytes, complete: false })
            }
            None => Ok(Progress { stored_bytes: 0, complete: false }),
        }
    }

    /// Begins or continues an upload. A session's recording belongs to the host that the session was on.
    pub(crate) async fn begin(
        &self,
        host: &HostIdentity,
        sid: &str,
        summary_json: &[u8],
    ) -> Result<Opened, Fault> {
        let sid = session_id(sid)?;
        if summary_json.len() > SUMMARY_BYTES_MAX {
            return Err(Fault::Invalid("the recording's summary is too long".into()));
        }
        let summary: Summary = serde_json::from_slice(summary_json)
            .map_err(|error| Fault::Invalid(format!("the recording's summary: {error}")))?;
        if summary.sid != sid || summary.server_id != *host.host_id() {
            return Err(foreign());
        }
        if self.log.session_is_foreign(&sid, host.host_id().as_str()).await? {
            return Err(foreign());
        }
        let busy = self.busy(&sid, host.host_id())?;
        match self.record(&sid).await? {
            Some(record) if record.owner != *host.host_id() => return Err(foreign()),
            Some(Record { complete: true, length, .. }) => {
                return Ok(Opened::Complete(Progress { stored_bytes: length, complete: true }));
            }
            Some(_) => {}
            None => {
                let owner = host.host_id().clone();
                let record = Record { owner, complete: false, length: 0 };
                self.store.put_if(&key(&sid), to_json(&record)?, Expect::Absent, None).await?;
            }
        }
        let path = self.unfinished(&sid)?;
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        let file = file.map_err(disk)?;
        let length = file.metadata().map_err(disk)?.len();
        let file = tokio::fs::File::from_std(file);
        Ok(Opened::Upload(Box::new(Upload { summary, file, length, busy })))
    }

    /// Checks the whole file and gives it its name.
    pub(crate) async fn seal(
        &self,
        upload: Upload,
        length: u64,
        digest: &[u8],
    ) -> Result<Progress, Fault> {
        let Upload { mut summary, mut file, length: stored, busy } = upload;
        flush(&mut file).await?;
        drop(file);
        let sid = summary.sid.clone();
        let partial = self.file(&sid, PARTIAL);
        let found = hash(partial.clone()).await?;
        let same: bool = found.as_slice().ct_eq(digest).into();
        if stored != length || !same {
            // What is here is not what the node has: it must begin again.
            tokio::fs::remove_file(&partial).await.map_err(disk)?;
            warn!(%sid, "an upload does not match its seal and is thrown away");
            return Err(Fault::Invalid(
                "the recording does not match its seal: send it again from the start".into(),
            ));
        }
        summary.length = length;
        let summary_json = to_json(&summary)?;
        let summary_path = self.file(&sid, SUMMARY);
        let (from, to, dir) = (partial, self.file(&sid, FINISHED), self.dir.clone());
        let text = summary_json.clone();
        blocking(move || {
            net::file::write_private(&summary_path, &text)?;
            std::fs::rename(&from, &to)?;
            std::fs::File::open(&dir)?.sync_all()
        })
        .await?;
        let event = SessionUpload {
            sid: sid.clone(),
            url: format!("file://{}", self.file(&sid, FINISHED).display()),
            bytes: length,
            sha256: hex::encode(&found),
        };
        self.log.record([event.into()]).await?;
        let listed = list_key(summary.session_start, &sid);
        self.store.put_if(&listed, summary_json, Expect::Any, None).await?;
        let record = Record { owner: summary.server_id.clone(), complete: true, length };
        self.store.put_if(&key(&sid), to_json(&record)?, Expect::Any, None).await?;
        info!(%sid, bytes = length, "a recording is complete");
        drop(busy);
        Ok(Progress { stored_bytes: length, complete: true })
    }

    /// Complete recordings that began between two moments (Unix milliseconds, zero: no bound), newest first.
    pub(crate) async fn list(
        &self,
        since: i64,
        until: i64,
        mut wanted: impl FnMut(&Summary) -> bool,
        limit: usize,
    ) -> Result<Vec<Vec<u8>>, Fault> {
        // Keys sort newest first: the time in them counts down.
        let newest = if until == 0 { i64::MAX } else { until };
        let mut from = format!("{LISTED}{}", countdown(newest));
        let to = format!("{LISTED}{}", countdown(since.saturating_sub(1)));
        let mut found = Vec::new();
        while found.len() < limit {
            let span = Span { from: from.clone(), to: to.clone() };
            let page = self.store.range(span, LIST_PAGE).await?;
            for item in &page.items {
                if found.len() < limit && wanted(&from_json(item)?) {
                    found.push(item.value.clone());
                }
            }
            match page.items.last() {
                Some(last) if page.more => from = format!("{}\0", last.key),
                Some(_) | None => break,
            }
        }
        Ok(found)
    }

    /// A complete recording: its summary and its file.
    pub(crate) async fn find(&self, sid: &str) -> Result<(Summary, PathBuf), Fault> {
        let missing = || Fault::Missing("a recording of this session".to_owned());
        let sid = session_id(sid).map_err(|_| missing())?;
        if !self.record(&sid).await?.is_some_and(|record| record.complete) {
            return Err(missing());
        }
        let path = self.file(&sid, SUMMARY);
        let text = tokio::fs::read(&path).await.map_err(disk)?;
        let summary = serde_json::from_slice(&text)
            .map_err(|error| Fault::Internal(format!("{}: {error}", path.display())))?;
        Ok((summary, self.file(&sid, FINISHED)))
    }

    async fn record(&self, sid: &SessionId) -> Result<Option<Record>, Fault> {
        let item = self.store.get(&key(sid)).await?;
        Ok(item.as_ref().map(from_json).transpose()?)
    }

    fn busy(&self, sid: &SessionId, host: &HostId) -> Result<Busy, Fault> {
        let mut sessions =
            self.busy.lock().map_err(|_| Fault::Internal("an upload panicked".into()))?;
        if sessions.len() >= UPLOADS_AT_ONCE {
            return Err(Fault::Limit("too many uploads at this moment: try again later"));
        }
        if sessions.contains_key(sid) {
            return Err(Fault::Limit("this recording is being uploaded: try again later"));
        }
        if sessions.values().filter(|by| *by == host).count() >= UPLOADS_PER_HOST {
            return Err(Fault::Limit("too many uploads from this machine: try again later"));
        }
        sessions.insert(sid.clone(), host.clone());
        Ok(Busy { sessions: self.busy.clone(), sid: sid.clone() })
    }

    /// The file of an upload that is not confirmed. One that has its final name already, because we stopped before we
    /// could say so, is taken back and sealed again.
    fn unfinished(&self, sid: &SessionId) -> Result<PathBuf, Fault> {
        let (partial, finished) = (self.file(sid, PARTIAL), self.file(sid, FINISHED));
        if finished.exists() {
            std::fs::rename(&finished, &partial).map_err(disk)?;
        }
        Ok(partial)
    }

    /// The id is a UUID, so this stays within the folder.
    fn file(&self, sid: &SessionId, end: &str) -> PathBuf {
        self.dir.join(format!("{sid}{end}"))
    }
}

impl Upload {
    /// Appends a piece.
    pub(crate) async fn append(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        let more = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        if chunk.len() > CHUNK_BYTES_MAX || self.length.saturating_add(more) > RECORDING_BYTES_MAX {
            return Err(Fault::Invalid("the recording or a piece of it is too long".into()));
        }
        self.file.write_all(chunk).await.map_err(disk)?;
        self.length += more;
        Ok(())
    }

    /// Keeps what has come so far, when the stream broke off.
    pub(crate) async fn interrupt(mut self) -> Result<Progress, Fault> {
        flush(&mut self.file).await?;
        drop(self.busy);
        Ok(Progress { stored_bytes: self.length, complete: false })
    }
}

async fn flush(file: &mut tokio::fs::File) -> Result<(), Fault> {
    file.flush().await.map_err(disk)?;
    file.sync_all().await.map_err(disk)
}

async fn hash(path: PathBuf) -> Result<Vec<u8>, Fault> {
    blocking(move || {
        let mut file = std::fs::File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok(hasher.finalize().to_vec());
            }
            hasher.update(buffer.get(..read).unwrap_or_default());
        }
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Fault::Internal(error.to_string()))?
        .map_err(disk)
}

/// Only a UUID names a recording.
fn session_id(text: &str) -> Result<SessionId, Fault> {
    let shape_is_right = text.len() == SID_BYTES
        && text.bytes().enumerate().all(|(at, byte)| (byte == b'-') == DASHES.contains(&at));
    match SessionId::parse(text) {
        Ok(sid) if shape_is_right => Ok(sid),
        Ok(_) | Err(_) => Err(Fault::Invalid("this is no session id".into())),
    }
}

fn foreign() -> Fault {
    Fault::Denied("this session was not on this machine".into())
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn disk(error: std::io::Error) -> Fault {
    Fault::Internal(format!("the recordings' folder: {error}"))
}

fn key(sid: &SessionId) -> String {
    format!("recording/{sid}")
}

fn list_key(start: time::OffsetDateTime, sid: &SessionId) -> String {
    format!("{LISTED}{}/{sid}", countdown(milliseconds(start)))
}

/// Digits that sort the other way round than the milliseconds do.
fn countdown(milliseconds: i64) -> String {
    format!("{:013}", COUNTDOWN_FROM - milliseconds.clamp(0, COUNTDOWN_FROM))
}

fn milliseconds(time: time::OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

const LISTED: &str = "recording-list/";
const PARTIAL: &str = ".cast.partial";
const FINISHED: &str = ".cast";
const SUMMARY: &str = ".json";
/// In the year 2286, with thirteen digits.
const COUNTDOWN_FROM: i64 = 9_999_999_999_999;
const SID_BYTES: usize = 36;
const DASHES: [usize; 4] = [8, 13, 18, 23];
/// Longest recording: a month of a busy terminal; nodes cut theirs below it.
const RECORDING_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Longest piece, as the protocol says.
pub(crate) const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// A command line can be 128 KiB long, and JSON escapes grow it.
const SUMMARY_BYTES_MAX: usize = 192 * 1024;
/// Each holds a file and a task; nodes come back later.
const UPLOADS_AT_ONCE: usize = 128;
/// A node sends one after the other; one that does not must not keep all others from theirs.
const UPLOADS_PER_HOST: usize = 8;
const _: () = assert!(UPLOADS_PER_HOST < UPLOADS_AT_ONCE);
/// Summaries per read of the store.
const LIST_PAGE: usize = 256;
