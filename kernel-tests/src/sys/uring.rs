//! One operation through io_uring, in each of the ways that the kernel has for it.

use std::io;

use io_uring::{IoUring, cqueue, squeue};

/// Who in the kernel does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The task itself, within its system call.
    Inline,
    /// A worker of the kernel's.
    Worker,
    /// The kernel's thread that looks at the queue, so that no system call is made for it.
    Poller,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Inline, Self::Worker, Self::Poller];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Inline => "inline",
            Self::Worker => "worker",
            Self::Poller => "poller",
        }
    }
}

/// Does it and waits; what the entry points to must live in the caller until then, which is what `_of` is lent for.
pub(crate) fn perform<T: ?Sized>(way: Way, entry: squeue::Entry, _of: &T) -> io::Result<i32> {
    const POLL_IDLE_MS: u32 = 200;
    let mut builder = IoUring::builder();
    if way == Way::Poller {
        builder.setup_sqpoll(POLL_IDLE_MS);
    }
    let mut ring = builder.build(4)?;
    let entry = if way == Way::Worker { entry.flags(squeue::Flags::ASYNC) } else { entry };
    // SAFETY: what the entry points to is lent to us, and it is done before we return.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let done: Option<cqueue::Entry> = ring.completion().next();
    let result = done.map(|done| done.result());
    let result = result.ok_or_else(|| io::Error::other("nothing was done"))?;
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}
