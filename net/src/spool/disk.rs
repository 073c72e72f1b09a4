//! The spool's folder: segments `<first-sequence>.jsonl` with lines `{"seq":N,"event":{..}}`, `cursor.json` with what auth
//! has acknowledged, `lock` against a second process. No threads and no network here; the writer thread owns it alone.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::SpoolError;
use crate::file;

/// Bounds, given as a value so that tests reach them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) total_bytes: u64,
    pub(super) segment_bytes: u64,
    pub(super) batch_events: usize,
    pub(super) batch_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total_bytes: TOTAL_BYTES_MAX,
            segment_bytes: SEGMENT_BYTES_MAX,
            batch_events: BATCH_EVENTS_MAX,
            batch_bytes: BATCH_BYTES_MAX,
        }
    }
}

/// How much of the folder may be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Whole,
    /// Four fifths: the rest is for who gives access.
    Shared,
}

/// One event as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) sequence: u64,
    pub(super) json: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct StoredLine<'a> {
    seq: u64,
    #[serde(borrow)]
    event: &'a RawValue,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    acknowledged: u64,
    /// Added to our sequences on their way to auth; none before the first contact.
    offset: Option<u64>,
}

/// The open folder.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    limits: Limits,
    /// First sequence to length in bytes; the newest is the one being written, if `current` is open.
    segments: BTreeMap<u64, u64>,
    current: Option<File>,
    /// Lines for the next commit, and how many.
    staged: Vec<u8>,
    staged_events: u64,
    written: u64,
    cursor: Cursor,
    cursor_on_disk: Cursor,
    reader: Option<SegmentReader>,
    /// The newest sequence that was read for sending.
    read: u64,
    /// Read from the file, not yet given out: a line that did not fit into a batch.
    ahead: VecDeque<Line>,
    _lock: File,
}

#[derive(Debug)]
struct SegmentReader {
    first: u64,
    /// Behind the last whole line.
    position: u64,
}

impl Disk {
    pub(super) fn open(dir: PathBuf, limits: Limits) -> Result<Self, SpoolError> {
        file::private_dir(&dir).map_err(|source| failed(&dir, source))?;
        let lock = lock(&dir.join("lock"))?;
        let cursor = read_cursor(&dir.join(CURSOR))?;
        let mut segments = list(&dir)?;
        let mut written = cursor.acknowledged;
        if let Some((first, bytes)) =
            segments.last_entry().map(|entry| (*entry.key(), *entry.get()))
        {
            let tail = repair(&segment_path(&dir, first), first, bytes)?;
            segments.insert(first, tail.bytes);
            written = written.max(tail.last);
        }
        let mut disk = Self {
            dir,
            limits,
            segments,
            current: None,
            staged: Vec::new(),
            staged_events: 0,
            written,
            cursor,
            cursor_on_disk: cursor,
            reader: None,
            read: cursor.acknowledged,
            ahead: VecDeque::new(),
            _lock: lock,
        };
        disk.remove_acknowledged()?;
        Ok(disk)
    }

    /// The newest sequence that survives a power cut.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.cursor.acknowledged
    }

    /// Takes events into the next commit, all of them or none.
    pub(super) fn stage(&mut self, lines: &[Vec<u8>], room: Room) -> Result<(), SpoolError> {
        if let Some(long) = lines.iter().find(|json| json.len() > EVENT_BYTES_MAX) {
            return Err(SpoolError::TooLong { bytes: long.len() });
        }
        let bytes = self.bytes();
        let more: usize = lines.iter().map(Vec::len).sum();
        let length = u64::try_from(self.staged.len().saturating_add(more)).unwrap_or(u64::MAX);
        let total = match room {
            Room::Whole => self.limits.total_bytes,
            Room::Shared => self.limits.total_bytes / 5 * 4,
        };
        if bytes.saturating_add(length) > total {
            return Err(SpoolError::Full { bytes });
        }
        for json in lines {
            self.staged_events = self.staged_events.saturating_add(1);
            let sequence = self.written.saturating_add(self.staged_events);
            // Into memory, which does not fail.
            write!(self.staged, "{{\"seq\":{sequence},\"event\":").ok();
            self.staged.extend_from_slice(json);
            self.staged.extend_from_slice(b"}\n");
        }
        Ok(())
    }

    pub(super) fn staged_bytes(&self) -> usize {
        self.staged.len()
    }

    /// Writes what is staged, all of it or nothing.
    pub(super) fn commit(&mut self) -> Result<(), SpoolError> {
        let staged = std::mem::take(&mut self.staged);
        let events = std::mem::take(&mut self.staged_events);
        if events == 0 {
            return Ok(());
        }
        let length = u64::try_from(staged.len()).unwrap_or(u64::MAX);
        let first = self.segment_for(length)?;
        let path = segment_path(&self.dir, first);
        let before = self.segments.get(&first).copied().unwrap_or(0);
        let Some(current) = &mut self.current else { return Err(SpoolError::Stopped) };
        let outcome = current.write_all(&staged).and_then(|()| current.sync_data());
        if let Err(source) = outcome {
            self.take_back(first, before);
            return Err(failed(&path, source));
        }
        self.segments.insert(first, before.saturating_add(length));
        self.written = self.written.saturating_add(events);
        Ok(())
    }

    /// The events behind those read before, up to a batch; empty when there are none.
    pub(super) fn read(&mut self) -> Result<Vec<Line>, SpoolError> {
        let mut batch = Vec::new();
        let mut bytes = 0_usize;
        loop {
            if self.ahead.is_empty() && !self.read_ahead()? {
                return Ok(batch);
            }
            while let Some(line) = self.ahead.front() {
                let more = bytes.saturating_add(line.json.len());
                let full =
                    batch.len() >= self.limits.batch_events || more > self.limits.batch_bytes;
                if full && !batch.is_empty() {
                    return Ok(batch);
                }
                bytes = more;
                batch.extend(self.ahead.pop_front());
            }
        }
    }

    /// First contact with an auth that holds `highest` from this machine. Gives the offset to be added to our sequences.
    ///
    /// A new spool begins at 1 while auth may remember another one of the same machine; without the offset auth would take
    /// new events for old ones and drop them. The same when a folder was restored from an older copy.
    pub(super) fn meet(&mut self, highest: u64) -> Result<u64, SpoolError> {
        let expected = self.cursor.offset.map(|offset| offset.saturating_add(self.written));
        let offset = match (self.cursor.offset, expected) {
            (Some(offset), Some(newest)) if highest <= newest => offset,
            (known, _) => {
                if known.is_some() {
                    tracing::error!(
                        highest,
                        written = self.written,
                        "auth holds audit events that this spool never wrote: was its folder restored from a copy?"
                    );
                }
                highest.saturating_sub(self.cursor.acknowledged)
            }
        };
        self.cursor.offset = Some(offset);
        self.save_cursor()?;
        Ok(offset)
    }

    /// Auth holds everything up to `sequence`.
    pub(super) fn acknowledge(&mut self, sequence: u64) -> Result<(), SpoolError> {
        self.cursor.acknowledged = self.cursor.acknowledged.max(sequence.min(self.written));
        self.remove_acknowledged()
    }

    /// Keeps the place. Without it events are sent again, which auth notices.
    pub(super) fn close(&mut self) -> Result<(), SpoolError> {
        self.save_cursor()
    }

    fn bytes(&self) -> u64 {
        self.segments.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// The segment that the next commit goes to, opened.
    fn segment_for(&mut self, length: u64) -> Result<u64, SpoolError> {
        if let (Some(_), Some((first, bytes))) = (&self.current, self.segments.last_key_value())
            && bytes.saturating_add(length) <= self.limits.segment_bytes
        {
            return Ok(*first);
        }
        let first = self.written.saturating_add(1);
        let path = segment_path(&self.dir, first);
        // A file of this name can only be what an earlier, failed commit left: nothing in it was acknowledged.
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(SEGMENT_MODE)
            .open(&path)
            .map_err(|source| failed(&path, source))?;
        file::sync_dir(&self.dir).map_err(|source| failed(&self.dir, source))?;
        self.current = Some(file);
        self.segments.insert(first, 0);
        Ok(first)
    }

    /// After a failed write or sync nobody knows what is on the disk: the segment is cut back to what was acknowledged
    /// and the next commit begins another one.
    fn take_back(&mut self, first: u64, bytes: u64) {
        let path = segment_path(&self.dir, first);
        let cut = match self.current.take() {
            Some(file) => file.set_len(bytes).and_then(|()| file.sync_data()),
            None => Ok(()),
        };
        if let Err(error) = cut {
            tracing::error!(path = %path.display(), "cannot cut back a failed write: {error}");
        }
        if bytes == 0 {
            self.segments.remove(&first);
            std::fs::remove_file(&path).ok();
        }
    }

    fn remove_acknowledged(&mut self) -> Result<(), SpoolError> {
        let firsts: Vec<u64> = self.segments.keys().copied().collect();
        let lasts = firsts.iter().skip(1).map(|next| next.saturating_sub(1));
        let open_last = if self.current.is_some() { u64::MAX } else { self.written };
        let acknowledged = self.cursor.acknowledged;
        let gone: Vec<u64> = firsts
            .iter()
            .zip(lasts.chain([open_last]))
            .filter(|(_, last)| *last <= acknowledged)
            .map(|(first, _)| *first)
            .collect();
        let behind = acknowledged.saturating_sub(self.cursor_on_disk.acknowledged);
        if !gone.is_empty() || behind >= CURSOR_EVERY {
            // First the place, then the files: sequences never begin again.
            self.save_cursor()?;
        }
        for first in gone {
            let path = segment_path(&self.dir, first);
            std::fs::remove_file(&path).map_err(|source| failed(&path, source))?;
            self.segments.remove(&first);
        }
        Ok(())
    }

    fn save_cursor(&mut self) -> Result<(), SpoolError> {
        if self.cursor == self.cursor_on_disk {
            return Ok(());
        }
        let path = self.dir.join(CURSOR);
        let text = serde_json::to_vec(&self.cursor).map_err(io::Error::other);
        text.and_then(|text| file::write_private(&path, &text))
            .map_err(|source| failed(&path, source))?;
        self.cursor_on_disk = self.cursor;
        Ok(())
    }

    /// Reads a stretch of the segment that holds the next event. False at the end.
    fn read_ahead(&mut self) -> Result<bool, SpoolError> {
        while self.read < self.written {
            let wanted = self.read.saturating_add(1);
            let Some(first) = self.segments.range(..=wanted).next_back().map(|(first, _)| *first)
            else {
                self.skip_lost(wanted)?;
                continue;
            };
            let position = match &self.reader {
                Some(reader) if reader.first == first => reader.position,
                Some(_) | None => 0,
            };
            let end = self.segments.get(&first).copied().unwrap_or(0);
            let path = segment_path(&self.dir, first);
            let stretch = read_stretch(&path, position, end, self.limits.batch_bytes)
                .map_err(|source| failed(&path, source))?;
            self.reader = Some(SegmentReader { first, position: stretch.position });
            // What stands behind the next segment's first is left over from a failed commit.
            let next = self.segments.range(wanted.saturating_add(1)..).next();
            let beyond = next.map_or(u64::MAX, |(first, _)| *first);
            let good = wanted..beyond;
            self.ahead
                .extend(stretch.lines.into_iter().filter(|line| good.contains(&line.sequence)));
            if let Some(line) = self.ahead.back() {
                self.read = line.sequence.min(self.written);
                return Ok(true);
            }
            if stretch.position >= end || stretch.damaged {
                self.skip_lost(wanted)?;
            }
        }
        Ok(false)
    }

    /// Events that should be here are not: somebody damaged the folder. Auth sees the gap in the sequence.
    fn skip_lost(&mut self, wanted: u64) -> Result<(), SpoolError> {
        let next = self.segments.range(wanted.saturating_add(1)..).next().map(|(first, _)| *first);
        let last_lost = next.map_or(self.written, |first| first.saturating_sub(1));
        tracing::error!(
            first = wanted,
            last = last_lost,
            "audit events are missing from the spool"
        );
        self.read = last_lost.max(wanted);
        self.reader = None;
        Ok(())
    }
}

struct Stretch {
    lines: Vec<Line>,
    position: u64,
    damaged: bool,
}

/// Whole lines from `position`, about `bytes` of them, not beyond `end`.
fn read_stretch(path: &Path, position: u64, end: u64, bytes: usize) -> io::Result<Stretch> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(position))?;
    let mut reader = BufReader::new(io::Read::take(file, end.saturating_sub(position)));
    let mut stretch = Stretch { lines: Vec::new(), position, damaged: false };
    let mut text = Vec::new();
    let mut read = 0_usize;
    while read < bytes {
        text.clear();
        let count = reader.read_until(b'\n', &mut text)?;
        if count == 0 {
            break;
        }
        let Some(line) = parse(&text) else {
            stretch.damaged = true;
            break;
        };
        stretch.lines.push(line);
        stretch.position =
            stretch.position.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        read = read.saturating_add(count);
    }
    Ok(stretch)
}

fn parse(text: &[u8]) -> Option<Line> {
    let text = text.strip_suffix(b"\n")?;
    let stored: StoredLine<'_> = serde_json::from_slice(text).ok()?;
    Some(Line { sequence: stored.seq, json: stored.event.get().as_bytes().to_vec() })
}

struct Tail {
    /// The last whole event; one less than the first when there is none.
    last: u64,
    bytes: u64,
}

/// Cuts the newest segment behind its last whole line. What is cut was being written when the machine stopped, so nobody
/// was told that it is durable.
fn repair(path: &Path, first: u64, bytes: u64) -> Result<Tail, SpoolError> {
    let file = File::open(path).map_err(|source| failed(path, source))?;
    let mut reader = BufReader::new(file);
    let mut tail = Tail { last: first.saturating_sub(1), bytes: 0 };
    let mut text = Vec::new();
    loop {
        text.clear();
        let count = reader.read_until(b'\n', &mut text).map_err(|source| failed(path, source))?;
        match parse(&text) {
            Some(line) if line.sequence == tail.last.saturating_add(1) => tail.last = line.sequence,
            Some(_) | None => break,
        }
        tail.bytes = tail.bytes.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }
    if tail.bytes < bytes {
        let cut = bytes.saturating_sub(tail.bytes);
        tracing::warn!(path = %path.display(), bytes = cut, "cut a torn tail off the audit spool");
        OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(tail.bytes).and_then(|()| file.sync_all()))
            .map_err(|source| failed(path, source))?;
    }
    Ok(tail)
}

fn list(dir: &Path) -> Result<BTreeMap<u64, u64>, SpoolError> {
    let mut segments = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(|source| failed(dir, source))? {
        let entry = entry.map_err(|source| failed(dir, source))?;
        let name = entry.file_name();
        let Some(first) = name.to_str().and_then(|name| name.strip_suffix(SEGMENT_SUFFIX)) else {
            continue;
        };
        let Ok(first) = first.parse::<u64>() else { continue };
        let found = entry.metadata().map_err(|source| failed(&entry.path(), source))?;
        segments.insert(first, found.len());
    }
    Ok(segments)
}

fn lock(path: &Path) -> Result<File, SpoolError> {
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(SEGMENT_MODE)
        .open(path)
        .map_err(|source| failed(path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(source)) => Err(failed(path, source)),
        Err(TryLockError::WouldBlock) => {
            let text = "another process uses this spool";
            Err(failed(path, io::Error::new(io::ErrorKind::ResourceBusy, text)))
        }
    }
}

fn read_cursor(path: &Path) -> Result<Cursor, SpoolError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| failed(path, io::Error::new(io::ErrorKind::InvalidData, error))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Cursor::default()),
        Err(source) => Err(failed(path, source)),
    }
}

fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}{SEGMENT_SUFFIX}"))
}

fn failed(path: &Path, source: io::Error) -> SpoolError {
    SpoolError::File { path: path.into(), source }
}

/// A week of events of a busy machine; beyond it auth has been away for too long, and access is refused.
const TOTAL_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Small enough that acknowledged events go soon and a start reads little.
const SEGMENT_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Per request to auth.
const BATCH_EVENTS_MAX: usize = 500;
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Longest event; the fields have tighter bounds of their own. A batch of one still fits a message to auth.
pub(super) const EVENT_BYTES_MAX: usize = 256 * 1024;
/// Acknowledged events that a crash may have us send again.
const CURSOR_EVERY: u64 = 1000;
const CURSOR: &str = "cursor.json";
const SEGMENT_SUFFIX: &str = ".jsonl";
const SEGMENT_MODE: u32 = 0o600;
