//! The policy snapshot: roles, locks and authorities at one revision of the store, signed by the host TLS authority.
//! Made anew whenever one of them changes; only the newest is kept, so a slow receiver skips what is outdated.
//! Auth decides by it too, so that all of the cluster decides by the same.

use std::sync::Arc;

use policy::Policy;
use proto::id::ClusterName;
use proto::rpc::SignedSnapshot;
use proto::snapshot::{FORMAT, SIGNATURE_CONTEXT, Snapshot};
use tokio::sync::{Mutex, watch};
use tracing::{debug, error};

use crate::ca::Ca;
use crate::clock::Clock;
use crate::fault::{Fault, told};
use crate::store::{Span, Store, StoreError, Watch, from_json};

/// A snapshot in its three forms.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) policy: Policy,
    pub(crate) signed: SignedSnapshot,
}

impl Published {
    pub(crate) fn revision(&self) -> u64 {
        self.policy.snapshot().revision
    }
}

/// Makes snapshots and tells of them.
#[derive(Debug)]
pub(crate) struct Snapshots {
    store: Arc<dyn Store>,
    ca: Arc<Ca>,
    cluster: ClusterName,
    clock: Clock,
    newest: watch::Sender<Arc<Published>>,
    /// One refresh at a time: revisions must not overtake each other.
    refreshing: Mutex<()>,
}

impl Snapshots {
    /// Makes the first one.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        ca: Arc<Ca>,
        cluster: ClusterName,
        clock: Clock,
    ) -> Result<Self, Fault> {
        let first = build(&*store, &ca, &cluster, clock.now()).await?;
        let newest = watch::channel(Arc::new(publish(&ca, first)?)).0;
        Ok(Self { store, ca, cluster, clock, newest, refreshing: Mutex::default() })
    }

    pub(crate) fn current(&self) -> Arc<Published> {
        self.newest.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Published>> {
        self.newest.subscribe()
    }

    /// Takes in what has changed; whoever changed it calls this before answering, so that it counts at once.
    pub(crate) async fn refresh(&self) -> Result<(), Fault> {
        let _one = self.refreshing.lock().await;
        let snapshot = build(&*self.store, &self.ca, &self.cluster, self.clock.now()).await?;
        let held = self.current();
        let held = held.policy.snapshot();
        let same = held.roles == snapshot.roles
            && held.locks == snapshot.locks
            && held.authorities == snapshot.authorities;
        if !same {
            debug!(revision = snapshot.revision, "new policy snapshot");
            self.newest.send_replace(Arc::new(publish(&self.ca, snapshot)?));
        }
        Ok(())
    }

    /// Follows the store, for changes that nobody announces: expiry. Until the store stops.
    pub(crate) async fn follow(&self) {
        let mut watch =
            Watch::new(self.store.clone(), Span::prefix(POLICY_PREFIX), self.current().revision());
        loop {
            match watch.next().await {
                Ok(_) => {}
                Err(StoreError::Compacted(revision)) => {
                    watch = Watch::new(self.store.clone(), Span::prefix(POLICY_PREFIX), revision);
                }
                Err(StoreError::Stopped) => return,
                Err(failure) => {
                    error!(error = %failure, "the policy cannot be followed");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
            if let Err(failure) = self.refresh().await {
                error!(
                    error = told(&failure),
                    "no new policy snapshot could be made; the last one stays"
                );
            }
        }
    }
}

async fn build(
    store: &dyn Store,
    ca: &Ca,
    cluster: &ClusterName,
    now: i64,
) -> Result<Snapshot, Fault> {
    let range = store.range(Span::prefix(POLICY_PREFIX), POLICY_ITEMS_MAX).await?;
    if range.more {
        return Err(Fault::Internal(format!("more than {POLICY_ITEMS_MAX} roles and locks")));
    }
    let mut roles = Vec::new();
    let mut locks = Vec::new();
    for item in &range.items {
        if item.key.starts_with(ROLE_PREFIX) {
            roles.push(from_json(item)?);
        } else {
            locks.push(from_json(item)?);
        }
    }
    Ok(Snapshot {
        format: FORMAT,
        cluster: cluster.clone(),
        revision: range.revision,
        issued_at: now,
        authorities: ca.authorities().clone(),
        roles,
        locks,
    })
}

fn publish(ca: &Ca, snapshot: Snapshot) -> Result<Published, Fault> {
    let payload =
        serde_json::to_vec(&snapshot).map_err(|error| Fault::Internal(error.to_string()))?;
    if payload.len() > net::auth_client::MESSAGE_BYTES_MAX / 2 {
        return Err(Fault::Internal("roles and locks together are too long to be sent".into()));
    }
    let signature = ca.host_tls().sign(SIGNATURE_CONTEXT, &payload)?;
    let policy = Policy::new(snapshot).map_err(|error| Fault::Internal(error.to_string()))?;
    Ok(Published { policy, signed: SignedSnapshot { payload, signature } })
}

/// Roles and locks stand under one prefix, so that one read sees both as of one moment.
const POLICY_PREFIX: &str = "policy/";
pub(crate) const ROLE_PREFIX: &str = "policy/role/";
pub(crate) const LOCK_PREFIX: &str = "policy/lock/";
/// Far above any cluster; the length of the message is the limit that counts.
const POLICY_ITEMS_MAX: usize = 20_000;
/// A failing database is asked again, not hammered.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);
