//! Streams over a simulated kernel: sockets with little room, splices that move a part, signals, resets, pipes that are
//! not to be had, TLS that takes everything and sends it later. Readiness is told as epoll tells it when edge-triggered,
//! once per change, so that a stream that forgets an edge stands still and fails. Every run is its seed.

use std::time::Instant;

use super::*;
use crate::stream::{Stream, TURN_BYTES, Turn};
use crate::{End, Limits};

#[path = "sim/mod.rs"]
mod sim;
use sim::net::{Flavour, Net};
use sim::pipes::Pipes;
use sim::side::Sim;

/// A stream between two simulated sockets, and the network beyond them.
struct Run {
    net: Net,
    stream: Stream<Sim>,
    kit: Kit<Pipes>,
    now: Instant,
    /// The worker has it in its queue.
    queued: bool,
}

impl Run {
    fn new(seed: u64, flavour: Flavour) -> Self {
        let (net, client, target) = Net::new(seed, flavour);
        let kit = Kit { chunk: Chunk::new(), pipes: Pipes::new(&net), held: 0 };
        let now = Instant::now();
        let stream = Stream::new(client, target, Limits { idle_timeout: None }, now);
        Self { net, stream, kit, now, queued: true }
    }

    /// Until it ends, or nothing can happen any more.
    fn finish(mut self) -> (Option<End>, Net) {
        let mut quiet = 0;
        while quiet < QUIET_STEPS {
            let acted = self.net.act();
            for side in [&mut self.stream.client, &mut self.stream.target] {
                self.queued |= side.hears();
            }
            quiet = if acted || self.queued { 0 } else { quiet + 1 };
            if std::mem::take(&mut self.queued)
                && let Some(end) = self.turn()
            {
                return (Some(end), self.net);
            }
        }
        self.stream.release(&mut self.kit);
        self.check_nothing_is_left();
        (None, self.net)
    }

    fn turn(&mut self) -> Option<End> {
        let before = self.net.taken();
        let turn = self.stream.turn(&mut self.kit, self.now);
        for (before, after) in before.into_iter().zip(self.net.taken()) {
            assert!(after - before <= (TURN_BYTES + PIPE_BYTES) as u64, "a turn without end");
        }
        self.net.check_bounds(self.kit.held);
        match turn {
            Turn::Again => self.queued = true,
            Turn::Waits => self.net.check_reasons(),
            Turn::Ended(end) => {
                self.stream.release(&mut self.kit);
                self.check_nothing_is_left();
                return Some(end);
            }
        }
        None
    }

    fn check_nothing_is_left(&self) {
        assert_eq!(self.kit.held, 0, "bytes are counted as held after the end");
        assert_eq!(self.kit.pipes.lent(), 0, "a pipe was not given back");
        let moved = self.stream.moved();
        assert_eq!([moved.0, moved.1], self.net.given(), "what was moved is not what was counted");
    }
}

/// Says which seed it was.
struct Seed(Flavour, u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} of {:?}", self.1, self.0);
        }
    }
}

fn each_seed(flavour: Flavour, count: u64, check: impl Fn(Option<End>, &Net)) {
    for seed in 0..count {
        let _named = Seed(flavour, seed);
        let (end, net) = Run::new(seed, flavour).finish();
        check(end, &net);
    }
}

#[test]
fn everything_arrives_where_both_ends_close_in_order() {
    let (mut bytes, mut spliced) = (0, 0);
    for seed in 0..SEEDS {
        let _named = Seed(Flavour::Orderly, seed);
        let (end, net) = Run::new(seed, Flavour::Orderly).finish();
        assert!(matches!(end, Some(End::Closed)), "{end:?}");
        assert!(net.is_delivered(), "bytes are missing");
        bytes += net.given().into_iter().sum::<u64>();
        spliced += net.spliced();
    }
    // The schedules are worth something: both ways of moving bytes were taken often.
    assert!(spliced > bytes / 20 && spliced < bytes / 20 * 19, "{spliced} of {bytes} spliced");
}

#[test]
fn a_reset_is_never_taken_for_an_end() {
    // That no close reaches the other side after a reset is checked by the sockets themselves.
    let mut closed_late = 0;
    for seed in 0..SEEDS {
        let _named = Seed(Flavour::Resets, seed);
        let (end, net) = Run::new(seed, Flavour::Resets).finish();
        match end {
            Some(End::Closed) => assert!(net.is_delivered(), "bytes are missing from an end"),
            Some(End::Failed(_)) => assert!(net.was_reset(), "a failure of nobody's"),
            other => panic!("{other:?}"),
        }
        closed_late += u32::from(net.closed_late());
    }
    // Nor is an end taken for a reset, where it came before one that a write ran into.
    assert!(closed_late > 10, "{closed_late}");
}

#[test]
fn a_stream_whose_ends_stall_waits_for_them_and_holds_little() {
    each_seed(Flavour::Stalls, SEEDS, |end, _| assert!(end.is_none(), "{end:?}"));
}

#[test]
fn a_close_of_tls_without_a_word_is_a_failure() {
    each_seed(Flavour::Truncated, SEEDS / 4, |end, _| {
        assert!(matches!(&end, Some(End::Failed(e)) if e.kind() == io::ErrorKind::UnexpectedEof));
    });
}

/// Of each kind of schedule.
const SEEDS: u64 = 3000;
/// More than any delay of an event.
const QUIET_STEPS: u32 = 64;
