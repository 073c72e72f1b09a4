//! The store on SQLite: one file, one writer thread that commits in groups, one reader thread. WAL with
//! `synchronous=FULL`: what was answered survives a power cut. No memory map: SQLite's WAL and mmap had corruption bugs
//! together. Both threads own their connection; nobody else has one.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Change, Expect, HISTORY, Item, Range, Span, Store, StoreError, check_lengths};
use crate::clock::Clock;

/// Handle to both threads.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    clock: Clock,
    writes: mpsc::Sender<Write>,
    reads: mpsc::Sender<Read>,
    revisions: watch::Receiver<u64>,
}

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;
/// Answers a caller once it is known whether the group was committed.
type Answer = Box<dyn FnOnce(Option<StoreError>)>;

enum Write {
    Put {
        key: String,
        value: Vec<u8>,
        expect: Expect,
        expires: Option<i64>,
        now: i64,
        reply: Reply<u64>,
    },
    Delete {
        key: String,
        expect: Expect,
        now: i64,
        reply: Reply<bool>,
    },
    Purge {
        now: i64,
        reply: Reply<()>,
    },
}

enum Read {
    Get { key: String, now: i64, reply: Reply<Option<Item>> },
    Range { span: Span, limit: usize, now: i64, reply: Reply<Range> },
    Changes { span: Span, revision: u64, limit: usize, reply: Reply<Vec<Change>> },
}

impl SqliteStore {
    /// Opens or makes the database.
    ///
    /// # Errors
    /// The file cannot be used, or it is from a newer version.
    pub(crate) fn open(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        let writer = connect(path)?;
        writer.execute_batch(SCHEMA).map_err(database)?;
        let version: i64 = writer
            .query_row("SELECT value FROM meta WHERE name = 'format'", [], |row| row.get(0))
            .map_err(database)?;
        if version != SCHEMA_VERSION {
            return Err(StoreError::Database(format!(
                "{} has format {version}, this version understands {SCHEMA_VERSION}",
                path.display()
            )));
        }
        let reader = connect(path)?;
        reader.execute_batch("PRAGMA query_only = ON").map_err(database)?;
        let newest = read_revision(&writer)?;
        let (revision_sender, revisions) = watch::channel(newest);
        let (writes, write_queue) = mpsc::channel(QUEUE);
        let (reads, read_queue) = mpsc::channel(QUEUE);
        spawn("store-writer", move || write_loop(writer, write_queue, &revision_sender))?;
        spawn("store-reader", move || read_loop(&reader, read_queue))?;
        Ok(Self { clock, writes, reads, revisions })
    }

    async fn write<T>(&self, make: impl FnOnce(Reply<T>) -> Write) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writes.send(make(reply)).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    async fn read<T>(&self, make: impl FnOnce(Reply<T>) -> Read) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.reads.send(make(reply)).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }
}

#[tonic::async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Item>, StoreError> {
        let (key, now) = (key.to_owned(), self.clock.now());
        self.read(|reply| Read::Get { key, now, reply }).await
    }

    async fn put_if(
        &self,
        key: &str,
        value: Vec<u8>,
        expect: Expect,
        expires: Option<i64>,
    ) -> Result<u64, StoreError> {
        check_lengths(key, &value)?;
        let (key, now) = (key.to_owned(), self.clock.now());
        self.write(|reply| Write::Put { key, value, expect, expires, now, reply }).await
    }

    async fn delete_if(&self, key: &str, expect: Expect) -> Result<bool, StoreError> {
        let (key, now) = (key.to_owned(), self.clock.now());
        self.write(|reply| Write::Delete { key, expect, now, reply }).await
    }

    async fn range(&self, span: Span, limit: usize) -> Result<Range, StoreError> {
        let now = self.clock.now();
        self.read(|reply| Read::Range { span, limit, now, reply }).await
    }

    async fn changes(
        &self,
        span: Span,
        revision: u64,
        limit: usize,
    ) -> Result<Vec<Change>, StoreError> {
        self.read(|reply| Read::Changes { span, revision, limit, reply }).await
    }

    async fn purge(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.write(|reply| Write::Purge { now, reply }).await
    }

    fn revisions(&self) -> watch::Receiver<u64> {
        self.revisions.clone()
    }
}

/// Takes what waits, commits it as one transaction, then answers.
fn write_loop(
    mut connection: Connection,
    mut queue: mpsc::Receiver<Write>,
    newest: &watch::Sender<u64>,
) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            let Ok(next) = queue.try_recv() else { break };
            batch.push(next);
        }
        // Before the change is visible nobody is answered; after it watchers wake first.
        let mut answers: Vec<Answer> = Vec::with_capacity(batch.len());
        let committed = commit(&mut connection, batch, &mut answers);
        let failure = match committed {
            Ok(revision) => {
                newest.send_replace(revision);
                None
            }
            Err(error) => Some(error),
        };
        for answer in answers {
            answer(failure.clone());
        }
    }
}

fn commit(
    connection: &mut Connection,
    batch: Vec<Write>,
    answers: &mut Vec<Answer>,
) -> Result<u64, StoreError> {
    let opened = connection.transaction_with_behavior(TransactionBehavior::Immediate);
    let transaction = match opened.map_err(database) {
        Ok(transaction) => transaction,
        Err(error) => {
            answers.extend(batch.into_iter().map(refusal));
            return Err(error);
        }
    };
    let mut revision = match read_revision(&transaction) {
        Ok(revision) => revision,
        Err(error) => {
            answers.extend(batch.into_iter().map(refusal));
            return Err(error);
        }
    };
    let mut broken = None;
    for write in batch {
        if broken.is_some() {
            answers.push(refusal(write));
        } else {
            broken = apply(&transaction, write, &mut revision, answers);
        }
    }
    if let Some(error) = broken {
        return Err(error);
    }
    transaction
        .prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'revision'")
        .and_then(|mut statement| statement.execute([signed(revision)]))
        .map_err(database)?;
    transaction.commit().map_err(database)?;
    Ok(revision)
}

/// Answers a write that was not tried.
fn refusal(write: Write) -> Answer {
    match write {
        Write::Put { reply, .. } => later(reply, Err(StoreError::Stopped)),
        Write::Delete { reply, .. } => later(reply, Err(StoreError::Stopped)),
        Write::Purge { reply, .. } => later(reply, Err(StoreError::Stopped)),
    }
}

/// The answer, to be given after the commit, or the commit's failure in its place.
fn later<T: 'static>(reply: Reply<T>, result: Result<T, StoreError>) -> Answer {
    Box::new(move |failure| {
        let result = match failure {
            Some(error) => Err(error),
            None => result,
        };
        // Whoever asked may have gone; the change stands all the same.
        reply.send(result).ok();
    })
}

/// One write. Gives the error that must undo the whole group: the database failed in the middle of a change.
fn apply(
    transaction: &Transaction<'_>,
    write: Write,
    revision: &mut u64,
    answers: &mut Vec<Answer>,
) -> Option<StoreError> {
    let (answer, broken) = match write {
        Write::Put { key, value, expect, expires, now, reply } => {
            finish(reply, put(transaction, &key, &value, expect, expires, now, revision))
        }
        Write::Delete { key, expect, now, reply } => {
            finish(reply, delete(transaction, &key, expect, now, revision))
        }
        Write::Purge { now, reply } => finish(reply, purge(transaction, now, revision)),
    };
    answers.push(answer);
    broken
}

fn finish<T: 'static>(
    reply: Reply<T>,
    result: Result<T, StoreError>,
) -> (Answer, Option<StoreError>) {
    let broken = match &result {
        Err(error @ StoreError::Database(_)) => Some(error.clone()),
        Ok(_) | Err(_) => None,
    };
    (later(reply, result), broken)
}

fn put(
    transaction: &Transaction<'_>,
    key: &str,
    value: &[u8],
    expect: Expect,
    expires: Option<i64>,
    now: i64,
    revision: &mut u64,
) -> Result<u64, StoreError> {
    check(transaction, key, expect, now)?;
    let next = *revision + 1;
    transaction
        .prepare_cached(
            "INSERT INTO items (key, value, revision, expires) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (key) DO UPDATE SET value = ?2, revision = ?3, expires = ?4",
        )
        .and_then(|mut statement| statement.execute(params![key, value, signed(next), expires]))
        .map_err(database)?;
    remember(transaction, key, Some(value), next)?;
    *revision = next;
    Ok(next)
}

fn delete(
    transaction: &Transaction<'_>,
    key: &str,
    expect: Expect,
    now: i64,
    revision: &mut u64,
) -> Result<bool, StoreError> {
    if !check(transaction, key, expect, now)? {
        return Ok(false);
    }
    remove(transaction, key, revision)?;
    Ok(true)
}

fn purge(transaction: &Transaction<'_>, now: i64, revision: &mut u64) -> Result<(), StoreError> {
    let expired: Vec<String> = transaction
        .prepare_cached("SELECT key FROM items WHERE expires <= ?1 LIMIT ?2")
        .and_then(|mut statement| {
            statement.query_map(params![now, PURGE_BATCH], |row| row.get(0))?.collect()
        })
        .map_err(database)?;
    for key in expired {
        remove(transaction, &key, revision)?;
    }
    Ok(())
}

fn remove(transaction: &Transaction<'_>, key: &str, revision: &mut u64) -> Result<(), StoreError> {
    transaction
        .prepare_cached("DELETE FROM items WHERE key = ?1")
        .and_then(|mut statement| statement.execute([key]))
        .map_err(database)?;
    let next = *revision + 1;
    remember(transaction, key, None, next)?;
    *revision = next;
    Ok(())
}

/// Whether the item is there; fails when it is not as expected.
fn check(
    transaction: &Transaction<'_>,
    key: &str,
    expect: Expect,
    now: i64,
) -> Result<bool, StoreError> {
    let found: Option<i64> = transaction
        .prepare_cached(
            "SELECT revision FROM items WHERE key = ?1 AND (expires IS NULL OR expires > ?2)",
        )
        .and_then(|mut statement| {
            statement.query_row(params![key, now], |row| row.get(0)).optional()
        })
        .map_err(database)?;
    let holds = match expect {
        Expect::Absent => found.is_none(),
        Expect::Any => true,
        Expect::Revision(revision) => found == Some(signed(revision)),
    };
    if holds { Ok(found.is_some()) } else { Err(StoreError::Conflict) }
}

/// A step of history; the oldest one goes.
fn remember(
    transaction: &Transaction<'_>,
    key: &str,
    value: Option<&[u8]>,
    revision: u64,
) -> Result<(), StoreError> {
    transaction
        .prepare_cached("INSERT INTO changes (revision, key, value) VALUES (?1, ?2, ?3)")
        .and_then(|mut statement| statement.execute(params![signed(revision), key, value]))
        .map_err(database)?;
    transaction
        .prepare_cached("DELETE FROM changes WHERE revision <= ?1")
        .and_then(|mut statement| statement.execute([signed(revision.saturating_sub(HISTORY))]))
        .map_err(database)?;
    Ok(())
}

fn read_loop(connection: &Connection, mut queue: mpsc::Receiver<Read>) {
    while let Some(read) = queue.blocking_recv() {
        // Whoever asked may have gone.
        match read {
            Read::Get { key, now, reply } => reply.send(get(connection, &key, now)).ok(),
            Read::Range { span, limit, now, reply } => {
                reply.send(range(connection, &span, limit, now)).map_err(drop).ok()
            }
            Read::Changes { span, revision, limit, reply } => {
                reply.send(changes(connection, &span, revision, limit)).map_err(drop).ok()
            }
        };
    }
}

fn get(connection: &Connection, key: &str, now: i64) -> Result<Option<Item>, StoreError> {
    connection
        .prepare_cached(
            "SELECT key, value, revision FROM items
             WHERE key = ?1 AND (expires IS NULL OR expires > ?2)",
        )
        .and_then(|mut statement| statement.query_row(params![key, now], item).optional())
        .map_err(database)
}

fn range(
    connection: &Connection,
    span: &Span,
    limit: usize,
    now: i64,
) -> Result<Range, StoreError> {
    let moment = connection.unchecked_transaction().map_err(database)?;
    let revision = read_revision(&moment)?;
    let fetch = i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX);
    let mut items: Vec<Item> = moment
        .prepare_cached(
            "SELECT key, value, revision FROM items
             WHERE key >= ?1 AND key < ?2 AND (expires IS NULL OR expires > ?3)
             ORDER BY key LIMIT ?4",
        )
        .and_then(|mut statement| {
            statement.query_map(params![span.from, span.to, now, fetch], item)?.collect()
        })
        .map_err(database)?;
    let more = items.len() > limit;
    items.truncate(limit);
    Ok(Range { items, revision, more })
}

fn changes(
    connection: &Connection,
    span: &Span,
    revision: u64,
    limit: usize,
) -> Result<Vec<Change>, StoreError> {
    let moment = connection.unchecked_transaction().map_err(database)?;
    let oldest = read_revision(&moment)?.saturating_sub(HISTORY);
    if revision < oldest {
        return Err(StoreError::Compacted(oldest));
    }
    moment
        .prepare_cached(
            "SELECT key, value, revision FROM changes
             WHERE revision > ?1 AND key >= ?2 AND key < ?3 ORDER BY revision LIMIT ?4",
        )
        .and_then(|mut statement| {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            statement
                .query_map(params![signed(revision), span.from, span.to, limit], |row| {
                    let revision: i64 = row.get(2)?;
                    Ok(Change {
                        key: row.get(0)?,
                        value: row.get(1)?,
                        revision: unsigned(revision),
                    })
                })?
                .collect()
        })
        .map_err(database)
}

fn item(row: &rusqlite::Row<'_>) -> rusqlite::Result<Item> {
    let revision: i64 = row.get(2)?;
    Ok(Item { key: row.get(0)?, value: row.get(1)?, revision: unsigned(revision) })
}

fn read_revision(connection: &Connection) -> Result<u64, StoreError> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE name = 'revision'")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map(unsigned)
        .map_err(database)
}

/// A connection with the settings that both databases of auth need. The file is made private first.
pub(super) fn connect(path: &Path) -> Result<Connection, StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| StoreError::Database(format!("{}: {error}", path.display())))?;
    let connection = Connection::open(path).map_err(database)?;
    connection.busy_timeout(BUSY_WITHIN).map_err(database)?;
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA mmap_size = 0;
             PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = ON;",
        )
        .map_err(database)?;
    Ok(connection)
}

pub(super) fn database(error: rusqlite::Error) -> StoreError {
    StoreError::Database(error.to_string())
}

/// SQLite's integers are signed; revisions and sequences never come near the limit.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|error| StoreError::Database(error.to_string()))
}

/// Requests waiting for a thread: more than there are concurrent calls; beyond it callers wait.
const QUEUE: usize = 256;
/// Writes per commit: as many as one disk flush is worth, few enough that a commit stays short.
const BATCH: usize = 64;
/// Expired items removed at a time: a commit stays short enough for other writes to get their turn, and every ten seconds
/// so many are more than sign-ins under made-up names can add, each of which waits for a password hash.
const PURGE_BATCH: i64 = 2048;
/// For an operator's `sqlite3` that holds the file for a moment.
const BUSY_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);
const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
BEGIN;
CREATE TABLE IF NOT EXISTS items (
  key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, expires INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_expires ON items (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS changes (revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta (name, value) VALUES ('revision', 0);
INSERT OR IGNORE INTO meta (name, value) VALUES ('format', 1);
COMMIT;
";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn conforms() {
        crate::store::conformance::suite(|clock| {
            let dir = tempfile::tempdir().unwrap();
            let store = SqliteStore::open(&dir.path().join("a.db"), clock).unwrap();
            (std::sync::Arc::new(store) as std::sync::Arc<dyn Store>, Some(dir))
        })
        .await;
    }

    #[tokio::test]
    async fn all_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let store = SqliteStore::open(&path, Clock::system()).unwrap();
        let revision = store.put_if("a/1", b"x".to_vec(), Expect::Absent, None).await.unwrap();
        drop(store);
        let store = SqliteStore::open(&path, Clock::system()).unwrap();
        let item = store.get("a/1").await.unwrap().unwrap();
        assert_eq!((item.value.as_slice(), item.revision), (b"x".as_slice(), revision));
        assert_eq!(*store.revisions().borrow(), revision);
        use std::os::unix::fs::PermissionsExt;
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let file = file.unwrap();
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{:?}", file.path());
        }
    }
}
