//! A simulated kernel for streams: a network of two sockets, what happens on it, and what must hold. Follows Linux where it
//! is surprising: the first call after a reset gets the error, later reads say end of file, later writes EPIPE; room is
//! announced only to those who ran out of it. Used by `direction_tests.rs`.
//!
//! - [`net`]: the sockets as the network sees them
//! - [`side`]: as a stream does
//! - [`pipes`]: pipes, and bytes that are known by their place

pub(super) mod net;
pub(super) mod pipes;
pub(super) mod side;

/// A seeded source of choices.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() >> 11).unwrap() % end.max(1)
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
