//! Failed sign-ins by name: after five a name is locked for half an hour. Counted for every name that anybody types,
//! whether there is such a user or not, in the same way and the same time: the lock-out says nothing of who exists.
//! An attempt counts *before* it is verified, so that many at once get no more guesses than one after the other.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::clock::Clock;
use crate::fault::Fault;
use crate::store::{Expect, Store, StoreError, from_json, to_json};

/// The counters.
#[derive(Debug, Clone)]
pub(crate) struct Attempts {
    store: Arc<dyn Store>,
    clock: Clock,
}

/// Whether an attempt may be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    LockedOut,
    Open,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Counter {
    count: u32,
    /// Unix seconds.
    locked_until: Option<i64>,
}

impl Attempts {
    pub(crate) fn new(store: Arc<dyn Store>, clock: Clock) -> Self {
        Self { store, clock }
    }

    /// Counts an attempt as failed; [`Self::succeeded`] takes that back.
    pub(crate) async fn begin(&self, name: &str) -> Result<Admission, Fault> {
        for _ in 0..TRIES {
            let now = self.clock.now();
            let (mut counter, expect) = match self.store.get(&key(name)).await? {
                Some(item) => (from_json::<Counter>(&item)?, Expect::Revision(item.revision)),
                None => (Counter::default(), Expect::Absent),
            };
            if counter.locked_until.is_some_and(|until| until > now) {
                return Ok(Admission::LockedOut);
            }
            if counter.locked_until.is_some() {
                counter = Counter::default();
            }
            counter.count += 1;
            let until = now.saturating_add(LOCKED_SECONDS);
            if counter.count >= FAILURES_MAX {
                counter.locked_until = Some(until);
            }
            let value = to_json(&counter)?;
            match self.store.put_if(&key(name), value, expect, Some(until)).await {
                Ok(_) => return Ok(Admission::Open),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Fault::Limit("too many sign-ins at once: try again in a few seconds"))
    }

    /// The person has proven who they are.
    pub(crate) async fn succeeded(&self, name: &str) -> Result<(), Fault> {
        self.store.delete_if(&key(name), Expect::Any).await?;
        Ok(())
    }

    /// Until when the name is locked out, Unix seconds.
    pub(crate) async fn locked_until(&self, name: &str) -> Result<Option<i64>, Fault> {
        let Some(item) = self.store.get(&key(name)).await? else { return Ok(None) };
        let counter: Counter = from_json(&item)?;
        Ok(counter.locked_until.filter(|until| *until > self.clock.now()))
    }
}

/// A digest, because the name is whatever somebody typed.
fn key(name: &str) -> String {
    format!("attempts/{}", hex::encode(Sha256::digest(name.as_bytes())))
}

/// Failures until a name is locked.
const FAILURES_MAX: u32 = 5;
const LOCKED_SECONDS: i64 = 30 * 60;
/// Rounds against others who count the same name at the same moment.
const TRIES: u32 = 8;

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn five_failures_lock_for_half_an_hour() {
        let (clock, hand) = Clock::fake(1000);
        let attempts = Attempts::new(Arc::new(MemoryStore::new(clock.clone())), clock);
        for _ in 0..5 {
            assert_eq!(attempts.begin("alice").await.unwrap(), Admission::Open);
        }
        assert_eq!(attempts.begin("alice").await.unwrap(), Admission::LockedOut);
        assert_eq!(attempts.begin("bob").await.unwrap(), Admission::Open, "others go on");
        assert_eq!(attempts.locked_until("alice").await.unwrap(), Some(1000 + LOCKED_SECONDS));
        hand.store(1000 + LOCKED_SECONDS, Ordering::SeqCst);
        assert_eq!(attempts.locked_until("alice").await.unwrap(), None);
        for _ in 0..4 {
            assert_eq!(attempts.begin("alice").await.unwrap(), Admission::Open);
        }
        attempts.succeeded("alice").await.unwrap();
        for _ in 0..5 {
            assert_eq!(attempts.begin("alice").await.unwrap(), Admission::Open, "counted anew");
        }
    }

    #[tokio::test]
    async fn many_at_once_get_no_more_guesses() {
        let (clock, _hand) = Clock::fake(1000);
        let attempts = Attempts::new(Arc::new(MemoryStore::new(clock.clone())), clock);
        let mut guesses = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let attempts = attempts.clone();
            guesses.spawn(async move { matches!(attempts.begin("a").await, Ok(Admission::Open)) });
        }
        let open = guesses.join_all().await.into_iter().filter(|open| *open).count();
        assert_eq!(open, 5);
    }
}
