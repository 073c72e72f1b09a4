//! Counting and pacing by key: how many at once ([`Counts`]), how many per second ([`Rates`]). Tables are bounded: a key
//! is kept only while it says something.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many things each key has at once. Its size is bounded by the things counted.
#[derive(Debug)]
pub(crate) struct Counts<K: Eq + Hash> {
    table: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Clone> Counts<K> {
    pub(crate) fn new() -> Self {
        Self { table: Arc::default() }
    }

    /// One more for `key`, given back when dropped; None when it has `most` already.
    pub(crate) fn enter(&self, key: &K, most: usize) -> Option<Counted<K>> {
        let mut table = lock(&self.table);
        let count = table.get(key).copied().unwrap_or(0);
        if count >= most {
            return None;
        }
        table.insert(key.clone(), count.saturating_add(1));
        Some(Counted { key: key.clone(), table: Arc::clone(&self.table) })
    }
}

/// One counted thing.
#[derive(Debug)]
pub(crate) struct Counted<K: Eq + Hash> {
    key: K,
    table: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        let gone = match table.get_mut(&self.key) {
            Some(count) if *count > 1 => {
                *count = count.saturating_sub(1);
                false
            }
            Some(_) | None => true,
        };
        if gone {
            table.remove(&self.key);
        }
    }
}

/// How often each key may act: `burst` at once, then one per `interval` (the generic cell rate algorithm, ITU-T I.371).
#[derive(Debug)]
pub(crate) struct Rates<K> {
    interval: Duration,
    burst: u32,
    table: Mutex<HashMap<K, Pace>>,
}

#[derive(Debug, Clone, Copy)]
struct Pace {
    /// When the key will have used up nothing.
    full_at: Instant,
    refused: u64,
}

/// Whether a key may act now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    No,
    /// Yes, after so many times no.
    Yes {
        refused_before: u64,
    },
}

impl<K: Eq + Hash + Clone> Rates<K> {
    pub(crate) fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst, table: Mutex::default() }
    }

    pub(crate) fn pass(&self, key: &K, now: Instant) -> Pass {
        let mut table = lock(&self.table);
        if !table.contains_key(key) && table.len() >= KEYS_MAX {
            table.retain(|_, pace| pace.full_at > now);
            // All these keys have been at it within the last moments: one more is refused.
            if table.len() >= KEYS_MAX {
                return Pass::No;
            }
        }
        let pace = table.entry(key.clone()).or_insert(Pace { full_at: now, refused: 0 });
        let full_at = pace.full_at.max(now) + self.interval;
        if full_at.saturating_duration_since(now) > self.interval.saturating_mul(self.burst) {
            pace.refused = pace.refused.saturating_add(1);
            return Pass::No;
        }
        let refused_before = std::mem::take(&mut pace.refused);
        pace.full_at = full_at;
        Pass::Yes { refused_before }
    }

    pub(crate) fn allow(&self, key: &K, now: Instant) -> bool {
        self.pass(key, now) != Pass::No
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each critical section leaves its table whole at every step, so a panic elsewhere does not matter here.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A few MB at most; a key is forgotten as soon as its burst is whole again.
const KEYS_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_given_back() {
        let counts = Counts::new();
        let first = counts.enter(&"a", 2).unwrap();
        let second = counts.enter(&"a", 2).unwrap();
        assert!(counts.enter(&"a", 2).is_none());
        assert!(counts.enter(&"b", 2).is_some());
        drop(first);
        let third = counts.enter(&"a", 2).unwrap();
        assert!(counts.enter(&"a", 2).is_none());
        drop((second, third));
        assert!(lock(&counts.table).is_empty(), "a key without things is not kept");
    }

    #[test]
    fn rates_allow_a_burst_and_then_a_pace() {
        let start = Instant::now();
        let rates = Rates::new(Duration::from_millis(100), 3);
        let passes = |at: u64| rates.allow(&"a", start + Duration::from_millis(at));
        assert_eq!([passes(0), passes(0), passes(0), passes(0)], [true, true, true, false]);
        assert_eq!([passes(99), passes(100), passes(100)], [false, true, false]);
        assert!(rates.allow(&"b", start));
        assert_eq!([passes(10_000), passes(10_000), passes(10_000)], [true; 3]);
    }

    #[test]
    fn refusals_are_reported_by_the_next_pass() {
        let start = Instant::now();
        let rates = Rates::new(Duration::from_secs(1), 1);
        assert_eq!(rates.pass(&1, start), Pass::Yes { refused_before: 0 });
        assert_eq!(rates.pass(&1, start), Pass::No);
        assert_eq!(rates.pass(&1, start), Pass::No);
        let later = start + Duration::from_secs(1);
        assert_eq!(rates.pass(&1, later), Pass::Yes { refused_before: 2 });
    }

    #[test]
    fn the_table_is_bounded_and_forgets() {
        let start = Instant::now();
        let rates = Rates::new(Duration::from_secs(1), 2);
        for key in 0..KEYS_MAX {
            assert!(rates.allow(&key, start));
        }
        assert!(!rates.allow(&KEYS_MAX, start));
        assert!(rates.allow(&0, start), "keys in the table go on");
        assert!(rates.allow(&KEYS_MAX, start + Duration::from_secs(3)));
        assert_eq!(lock(&rates.table).len(), 1);
    }
}
