//! Two steps to the end: first no new work (`draining`), then no work at all (`stopped`).
//! Cloned into every task; each long wait selects on one of them.

use tokio_util::sync::CancellationToken;

/// Handle to both steps.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    stopped: CancellationToken,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }
    /// Accept nothing new; finish what runs.
    pub fn drain(&self) {
        self.draining.cancel();
    }
    /// End everything. Implies [`Self::drain`].
    pub fn stop(&self) {
        self.draining.cancel();
        self.stopped.cancel();
    }
    /// Waits for [`Self::drain`].
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }
    /// Waits for [`Self::stop`].
    pub async fn stopped(&self) {
        self.stopped.cancelled().await;
    }
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }
}
