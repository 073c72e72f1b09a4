//! Numbers and bytes from a seed: the same in every run, and unlike enough. SplitMix64, which needs no crate.

use std::ops::RangeInclusive;

/// A source of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number of the range; no care for the last bit of evenness.
    pub(crate) fn within(&mut self, range: RangeInclusive<usize>) -> usize {
        let span = range.end() - range.start() + 1;
        range.start() + usize::try_from(self.next() % span as u64).unwrap()
    }

    /// True once in so many times.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.within(1..=times) == 1
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// The length of a write: mostly small, sometimes one byte, sometimes around a record's limit.
    pub(crate) fn length(&mut self) -> usize {
        match self.within(1..=40) {
            1 => 1,
            2 => self.within(16_300..=16_500),
            3..=6 => self.within(1000..=3000),
            7..=20 => self.within(1..=16),
            _ => self.within(17..=400),
        }
    }
}
