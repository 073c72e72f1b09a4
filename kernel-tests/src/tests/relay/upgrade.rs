//! Streams that leave one relay for another, as from one process to the next, while the kernel does their TLS.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use relay::ktls::Suite;
use relay::upgrade::Moved;
use relay::{DataPlane, End, Leg, Outcome, Relay};
use rustls::AlertDescription;
use tokio::task::JoinHandle;

use super::super::segments::Stream;
use super::wire::{PIECE, Part, Wire, alert, hear, hear_out, say, talk};
use super::{BULK, Counters, NO_LIMITS, plain_leg, runtime, start, tls_leg, until};

crate::tests![
    bulk_goes_on_in_another_relay,
    bulk_with_tls_on_both_sides_goes_on_in_another_relay,
    ends_are_ends_in_another_relay,
    changed_keys_end_a_stream_that_moved,
    a_small_stream_moves_too,
];

/// From one relay to the other over a socket, and back.
struct Two {
    relays: [Relay; 2],
    /// Which of them has the stream.
    at: usize,
    running: JoinHandle<Outcome>,
}

impl Two {
    fn begin(legs: (Leg, Leg)) -> Self {
        let relays = [start(DataPlane::UringKtls), start(DataPlane::UringKtls)];
        let first = relays[0].clone();
        let tag = Bytes::from_static(b"whose it is");
        let running =
            runtime().spawn(async move { first.run(first.next_id(), legs, NO_LIMITS, tag).await });
        Self { relays, at: 0, running }
    }

    /// False when the stream was in a state in which it cannot be moved.
    fn switch(&mut self) -> bool {
        let moved = runtime().block_on(self.relays[self.at].leave());
        let Some(moved) = moved.into_iter().next() else { return false };
        let (near, far) = UnixStream::pair().unwrap();
        moved.send(&near).unwrap();
        drop(near);
        let moved = Moved::receive(&far).unwrap().unwrap();
        assert!(Moved::receive(&far).unwrap().is_none());
        assert_eq!(&moved.tag()[..], b"whose it is");
        self.at = 1 - self.at;
        let next = self.relays[self.at].clone();
        let running = runtime().spawn(async move { next.adopt(next.next_id(), moved).await });
        let left = std::mem::replace(&mut self.running, running);
        let outcome = runtime().block_on(left).unwrap();
        assert!(matches!(outcome.end, End::Moved), "{outcome:?}");
        true
    }

    fn outcome(self) -> Outcome {
        runtime().block_on(self.running).unwrap()
    }
}

const SWITCHES: usize = 6;

fn bulk_through(mut two: Two, client: &mut (impl Wire + Send), target: &mut (impl Wire + Send)) {
    let (up, down) = (Stream::new(110), Stream::new(111));
    let length = (SWITCHES + 2) * BULK / 2;
    let before = Counters::now();
    let (progress, switched) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let part = Part { say: (&down, 0..length), hear: (&up, 0..length) };
            talk(target, part, || PIECE).unwrap();
            target.close();
            assert!(hear_out(target, &up, length).1.is_ok());
        });
        scope.spawn(|| {
            let part = Part { say: (&up, 0..length), hear: (&down, 0..length) };
            let piece = || {
                let said = progress.fetch_add(PIECE, Ordering::Relaxed);
                // Never so far ahead that the stream could end before it has moved often enough.
                until("a move", || said < (switched.load(Ordering::Relaxed) + 2) * BULK / 2);
                PIECE
            };
            talk(client, part, piece).unwrap();
            client.close();
            let (heard, end) = hear_out(client, &down, length);
            assert_eq!(heard, length);
            end.unwrap();
        });
        for switch in 1..=SWITCHES {
            let place = switch * BULK / 2;
            until("progress", || progress.load(Ordering::Relaxed) >= place);
            until("a moment to move", || two.switch());
            switched.store(switch, Ordering::Relaxed);
        }
    });
    let (sending, receiving) = Counters::since(before);
    assert!(sending >= 1 && receiving >= 1, "{sending}, {receiving}");
    let outcome = two.outcome();
    assert!(matches!(outcome.end, End::Closed), "{outcome:?}");
    let length = u64::try_from(length).unwrap();
    assert_eq!((outcome.bytes_from_client, outcome.bytes_from_target), (length, length));
}

fn bulk_goes_on_in_another_relay() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let ((mut client, client_leg), (mut target, target_leg)) = (tls_leg(suite), plain_leg());
        bulk_through(Two::begin((client_leg, target_leg)), &mut client, &mut target);
    }
}

fn bulk_with_tls_on_both_sides_goes_on_in_another_relay() {
    let ((mut client, client_leg), (mut target, target_leg)) =
        (tls_leg(Suite::Aes128Gcm), tls_leg(Suite::Chacha20Poly1305));
    bulk_through(Two::begin((client_leg, target_leg)), &mut client, &mut target);
}

/// A close that came before the move is not forgotten, and one that comes after it is understood.
fn ends_are_ends_in_another_relay() {
    let ((mut client, client_leg), (mut target, target_leg)) =
        (tls_leg(Suite::Aes256Gcm), plain_leg());
    let mut two = Two::begin((client_leg, target_leg));
    let (up, down) = (Stream::new(112), Stream::new(113));
    thread::scope(|scope| {
        let part = Part { say: (&down, 0..BULK), hear: (&up, 0..BULK) };
        scope.spawn(|| talk(&mut target, part, || PIECE).unwrap());
        let part = Part { say: (&up, 0..BULK), hear: (&down, 0..BULK) };
        talk(&mut client, part, || PIECE).unwrap();
    });
    client.close();
    assert!(hear_out(&mut target, &up, BULK).1.is_ok());
    until("a moment to move", || two.switch());
    say(&mut target, &down, BULK..BULK + 1000).unwrap();
    hear(&mut client, &down, BULK..BULK + 1000);
    until("a moment to move", || two.switch());
    target.close();
    let (heard, end) = hear_out(&mut client, &down, BULK + 1000);
    assert_eq!(heard, BULK + 1000);
    end.unwrap();
    let outcome = two.outcome();
    assert!(matches!(outcome.end, End::Closed), "{outcome:?}");
}

/// The secrets that later keys come from did not move.
fn changed_keys_end_a_stream_that_moved() {
    let ((mut client, client_leg), (mut target, target_leg)) =
        (tls_leg(Suite::Aes128Gcm), plain_leg());
    let mut two = Two::begin((client_leg, target_leg));
    let (up, down) = (Stream::new(114), Stream::new(115));
    say(&mut client, &up, 0..10).unwrap();
    hear(&mut target, &up, 0..10);
    until("a moment to move", || two.switch());
    say(&mut client, &up, 10..20).unwrap();
    hear(&mut target, &up, 10..20);
    client.tls.refresh_traffic_keys().unwrap();
    client.send_pending();
    let (_, end) = hear_out(&mut client, &down, 0);
    assert_eq!(alert(&end.unwrap_err()), Some(AlertDescription::UnexpectedMessage));
    assert!(hear_out(&mut target, &up, 20).1.is_err());
    let outcome = two.outcome();
    assert!(matches!(outcome.end, End::Failed(_)), "{outcome:?}");
}

/// One that was in user space until then: its keys go to the kernel to be moved.
fn a_small_stream_moves_too() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let ((mut client, client_leg), (mut target, target_leg)) = (tls_leg(suite), plain_leg());
        let mut two = Two::begin((client_leg, target_leg));
        let stream = Stream::new(116);
        for round in 0..SWITCHES {
            let range = round * 100..(round + 1) * 100;
            say(&mut client, &stream, range.clone()).unwrap();
            hear(&mut target, &stream, range.clone());
            say(&mut target, &stream, range.clone()).unwrap();
            hear(&mut client, &stream, range);
            until("a moment to move", || two.switch());
        }
        client.close();
        target.close();
        let outcome = two.outcome();
        assert!(matches!(outcome.end, End::Closed), "{outcome:?}");
    }
}
