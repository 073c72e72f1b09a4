//! A side of a stream over a simulated socket. Remembers what the kernel told as [`crate::port`] does.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use super::Dice;
use super::net::{ANSWERS_MAX, Kernel, Ledger, View};
use super::pipes::{Pipe, pattern};
use crate::chunk::Chunk;
use crate::direction::Side;
use crate::pipes::PIPE_BYTES;

/// TLS as a side shows it: bytes come in records, everything is taken and leaves later.
#[derive(Debug, Default)]
pub(super) struct Tls {
    pub(super) record: usize,
    pub(super) says_close: bool,
    /// Of a record that is not whole.
    pub(super) early: usize,
}

/// A side over a simulated socket; does what [`crate::port::Port`] does.
pub(crate) struct Sim {
    pub(super) dice: Rc<RefCell<Dice>>,
    pub(super) kernel: Rc<RefCell<Kernel>>,
    pub(super) peer: Rc<RefCell<Kernel>>,
    /// The direction that is read here, and the one that is written here.
    pub(super) out: Rc<Ledger>,
    pub(super) into: Rc<Ledger>,
    pub(super) view: Rc<View>,
    pub(super) peer_view: Rc<View>,
    pub(super) tls: Option<Tls>,
    /// The kernel cannot move its bytes one time in so many.
    pub(super) splices: usize,
    pub(super) interrupts: usize,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) ending: bool,
    pub(super) ended: bool,
}

impl Sim {
    /// Takes what the kernel tells, if it does now.
    pub(crate) fn hears(&mut self) -> bool {
        let mut kernel = self.kernel.borrow_mut();
        if !kernel.notify || self.dice.borrow_mut().one_in(4) {
            return false;
        }
        kernel.notify = false;
        // tcp_poll(): who looks and sees no room wants to be told of it.
        kernel.no_space |= !kernel.is_writable();
        self.readable |= !kernel.is_quiet();
        self.writable |= kernel.is_writable();
        self.ending |= kernel.fin || kernel.reset;
        self.ended |= kernel.fin && !kernel.reset;
        true
    }

    fn interrupted(&self) -> io::Result<()> {
        match self.dice.borrow_mut().one_in(self.interrupts) {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        }
    }

    /// recv(2), and what a port remembers of it.
    fn receive(&mut self, max: usize) -> io::Result<usize> {
        let mut kernel = self.kernel.borrow_mut();
        let count = kernel.received.min(max);
        if count == 0 {
            if !kernel.fin {
                if let Some(kind) = kernel.error.take() {
                    self.readable = false;
                    return Err(kind.into());
                }
                if !kernel.reset {
                    self.readable = false;
                    return Err(io::ErrorKind::WouldBlock.into());
                }
            }
            self.readable = false;
            return Ok(0);
        }
        kernel.received -= count;
        if count < max {
            self.readable = self.ending;
        }
        Ok(count)
    }

    /// send(2), and what a port remembers of it.
    fn send(&mut self, count: usize) -> io::Result<usize> {
        let mut kernel = self.kernel.borrow_mut();
        assert!(!kernel.shut, "bytes after the close");
        if kernel.reset {
            self.writable = false;
            self.view.refused.set(true);
            return Err(kernel.error.take().unwrap_or(io::ErrorKind::BrokenPipe).into());
        }
        let room = kernel.send_room - kernel.sent;
        if room == 0 {
            kernel.no_space = true;
            self.writable = false;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut dice = self.dice.borrow_mut();
        let mut took = count.min(room);
        if took < count {
            kernel.no_space = true;
        } else if dice.one_in(8) {
            // A signal came in the middle.
            took = 1 + dice.below(took);
        }
        kernel.sent += took;
        Ok(took)
    }

    /// Bytes of the direction that is written here.
    fn check(&self, slices: &mut dyn Iterator<Item = &[u8]>, count: usize) {
        let mut at = self.into.given.get();
        for slice in slices {
            assert!(slice == pattern(at, slice.len()), "other bytes than were read, at {at}");
            at += slice.len() as u64;
        }
        assert!(count as u64 <= at - self.into.given.get());
        self.into.given.set(self.into.given.get() + count as u64);
    }

    fn read_records(&mut self, mut tls: Tls, chunk: &mut Chunk, max: usize) -> io::Result<usize> {
        let result = loop {
            if !self.readable {
                break Err(io::ErrorKind::WouldBlock.into());
            }
            match self.receive(max - tls.early - 13) {
                Ok(0) => {
                    let whole = tls.early == 0 && self.kernel.borrow().fin && tls.says_close;
                    break if whole { Ok(0) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                }
                Ok(count) => tls.early += count,
                Err(error) => break Err(error),
            }
            let kernel = self.kernel.borrow();
            let last = kernel.to_send == 0 && kernel.received == 0;
            let whole = if last { tls.early } else { tls.early / tls.record * tls.record };
            drop(kernel);
            if whole == 0 {
                continue;
            }
            // In two pieces, with what stood between records.
            let (buffer, pieces) = chunk.parts();
            let (start, half) = (self.out.taken.get(), whole / 2);
            tls.early -= whole;
            buffer[5..5 + half].copy_from_slice(pattern(start, half));
            let rest = pattern(start + half as u64, whole - half);
            buffer[13 + half..13 + whole].copy_from_slice(rest);
            pieces
                .extend([5..5 + half, 13 + half..13 + whole].into_iter().filter(|p| !p.is_empty()));
            // The peer may have asked for an answer.
            if !self.peer_is_told() && self.dice.borrow_mut().one_in(4) {
                self.view.outgoing.set(self.view.outgoing.get() + 1);
            }
            break Ok(whole);
        };
        self.tls = Some(tls);
        result
    }

    fn peer_is_told(&self) -> bool {
        self.kernel.borrow().shut || self.view.outgoing.get() >= ANSWERS_MAX
    }

    fn took(&self, count: usize) {
        assert_eq!(self.out.taken.get(), self.out.given.get(), "read while bytes are held");
        self.out.taken.set(self.out.taken.get() + count as u64);
    }

    fn write_slices(
        &mut self,
        slices: &mut dyn Iterator<Item = &[u8]>,
        len: usize,
    ) -> io::Result<usize> {
        if self.tls.is_some() {
            assert_eq!(self.view.outgoing.get(), 0, "given more before the last has left");
            self.check(slices, len);
            self.view.outgoing.set(len);
            return match self.flush() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    // The caller does not count them, nor do we.
                    self.into.given.set(self.into.given.get() - len as u64);
                    Err(error)
                }
                Ok(()) | Err(_) => Ok(len),
            };
        }
        self.interrupted()?;
        let count = self.send(len)?;
        self.check(slices, count);
        Ok(count)
    }
}

impl Side for Sim {
    type Pipe = Pipe;

    fn is_readable(&self) -> bool {
        self.readable
    }
    fn is_writable(&self) -> bool {
        self.writable && self.view.outgoing.get() == 0
    }

    fn read(&mut self, chunk: &mut Chunk, max: usize) -> io::Result<usize> {
        self.interrupted()?;
        let count = match self.tls.take() {
            Some(tls) => self.read_records(tls, chunk, max)?,
            None => {
                let count = self.receive(max)?;
                let (buffer, _) = chunk.parts();
                buffer[..count].copy_from_slice(pattern(self.out.taken.get(), count));
                chunk.set(count);
                count
            }
        };
        self.out.copied.set(true);
        self.view.told_end.set(count == 0);
        self.took(count);
        Ok(count)
    }

    fn write(&mut self, chunk: &mut Chunk) -> io::Result<usize> {
        self.write_slices(&mut chunk.slices(), chunk.len())
    }
    fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_slices(&mut std::iter::once(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.view.outgoing.get() > 0 {
            if !self.writable {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = self.send(self.view.outgoing.get())?;
            self.view.outgoing.set(self.view.outgoing.get() - count);
        }
        Ok(())
    }

    fn is_gone(&self) -> bool {
        false
    }

    fn backlog(&self) -> usize {
        self.view.outgoing.get()
    }

    fn close_write(&mut self) -> io::Result<()> {
        self.flush()?;
        self.interrupted()?;
        let mut kernel = self.kernel.borrow_mut();
        assert!(!kernel.shut, "closed twice");
        if kernel.reset {
            self.view.refused.set(true);
            return Err(io::ErrorKind::NotConnected.into());
        }
        let peer = self.peer.borrow();
        assert!(peer.fin && peer.received == 0, "a close that the other side has not said");
        assert_eq!(self.into.given.get(), self.into.taken.get(), "closed before all was written");
        kernel.shut = true;
        self.view.closed_late.set(self.peer_view.refused.get());
        Ok(())
    }

    fn end_is_certain(&self) -> bool {
        self.tls.is_some() || self.ended
    }

    fn prepare_splice_in(&mut self) -> bool {
        self.tls.is_none() && !self.dice.borrow_mut().one_in(self.splices)
    }
    fn prepare_splice_out(&mut self) -> bool {
        self.tls.is_none() && !self.dice.borrow_mut().one_in(self.splices)
    }

    fn splice_in(&mut self, pipe: &Pipe, max: usize) -> io::Result<usize> {
        assert_eq!(pipe.held.get(), 0, "spliced into a pipe that holds bytes");
        self.interrupted()?;
        let mut dice = self.dice.borrow_mut();
        let part = if dice.one_in(4) { dice.size(max.min(PIPE_BYTES)) } else { max };
        drop(dice);
        let count = self.receive(part);
        // A splice says nothing of what is left: only a failure means that there is nothing.
        self.readable = count.is_ok();
        let count = count?;
        pipe.start.set(self.out.taken.get());
        pipe.held.set(count);
        self.out.copied.set(false);
        self.view.told_end.set(count == 0);
        self.took(count);
        Ok(count)
    }

    fn splice_out(&mut self, pipe: &Pipe, len: usize) -> io::Result<usize> {
        assert_eq!(pipe.held.get(), len, "not what the pipe holds");
        self.interrupted()?;
        let mut kernel = self.kernel.borrow_mut();
        let count = if kernel.error.is_some() && self.dice.borrow_mut().one_in(2) {
            // splice_to_socket(): the reset came behind a part of it, and its error is dropped for the count.
            kernel.error = None;
            1 + self.dice.borrow_mut().below(len)
        } else {
            drop(kernel);
            self.send(len)?
        };
        assert_eq!(pipe.start.get(), self.into.given.get(), "a pipe with bytes from elsewhere");
        pipe.start.set(pipe.start.get() + count as u64);
        pipe.held.set(len - count);
        self.into.given.set(self.into.given.get() + count as u64);
        self.into.spliced.set(self.into.spliced.get() + count as u64);
        Ok(count)
    }
}
