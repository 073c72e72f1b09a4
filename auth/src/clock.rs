//! The time, as a value that is handed in: tests turn it by hand. Expiry, lock-outs and one-time codes all ask here.

use std::fmt;
use std::sync::Arc;

/// Tells the time. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl Clock {
    /// The operating system's clock.
    pub(crate) fn system() -> Self {
        Self(Arc::new(net::unix_now))
    }

    /// Now, Unix seconds.
    pub(crate) fn now(&self) -> i64 {
        (self.0)()
    }

    /// A clock that stands still until it is set.
    #[cfg(test)]
    pub(crate) fn fake(start: i64) -> (Self, Arc<std::sync::atomic::AtomicI64>) {
        let hand = Arc::new(std::sync::atomic::AtomicI64::new(start));
        let shown = hand.clone();
        (Self(Arc::new(move || shown.load(std::sync::atomic::Ordering::SeqCst))), hand)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Clock")
    }
}
