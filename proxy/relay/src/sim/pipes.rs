//! Pipes that know which bytes are in them, and the bytes of a stream by their place in it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::Dice;
use super::net::Net;
use crate::direction::Lender;
use crate::pipes::PIPE_BYTES;

/// A pipe, known by which bytes are in it.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    pub(super) start: Cell<u64>,
    pub(super) held: Cell<usize>,
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
        pipe.held.set(0);
    }
    fn adopt(&mut self) {
        self.lent += 1;
    }
    fn forget(&mut self) {
        self.lent -= 1;
    }
}

/// The bytes of a stream from `at` on. A prime period, so that no buffer's size divides it.
pub(super) fn pattern(at: u64, count: usize) -> &'static [u8] {
    thread_local! {
        static BYTES: &'static [u8] = {
            let mut dice = Dice::new(77);
            let bytes: Vec<u8> = (0..PERIOD + PIPE_BYTES).map(|_| dice.below(256).to_le_bytes()[0]).collect();
            // A period and what begins in it.
            let bytes: Vec<u8> = (0..bytes.len()).map(|i| bytes[i % PERIOD]).collect();
            bytes.leak()
        };
    }
    let start = usize::try_from(at % PERIOD as u64).unwrap();
    BYTES.with(|bytes| &bytes[start..start + count])
}

const PERIOD: usize = 65_521;
