//! The one thread that writes the event log: takes what waits, appends, flushes once, indexes, then answers.
//! The file is the truth; the index follows it and is repaired from it at start.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, warn};

use super::LogError;
use super::admit::{Line, reread};
use crate::clock::Clock;
use crate::fault::told;
use crate::store::events::{Entry, EventIndex, Place};

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Own { lines: Vec<Line>, reply: Reply },
    Foreign { source: String, lines: Vec<(u64, Line)>, rejected: Vec<Rejected>, reply: Reply },
}

type Reply = oneshot::Sender<Result<(), LogError>>;

/// An event that is not acceptable, kept as it came.
#[derive(Debug)]
pub(super) struct Rejected {
    pub(super) sequence: u64,
    pub(super) reason: String,
    pub(super) json: Vec<u8>,
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct Writer {
    dir: PathBuf,
    index: EventIndex,
    clock: Clock,
    /// The open file, its name and its length. None after a failure: it is opened and repaired anew.
    current: Option<Current>,
    own_sequence: u64,
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Current {
    name: String,
    file: File,
    length: u64,
}

impl Writer {
    pub(super) fn open(dir: &Path, index: EventIndex, clock: Clock) -> Result<Self, LogError> {
        let own_sequence = index.newest_sequence(OWN_SOURCE)?;
        let newest = watch::channel(0).0;
        let mut writer =
            Self { dir: dir.to_owned(), index, clock, current: None, own_sequence, newest };
        writer.repair()?;
        writer.newest.send_replace(writer.index.newest()?);
        Ok(writer)
    }

    pub(super) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Until all handles are gone.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH {
                let Ok(next) = queue.try_recv() else { break };
                batch.push(next);
            }
            let mut replies = Vec::with_capacity(batch.len());
            let written = self.write(batch, &mut replies);
            if let Err(failure) = &written {
                error!(
                    error = told(failure),
                    "events could not be written; what needs them is refused"
                );
                self.current = None;
            }
            for reply in replies {
                let answer = match &written {
                    Ok(()) => Ok(()),
                    Err(failure) => Err(LogError::Failed(told(failure))),
                };
                // Whoever asked may have gone; the event stands all the same.
                reply.send(answer).ok();
            }
        }
    }

    fn write(&mut self, batch: Vec<Command>, replies: &mut Vec<Reply>) -> Result<(), LogError> {
        let mut lines: Vec<(String, u64, Line)> = Vec::new();
        let mut rejected: Vec<(String, Rejected)> = Vec::new();
        let mut own = Vec::new();
        for command in batch {
            match command {
                Command::Own { lines, reply } => {
                    own.extend(lines);
                    replies.push(reply);
                }
                Command::Foreign { source, lines: more, rejected: bad, reply } => {
                    lines.extend(more.into_iter().map(|(n, line)| (source.clone(), n, line)));
                    rejected.extend(bad.into_iter().map(|event| (source.clone(), event)));
                    replies.push(reply);
                }
            }
        }
        for line in own {
            self.own_sequence += 1;
            lines.push((OWN_SOURCE.to_owned(), self.own_sequence, line));
        }
        self.set_aside(&rejected)?;
        self.append(lines)
    }

    /// Appends what is not yet known, flushes, indexes.
    fn append(&mut self, lines: Vec<(String, u64, Line)>) -> Result<(), LogError> {
        self.rotate()?;
        let Some(current) = &mut self.current else {
            return Err(LogError::Failed("no file is open".into()));
        };
        let mut bytes = Vec::new();
        let mut entries = Vec::new();
        let mut in_batch = HashSet::new();
        let start = current.length;
        let mut offset = start;
        for (source, sequence, line) in lines {
            if self.index.knows(&line.uid)? || !in_batch.insert(line.uid.clone()) {
                continue;
            }
            let length = to_u64(line.text.len());
            let place = Place { file: current.name.clone(), offset, length };
            bytes.extend_from_slice(line.text.as_bytes());
            bytes.push(b'\n');
            offset += length + 1;
            entries.push(entry(source, sequence, line, place));
        }
        if entries.is_empty() {
            return Ok(());
        }
        let path = self.dir.join(&current.name);
        if let Err(source) = current.file.write_all(&bytes).and_then(|()| current.file.sync_data())
        {
            // A half-written line must not stand before later ones; if this fails too, the repair cuts it off.
            current.file.set_len(start).ok();
            return Err(LogError::File { path, source });
        }
        current.length = offset;
        self.index.add(&entries)?;
        self.newest.send_replace(self.index.newest()?);
        Ok(())
    }

    /// Opens the file of the day. Days only go forward, so that names keep the order of writing.
    fn rotate(&mut self) -> Result<(), LogError> {
        let today = file_name(self.clock.now());
        if let Some(current) = &self.current
            && current.name >= today
        {
            return Ok(());
        }
        self.repair()?;
        let newest = self.files()?.into_iter().next_back();
        let name = newest.filter(|newest| *newest > today).unwrap_or(today);
        let path = self.dir.join(&name);
        let fail = |source| LogError::File { path: path.clone(), source };
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        point_at(&self.dir, &name).map_err(fail)?;
        self.current = Some(Current { name, file, length });
        Ok(())
    }

    /// Indexes the lines after the last indexed one and cuts off a torn one. Lines that are known stay as they are.
    fn repair(&mut self) -> Result<(), LogError> {
        let last = self.index.last_place()?;
        for name in self.files()? {
            let from = match &last {
                Some(place) if name < place.file => continue,
                Some(place) if name == place.file => place.offset + place.length + 1,
                Some(_) | None => 0,
            };
            self.index_file(&name, from)?;
        }
        Ok(())
    }

    fn index_file(&mut self, name: &str, from: u64) -> Result<(), LogError> {
        let path = self.dir.join(name);
        let fail = |source| LogError::File { path: path.clone(), source };
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(fail)?;
        if file.metadata().map_err(fail)?.len() < from {
            error!(path = %path.display(), "the event log is shorter than its index says");
            return Ok(());
        }
        file.seek(SeekFrom::Start(from)).map_err(fail)?;
        let mut reader = BufReader::new(&file);
        let mut offset = from;
        let mut found = Vec::new();
        loop {
            let mut line = Vec::new();
            if reader.read_until(b'\n', &mut line).map_err(fail)? == 0 {
                break;
            }
            // Only a line without an end is torn. A damaged one in the middle stays, and so do those behind it.
            let Some(text) = line.strip_suffix(b"\n") else {
                warn!(path = %path.display(), offset, "a torn last line of the event log is cut off; it was never acknowledged");
                file.set_len(offset).and_then(|()| file.sync_all()).map_err(fail)?;
                break;
            };
            let length = to_u64(text.len());
            let place = Place { file: name.to_owned(), offset, length };
            match reread(text) {
                Ok((source, line)) => found.push(entry(source, 0, line, place)),
                Err(reason) => warn!(path = %path.display(), offset, reason, "a line is no event"),
            }
            offset += length + 1;
            if found.len() >= BATCH {
                self.index.add(&found)?;
                found.clear();
            }
        }
        Ok(self.index.add(&found)?)
    }

    /// Names of the daily files, oldest first.
    fn files(&self) -> Result<Vec<String>, LogError> {
        let fail = |source| LogError::File { path: self.dir.clone(), source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(fail)? {
            if let Ok(name) = entry.map_err(fail)?.file_name().into_string()
                && name.ends_with(FILE_END)
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Keeps what was not acceptable, flushed, so that it can be acknowledged.
    fn set_aside(&self, rejected: &[(String, Rejected)]) -> Result<(), LogError> {
        if rejected.is_empty() {
            return Ok(());
        }
        let path = self.dir.join(REJECTED);
        let mut text = String::new();
        for (source, event) in rejected {
            warn!(
                source,
                sequence = event.sequence,
                reason = event.reason,
                "an event was rejected"
            );
            let kept = serde_json::json!({
                "time": self.clock.now(), "source": source, "sequence": event.sequence,
                "reason": event.reason, "event": String::from_utf8_lossy(&event.json),
            });
            text.push_str(&kept.to_string());
            text.push('\n');
        }
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .map_err(|source| LogError::File { path, source })
    }
}

fn entry(source: String, sequence: u64, line: Line, place: Place) -> Entry {
    let Line { text: _, uid, time_ms, name, user, sid } = line;
    Entry { uid, source, sequence, time_ms, name, user, sid, place }
}

/// `2026-11-22.00:00:00.log`: the day in UTC.
fn file_name(now: i64) -> String {
    let day = OffsetDateTime::from_unix_timestamp(now).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let format = format_description!("[year]-[month]-[day]");
    let day = day.format(&format).unwrap_or_else(|_| "1970-01-01".into());
    format!("{day}{FILE_END}")
}

/// Lets the symlink point at the newest file.
fn point_at(dir: &Path, name: &str) -> std::io::Result<()> {
    let (link, draft) = (dir.join(LINK), dir.join(".events.log.new"));
    match std::fs::remove_file(&draft) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    std::os::unix::fs::symlink(name, &draft)?;
    std::fs::rename(&draft, &link)?;
    File::open(dir)?.sync_all()
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// The source of auth's own events.
pub(super) const OWN_SOURCE: &str = "auth";
/// Commands per flush, and lines per transaction of a repair.
const BATCH: usize = 256;
/// How the names of daily files end.
const FILE_END: &str = ".00:00:00.log";
const LINK: &str = "events.log";
const REJECTED: &str = "rejected.log";
