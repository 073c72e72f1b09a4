//! The store in memory, for tests: the same promises, proven by the same suite.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::sync::watch;

use super::{Change, Expect, HISTORY, Item, Range, Span, Store, StoreError, check_lengths};
use crate::clock::Clock;

#[derive(Debug)]
pub(crate) struct MemoryStore {
    clock: Clock,
    state: Mutex<State>,
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    items: BTreeMap<String, (Item, Option<i64>)>,
    history: Vec<Change>,
    revision: u64,
}

impl State {
    fn find(&self, key: &str, now: i64) -> Option<&Item> {
        let (item, expires) = self.items.get(key)?;
        expires.is_none_or(|expires| expires > now).then_some(item)
    }

    fn check(&self, key: &str, expect: Expect, now: i64) -> Result<bool, StoreError> {
        let found = self.find(key, now).map(|item| item.revision);
        let holds = match expect {
            Expect::Absent => found.is_none(),
            Expect::Any => true,
            Expect::Revision(revision) => found == Some(revision),
        };
        if holds { Ok(found.is_some()) } else { Err(StoreError::Conflict) }
    }

    fn remember(&mut self, key: &str, value: Option<Vec<u8>>) -> u64 {
        self.revision += 1;
        self.history.push(Change { key: key.into(), value, revision: self.revision });
        let oldest = self.revision.saturating_sub(HISTORY);
        self.history.retain(|change| change.revision > oldest);
        self.revision
    }
}

impl MemoryStore {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, state: Mutex::default(), newest: watch::channel(0).0 }
    }
}

#[tonic::async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Item>, StoreError> {
        Ok(self.state.lock().unwrap().find(key, self.clock.now()).cloned())
    }

    async fn put_if(
        &self,
        key: &str,
        value: Vec<u8>,
        expect: Expect,
        expires: Option<i64>,
    ) -> Result<u64, StoreError> {
        check_lengths(key, &value)?;
        let mut state = self.state.lock().unwrap();
        state.check(key, expect, self.clock.now())?;
        let revision = state.remember(key, Some(value.clone()));
        let item = Item { key: key.into(), value, revision };
        state.items.insert(key.into(), (item, expires));
        self.newest.send_replace(revision);
        Ok(revision)
    }

    async fn delete_if(&self, key: &str, expect: Expect) -> Result<bool, StoreError> {
        let mut state = self.state.lock().unwrap();
        if !state.check(key, expect, self.clock.now())? {
            return Ok(false);
        }
        state.items.remove(key);
        let revision = state.remember(key, None);
        self.newest.send_replace(revision);
        Ok(true)
    }

    async fn range(&self, span: Span, limit: usize) -> Result<Range, StoreError> {
        let state = self.state.lock().unwrap();
        let now = self.clock.now();
        let mut items: Vec<Item> = state
            .items
            .range(span.from..span.to)
            .filter(|(_, (_, expires))| expires.is_none_or(|expires| expires > now))
            .map(|(_, (item, _))| item.clone())
            .collect();
        let more = items.len() > limit;
        items.truncate(limit);
        Ok(Range { items, revision: state.revision, more })
    }

    async fn changes(
        &self,
        span: Span,
        revision: u64,
        limit: usize,
    ) -> Result<Vec<Change>, StoreError> {
        let state = self.state.lock().unwrap();
        let oldest = state.revision.saturating_sub(HISTORY);
        if revision < oldest {
            return Err(StoreError::Compacted(oldest));
        }
        let after = |change: &&Change| change.revision > revision && span.contains(&change.key);
        Ok(state.history.iter().filter(after).take(limit).cloned().collect())
    }

    async fn purge(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut state = self.state.lock().unwrap();
        let gone = |(_, (_, expires)): &(&String, &(Item, Option<i64>))| {
            expires.is_some_and(|expires| expires <= now)
        };
        let expired: Vec<String> =
            state.items.iter().filter(gone).map(|(key, _)| key.clone()).collect();
        for key in expired {
            state.items.remove(&key);
            let revision = state.remember(&key, None);
            self.newest.send_replace(revision);
        }
        Ok(())
    }

    fn revisions(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn conforms() {
        crate::store::conformance::suite(|clock| {
            (std::sync::Arc::new(MemoryStore::new(clock)) as std::sync::Arc<dyn Store>, ())
        })
        .await;
    }
}
