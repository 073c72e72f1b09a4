//! Where this crate's events go: a sink that answers only when the event is durable. In the daemon it is the spool;
//! tests have their own. Nobody here writes events anywhere else.

use std::time::Duration;

use futures::future::BoxFuture;
use net::backoff::Backoff;
use net::spool::{Spool, SpoolError};
use proto::event::{Body, Happened};

/// Takes events. `record` returns once the event survives a power cut.
pub(crate) trait Audit: Send + Sync + std::fmt::Debug {
    fn record(&self, body: Body, ei: u64) -> BoxFuture<'_, Result<(), SpoolError>>;

    /// The same of many, of what has happened already: as often as it takes, so that an error is for good.
    fn record_all(&self, happened: Vec<(Happened, u64)>) -> BoxFuture<'_, Result<(), SpoolError>>;
}

impl Audit for Spool {
    fn record(&self, body: Body, ei: u64) -> BoxFuture<'_, Result<(), SpoolError>> {
        Box::pin(async move { Spool::record(self, body, ei).await.map(|_| ()) })
    }

    fn record_all(&self, happened: Vec<(Happened, u64)>) -> BoxFuture<'_, Result<(), SpoolError>> {
        Box::pin(async move {
            let batch = self.batch(happened)?;
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
            loop {
                match self.write(&batch).await {
                    Err(error @ (SpoolError::Full { .. } | SpoolError::File { .. })) => {
                        tracing::error!(%error, "audit events wait");
                        backoff.wait().await;
                    }
                    done @ (Ok(()) | Err(SpoolError::TooLong { .. } | SpoolError::Stopped)) => {
                        return done;
                    }
                }
            }
        })
    }
}

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
