//! The policy snapshot: loaded from disk at start, replaced by what auth pushes, kept on disk. Signature checked each time
//! against the host authority; an older revision than the one held is refused. Auth may be away for as long as it likes.
//! What a consumer makes of a snapshot (`policy::Policy`) is its own `compile`, so that this crate need not know it.

use std::path::PathBuf;
use std::sync::Arc;

use pki::Verifier;
use proto::snapshot::Snapshot;
use tokio::sync::watch;

use crate::host::Host;
use crate::shutdown::Shutdown;

/// Newest compiled snapshot with the verifier made from its authorities.
#[derive(Debug)]
pub struct Current<T> {
    pub policy: T,
    pub verifier: Verifier,
    pub revision: u64,
}

/// Why there is no usable snapshot.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the policy snapshot cannot be used: {0}")]
    Unusable(String),
    #[error("stopped before auth sent a policy snapshot")]
    Stopped,
}

/// Follows the snapshot.
#[derive(Debug)]
pub struct PolicyFeed<T> {
    current: watch::Receiver<Arc<Current<T>>>,
}

impl<T> Clone for PolicyFeed<T> {
    fn clone(&self) -> Self {
        Self { current: self.current.clone() }
    }
}

impl<T: Send + Sync + 'static> PolicyFeed<T> {
    /// Waits until there is a first snapshot (disk, `<dir>/snapshot.json`, or auth), then follows in a task.
    ///
    /// # Errors
    /// See [`FeedError`].
    pub async fn start(
        _dir: PathBuf,
        _host: Host,
        _compile: fn(Snapshot) -> Result<T, String>,
        _shutdown: Shutdown,
    ) -> Result<Self, FeedError> {
        todo!()
    }
    /// The newest.
    pub fn current(&self) -> Arc<Current<T>> {
        self.current.borrow().clone()
    }
    /// To be told of changes (running sessions re-check themselves).
    pub fn watch(&self) -> watch::Receiver<Arc<Current<T>>> {
        self.current.clone()
    }
}
