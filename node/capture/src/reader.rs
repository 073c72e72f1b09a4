//! The rings, read by a thread of its own: what has come in all of them, in the order of time, so that a program is told of
//! before the files that it opened. It never waits for a session: that is what keeps a flood in one from the others.

use std::ops::Range;
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use ebpf_abi::Header;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::FromBytes as _;

use crate::clock::boot_ns;
use crate::live::Live;

/// What was taken out of a ring.
#[derive(Debug, Default)]
struct Part {
    /// Records, one behind the other.
    bytes: Vec<u8>,
    /// When, and where in `bytes`.
    records: Vec<(u64, Range<usize>)>,
    /// The first that was not handed over.
    next: usize,
    /// There was more than was taken.
    more: bool,
}

impl Part {
    /// When everything was handed over, takes more.
    fn fill(&mut self, ring: &mut RingBuf<MapData>) {
        if self.next < self.records.len() {
            return;
        }
        self.bytes.clear();
        self.records.clear();
        self.next = 0;
        while self.bytes.len() < PART_BYTES
            && let Some(item) = ring.next()
        {
            self.push(&item);
        }
        self.more = self.bytes.len() >= PART_BYTES;
        self.records.sort_by_key(|(time, _)| *time);
    }

    fn push(&mut self, record: &[u8]) {
        let time = Header::read_from_prefix(record).map_or(0, |(header, _)| header.boot_ns);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(record);
        self.records.push((time, start..self.bytes.len()));
    }

    fn head(&self) -> Option<u64> {
        self.records.get(self.next).map(|(time, _)| *time)
    }

    fn record(&self, index: usize) -> Option<&[u8]> {
        let (_, range) = self.records.get(index)?;
        self.bytes.get(range.clone())
    }
}

/// What is to be handed over, as part and record: until a ring has to be looked at again, to know what was next.
fn in_order(parts: &mut [Part]) -> Vec<(usize, usize)> {
    let mut order = Vec::new();
    loop {
        let heads = parts.iter().enumerate().filter_map(|(at, part)| Some((part.head()?, at)));
        let first = heads.min();
        let Some((at, part)) = first.and_then(|(_, at)| Some((at, parts.get_mut(at)?))) else {
            return order;
        };
        order.push((at, part.next));
        part.next += 1;
        if part.more && part.next == part.records.len() {
            return order;
        }
    }
}

/// Reads until nobody is left to hand records to.
pub(crate) fn start(live: Weak<Live>, rings: Vec<RingBuf<MapData>>) -> std::io::Result<()> {
    thread::Builder::new().name("capture".to_owned()).spawn(move || read(&live, rings)).map(drop)
}

fn read(live: &Weak<Live>, mut rings: Vec<RingBuf<MapData>>) {
    let _vital = crate::Vital;
    let mut parts: Vec<Part> = rings.iter().map(|_| Part::default()).collect();
    loop {
        let looked = boot_ns();
        for (part, ring) in parts.iter_mut().zip(&mut rings) {
            part.fill(ring);
        }
        let order = in_order(&mut parts);
        let Some(live) = live.upgrade() else { return };
        if order.is_empty() {
            live.look(Some(looked));
            let wait = if live.is_idle() { IDLE_WAIT } else { BUSY_WAIT };
            drop(live);
            wait_for(&rings, wait);
        } else {
            live.take(order.iter().filter_map(|(at, index)| parts.get(*at)?.record(*index)));
            live.look(None);
        }
    }
}

/// Files and the network do not wake us for each record, so that the wait is short while sessions live.
fn wait_for(rings: &[RingBuf<MapData>], wait: Duration) {
    let mut files: Vec<_> = rings.iter().map(|ring| PollFd::new(ring, PollFlags::IN)).collect();
    let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
    // Interrupted or not: the rings are looked at again.
    poll(&mut files, Some(&wait)).ok();
}

/// So much of a ring is put in order at once.
const PART_BYTES: usize = 256 << 10;
/// Nobody is watched: nothing comes.
const IDLE_WAIT: Duration = Duration::from_millis(500);
const BUSY_WAIT: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;

    fn part(times: &[u64], more: bool) -> Part {
        let mut part = Part { more, ..Part::default() };
        for boot_ns in times {
            part.push(Header { boot_ns: *boot_ns, ..Header::new_zeroed() }.as_bytes());
        }
        part
    }

    fn times(parts: &mut [Part]) -> Vec<u64> {
        let order = in_order(parts);
        let time = |(at, index): &(usize, usize)| parts[*at].records[*index].0;
        order.iter().map(time).collect()
    }

    #[test]
    fn rings_are_merged_by_time() {
        let mut parts = [part(&[1, 4, 9], false), part(&[], false), part(&[2, 3, 10], false)];
        assert_eq!(times(&mut parts), [1, 2, 3, 4, 9, 10]);
    }

    #[test]
    fn nothing_overtakes_what_may_still_be_in_a_ring() {
        let mut parts = [part(&[1, 4], true), part(&[2, 3, 10], false)];
        assert_eq!(times(&mut parts), [1, 2, 3, 4]);
        // The first ring has been looked at, and there was 5.
        parts[0] = part(&[5], false);
        assert_eq!(times(&mut parts), [5, 10]);
    }
}
