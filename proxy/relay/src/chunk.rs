//! Bytes on their way: one read's worth, in a buffer that a worker has once, not per stream. A TLS read leaves the
//! plaintext of each record where the record stood, so the bytes are in pieces.

use std::ops::Range;

use crate::tls::session::Outgoing;

/// One read's worth of bytes.
pub(crate) struct Chunk {
    buffer: Box<[u8]>,
    pieces: Vec<Range<usize>>,
    /// Where they are sealed into, when that is what becomes of them; empty between two uses.
    wire: Outgoing,
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Chunk").field("pieces", &self.pieces).finish_non_exhaustive()
    }
}

impl Chunk {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; CHUNK_BYTES].into_boxed_slice(),
            pieces: Vec::with_capacity(64),
            wire: Outgoing::default(),
        }
    }
    /// Room for a read, and the list of pieces, emptied.
    pub(crate) fn parts(&mut self) -> (&mut [u8], &mut Vec<Range<usize>>) {
        self.pieces.clear();
        (&mut self.buffer, &mut self.pieces)
    }
    /// Says that the first `count` bytes are the read.
    pub(crate) fn set(&mut self, count: usize) {
        self.pieces.clear();
        if count > 0 {
            self.pieces.push(0..count);
        }
    }
    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.pieces.iter().map(ExactSizeIterator::len).sum()
    }
    /// The bytes in order.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(|piece| self.buffer.get(piece.clone()).unwrap_or_default())
    }
    /// The bytes in order, and where they may be sealed into.
    pub(crate) fn for_sealing(&mut self) -> (impl Iterator<Item = &[u8]>, &mut Outgoing) {
        let Self { buffer, pieces, wire } = self;
        wire.clear();
        let slices = pieces.iter().map(|piece| buffer.get(piece.clone()).unwrap_or_default());
        (slices, wire)
    }
    /// A copy of what is behind the first `done` bytes.
    pub(crate) fn rest(&self, mut done: usize) -> Vec<u8> {
        let mut rest = Vec::with_capacity(self.len().saturating_sub(done));
        for slice in self.slices() {
            let skip = done.min(slice.len());
            done = done.saturating_sub(skip);
            rest.extend_from_slice(slice.get(skip..).unwrap_or_default());
        }
        rest
    }
}

/// The largest read, and what a worker has twice: as it came, and sealed. Reads of 256 KiB take half as much CPU again per
/// byte, since both peers are woken four times as often; see bench/README.md.
pub(crate) const CHUNK_BYTES: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_pieces_is_what_was_not_taken() {
        let mut chunk = Chunk::new();
        let (buffer, pieces) = chunk.parts();
        buffer[..10].copy_from_slice(b"0123456789");
        pieces.extend([0..3, 5..7, 9..10]);
        assert_eq!(chunk.len(), 6);
        for (done, rest) in [(0, &b"012569"[..]), (2, b"2569"), (3, b"569"), (4, b"69"), (6, b"")] {
            assert_eq!(chunk.rest(done), rest, "{done}");
        }
    }
}
