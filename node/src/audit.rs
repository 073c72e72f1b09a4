//! Where this crate's events go: a sink that answers only when the event is durable. In the daemon it is the spool;
//! tests have their own. Nobody here writes events anywhere else.

use futures::future::BoxFuture;
use net::spool::{Spool, SpoolError};
use proto::event::Body;

/// Takes events. `record` returns once the event survives a power cut.
pub(crate) trait Audit: Send + Sync + std::fmt::Debug {
    fn record(&self, body: Body, ei: u64) -> BoxFuture<'_, Result<(), SpoolError>>;
}

impl Audit for Spool {
    fn record(&self, body: Body, ei: u64) -> BoxFuture<'_, Result<(), SpoolError>> {
        Box::pin(async move { Spool::record(self, body, ei).await.map(|_| ()) })
    }
}
