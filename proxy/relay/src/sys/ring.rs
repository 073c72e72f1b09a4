//! An io_uring that watches sockets: multishot polls and accepts, nothing that reads or writes memory of ours, so that no
//! buffer has to outlive an operation. Bytes are moved by system calls when a poll says so (docs/decisions/0009).
//! Needs Linux 5.19 (COOP_TASKRUN, multishot accept); from 6.1 on completions are worked off only when we wait
//! (DEFER_TASKRUN). Used by [`crate::reactor::poller`].

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, cqueue, opcode};

/// What a completion says.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) user_data: u64,
    /// A result, or a negative error number.
    pub(crate) result: i32,
    /// The operation stays armed.
    pub(crate) more: bool,
}

impl Completion {
    /// The new socket, if this is the completion of a [`Ring::accept`].
    pub(crate) fn into_socket(self) -> io::Result<OwnedFd> {
        if self.result < 0 {
            return Err(io::Error::from_raw_os_error(self.result.saturating_neg()));
        }
        // SAFETY: the caller's contract is that this is an accept's completion. Then the kernel has just opened the
        // descriptor for us; taking the completion by value makes us its only owner.
        Ok(unsafe { OwnedFd::from_raw_fd(self.result) })
    }
}

/// The ring of one worker; made and used by that worker's thread only.
pub(crate) struct Ring {
    ring: IoUring,
    /// How it was set up.
    flags: &'static str,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Ring").field("flags", &self.flags).finish_non_exhaustive()
    }
}

/// Flags by their names, and how to ask for them.
type Setup = (&'static str, fn(&mut Builder));

/// Set-ups from the best to the least, with the kernel that brought them.
const SETUPS: [Setup; 3] = [
    // 6.1: work is done when the worker waits, and nowhere else.
    ("SINGLE_ISSUER|DEFER_TASKRUN", |builder| {
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    }),
    // 6.0
    ("SINGLE_ISSUER|COOP_TASKRUN", |builder| {
        builder.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    }),
    // 5.19
    ("COOP_TASKRUN", |builder| {
        builder.setup_coop_taskrun().setup_taskrun_flag();
    }),
];

impl Ring {
    /// Sets up a ring with the best flags that the kernel takes.
    ///
    /// # Errors
    /// EPERM where seccomp or `kernel.io_uring_disabled` forbids it, ENOSYS where there is none, EINVAL before 5.19.
    pub(crate) fn new() -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::Unsupported);
        for (flags, apply) in SETUPS {
            let mut builder = IoUring::builder();
            builder.dontfork().setup_clamp().setup_cqsize(COMPLETIONS);
            apply(&mut builder);
            match builder.build(SUBMISSIONS) {
                Ok(ring) if ring.params().is_feature_ext_arg() => return Ok(Self { ring, flags }),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The flags that it was set up with.
    pub(crate) fn flags(&self) -> &'static str {
        self.flags
    }

    /// Watches a socket until [`Ring::unwatch`]: a completion for each change to readable, writable or closed.
    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>, user_data: u64) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), POLL_MASK).multi(true).build();
        self.push(&entry.user_data(user_data))
    }

    /// Accepts until it fails or is cancelled: each completion is a new socket.
    pub(crate) fn accept(&mut self, listener: BorrowedFd<'_>, user_data: u64) -> io::Result<()> {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(flags).build();
        self.push(&entry.user_data(user_data))
    }

    /// Ends a watch or an accept. Its last completion, without `more`, comes later; the ring holds the socket open until
    /// then. Not by a poll's own removal, which fails with EALREADY while an event of that poll is being delivered.
    pub(crate) fn cancel(&mut self, user_data: u64) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(user_data).build().flags(Flags::SKIP_SUCCESS);
        self.push(&entry.user_data(u64::MAX))
    }

    /// Submits what was pushed and collects completions into `into`; waits for one, at most `timeout` (`None`: without
    /// end), unless that is zero.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        into: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let idle = timeout.is_none_or(|timeout| !timeout.is_zero());
        if idle && self.ring.completion().is_empty() {
            let result = match timeout {
                None => self.ring.submit_and_wait(1),
                Some(timeout) => {
                    let time = Timespec::from(timeout);
                    self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
                }
            };
            match result.map_err(|error| error.raw_os_error()) {
                Ok(_) | Err(Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(code) => return Err(io::Error::from_raw_os_error(code.unwrap_or(libc::EIO))),
            }
        } else {
            let (pending, taskrun) = {
                let queue = self.ring.submission();
                (!queue.is_empty(), queue.taskrun() || queue.cq_overflow())
            };
            if pending || taskrun {
                self.submit()?;
            }
        }
        into.extend(self.ring.completion().map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            more: cqueue::more(entry.flags()),
        }));
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        match self.ring.submit().map_err(|error| error.raw_os_error()) {
            Ok(_) | Err(Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            Err(code) => Err(io::Error::from_raw_os_error(code.unwrap_or(libc::EIO))),
        }
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        for _ in 0..2 {
            // SAFETY: the entry is a poll, an accept without an address, or a removal: none holds a pointer, so nothing
            // has to outlive it. The descriptor in it is open now (a borrow), and the kernel takes its own reference when
            // the entry is submitted, at the latest by the worker before it closes the socket (`Ring::settle`).
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
        Err(io::Error::other("the submission queue stays full"))
    }

    /// Submits what was pushed, so that no entry names a descriptor that is about to be closed.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() { Ok(()) } else { self.submit() }
    }
}

/// Readable, writable, closed by the peer, urgent data. Errors and hang-ups come by themselves.
const POLL_MASK: u32 = (libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP | libc::POLLPRI) as u32;
/// What one turn of the worker pushes; more is submitted at once.
const SUBMISSIONS: u32 = 1024;
/// 256 KiB per worker: room for what some thousand sockets say between two turns. More waits in the kernel (NODROP).
const COMPLETIONS: u32 = 16 * 1024;
