//! The two sockets as the network sees them: what the peers send, read and break, and what a stream between them owes.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use super::Dice;
use super::side::{Sim, Tls};
use crate::chunk::CHUNK_BYTES;
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

/// What a socket's kernel side holds.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    /// Bytes the peer will still send, and whether it closes then.
    pub(super) to_send: usize,
    pub(super) closes: bool,
    /// Stops reading once it has read so many.
    pub(super) reads_left: usize,
    pub(super) resets_in: Option<usize>,
    pub(super) received: usize,
    pub(super) receive_room: usize,
    pub(super) fin: bool,
    pub(super) error: Option<io::ErrorKind>,
    pub(super) reset: bool,
    pub(super) sent: usize,
    pub(super) send_room: usize,
    /// Somebody ran out of room and wants to be told of it.
    pub(super) no_space: bool,
    pub(super) shut: bool,
    pub(super) notify: bool,
}

impl Kernel {
    pub(super) fn is_writable(&self) -> bool {
        self.reset || (self.send_room - self.sent) * 3 >= self.send_room
    }
    pub(super) fn is_quiet(&self) -> bool {
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
pub(super) struct Ledger {
    pub(super) taken: Cell<u64>,
    pub(super) given: Cell<u64>,
    pub(super) spliced: Cell<u64>,
    /// Copied, not spliced, and not given.
    pub(super) copied: Cell<bool>,
}

/// Both sockets as the network sees them.
pub(crate) struct Net {
    pub(super) dice: Rc<RefCell<Dice>>,
    kernels: [Rc<RefCell<Kernel>>; 2],
    ledgers: [Rc<Ledger>; 2],
    views: [Rc<View>; 2],
    total: [u64; 2],
}

/// What a side has told, or been told.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) told_end: Cell<bool>,
    pub(super) refused: Cell<bool>,
    pub(super) outgoing: Cell<usize>,
    /// Closed although the other side takes no more.
    pub(super) closed_late: Cell<bool>,
}

impl Net {
    pub(crate) fn new(seed: u64, flavour: Flavour) -> (Self, Sim, Sim) {
        let mut dice = Dice::new(seed);
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
            peer_view: Rc::clone(&views[1 - this]),
            tls: tls[this].then(|| Tls {
                record: records[this].min(1 + usize::try_from(total[this]).unwrap() / 2),
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
    pub(crate) fn closed_late(&self) -> bool {
        self.views.iter().any(|view| view.closed_late.get())
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

/// Bytes that answers to the peer's TLS may add.
pub(super) const ANSWERS_MAX: usize = 4;
