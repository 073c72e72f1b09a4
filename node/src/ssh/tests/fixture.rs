//! A node without a cluster.
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use net::spool::SpoolError;
use proto::event::Body;
use tokio::sync::Notify;

use crate::audit::Audit;

/// Keeps events in memory; fails when told to.
#[derive(Debug, Default)]
pub(crate) struct MemoryAudit {
    events: Mutex<Vec<(Body, u64)>>,
    failing: AtomicBool,
    changed: Notify,
}

impl MemoryAudit {
    pub(crate) fn events(&self) -> Vec<(Body, u64)> {
        self.events.lock().unwrap().clone()
    }
    pub(crate) fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }
}

impl Audit for MemoryAudit {
    fn record(&self, body: Body, ei: u64) -> BoxFuture<'_, Result<(), SpoolError>> {
        Box::pin(async move {
            if self.failing.load(Ordering::SeqCst) {
                return Err(SpoolError::Full { bytes: 1 });
            }
            self.events.lock().unwrap().push((body, ei));
            self.changed.notify_waiters();
            Ok(())
        })
    }
}
