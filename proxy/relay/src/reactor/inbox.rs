//! What the control plane asks a worker: a bounded queue, and an eventfd that is written only when the worker sleeps.
//! The order that makes it safe: the asker pushes, then looks whether the worker sleeps; the worker says that it sleeps,
//! then looks whether something was pushed. Checked under every interleaving in `inbox_tests.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::ArrayQueue;

use super::poller::wake_descriptor;

/// A worker's queue.
#[derive(Debug)]
pub(crate) struct Inbox<T> {
    queue: ArrayQueue<T>,
    doze: Doze<AtomicBool>,
    wake: OwnedFd,
}

impl<T> Inbox<T> {
    pub(crate) fn new(capacity: usize) -> io::Result<Self> {
        Ok(Self {
            queue: ArrayQueue::new(capacity),
            doze: Doze::default(),
            wake: wake_descriptor()?,
        })
    }

    /// Adds, or gives back when the queue is full.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        self.queue.push(item)?;
        if self.doze.has_to_be_woken() {
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
        self.doze.fall_asleep(|| self.queue.is_empty())
    }

    /// The worker is awake again.
    pub(crate) fn awake(&self) {
        self.doze.wake_up();
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

/// Whether the worker sleeps, and the order in which both sides look.
#[derive(Debug, Default)]
struct Doze<F> {
    asleep: F,
}

/// The flag behind it: an atomic, or the model checker's.
trait Flag {
    /// Sets it and says what it was. Of two swaps the later sees all that came before the earlier, whatever was pushed
    /// too; a store would need a fence on both sides to promise that.
    fn swap(&self, value: bool) -> bool;
}

impl Flag for AtomicBool {
    fn swap(&self, value: bool) -> bool {
        self.swap(value, Ordering::AcqRel)
    }
}

impl<F: Flag> Doze<F> {
    /// To be asked after something was pushed; true for one asker per sleep.
    fn has_to_be_woken(&self) -> bool {
        self.asleep.swap(false)
    }

    /// False when there is something: then the worker stays awake.
    fn fall_asleep(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.asleep.swap(true);
        if is_empty() {
            return true;
        }
        self.asleep.swap(false);
        false
    }

    fn wake_up(&self) {
        self.asleep.swap(false);
    }
}

#[cfg(test)]
#[path = "inbox_tests.rs"]
mod tests;
