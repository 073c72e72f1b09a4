//! How often one address may call without a certificate. Behind a proxy everybody has the proxy's address, so this bounds
//! floods, not persons: guessing is bounded per name in [`crate::attempts`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;

use crate::clock::Clock;
use crate::fault::Fault;

/// A token bucket per address.
#[derive(Debug)]
pub(crate) struct CallLimit {
    clock: Clock,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    calls: u32,
    filled_at: i64,
}

impl CallLimit {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, buckets: Mutex::default() }
    }

    /// Takes one call from the address' bucket.
    pub(crate) fn take(&self, from: IpAddr) -> Result<(), Fault> {
        let now = self.clock.now();
        let mut buckets =
            self.buckets.lock().map_err(|_| Fault::Internal("a limit panicked".into()))?;
        if buckets.len() >= ADDRESSES_MAX {
            buckets.retain(|_, bucket| filled(*bucket, now).calls < BURST);
        }
        if buckets.len() >= ADDRESSES_MAX && !buckets.contains_key(&from) {
            return Err(Fault::Limit(SLOWER));
        }
        let bucket = buckets.entry(from).or_insert(Bucket { calls: BURST, filled_at: now });
        *bucket = filled(*bucket, now);
        match bucket.calls.checked_sub(1) {
            Some(rest) => {
                bucket.calls = rest;
                Ok(())
            }
            None => Err(Fault::Limit(SLOWER)),
        }
    }
}

fn filled(bucket: Bucket, now: i64) -> Bucket {
    let elapsed = u32::try_from(now.saturating_sub(bucket.filled_at)).unwrap_or(0);
    let calls = bucket.calls.saturating_add(elapsed.saturating_mul(PER_SECOND)).min(BURST);
    Bucket { calls, filled_at: now }
}

const SLOWER: &str = "too many requests from this address: try again in a few seconds";
/// A whole office that signs in through one proxy at nine o'clock.
const BURST: u32 = 100;
/// More hashes than this take both cores of a small machine.
const PER_SECOND: u32 = 10;
/// Addresses remembered, about 1 MiB.
const ADDRESSES_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_burst_then_a_rate() {
        let (clock, hand) = Clock::fake(1000);
        let limit = CallLimit::new(clock);
        let (one, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let taken = |from| (0..200).filter(|_| limit.take(from).is_ok()).count();
        assert_eq!(taken(one), 100);
        assert_eq!(taken(other), 100, "addresses don't share");
        hand.store(1003, Ordering::SeqCst);
        assert_eq!(taken(one), 30);
        hand.store(900, Ordering::SeqCst);
        assert_eq!(taken(one), 0, "a clock that goes back gives nothing");
    }
}
