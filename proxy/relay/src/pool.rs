//! Copy buffers. A direction holds one only from a read that gave bytes until those bytes are written, so that an idle
//! stream holds none, and a stalled one holds exactly one per direction.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One read. Two full TLS records or one SSH packet of the usual largest size fit; larger gained little for memory.
pub(crate) const BUFFER_BYTES: usize = 32 * 1024;
/// Free buffers kept for the next stream that moves: 2 MiB, enough for as many as can move at once on a few cores.
const KEPT_MAX: usize = 64;

/// Free buffers.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<Vec<Box<[u8]>>>,
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn take(&self) -> Box<[u8]> {
        self.free().pop().unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
    }

    pub(crate) fn give(&self, buffer: Box<[u8]>) {
        let mut free = self.free();
        if free.len() < KEPT_MAX {
            free.push(buffer);
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Box<[u8]>>> {
        // One push or pop per critical section: a panic elsewhere leaves the list whole.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_up_to_a_bound() {
        let pool = Pool::new();
        let taken: Vec<_> = (0..KEPT_MAX + 5).map(|_| pool.take()).collect();
        assert!(taken.iter().all(|buffer| buffer.len() == BUFFER_BYTES));
        for buffer in taken {
            pool.give(buffer);
        }
        assert_eq!(pool.free().len(), KEPT_MAX);
    }
}
