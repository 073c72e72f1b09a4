//! The time, as a value that is handed in: tests turn it by hand. Expiry, lock-outs and one-time codes all ask here.

use std::fmt;
use std::sync::Arc;

use time::OffsetDateTime;

/// Tells the time. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> OffsetDateTime + Send + Sync>);

impl Clock {
    /// The operating system's clock.
    pub(crate) fn system() -> Self {
        Self(Arc::new(OffsetDateTime::now_utc))
    }

    /// Now, Unix seconds.
    pub(crate) fn now(&self) -> i64 {
        self.time().unix_timestamp()
    }

    /// Now, as exactly as it is known.
    pub(crate) fn time(&self) -> OffsetDateTime {
        (self.0)()
    }

    /// A clock that stands still until it is set, in Unix seconds.
    #[cfg(test)]
    pub(crate) fn fake(start: i64) -> (Self, Arc<std::sync::atomic::AtomicI64>) {
        let hand = Arc::new(std::sync::atomic::AtomicI64::new(start));
        let shown = hand.clone();
        let show = move || {
            let seconds = shown.load(std::sync::atomic::Ordering::SeqCst);
            OffsetDateTime::from_unix_timestamp(seconds).unwrap()
        };
        (Self(Arc::new(show)), hand)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Clock")
    }
}
