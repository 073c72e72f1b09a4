//! Where the node before us had come to with a session that goes on: what was read then, and perhaps not told, is told as lost.

use super::Watched;
use crate::loss::{CLASS_NAMES, Lost, loss};

/// By class, the number of the first record that the node before us had not told; `None` once that has been compared.
#[derive(Debug)]
pub(super) struct Before {
    next: [Option<u64>; 3],
    /// How many records there were at a time (nanoseconds since the machine's start), some of them in the rings.
    counted: Option<(u64, [u64; 3])>,
}

impl Before {
    pub(super) fn new(next: [u64; 3]) -> Self {
        Self { next: next.map(Some), counted: None }
    }

    /// The numbers of those that nobody will tell, given the first that comes.
    fn compare(&mut self, class: usize, sequence: u64) -> Option<Lost> {
        let first = self.next.get_mut(class)?.take()?;
        (first < sequence).then(|| Lost { count: sequence - first, first, last: sequence - 1 })
    }

    /// How many records there were when all of them are read: what did not come by then will not come.
    fn all_read(&mut self, now: u64, read: u64, records: [u64; 3]) -> Option<[u64; 3]> {
        let (when, counted) = *self.counted.get_or_insert((now, records));
        (read > when).then_some(counted)
    }
}

impl Watched {
    /// A record has come: the first of its class says what is missing before it.
    pub(super) fn compare(&mut self, class: usize, sequence: u64) {
        let lost = self.before.as_mut().and_then(|before| before.compare(class, sequence));
        if let (Some(lost), Some(class)) = (lost, CLASS_NAMES.get(class)) {
            self.send(loss(&self.facts, class, "restart", lost));
        }
    }

    /// So many records there are now; what is older than `read` has been read.
    pub(super) fn compare_all(&mut self, now: u64, read: u64, records: [u64; 3]) {
        let counted = self.before.as_mut().and_then(|before| before.all_read(now, read, records));
        if let Some(counted) = counted {
            self.compare_last(counted);
        }
    }

    /// So many records there were, and all that came of them has been read.
    pub(super) fn compare_last(&mut self, records: [u64; 3]) {
        for (class, records) in records.into_iter().enumerate() {
            self.compare(class, records);
        }
        self.before = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_still_in_the_rings_is_not_lost() {
        let mut before = Before::new([4, 0, 0]);
        assert_eq!(before.all_read(1000, 10, [9, 0, 0]), None);
        let lost = before.compare(0, 6).unwrap();
        assert_eq!((lost.count, lost.first, lost.last), (2, 4, 5));
        assert!(before.compare(0, 7).is_none());
        // Those of then: others have come since.
        assert_eq!(before.all_read(2000, 1500, [20, 0, 0]), Some([9, 0, 0]));
    }
}
