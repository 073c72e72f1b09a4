//! The inbox's wake-ups: under every interleaving and reordering that the memory model allows, by loom, with the queue
//! reduced to a count that orders nothing by itself; and the whole inbox on real threads.

use std::sync::Arc;
use std::time::Duration;

use loom::sync::Notify;
use loom::sync::atomic::{AtomicBool as LoomBool, AtomicUsize as LoomUsize};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

/// The flag as the product has it, but seen by loom.
#[derive(Default)]
struct Watched(LoomBool);

impl Flag for Watched {
    fn swap(&self, value: bool) -> bool {
        self.0.swap(value, Ordering::AcqRel)
    }
}

/// The same, but its swaps order nothing: what the model must find.
#[derive(Default)]
struct Relaxed(LoomBool);

impl Flag for Relaxed {
    fn swap(&self, value: bool) -> bool {
        self.0.swap(value, Ordering::Relaxed)
    }
}

/// The queue, and what stands for the eventfd: sticky, and read by one.
struct Model<F> {
    items: LoomUsize,
    doze: Doze<F>,
    wake: Notify,
}

impl<F: Flag> Model<F> {
    fn push(&self) {
        self.items.fetch_add(1, Ordering::Relaxed);
        if self.doze.has_to_be_woken() {
            self.wake.notify();
        }
    }

    fn pop(&self) -> bool {
        // An old count may be seen; taking from a new one is seen as it is.
        self.items.load(Ordering::Relaxed) > 0 && {
            self.items.fetch_sub(1, Ordering::Relaxed);
            true
        }
    }

    /// The worker's loop until it has got so many.
    fn work(&self, count: usize) {
        let mut got = 0;
        while got < count {
            if self.doze.fall_asleep(|| self.items.load(Ordering::Relaxed) == 0) {
                self.wake.wait();
            }
            self.doze.wake_up();
            while got < count && self.pop() {
                got += 1;
            }
        }
    }
}

fn check<F: Flag + Default + Send + Sync + 'static>(askers: usize) {
    let mut builder = loom::model::Builder::new();
    // Switches by force; without a bound two askers take minutes, and nothing that was ever broken needed more than two.
    builder.preemption_bound = Some(3);

    builder.check(move || {
        let model = Arc::new(Model {
            items: LoomUsize::new(0),
            doze: Doze::<F>::default(),
            wake: Notify::new(),
        });
        for _ in 0..askers {
            let model = Arc::clone(&model);
            loom::thread::spawn(move || model.push());
        }
        model.work(askers);
    });
}

#[test]
fn no_wake_up_is_lost() {
    check::<Watched>(1);
    check::<Watched>(2);
}

#[test]
#[should_panic(expected = "deadlock")]
fn the_model_finds_a_lost_wake_up() {
    check::<Relaxed>(1);
}

#[test]
fn everything_arrives_once_and_in_order() {
    let inbox = Arc::new(Inbox::new(4).unwrap());
    let askers: Vec<_> = (0..ASKERS)
        .map(|asker| {
            let inbox = Arc::clone(&inbox);
            std::thread::spawn(move || {
                for number in 0..ITEMS {
                    let mut item = (asker, number);
                    while let Err(full) = inbox.push(item) {
                        item = full;
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let mut next = [0; ASKERS];
    while next.iter().sum::<usize>() < ASKERS * ITEMS {
        if inbox.sleep() {
            let mut fds = [PollFd::from_borrowed_fd(inbox.wake(), PollFlags::IN)];
            let long = Timespec::try_from(Duration::from_secs(20)).unwrap();
            assert_eq!(poll(&mut fds, Some(&long)).unwrap(), 1, "asleep with {next:?} taken");
            inbox.woken();
        }
        inbox.awake();
        while let Some((asker, number)) = inbox.pop() {
            assert_eq!(number, next[asker], "of asker {asker}");
            next[asker] += 1;
        }
    }
    askers.into_iter().for_each(|asker| asker.join().unwrap());
    assert!(inbox.pop().is_none());
}

const ASKERS: usize = 3;
const ITEMS: usize = 20_000;
