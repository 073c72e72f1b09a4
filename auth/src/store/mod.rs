//! What auth remembers: keys and values with revisions. The only room with SQL. It knows nothing of what the values mean.
//!
//! - [`Store`]: the small trait; one conformance suite runs on every implementation
//! - [`sqlite`]: the embedded default
//! - [`events`]: the index of the event log (its lines are files, see `crate::log`)
//! - `memory`: for tests
//!
//! One revision counts all changes, grows by one with each, and never goes back: a deletion has one too. Expired items
//! are as good as gone at once and are removed by [`Store::purge`], which is a change as well.

use std::fmt::Debug;
use std::sync::Arc;

use tokio::sync::watch;

#[cfg(test)]
mod conformance;
pub(crate) mod events;
#[cfg(test)]
pub(crate) mod memory;
pub(crate) mod sqlite;

/// A value with the revision of its last change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) revision: u64,
}

/// What must hold for a change to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    Absent,
    Any,
    Revision(u64),
}

/// Items in key order, all as of `revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) items: Vec<Item>,
    /// The store's revision at the moment of reading.
    pub(crate) revision: u64,
    /// There are more than were asked for.
    pub(crate) more: bool,
}

/// One step of history. `value` is absent for a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: String,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) revision: u64,
}

/// Keys from `from` (in) to `to` (out), compared as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: String,
    pub(crate) to: String,
}

impl Span {
    /// All keys that begin with `prefix`, which ends in `/`.
    pub(crate) fn prefix(prefix: &str) -> Self {
        // '0' follows '/' in ASCII, so this is the first key after the prefix.
        let stem = prefix.strip_suffix('/').unwrap_or(prefix);
        Self { from: format!("{stem}/"), to: format!("{stem}0") }
    }

    #[cfg(test)]
    pub(crate) fn contains(&self, key: &str) -> bool {
        (self.from.as_str()..self.to.as_str()).contains(&key)
    }
}

/// Why the store did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// The expectation does not hold.
    #[error("the item is not as expected")]
    Conflict,
    /// That part of history is gone: read the range again.
    #[error("the history before revision {0} is gone")]
    Compacted(u64),
    #[error(
        "a key of {KEY_BYTES_MAX} or a value of {VALUE_BYTES_MAX} bytes is the longest possible"
    )]
    TooLong,
    #[error("a stored item cannot be read: {0}")]
    Damaged(String),
    #[error("the store has stopped")]
    Stopped,
    #[error("the database failed: {0}")]
    Database(String),
}

/// Six calls and a wake-up.
#[tonic::async_trait]
pub(crate) trait Store: Debug + Send + Sync + 'static {
    async fn get(&self, key: &str) -> Result<Option<Item>, StoreError>;

    /// Writes if `expect` holds; gives the new revision. `expires` is in Unix seconds.
    async fn put_if(
        &self,
        key: &str,
        value: Vec<u8>,
        expect: Expect,
        expires: Option<i64>,
    ) -> Result<u64, StoreError>;

    /// Deletes if `expect` holds; false when there was nothing and [`Expect::Any`] did not mind.
    async fn delete_if(&self, key: &str, expect: Expect) -> Result<bool, StoreError>;

    /// At most `limit` items, as of one moment.
    async fn range(&self, span: Span, limit: usize) -> Result<Range, StoreError>;

    /// At most `limit` changes in `span` after `revision`, oldest first.
    async fn changes(
        &self,
        span: Span,
        revision: u64,
        limit: usize,
    ) -> Result<Vec<Change>, StoreError>;

    /// Removes what has expired.
    async fn purge(&self) -> Result<(), StoreError>;

    /// The newest committed revision.
    fn revisions(&self) -> watch::Receiver<u64>;
}

/// Follows the changes in a span.
#[derive(Debug)]
pub(crate) struct Watch {
    store: Arc<dyn Store>,
    span: Span,
    revision: u64,
    wake: watch::Receiver<u64>,
}

impl Watch {
    /// From after `revision`.
    pub(crate) fn new(store: Arc<dyn Store>, span: Span, revision: u64) -> Self {
        let wake = store.revisions();
        Self { store, span, revision, wake }
    }

    /// Waits for the next changes; never gives an empty list.
    pub(crate) async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        loop {
            let newest = *self.wake.borrow_and_update();
            if newest > self.revision {
                let found =
                    self.store.changes(self.span.clone(), self.revision, WATCH_BATCH).await?;
                match found.last() {
                    Some(last) => {
                        self.revision = last.revision;
                        return Ok(found);
                    }
                    None => self.revision = newest,
                }
            }
            self.wake.changed().await.map_err(|_| StoreError::Stopped)?;
        }
    }
}

/// Reads a value as JSON.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(item: &Item) -> Result<T, StoreError> {
    serde_json::from_slice(&item.value)
        .map_err(|error| StoreError::Damaged(format!("{}: {error}", class_of(&item.key))))
}

/// Writes a value as JSON.
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Damaged(error.to_string()))
}

/// The first part of a key, for messages: the rest may be a secret's digest or a name.
fn class_of(key: &str) -> &str {
    key.split('/').next().unwrap_or_default()
}

fn check_lengths(key: &str, value: &[u8]) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
        return Err(StoreError::TooLong);
    }
    Ok(())
}

/// Longest key: the longest names of ours with their prefix fit twice.
const KEY_BYTES_MAX: usize = 1024;
/// Longest value: a role with thousands of rules fits; a page of them must stay within one gRPC message.
pub(crate) const VALUE_BYTES_MAX: usize = 256 * 1024;
/// Changes per read of a [`Watch`].
const WATCH_BATCH: usize = 256;
/// Steps of history that are kept: watchers read within milliseconds, and one that is too late reads the range again.
const HISTORY: u64 = 4096;
