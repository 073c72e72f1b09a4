//! Session recordings while they are made: one asciicast v2 file per session and a note beside it that says what is
//! known of the session, so that a crash leaves both usable. One thread writes and syncs for all sessions, at least once
//! a second. Uploading and deleting is [`crate::upload`]'s.
//!
//! - [`cast`]: asciicast lines from terminal bytes
//! - [`note`]: the file beside a recording

pub(crate) mod cast;
pub(crate) mod note;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::recorder::cast::{Header, Utf8Tail};
use crate::recorder::note::Note;

/// Why a recording cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("the recording cannot be written: {0}")]
    Write(String),
    #[error("the disk does not keep up with the recording")]
    TooSlow,
}

impl From<io::Error> for RecordError {
    fn from(error: io::Error) -> Self {
        Self::Write(error.to_string())
    }
}

/// Which of a process' outputs bytes came from; each has its own unfinished character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The terminal, or standard output.
    Output,
    /// Standard error without a terminal.
    Error,
}

/// How much of a session is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Interactive sessions: all of it.
    Whole,
    /// Commands without a terminal: their output may be a disk image.
    Bounded,
}

/// Makes recordings. Cheap to clone; its thread ends with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    _last: Arc<StopThread>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Set by tests only: every write fails from now on, as on a full disk.
    broken: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    dirty: Vec<Arc<Cast>>,
    urgent: bool,
    stopped: bool,
}

#[derive(Debug)]
struct StopThread(Arc<Shared>);

impl Drop for StopThread {
    fn drop(&mut self) {
        lock(&self.0.queue).stopped = true;
        self.0.wake.notify_all();
    }
}

/// The file of one session, and what waits to be written to it.
#[derive(Debug)]
struct Cast {
    /// Held while writing, so that pieces stay in order.
    file: Mutex<File>,
    state: Mutex<State>,
    room: Notify,
}

#[derive(Debug)]
struct State {
    buffer: Vec<u8>,
    queued: bool,
    bytes_left: u64,
    truncated: bool,
    tails: [Utf8Tail; 2],
    failed: Option<RecordError>,
}

/// A recording that a session makes. Dropped without [`Self::finish`], it looks like a crash, and is treated as one at
/// the next start.
#[derive(Debug)]
pub(crate) struct Recording {
    shared: Arc<Shared>,
    cast: Arc<Cast>,
    began: Instant,
}

impl Recorder {
    /// `dir` exists and is private. Starts the thread.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            dir,
            queue: Mutex::default(),
            wake: Condvar::new(),
            broken: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("recorder".into())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || write_all_sessions(&of_thread))?;
        Ok(Self { _last: Arc::new(StopThread(shared.clone())), shared })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Starts the recording of a session: the note first, then the file with its header.
    pub(crate) fn begin(
        &self,
        note: &Note,
        header: &Header<'_>,
        extent: Extent,
    ) -> Result<Recording, RecordError> {
        note.write(&self.shared.dir)?;
        let path = note::cast_path(&self.shared.dir, note.sid());
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        let mut buffer = Vec::with_capacity(256);
        header.write(&mut buffer);
        let bytes_left = match extent {
            Extent::Whole => u64::MAX,
            Extent::Bounded => EXEC_BYTES_MAX,
        };
        let state = State {
            buffer,
            queued: false,
            bytes_left,
            truncated: false,
            tails: Default::default(),
            failed: None,
        };
        let cast = Arc::new(Cast {
            file: Mutex::new(file),
            state: Mutex::new(state),
            room: Notify::new(),
        });
        let recording = Recording { shared: self.shared.clone(), cast, began: Instant::now() };
        // The header goes to the disk now: a recording that can't be written is found out before the session starts.
        flush(&recording.shared, &recording.cast)?;
        Ok(recording)
    }

    /// Lets every write fail, as a full disk would.
    #[cfg(test)]
    pub(crate) fn break_disk(&self) {
        self.shared.broken.store(true, Ordering::SeqCst);
    }
}

impl Recording {
    /// Takes output. Waits only when the disk is far behind.
    ///
    /// # Errors
    /// The recording has failed; it stays failed.
    pub(crate) async fn output(&self, source: Source, bytes: &[u8]) -> Result<(), RecordError> {
        let at = self.began.elapsed();
        self.push(|state| {
            let allowed = usize::try_from(state.bytes_left).unwrap_or(usize::MAX);
            let taken = bytes.get(..allowed.min(bytes.len())).unwrap_or(bytes);
            state.bytes_left -= u64::try_from(taken.len()).unwrap_or(state.bytes_left);
            if !taken.is_empty() {
                let [output, error] = &mut state.tails;
                let tail = match source {
                    Source::Output => output,
                    Source::Error => error,
                };
                cast::write_output(&mut state.buffer, at, &tail.complete(taken));
            }
            if taken.len() < bytes.len() && !state.truncated {
                state.truncated = true;
                cast::write_output(&mut state.buffer, at, TRUNCATED_MARK);
            }
        })
        .await
    }

    /// Takes a change of the terminal's size.
    ///
    /// # Errors
    /// See [`Self::output`].
    pub(crate) async fn resize(&self, columns: u16, rows: u16) -> Result<(), RecordError> {
        let at = self.began.elapsed();
        self.push(|state| cast::write_resize(&mut state.buffer, at, columns, rows)).await
    }

    async fn push(&self, write: impl FnOnce(&mut State)) -> Result<(), RecordError> {
        let waited = tokio::time::timeout(ROOM_WAIT_MAX, self.room()).await;
        let mut state = lock(&self.cast.state);
        if waited.is_err() && state.failed.is_none() {
            state.failed = Some(RecordError::TooSlow);
        }
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        write(&mut state);
        let urgent = state.buffer.len() >= FLUSH_BYTES;
        let first = !std::mem::replace(&mut state.queued, true);
        drop(state);
        if first || urgent {
            let mut queue = lock(&self.shared.queue);
            if first {
                queue.dirty.push(self.cast.clone());
            }
            queue.urgent |= urgent;
            drop(queue);
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    async fn room(&self) {
        loop {
            {
                let state = lock(&self.cast.state);
                if state.buffer.len() < BUFFER_BYTES_MAX || state.failed.is_some() {
                    return;
                }
            }
            self.cast.room.notified().await;
        }
    }

    /// Writes what is left and completes the note: from here on the recording waits for upload.
    /// Gives whether it was cut.
    ///
    /// # Errors
    /// Something could not be written; the recording then counts as cut.
    pub(crate) async fn finish(self, mut note: Note) -> Result<bool, RecordError> {
        let done = tokio::task::spawn_blocking(move || {
            {
                let mut state = lock(&self.cast.state);
                let at = self.began.elapsed();
                for index in 0..state.tails.len() {
                    let rest = state.tails.get_mut(index).and_then(Utf8Tail::rest);
                    if let Some(rest) = rest {
                        cast::write_output(&mut state.buffer, at, rest);
                    }
                }
            }
            let flushed = flush(&self.shared, &self.cast);
            let length = lock(&self.cast.file).metadata()?.len();
            let truncated = flushed.is_err() || lock(&self.cast.state).truncated;
            note.complete(length, truncated);
            note.write(&self.shared.dir)?;
            flushed.map(|()| truncated)
        });
        done.await.map_err(|error| RecordError::Write(error.to_string()))?
    }
}

/// The recorder's thread: sleeps while nothing is to be written, else writes every half second.
fn write_all_sessions(shared: &Shared) {
    loop {
        let mut queue = lock(&shared.queue);
        while queue.dirty.is_empty() {
            if queue.stopped {
                return;
            }
            queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if !queue.urgent && !queue.stopped {
            let (again, _) = shared
                .wake
                .wait_timeout_while(queue, FLUSH_INTERVAL, |q| !q.urgent && !q.stopped)
                .unwrap_or_else(PoisonError::into_inner);
            queue = again;
        }
        let dirty = std::mem::take(&mut queue.dirty);
        queue.urgent = false;
        drop(queue);
        for cast in dirty {
            if let Err(error) = flush(shared, &cast) {
                tracing::warn!(%error, "a session's recording fails");
            }
        }
    }
}

/// Writes and syncs what waits.
fn flush(shared: &Shared, cast: &Cast) -> Result<(), RecordError> {
    let mut file = lock(&cast.file);
    let buffer = {
        let mut state = lock(&cast.state);
        state.queued = false;
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        std::mem::take(&mut state.buffer)
    };
    if buffer.is_empty() {
        return Ok(());
    }
    let result = if shared.broken.load(Ordering::SeqCst) {
        Err(io::Error::from(io::ErrorKind::StorageFull))
    } else {
        file.write_all(&buffer).and_then(|()| file.sync_data())
    };
    let result = result.map_err(RecordError::from);
    if let Err(error) = &result {
        let mut state = lock(&cast.state);
        state.failed = Some(error.clone());
        state.truncated = true;
    }
    drop(file);
    cast.room.notify_one();
    result
}

/// A panic while holding one of these locks leaves complete values behind, so a poisoned lock is used as it is.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Half of the second that a crash may cost, the other half is for the writing itself.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// Written at once beyond this: a full-screen redraw is below, a flood of output is not.
const FLUSH_BYTES: usize = 64 * 1024;
/// The session waits beyond this, so that a flood cannot fill memory.
const BUFFER_BYTES_MAX: usize = 1024 * 1024;
/// A disk that takes longer for a megabyte counts as failed.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);
/// Recorded output of a command without terminal. Logs and listings fit; a copied disk image is not worth keeping.
pub(crate) const EXEC_BYTES_MAX: u64 = 16 * 1024 * 1024;
const TRUNCATED_MARK: &str =
    "\r\n[recording cut here: the command wrote more than is recorded]\r\n";
/// The thread's calls are shallow.
const THREAD_STACK_BYTES: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::note::tests::note;

    fn header() -> Header<'static> {
        Header { columns: 80, rows: 24, timestamp: 1_700_000_000, shell: "/bin/sh", term: "xterm" }
    }

    #[tokio::test]
    async fn a_recording_is_written_while_it_runs_and_completed() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::open(dir.path().into()).unwrap();
        let note = note();
        let recording = recorder.begin(&note, &header(), Extent::Whole).unwrap();
        let path = note::cast_path(dir.path(), note.sid());
        let first = std::fs::read_to_string(&path).unwrap();
        assert!(first.starts_with(r#"{"version":2,"width":80,"height":24"#), "{first}");
        recording.output(Source::Output, "gr\u{fc}".as_bytes()).await.unwrap();
        recording.resize(100, 30).await.unwrap();
        recording.output(Source::Output, &[0xe2, 0x82]).await.unwrap();
        recording.output(Source::Output, &[0xac]).await.unwrap();
        assert!(!recording.finish(note.clone()).await.unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[1][1], "o");
        assert_eq!(lines[1][2], "gr\u{fc}");
        assert_eq!(lines[2][1], "r");
        assert_eq!(lines[2][2], "100x30");
        assert_eq!(lines.last().unwrap()[2], "\u{20ac}");
        let done = Note::read(&note::note_path(dir.path(), note.sid())).unwrap();
        assert!(done.is_complete());
        assert_eq!(done.summary().length, text.len() as u64);
        assert!(!done.summary().truncated);
    }

    #[tokio::test]
    async fn output_beyond_the_bound_is_cut_and_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::open(dir.path().into()).unwrap();
        let note = note();
        let recording = recorder.begin(&note, &header(), Extent::Bounded).unwrap();
        let piece = vec![b'x'; 1024 * 1024];
        for _ in 0..17 {
            recording.output(Source::Output, &piece).await.unwrap();
        }
        assert!(recording.finish(note.clone()).await.unwrap());
        let text = std::fs::read_to_string(note::cast_path(dir.path(), note.sid())).unwrap();
        assert!(text.len() as u64 > EXEC_BYTES_MAX && text.len() < 17 * 1024 * 1024);
        assert!(text.lines().last().unwrap().contains("recording cut here"));
        assert!(Note::read(&note::note_path(dir.path(), note.sid())).unwrap().summary().truncated);
    }

    #[tokio::test]
    async fn a_failing_disk_is_reported_and_stays_failed() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::open(dir.path().into()).unwrap();
        let note = note();
        let recording = recorder.begin(&note, &header(), Extent::Whole).unwrap();
        recorder.break_disk();
        let piece = vec![b'x'; FLUSH_BYTES];
        let error = loop {
            if let Err(error) = recording.output(Source::Output, &piece).await {
                break error;
            }
            tokio::task::yield_now().await;
        };
        assert!(matches!(error, RecordError::Write(_)), "{error}");
        assert!(recording.finish(note.clone()).await.is_err());
        assert!(Note::read(&note::note_path(dir.path(), note.sid())).unwrap().summary().truncated);
    }
}
