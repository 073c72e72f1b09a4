//! The index of the event log: where each event's line stands, and by what it can be found. The lines themselves are
//! files, written by `crate::log`, which also repairs this index after a crash; so it need not be flushed per event.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use super::StoreError;
use super::sqlite::{connect, database, signed, unsigned};

/// Where a line stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Name of the file in the log folder.
    pub(crate) file: String,
    pub(crate) offset: u64,
    /// Bytes without the line break.
    pub(crate) length: u64,
}

/// One event to be indexed.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) uid: String,
    /// `auth`, or the id of the host that sent it.
    pub(crate) source: String,
    pub(crate) sequence: u64,
    /// Unix milliseconds.
    pub(crate) time_ms: i64,
    pub(crate) name: String,
    pub(crate) user: String,
    pub(crate) sid: String,
    pub(crate) place: Place,
}

/// What to look for; empty means any.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) names: Vec<String>,
    pub(crate) user: String,
    pub(crate) sid: String,
    /// Unix milliseconds, inclusive.
    pub(crate) since_ms: Option<i64>,
    pub(crate) until_ms: Option<i64>,
}

/// Where a search begins, and in which order it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// Behind this entry, in the order of storing.
    After(u64),
    /// Before this entry and its time, in Unix milliseconds; back in time.
    Before { time_ms: i64, id: u64 },
    /// From the newest back in time.
    Newest,
}

/// A match.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Grows in the order of storing.
    pub(crate) id: u64,
    /// Unix milliseconds.
    pub(crate) time_ms: i64,
    pub(crate) place: Place,
}

/// One connection to the index. Calls block for a disk access; callers are threads of their own.
#[derive(Debug)]
pub(crate) struct EventIndex {
    connection: Connection,
}

impl EventIndex {
    /// Opens or makes the index.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = connect(path)?;
        connection.execute_batch(SCHEMA).map_err(database)?;
        Ok(Self { connection })
    }

    /// Whether this event is stored.
    pub(crate) fn knows(&self, uid: &str) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached("SELECT 1 FROM events WHERE uid = ?1")
            .and_then(|mut statement| statement.exists([uid]))
            .map_err(database)
    }

    /// Adds entries, all or none; one that is known is left as it is.
    pub(crate) fn add(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction().map_err(database)?;
        for entry in entries {
            transaction
                .prepare_cached(
                    "INSERT OR IGNORE INTO events
                     (uid, source, sequence, time, name, user, sid, file, offset, length)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                )
                .and_then(|mut statement| {
                    statement.execute(params![
                        entry.uid,
                        entry.source,
                        signed(entry.sequence),
                        entry.time_ms,
                        entry.name,
                        entry.user,
                        entry.sid,
                        entry.place.file,
                        signed(entry.place.offset),
                        signed(entry.place.length),
                    ])
                })
                .map_err(database)?;
        }
        transaction.commit().map_err(database)
    }

    /// Id of the newest entry; ids grow in the order of storing.
    pub(crate) fn newest(&self) -> Result<u64, StoreError> {
        self.connection
            .query_row("SELECT coalesce(max(id), 0) FROM events", [], |row| row.get(0))
            .map(unsigned)
            .map_err(database)
    }

    /// Where the last indexed line stands.
    pub(crate) fn last_place(&self) -> Result<Option<Place>, StoreError> {
        self.connection
            .query_row(
                "SELECT id, file, offset, length, time FROM events
                 ORDER BY file DESC, offset DESC LIMIT 1",
                [],
                found,
            )
            .optional()
            .map(|found| found.map(|found| found.place))
            .map_err(database)
    }

    /// The newest sequence of a source; zero when there is none.
    pub(crate) fn newest_sequence(&self, source: &str) -> Result<u64, StoreError> {
        self.connection
            .prepare_cached("SELECT coalesce(max(sequence), 0) FROM events WHERE source = ?1")
            .and_then(|mut statement| statement.query_row([source], |row| row.get(0)))
            .map(unsigned)
            .map_err(database)
    }

    /// Whether another source was the first with an event of this session. Who comes later may have heard of it.
    pub(crate) fn session_is_foreign(&self, sid: &str, source: &str) -> Result<bool, StoreError> {
        let first: Option<String> = self
            .connection
            .prepare_cached(
                "SELECT source FROM events
                 WHERE sid = ?1 AND sid <> '' AND source <> 'auth' ORDER BY id LIMIT 1",
            )
            .and_then(|mut statement| statement.query_row([sid], |row| row.get(0)).optional())
            .map_err(database)?;
        Ok(first.is_some_and(|first| first != source))
    }

    /// At most `limit` matches from `from` on, in its order.
    pub(crate) fn search(
        &self,
        filter: &Filter,
        from: From,
        limit: usize,
    ) -> Result<Vec<Found>, StoreError> {
        use rusqlite::types::Value;
        let mut conditions = vec!["1".to_owned()];
        let mut values: Vec<Value> = Vec::new();
        let mut also = |condition: &str, value: &[Value]| {
            conditions.push(condition.to_owned());
            values.extend_from_slice(value);
        };
        let order = match from {
            From::After(id) => {
                also("id > ?", &[signed(id).into()]);
                "id"
            }
            From::Before { time_ms, id } => {
                also("(time, id) < (?, ?)", &[time_ms.into(), signed(id).into()]);
                "time DESC, id DESC"
            }
            From::Newest => "time DESC, id DESC",
        };
        if !filter.user.is_empty() {
            also("user = ?", &[filter.user.clone().into()]);
        }
        if !filter.sid.is_empty() {
            // The index of sessions is used only where the query repeats its condition.
            also("sid <> '' AND sid = ?", &[filter.sid.clone().into()]);
        }
        if let Some(since) = filter.since_ms {
            also("time >= ?", &[since.into()]);
        }
        if let Some(until) = filter.until_ms {
            also("time <= ?", &[until.into()]);
        }
        if !filter.names.is_empty() {
            let marks = vec!["?"; filter.names.len()].join(", ");
            conditions.push(format!("name IN ({marks})"));
            values.extend(filter.names.iter().map(|name| Value::from(name.clone())));
        }
        let conditions = conditions.join(" AND ");
        values.push(i64::try_from(limit).unwrap_or(i64::MAX).into());
        let sql = format!(
            "SELECT id, file, offset, length, time FROM events WHERE {conditions} ORDER BY {order} LIMIT ?"
        );
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut statement| {
                statement.query_map(params_from_iter(values), found)?.collect()
            })
            .map_err(database)
    }
}

fn found(row: &rusqlite::Row<'_>) -> rusqlite::Result<Found> {
    let (id, offset, length): (i64, i64, i64) = (row.get(0)?, row.get(2)?, row.get(3)?);
    let place = Place { file: row.get(1)?, offset: unsigned(offset), length: unsigned(length) };
    Ok(Found { id: unsigned(id), time_ms: row.get(4)?, place })
}

const SCHEMA: &str = "
BEGIN;
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, source TEXT NOT NULL, sequence INTEGER NOT NULL,
  time INTEGER NOT NULL, name TEXT NOT NULL, user TEXT NOT NULL, sid TEXT NOT NULL,
  file TEXT NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS events_time ON events (time);
CREATE INDEX IF NOT EXISTS events_name ON events (name, time);
CREATE INDEX IF NOT EXISTS events_user ON events (user, time);
CREATE INDEX IF NOT EXISTS events_sid ON events (sid) WHERE sid <> '';
CREATE INDEX IF NOT EXISTS events_source ON events (source, sequence);
CREATE INDEX IF NOT EXISTS events_place ON events (file, offset);
COMMIT;
";
