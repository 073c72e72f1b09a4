//! The simulated kernel of `direction_tests.rs`: a network of two sockets, what happens on it, and what must hold.
//! Follows Linux where it is surprising: the first call after a reset gets the error, later reads say end of file, later
//! writes EPIPE; room is announced only to those who ran out of it. Bytes are known by their place in the stream.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use crate::chunk::{CHUNK_BYTES, Chunk};
use crate::direction::{Lender, Side};
use crate::pipes::PIPE_BYTES;

/// What the two peers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// Say what they have to say, read everything, and close.
    Orderly,
    /// One or both end by a reset at some moment.
    Resets,
    /// At least one stops reading, and none closes.
    Stalls,
    /// TLS; the client's TCP ends, but its TLS does not.
    Truncated,
}

/// A seeded source of choices.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, end: usize) -> usize {
        (self.roll() >> 11) as usize % end.max(1)
    }
    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
    fn pick(&mut self, from: &[usize]) -> usize {
        from[self.below(from.len())]
    }
    /// A size between 1 and `most` of any order of magnitude.
    fn size(&mut self, most: usize) -> usize {
        let bits = usize::BITS - most.max(1).leading_zeros();
        let scale = 1_usize << self.below(bits as usize + 1);
        1 + self.below(scale.min(most))
    }
}

/// What a socket's kernel side holds.
#[derive(Debug, Default)]
struct Kernel {
    /// Bytes the peer will still send, and whether it closes then.
    to_send: usize,
    closes: bool,
    /// Stops reading once it has read so many.
    reads_left: usize,
    resets_in: Option<usize>,
    received: usize,
    receive_room: usize,
    fin: bool,
    error: Option<io::ErrorKind>,
    reset: bool,
    sent: usize,
    send_room: usize,
    /// Somebody ran out of room and wants to be told of it.
    no_space: bool,
    shut: bool,
    notify: bool,
}

impl Kernel {
    fn is_writable(&self) -> bool {
        self.reset || (self.send_room - self.sent) * 3 >= self.send_room
    }
    fn is_quiet(&self) -> bool {
        self.received == 0 && !self.fin && self.error.is_none() && !self.reset
    }

    /// One thing that the peer or the network does; false when there is nothing.
    fn act(&mut self, dice: &mut Dice) -> bool {
        if self.reset {
            return false;
        }
        if let Some(left) = &mut self.resets_in {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.reset = true;
                // tcp_reset(): in CLOSE_WAIT it is EPIPE.
                let kind = if self.fin {
                    io::ErrorKind::BrokenPipe
                } else {
                    io::ErrorKind::ConnectionReset
                };
                self.error = Some(kind);
                self.notify = true;
                return true;
            }
        }
        let mut acted = self.resets_in.is_some();
        let sends = if dice.one_in(2) { dice.size(self.receive_room) } else { self.receive_room };
        let sends = sends.min(self.to_send);
        let sends = sends.min(self.receive_room - self.received);
        if sends > 0 && !dice.one_in(3) {
            self.to_send -= sends;
            self.received += sends;
            self.notify = true;
        }
        acted |= self.to_send > 0 && self.received < self.receive_room;
        if self.to_send == 0 && self.closes && !self.fin {
            acted = true;
            if dice.one_in(4) {
                self.fin = true;
                self.notify = true;
            }
        }
        let reads = dice.size(self.send_room).min(self.sent).min(self.reads_left);
        acted |= reads > 0;
        if reads > 0 && !dice.one_in(3) {
            self.sent -= reads;
            self.reads_left -= reads;
            if self.no_space && self.is_writable() {
                self.no_space = false;
                self.notify = true;
            }
        }
        acted
    }
}

/// How far one direction is: what its reader gave out, and what its writer accepted.
#[derive(Debug, Default)]
struct Ledger {
    taken: Cell<u64>,
    given: Cell<u64>,
    spliced: Cell<u64>,
    /// Copied, not spliced, and not given.
    copied: Cell<bool>,
}

/// Both sockets as the network sees them.
pub(crate) struct Net {
    dice: Rc<RefCell<Dice>>,
    kernels: [Rc<RefCell<Kernel>>; 2],
    ledgers: [Rc<Ledger>; 2],
    views: [Rc<View>; 2],
    total: [u64; 2],
}

/// What a side has told, or been told.
#[derive(Debug, Default)]
struct View {
    told_end: Cell<bool>,
    refused: Cell<bool>,
    outgoing: Cell<usize>,
}

impl Net {
    pub(crate) fn new(seed: u64, flavour: Flavour) -> (Self, Sim, Sim) {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let kernels = [0, 1].map(|_| Rc::new(RefCell::new(kernel(&mut dice, flavour))));
        if flavour == Flavour::Stalls && !dice.one_in(3) {
            // Of each kind some, but never both reading all: that would be no stall.
            kernels[dice.below(2)].borrow_mut().reads_left = dice.size(1 << 16);
        }
        let total = [0, 1].map(|side: usize| kernels[side].borrow().to_send as u64);
        let ledgers = [0, 1].map(|_| Rc::new(Ledger::default()));
        let views = [0, 1].map(|_| Rc::new(View::default()));
        let tls = [
            flavour == Flavour::Truncated || dice.one_in(4),
            flavour != Flavour::Truncated && dice.one_in(4),
        ];
        let records = [0, 1].map(|_| dice.pick(&[1, 700, 16 * 1024]));
        let splices = [0, 1].map(|_| dice.pick(&[1, 9, 99, 99]));
        let interrupts = dice.pick(&[8, 50, usize::MAX]);
        let dice = Rc::new(RefCell::new(dice));
        let side = |this: usize| Sim {
            dice: Rc::clone(&dice),
            kernel: Rc::clone(&kernels[this]),
            peer: Rc::clone(&kernels[1 - this]),
            out: Rc::clone(&ledgers[this]),
            into: Rc::clone(&ledgers[1 - this]),
            view: Rc::clone(&views[this]),
            tls: tls[this].then(|| Tls {
                record: records[this].min(1 + total[this] as usize / 2),
                says_close: !(flavour == Flavour::Truncated && this == 0),
                ..Tls::default()
            }),
            splices: splices[this],
            interrupts,
            readable: true,
            writable: true,
            ending: false,
            ended: false,
        };
        let (client, target) = (side(0), side(1));
        (Self { dice, kernels, ledgers, views, total }, client, target)
    }

    /// Lets something happen beyond the sockets; false when nothing can.
    pub(crate) fn act(&self) -> bool {
        let mut dice = self.dice.borrow_mut();
        let mut acted = false;
        for kernel in &self.kernels {
            let mut kernel = kernel.borrow_mut();
            acted |= kernel.act(&mut dice);
            // An event may come for nothing.
            kernel.notify |= acted && dice.one_in(16);
        }
        acted
    }

    pub(crate) fn taken(&self) -> [u64; 2] {
        [0, 1].map(|side: usize| self.ledgers[side].taken.get())
    }
    pub(crate) fn given(&self) -> [u64; 2] {
        [0, 1].map(|side: usize| self.ledgers[side].given.get())
    }
    pub(crate) fn spliced(&self) -> u64 {
        self.ledgers.iter().map(|ledger| ledger.spliced.get()).sum()
    }
    pub(crate) fn is_delivered(&self) -> bool {
        self.given() == self.total && self.kernels.iter().all(|kernel| kernel.borrow().shut)
    }
    pub(crate) fn was_reset(&self) -> bool {
        self.kernels.iter().any(|kernel| kernel.borrow().reset)
    }

    /// A direction holds a read at most, and what is held is counted.
    pub(crate) fn check_bounds(&self, held: usize) {
        let mut holds_any = false;
        for (reader, ledger) in self.ledgers.iter().enumerate() {
            let view = &self.views[1 - reader];
            assert!(view.outgoing.get() <= CHUNK_BYTES + ANSWERS_MAX, "TLS holds too much");
            holds_any |= view.outgoing.get() > 0;
            if !view.refused.get() {
                let holds = ledger.taken.get() - ledger.given.get();
                let most = if ledger.copied.get() { CHUNK_BYTES } else { PIPE_BYTES };
                assert!(holds <= most as u64, "{holds} bytes held");
                holds_any |= ledger.copied.get() && holds > 0;
            }
        }
        assert_eq!(held > 0, holds_any, "{held} bytes are counted as held");
    }

    /// A stream that waits has a reason, or an event is on its way.
    pub(crate) fn check_reasons(&self) {
        if self.kernels.iter().any(|kernel| kernel.borrow().notify) {
            return;
        }
        for reader in 0..2 {
            let writer = 1 - reader;
            let (from, to) = (self.kernels[reader].borrow(), self.kernels[writer].borrow());
            if to.shut || self.views[writer].refused.get() {
                continue;
            }
            let ledger = &self.ledgers[reader];
            let unsent = self.views[writer].outgoing.get();
            if ledger.taken.get() > ledger.given.get() || unsent > 0 {
                assert!(!to.is_writable(), "{reader}: bytes wait although there is room");
            } else {
                assert!(!self.views[reader].told_end.get(), "{reader}: an end is not passed on");
                let blocked = from.is_quiet() || !to.is_writable();
                assert!(blocked, "{reader}: nobody reads what is there");
            }
        }
    }
}

fn kernel(dice: &mut Dice, flavour: Flavour) -> Kernel {
    let sizes = [0, 1, 100, 9000, 70_000, 300_000, 600_000, 1_500_000];
    let to_send = dice.pick(&sizes);
    // Little room only for little to say: else a run takes long and shows nothing.
    let rooms: &[usize] = if to_send > 1000 { &[20_000, 200_000, 2_000_000] } else { &[1, 7, 500] };
    let (receive_room, send_room) = (dice.pick(rooms), dice.pick(&[3000, 90_000, 2_000_000]));
    let resets_in = (flavour == Flavour::Resets && !dice.one_in(3)).then(|| 1 + dice.below(60));
    let stalls = flavour == Flavour::Stalls;
    Kernel {
        to_send,
        closes: !stalls,
        reads_left: if stalls && dice.one_in(2) { dice.size(1 << 20) } else { usize::MAX },
        resets_in,
        receive_room,
        send_room,
        ..Kernel::default()
    }
}

/// TLS as a side shows it: bytes come in records, everything is taken and leaves later.
#[derive(Debug, Default)]
struct Tls {
    record: usize,
    says_close: bool,
    /// Of a record that is not whole.
    early: usize,
}

/// A side over a simulated socket; does what [`crate::port::Port`] does.
pub(crate) struct Sim {
    dice: Rc<RefCell<Dice>>,
    kernel: Rc<RefCell<Kernel>>,
    peer: Rc<RefCell<Kernel>>,
    /// The direction that is read here, and the one that is written here.
    out: Rc<Ledger>,
    into: Rc<Ledger>,
    view: Rc<View>,
    tls: Option<Tls>,
    /// The kernel cannot move its bytes one time in so many.
    splices: usize,
    interrupts: usize,
    readable: bool,
    writable: bool,
    ending: bool,
    ended: bool,
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

    fn backlog(&self) -> usize {
        self.view.outgoing.get()
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

/// A pipe, known by which bytes are in it.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    start: Cell<u64>,
    held: Cell<usize>,
}

/// Lends pipes, or not.
pub(crate) struct Pipes {
    dice: Rc<RefCell<Dice>>,
    free: Vec<Pipe>,
    lent: usize,
    refuses: usize,
}

impl Pipes {
    pub(crate) fn new(net: &Net) -> Self {
        let refuses = net.dice.borrow_mut().pick(&[1, 3, 99, usize::MAX]);
        Self { dice: Rc::clone(&net.dice), free: Vec::new(), lent: 0, refuses }
    }
    pub(crate) fn lent(&self) -> usize {
        self.lent
    }
}

impl Lender<Pipe> for Pipes {
    fn lend(&mut self) -> Option<Pipe> {
        if self.dice.borrow_mut().one_in(self.refuses) {
            return None;
        }
        self.lent += 1;
        Some(self.free.pop().unwrap_or_default())
    }
    fn give_back(&mut self, pipe: Pipe) {
        assert_eq!(pipe.held.get(), 0, "given back with bytes in it");
        self.lent -= 1;
        self.free.push(pipe);
    }
    fn destroy(&mut self, pipe: Pipe) {
        self.lent -= 1;
        drop(pipe);
    }
    fn adopt(&mut self) {
        self.lent += 1;
    }
    fn forget(&mut self) {
        self.lent -= 1;
    }
}

/// The bytes of a stream from `at` on. A prime period, so that no buffer's size divides it.
fn pattern(at: u64, count: usize) -> &'static [u8] {
    thread_local! {
        static BYTES: &'static [u8] = {
            let mut dice = Dice(77);
            let bytes: Vec<u8> = (0..PERIOD + PIPE_BYTES).map(|_| (dice.roll() >> 24) as u8).collect();
            // A period and what begins in it.
            let bytes: Vec<u8> = (0..bytes.len()).map(|i| bytes[i % PERIOD]).collect();
            bytes.leak()
        };
    }
    let start = (at % PERIOD as u64) as usize;
    BYTES.with(|bytes| &bytes[start..start + count])
}

const PERIOD: usize = 65_521;
/// Bytes that answers to the peer's TLS may add.
const ANSWERS_MAX: usize = 4;
