//! The policy snapshot: loaded from disk at start, replaced by what auth pushes, kept on disk. Signature checked each time
//! against the host authority; an older revision than the one held is refused. Auth may be away for as long as it likes.
//! What a consumer makes of a snapshot (`policy::Policy`) is its own `compile`, so that this crate need not know it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pki::Verifier;
use proto::rpc::policy_client::PolicyClient;
use proto::rpc::{SignedSnapshot, WatchRequest};
use proto::snapshot::{FORMAT, SIGNATURE_CONTEXT, Snapshot};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::Streaming;

use crate::auth_client::{MESSAGE_BYTES_MAX, explain};
use crate::backoff::Backoff;
use crate::file;
use crate::host::Host;
use crate::shutdown::Shutdown;

#[cfg(test)]
mod tests;

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
    reached: watch::Receiver<()>,
}

impl<T> Clone for PolicyFeed<T> {
    fn clone(&self) -> Self {
        Self { current: self.current.clone(), reached: self.reached.clone() }
    }
}

impl<T: Send + Sync + 'static> PolicyFeed<T> {
    /// Waits until there is a first snapshot (disk, `<dir>/snapshot.json`, or auth), then follows in a task.
    ///
    /// # Errors
    /// See [`FeedError`].
    pub async fn start(
        dir: PathBuf,
        host: Host,
        compile: fn(Snapshot) -> Result<T, String>,
        shutdown: Shutdown,
    ) -> Result<Self, FeedError> {
        file::private_dir(&dir).map_err(|source| FeedError::File { path: dir.clone(), source })?;
        let mut follower = Follower::new(dir.join(FILE), host, compile);
        let first = match follower.stored()? {
            Some(stored) => stored,
            None => tokio::select! {
                () = shutdown.stopped() => return Err(FeedError::Stopped),
                first = follower.next() => first,
            },
        };
        let (publish, current) = watch::channel(Arc::new(first));
        let reached = follower.reached.subscribe();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = shutdown.stopped() => return,
                    next = follower.next() => publish.send_replace(Arc::new(next)),
                };
            }
        });
        Ok(Self { current, reached })
    }
    /// The newest.
    pub fn current(&self) -> Arc<Current<T>> {
        self.current.borrow().clone()
    }
    /// To be told of changes (running sessions re-check themselves).
    pub fn watch(&self) -> watch::Receiver<Arc<Current<T>>> {
        self.current.clone()
    }
    /// To be told when auth is there again: it may have forgotten what it was told before.
    pub fn reached(&self) -> watch::Receiver<()> {
        self.reached.clone()
    }
}

/// The file: the payload's own bytes, so that the signature holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSnapshot {
    payload: String,
    /// Hexadecimal.
    signature: String,
}

/// Takes snapshots in. The one writer of the file.
struct Follower<T> {
    path: PathBuf,
    host: Host,
    compile: fn(Snapshot) -> Result<T, String>,
    /// What the newest snapshot says; none before the first.
    verifier: Option<Verifier>,
    revision: u64,
    stream: Option<Streaming<SignedSnapshot>>,
    backoff: Backoff,
    reached: watch::Sender<()>,
}

impl<T> Follower<T> {
    fn new(path: PathBuf, host: Host, compile: fn(Snapshot) -> Result<T, String>) -> Self {
        let backoff = Backoff::new(RETRY_WAIT_FIRST, RETRY_WAIT_MAX);
        let reached = watch::Sender::new(());
        Self { path, host, compile, verifier: None, revision: 0, stream: None, backoff, reached }
    }

    /// What the disk holds, if it can be used. A damaged file is as good as none: auth sends it again.
    fn stored(&mut self) -> Result<Option<Current<T>>, FeedError> {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FeedError::File { path: self.path.clone(), source }),
        };
        match read_stored(&text).and_then(|signed| self.accept(&signed)) {
            Ok(current) => Ok(current),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), "not using the stored snapshot: {error}");
                Ok(None)
            }
        }
    }

    /// The next newer snapshot, however long it takes. May be dropped at any time.
    async fn next(&mut self) -> Current<T> {
        loop {
            if self.stream.is_none() {
                self.connect().await;
            }
            let Some(stream) = &mut self.stream else {
                self.backoff.wait().await;
                continue;
            };
            match stream.message().await {
                Ok(Some(signed)) => match self.accept(&signed) {
                    Ok(None) => {}
                    Ok(Some(current)) => {
                        self.backoff.reset();
                        save(&self.path, &signed);
                        tracing::info!(revision = current.revision, "took in a policy snapshot");
                        return current;
                    }
                    Err(error) => tracing::error!("refused what auth sent as policy: {error}"),
                },
                Ok(None) => self.stream = None,
                Err(status) => {
                    tracing::debug!("the policy stream ended: {}", explain(&status));
                    self.stream = None;
                }
            }
            if self.stream.is_none() {
                self.backoff.wait().await;
            }
        }
    }

    async fn connect(&mut self) {
        let mut client =
            PolicyClient::new(self.host.auth()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let request = WatchRequest { known_revision: self.revision };
        match timeout(CALL_WITHIN, client.watch(request)).await {
            Ok(Ok(answer)) => {
                self.stream = Some(answer.into_inner());
                self.reached.send_replace(());
            }
            Ok(Err(status)) => {
                tracing::warn!(
                    revision = self.revision,
                    "no policy from auth: {}",
                    explain(&status)
                );
            }
            Err(_) => tracing::warn!(revision = self.revision, "no policy from auth in time"),
        }
    }

    /// Checks and compiles. Nothing when it is not newer than what is held.
    fn accept(&mut self, signed: &SignedSnapshot) -> Result<Option<Current<T>>, FeedError> {
        self.check_signature(signed)?;
        let snapshot: Snapshot = serde_json::from_slice(&signed.payload).map_err(unusable)?;
        if snapshot.format != FORMAT {
            return Err(unusable(format!("format {}; this build reads {FORMAT}", snapshot.format)));
        }
        if snapshot.cluster != self.host.credentials().cluster {
            return Err(unusable("it is another cluster's"));
        }
        let revision = snapshot.revision;
        if self.verifier.is_some() && revision <= self.revision {
            if revision < self.revision {
                let held = self.revision;
                tracing::warn!(revision, held, "refused an older policy snapshot");
            }
            return Ok(None);
        }
        let verifier = Verifier::new(&snapshot.cluster, &snapshot.authorities).map_err(unusable)?;
        let policy = (self.compile)(snapshot).map_err(unusable)?;
        self.revision = revision;
        self.verifier = Some(verifier.clone());
        Ok(Some(Current { policy, verifier, revision }))
    }

    /// By an authority of the newest snapshot, or one that this machine learned when it joined or was renewed.
    fn check_signature(&self, signed: &SignedSnapshot) -> Result<(), FeedError> {
        let good = |verifier: &Verifier| {
            verifier
                .signed_by_host_authority(SIGNATURE_CONTEXT, &signed.payload, &signed.signature)
                .is_ok()
        };
        if self.verifier.as_ref().is_some_and(good) {
            return Ok(());
        }
        let own = self.host.credentials().verifier().map_err(unusable)?;
        if good(&own) { Ok(()) } else { Err(unusable("the cluster's authority did not sign it")) }
    }
}

fn read_stored(text: &[u8]) -> Result<SignedSnapshot, FeedError> {
    let stored: StoredSnapshot = serde_json::from_slice(text).map_err(unusable)?;
    let signature = hex::decode(&stored.signature).map_err(unusable)?;
    Ok(SignedSnapshot { payload: stored.payload.into_bytes(), signature })
}

/// Before it is published. A disk that refuses does not keep a new lock from coming into force: then it is published all
/// the same, and only a restart while auth is away would go back to the older one.
fn save(path: &Path, signed: &SignedSnapshot) {
    let saved =
        std::str::from_utf8(&signed.payload).map_err(io::Error::other).and_then(|payload| {
            let stored = StoredSnapshot {
                payload: payload.to_owned(),
                signature: hex::encode(&signed.signature),
            };
            file::write_private(path, &serde_json::to_vec(&stored).map_err(io::Error::other)?)
        });
    if let Err(error) = saved {
        tracing::error!(path = %path.display(), "cannot keep the policy snapshot on disk: {error}");
    }
}

fn unusable(detail: impl std::fmt::Display) -> FeedError {
    FeedError::Unusable(detail.to_string())
}

const FILE: &str = "snapshot.json";
/// Until auth accepts the watch; afterwards keep-alive watches the connection.
const CALL_WITHIN: Duration = Duration::from_secs(30);
const RETRY_WAIT_FIRST: Duration = Duration::from_millis(200);
/// The longest that a lock waits for a node after auth is back.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(15);
