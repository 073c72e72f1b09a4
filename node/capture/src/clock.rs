//! The kernel counts nanoseconds since the machine's start; people go by the wall clock, as it stands now.

use rustix::time::{ClockId, Timespec, clock_gettime};
use time::OffsetDateTime;

/// When the machine was started: nanoseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Started(u64);

impl Started {
    pub(crate) fn look() -> Self {
        Self(ns(clock_gettime(ClockId::Realtime)).saturating_sub(boot_ns()))
    }

    /// Nanoseconds since 1970, of nanoseconds since the start.
    pub(crate) fn and(self, boot_ns: u64) -> u64 {
        self.0.saturating_add(boot_ns)
    }

    /// The same as people have it.
    pub(crate) fn time(self, boot_ns: u64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(self.and(boot_ns).into())
            .unwrap_or_else(|_| OffsetDateTime::now_utc())
    }
}

/// Now, as the kernel's records have it.
pub(crate) fn boot_ns() -> u64 {
    ns(clock_gettime(ClockId::Boottime))
}

fn ns(time: Timespec) -> u64 {
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    part(time.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(time.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_is_now() {
        let now = Started::look().time(boot_ns());
        let off = (OffsetDateTime::now_utc() - now).abs();
        assert!(off < time::Duration::seconds(1), "off by {off}");
    }
}
