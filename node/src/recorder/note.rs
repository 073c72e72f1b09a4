//! The file beside a recording, `<sid>.json`: written before the session starts, completed at its end. One that is not
//! complete at start-up belongs to a session that a crash cut off. Sessions without a recording have a note too, so
//! that their end is told.

use std::io;
use std::path::{Path, PathBuf};

use proto::event;
use proto::id::SessionId;
use proto::recording::Summary;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Note {
    version: u32,
    complete: bool,
    /// Whether a recording belongs to it.
    recorded: bool,
    summary: Summary,
    /// For the `session.end` that a crash left out.
    session: event::Session,
}

impl Note {
    pub(crate) fn new(
        session: event::Session,
        started: OffsetDateTime,
        interactive: bool,
        command: &str,
        recorded: bool,
    ) -> Self {
        let summary = Summary {
            sid: session.sid.clone(),
            user: session.user.clone(),
            login: session.login.clone(),
            server_id: session.server_id.clone(),
            server_hostname: session.server_hostname.clone(),
            session_start: started,
            session_stop: started,
            interactive,
            command: command.to_owned(),
            truncated: true,
            length: 0,
        };
        Self { version: VERSION, complete: false, recorded, summary, session }
    }
    pub(crate) fn sid(&self) -> &SessionId {
        &self.summary.sid
    }
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }
    pub(crate) fn is_recorded(&self) -> bool {
        self.recorded
    }
    pub(crate) fn summary(&self) -> &Summary {
        &self.summary
    }
    pub(crate) fn session(&self) -> &event::Session {
        &self.session
    }
    pub(crate) fn set_stop(&mut self, stop: OffsetDateTime) {
        self.summary.session_stop = stop;
    }
    pub(crate) fn complete(&mut self, length: u64, truncated: bool) {
        self.complete = true;
        self.summary.length = length;
        self.summary.truncated = truncated;
    }
    /// Replaces the note on disk; a power cut leaves the old or the new.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        net::file::write_private(&note_path(dir, self.sid()), &text)
    }
    /// Reads a note.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let note: Self = serde_json::from_slice(&std::fs::read(path)?).map_err(io::Error::other)?;
        if note.version != VERSION {
            return Err(io::Error::other(format!("a note of version {}", note.version)));
        }
        Ok(note)
    }
    /// Removes recording and note, in this order: a note without its recording is seen as done.
    pub(crate) fn remove(&self, dir: &Path) -> io::Result<()> {
        if self.recorded {
            remove_if_there(&cast_path(dir, self.sid()))?;
        }
        remove_if_there(&note_path(dir, self.sid()))
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Where a session's recording is.
pub(crate) fn cast_path(dir: &Path, sid: &SessionId) -> PathBuf {
    dir.join(format!("{sid}.cast"))
}

/// Where a session's note is.
pub(crate) fn note_path(dir: &Path, sid: &SessionId) -> PathBuf {
    dir.join(format!("{sid}.json"))
}

/// All readable notes in the folder; others are named in the log and left alone.
pub(crate) fn all(dir: &Path) -> io::Result<Vec<Note>> {
    let mut notes = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match Note::read(&path) {
            Ok(note) if path == note_path(dir, note.sid()) => notes.push(note),
            Ok(_) => {
                tracing::warn!(path = %path.display(), "a recording's note has another's name")
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a recording's note is unreadable");
            }
        }
    }
    Ok(notes)
}

const VERSION: u32 = 1;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn note() -> Note {
        let session = event::Session {
            sid: SessionId::from_random(net::random16()),
            namespace: "default".into(),
            user: "alice".parse().unwrap(),
            login: "root".parse().unwrap(),
            server_id: proto::id::HostId::from_random([3; 16]),
            server_hostname: "web1".parse().unwrap(),
            server_labels: Default::default(),
            server_version: "1".into(),
            addr_remote: "192.0.2.7:4711".into(),
            proto: "ssh".into(),
        };
        Note::new(session, OffsetDateTime::UNIX_EPOCH, true, "", true)
    }

    #[test]
    fn notes_come_back_and_strangers_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let note = note();
        note.write(dir.path()).unwrap();
        std::fs::write(dir.path().join("x.json"), "{}").unwrap();
        std::fs::write(cast_path(dir.path(), note.sid()), "x").unwrap();
        assert_eq!(all(dir.path()).unwrap(), std::slice::from_ref(&note));
        note.remove(dir.path()).unwrap();
        note.remove(dir.path()).unwrap();
        assert_eq!(all(dir.path()).unwrap(), []);
        assert!(!cast_path(dir.path(), note.sid()).exists());
        assert!(dir.path().join("x.json").exists());
    }
}
