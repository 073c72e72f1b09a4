//! What every store promises. Each back end's tests run this suite.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Expect, HISTORY, Span, Store, StoreError, Watch};
use crate::clock::Clock;

/// `make` gives a new, empty store and whatever has to live as long.
pub(crate) async fn suite<Guard>(make: impl Fn(Clock) -> (Arc<dyn Store>, Guard)) {
    let (clock, hand) = Clock::fake(1000);
    let fresh = || make(clock.clone());
    expectations(fresh()).await;
    deletions(fresh()).await;
    ranges(fresh()).await;
    history(fresh()).await;
    long_history(fresh()).await;
    limits(fresh()).await;
    contention(fresh()).await;
    expiry(fresh(), &hand).await;
}

async fn expectations<Guard>((store, _guard): (Arc<dyn Store>, Guard)) {
    assert_eq!(store.get("a/1").await.unwrap(), None);
    assert_conflict(store.put_if("a/1", vec![1], Expect::Revision(0), None).await);
    let first = store.put_if("a/1", vec![1], Expect::Absent, None).await.unwrap();
    assert_conflict(store.put_if("a/1", vec![2], Expect::Absent, None).await);
    assert_conflict(store.put_if("a/1", vec![2], Expect::Revision(first + 1), None).await);
    let second = store.put_if("a/1", vec![2], Expect::Revision(first), None).await.unwrap();
    assert!(second > first);
    let third = store.put_if("a/1", vec![3], Expect::Any, None).await.unwrap();
    let item = store.get("a/1").await.unwrap().unwrap();
    assert_eq!((item.value, item.revision), (vec![3], third));
    assert_eq!(*store.revisions().borrow(), third);
}

async fn deletions<Guard>((store, _guard): (Arc<dyn Store>, Guard)) {
    assert!(!store.delete_if("a/1", Expect::Any).await.unwrap());
    assert_conflict(store.delete_if("a/1", Expect::Revision(1)).await);
    let first = store.put_if("a/1", vec![1], Expect::Absent, None).await.unwrap();
    assert_conflict(store.delete_if("a/1", Expect::Revision(first + 1)).await);
    assert!(store.delete_if("a/1", Expect::Revision(first)).await.unwrap());
    assert_eq!(store.get("a/1").await.unwrap(), None);
    let again = store.put_if("a/1", vec![2], Expect::Absent, None).await.unwrap();
    assert!(again > first + 1, "a deletion has its own revision");
}

async fn ranges<Guard>((store, _guard): (Arc<dyn Store>, Guard)) {
    for key in ["a", "a/2", "a/1", "a/1/x", "a0", "b/1", "a-/1"] {
        store.put_if(key, key.into(), Expect::Absent, None).await.unwrap();
    }
    let range = store.range(Span::prefix("a/"), 10).await.unwrap();
    let keys: Vec<_> = range.items.iter().map(|item| item.key.as_str()).collect();
    assert_eq!(keys, ["a/1", "a/1/x", "a/2"]);
    assert_eq!((range.revision, range.more), (7, false));
    let range = store.range(Span::prefix("a/"), 2).await.unwrap();
    assert_eq!((range.items.len(), range.more), (2, true));
    let none = store.range(Span::prefix("none/"), 2).await.unwrap();
    assert_eq!((none.items.len(), none.revision), (0, 7));
}

async fn history<Guard>((store, _guard): (Arc<dyn Store>, Guard)) {
    let mut watch = Watch::new(store.clone(), Span::prefix("a/"), 0);
    store.put_if("b/1", vec![0], Expect::Any, None).await.unwrap();
    store.put_if("a/1", vec![1], Expect::Any, None).await.unwrap();
    store.put_if("a/1", vec![2], Expect::Any, None).await.unwrap();
    store.delete_if("a/1", Expect::Any).await.unwrap();
    let seen = watch.next().await.unwrap();
    let values: Vec<_> =
        seen.iter().map(|change| (change.revision, change.value.clone())).collect();
    assert_eq!(values, [(2, Some(vec![1])), (3, Some(vec![2])), (4, None)]);
    let (next, put) = tokio::join!(watch.next(), async {
        store.put_if("b/2", vec![3], Expect::Any, None).await.unwrap();
        store.put_if("a/2", vec![4], Expect::Any, None).await.unwrap()
    });
    assert_eq!(next.unwrap().first().unwrap().revision, put, "other keys do not wake for nothing");
}

async fn long_history<Guard>((store, _guard): (Arc<dyn Store>, Guard)) {
    for _ in 0..=HISTORY {
        store.put_if("a/1", vec![1], Expect::Any, None).await.unwrap();
    }
    let late = store.changes(Span::prefix("a/"), 0, 10).await;
    assert!(matches!(late, Err(StoreError::Compacted(1))), "{late:?}");
    let kept = store.changes(Span::prefix("a/"), 1, 1).await.unwrap();
    assert_eq!(kept.first().unwrap().revision, 2);
}

async fn limits<Guard>((store, _guard): (Arc<dyn Store>, Guard)) {
    let long = vec![0; super::VALUE_BYTES_MAX + 1];
    for (key, value) in [("", vec![]), (&*"k".repeat(2000), vec![]), ("a/1", long)] {
        let answer = store.put_if(key, value, Expect::Any, None).await;
        assert!(matches!(answer, Err(StoreError::TooLong)), "{answer:?}");
    }
}

async fn contention<Guard>((store, _guard): (Arc<dyn Store>, Guard)) {
    let first = store.put_if("a/1", vec![0], Expect::Absent, None).await.unwrap();
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..20 {
        let store = store.clone();
        racers.spawn(async move {
            store.put_if("a/1", vec![racer], Expect::Revision(first), None).await.is_ok()
        });
    }
    let winners = racers.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(winners, 1);
}

async fn expiry<Guard>(
    (store, _guard): (Arc<dyn Store>, Guard),
    hand: &Arc<std::sync::atomic::AtomicI64>,
) {
    let first = store.put_if("a/1", vec![1], Expect::Absent, Some(1010)).await.unwrap();
    store.put_if("a/2", vec![1], Expect::Absent, Some(1010)).await.unwrap();
    assert!(store.get("a/1").await.unwrap().is_some());
    hand.store(1010, Ordering::SeqCst);
    assert_eq!(store.get("a/1").await.unwrap(), None, "gone at the very second");
    assert_eq!(store.range(Span::prefix("a/"), 9).await.unwrap().items, []);
    assert_conflict(store.put_if("a/1", vec![2], Expect::Revision(first), None).await);
    store.put_if("a/1", vec![2], Expect::Absent, None).await.unwrap();
    store.purge().await.unwrap();
    let changes = store.changes(Span::prefix("a/"), 3, 9).await.unwrap();
    assert_eq!(changes.len(), 1, "the purge is a change, and spares what came back");
    assert_eq!(changes.first().unwrap().key, "a/2");
    assert_eq!(store.get("a/1").await.unwrap().unwrap().value, [2]);
    hand.store(1000, Ordering::SeqCst);
}

#[track_caller]
fn assert_conflict<T: std::fmt::Debug>(answer: Result<T, StoreError>) {
    assert!(matches!(answer, Err(StoreError::Conflict)), "{answer:?}");
}
