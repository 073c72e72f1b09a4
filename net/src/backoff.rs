//! Jittered waits between tries, so that a restarted proxy is not met by all its nodes at once.

use std::time::Duration;

/// Full jitter over a doubling ceiling.
#[derive(Debug, Clone)]
pub struct Backoff {
    ceiling: Duration,
    ceiling_max: Duration,
    first: Duration,
}

impl Backoff {
    /// Waits between 0 and `first`, then up to twice that, …, at most `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { ceiling: first, ceiling_max: max, first }
    }
    /// The next wait; grows the ceiling. `random` is any random number.
    pub fn next(&mut self, random: u64) -> Duration {
        let ceiling_ms = u64::try_from(self.ceiling.as_millis()).unwrap_or(u64::MAX).max(1);
        self.ceiling = self.ceiling.saturating_mul(2).min(self.ceiling_max);
        Duration::from_millis(random % ceiling_ms)
    }
    /// Waits for [`Self::next`] with the operating system's randomness.
    pub async fn wait(&mut self) {
        let wait = self.next(u64::from_ne_bytes(crate::random()));
        tokio::time::sleep(wait).await;
    }
    /// After success: start small again.
    pub fn reset(&mut self) {
        self.ceiling = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_maximum_and_resets() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(250));
        assert_eq!(backoff.next(99), Duration::from_millis(99));
        assert_eq!(backoff.next(199), Duration::from_millis(199));
        assert_eq!(backoff.next(249), Duration::from_millis(249));
        assert_eq!(backoff.next(250), Duration::ZERO);
        backoff.reset();
        assert_eq!(backoff.next(100), Duration::ZERO);
    }
}
