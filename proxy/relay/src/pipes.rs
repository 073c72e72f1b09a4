//! Pipes to splice through. A worker keeps some and lends one to a direction only while bytes are in it. A pipe that
//! still holds bytes when its stream ends is closed, never lent again. No pipe to be had means copying, never an error.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::direction::Lender;

/// Both ends.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) read: OwnedFd,
    pub(crate) write: OwnedFd,
}

/// A worker's pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    free: Vec<Pipe>,
    /// Lent now.
    lent: usize,
    max: usize,
    /// The system gave no further one, and is not asked for so many requests.
    requests_to_skip: u32,
}

impl Pipes {
    pub(crate) fn new(max: usize) -> Self {
        Self { free: Vec::new(), lent: 0, max, requests_to_skip: 0 }
    }
}

impl Lender<Pipe> for Pipes {
    /// An empty pipe, or none when there may be no more.
    fn lend(&mut self) -> Option<Pipe> {
        if self.free.is_empty() && self.lent < self.max {
            if self.requests_to_skip > 0 {
                self.requests_to_skip = self.requests_to_skip.saturating_sub(1);
                return None;
            }
            match make() {
                Ok(pipe) => self.free.push(pipe),
                Err(error) => {
                    // An unprivileged user has 64 of this size (pipe(7), /proc/sys/fs/pipe-user-pages-soft).
                    tracing::debug!(%error, lent = self.lent, "no further pipe; bytes are copied");
                    self.requests_to_skip = REQUESTS_SKIPPED;
                }
            }
        }
        let pipe = self.free.pop()?;
        self.lent = self.lent.saturating_add(1);
        Some(pipe)
    }

    /// Takes an empty pipe back.
    fn give_back(&mut self, pipe: Pipe) {
        self.lent = self.lent.saturating_sub(1);
        if self.free.len() < KEPT_MAX {
            self.free.push(pipe);
        }
    }

    /// Closes a pipe that holds bytes.
    fn destroy(&mut self, pipe: Pipe) {
        self.lent = self.lent.saturating_sub(1);
        self.requests_to_skip = 0;
        drop(pipe);
    }

    fn adopt(&mut self) {
        self.lent = self.lent.saturating_add(1);
    }

    fn forget(&mut self) {
        self.lent = self.lent.saturating_sub(1);
    }
}

fn make() -> io::Result<Pipe> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // A smaller pipe than asked for would be slower than copying.
    fcntl_setpipe_size(&write, PIPE_BYTES)?;
    Ok(Pipe { read, write })
}

/// What one splice moves at most. 1 MiB took the least CPU per byte; see bench/README.md.
pub(crate) const PIPE_BYTES: usize = 1024 * 1024;
/// Pipes at once per worker: as many as streams can stall in the middle of bulk before others copy instead.
pub(crate) const PIPES_MAX: usize = 256;
/// Free pipes kept: the most that can be in use in one turn is one per direction; each free one holds no memory but its
/// table of pages (10 KiB).
const KEPT_MAX: usize = 16;

/// After a refusal: some hundred mebibytes, so that asking costs nothing, and a moment until pipes are used again that
/// somebody else has given back.
const REQUESTS_SKIPPED: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_bounded_and_come_back() {
        let mut pipes = Pipes::new(2);
        let (a, b) = (pipes.lend().unwrap(), pipes.lend().unwrap());
        assert!(pipes.lend().is_none());
        pipes.destroy(a);
        let c = pipes.lend().unwrap();
        assert!(pipes.lend().is_none());
        pipes.give_back(b);
        pipes.give_back(c);
        assert_eq!(pipes.free.len(), 2);
        assert!(pipes.lend().is_some());
    }

    #[test]
    fn a_refusal_is_not_for_ever_even_if_no_pipe_is_out() {
        let mut pipes = Pipes::new(2);
        pipes.requests_to_skip = 2;
        assert!(pipes.lend().is_none());
        assert!(pipes.lend().is_none());
        assert!(pipes.lend().is_some());
    }
}
