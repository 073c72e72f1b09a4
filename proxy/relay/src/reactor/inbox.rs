//! What the control plane asks a worker: a bounded queue, and an eventfd that is written only when the worker sleeps.
//! The order that makes it safe: the asker pushes, then looks whether the worker sleeps; the worker says that it sleeps,
//! then looks whether something was pushed. Checked under every interleaving in `tests/inbox.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_queue::ArrayQueue;

use super::poller::wake_descriptor;

/// A worker's queue.
#[derive(Debug)]
pub(crate) struct Inbox<T> {
    queue: ArrayQueue<T>,
    asleep: AtomicBool,
    wake: OwnedFd,
}

impl<T> Inbox<T> {
    pub(crate) fn new(capacity: usize) -> io::Result<Self> {
        Ok(Self {
            queue: ArrayQueue::new(capacity),
            asleep: AtomicBool::new(false),
            wake: wake_descriptor()?,
        })
    }

    /// Adds, or gives back when the queue is full.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        self.queue.push(item)?;
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // The counter cannot overflow: it is written once per sleep. A failure leaves the worker asleep until its
            // next event.
            if let Err(error) = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()) {
                tracing::warn!(%error, "a worker could not be woken");
            }
        }
        Ok(())
    }

    pub(crate) fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Says that the worker is about to sleep. False when it must not, because something has come.
    pub(crate) fn sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.queue.is_empty() {
            return true;
        }
        self.asleep.store(false, Ordering::SeqCst);
        false
    }

    /// The worker is awake again.
    pub(crate) fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// What to wait for while asleep.
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Empties the eventfd.
    pub(crate) fn woken(&self) {
        let mut count = [0; 8];
        // Empty already is fine.
        if let Err(error) = rustix::io::read(&self.wake, &mut count) {
            tracing::trace!(%error, "nothing to empty");
        }
    }
}
