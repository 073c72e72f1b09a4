//! Deadlines of a worker's connections, one at most per connection, earliest first. A stream's deadline moves with every
//! byte; here it stands as it was when it was set, and is looked at again when it comes: no move per read.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Which connection: place in the slab and generation.
pub(crate) type Who = (u32, u32);

/// Deadlines.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    order: BTreeSet<(Instant, Who)>,
}

impl Timers {
    /// Sets a deadline in place of `old`.
    pub(crate) fn set(&mut self, who: Who, old: Option<Instant>, new: Instant) {
        self.clear(who, old);
        self.order.insert((new, who));
    }

    pub(crate) fn clear(&mut self, who: Who, old: Option<Instant>) {
        if let Some(old) = old {
            self.order.remove(&(old, who));
        }
    }

    /// Takes one that has come.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Who> {
        let (at, _) = self.order.first()?;
        if *at > now {
            return None;
        }
        self.order.pop_first().map(|(_, who)| who)
    }

    /// How long until the first.
    pub(crate) fn next_in(&self, now: Instant) -> Option<Duration> {
        self.order.first().map(|(at, _)| at.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_order_and_once() {
        let mut timers = Timers::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        timers.set((1, 0), None, at(30));
        timers.set((2, 0), None, at(10));
        timers.set((3, 0), None, at(20));
        timers.set((1, 0), Some(at(30)), at(5));
        timers.clear((3, 0), Some(at(20)));
        assert_eq!(timers.next_in(start), Some(Duration::from_millis(5)));
        assert_eq!(timers.due(at(1)), None);
        assert_eq!(timers.due(at(50)), Some((1, 0)));
        assert_eq!(timers.due(at(50)), Some((2, 0)));
        assert_eq!(timers.due(at(50)), None);
        assert_eq!(timers.next_in(start), None);
    }
}
