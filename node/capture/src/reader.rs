//! The rings, read by a thread of its own: what has come in all of them, in the order of time, so that a program is told of
//! before the files that it opened. It never waits for a session: that is what keeps a flood in one from the others.

use std::sync::Weak;
use std::thread;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use ebpf_abi::Header;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::FromBytes as _;

use crate::live::Live;

/// Records of a pass, one behind the other.
#[derive(Debug, Default)]
struct Pass {
    bytes: Vec<u8>,
    /// When, and where in `bytes`.
    records: Vec<(u64, std::ops::Range<usize>)>,
}

impl Pass {
    /// Takes what is in a ring, as far as there is room.
    fn drain(&mut self, ring: &mut RingBuf<MapData>) {
        while self.bytes.len() < PASS_BYTES_MAX
            && let Some(item) = ring.next()
        {
            let time = Header::read_from_prefix(&item).map_or(0, |(header, _)| header.boot_ns);
            let start = self.bytes.len();
            self.bytes.extend_from_slice(&item);
            self.records.push((time, start..self.bytes.len()));
        }
    }

    fn hand_over(&mut self, live: &Live) {
        self.records.sort_by_key(|(time, _)| *time);
        live.take(self.records.iter().filter_map(|(_, range)| self.bytes.get(range.clone())));
        self.bytes.clear();
        self.records.clear();
    }
}

/// Reads until nobody is left to hand records to.
pub(crate) fn start(live: Weak<Live>, rings: Vec<RingBuf<MapData>>) -> std::io::Result<()> {
    thread::Builder::new().name("capture".to_owned()).spawn(move || read(&live, rings)).map(drop)
}

fn read(live: &Weak<Live>, mut rings: Vec<RingBuf<MapData>>) {
    let mut pass = Pass::default();
    loop {
        rings.iter_mut().for_each(|ring| pass.drain(ring));
        let Some(live) = live.upgrade() else { return };
        if pass.records.is_empty() {
            live.look();
            let wait = if live.is_idle() { IDLE_WAIT } else { BUSY_WAIT };
            drop(live);
            wait_for(&rings, wait);
        } else {
            pass.hand_over(&live);
            live.look();
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

/// So much is put in order at once.
const PASS_BYTES_MAX: usize = 4 << 20;
/// Nobody is watched: nothing comes.
const IDLE_WAIT: Duration = Duration::from_millis(500);
const BUSY_WAIT: Duration = Duration::from_millis(20);
