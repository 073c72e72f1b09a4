//! Bytes through the relay: what is bulk goes through the kernel, what is not stays out of it, and all of it arrives as it
//! was sent.

use std::io::{Read, Write};
use std::thread;

use bytes::Bytes;
use relay::ktls::{self, Suite, alert_description, content_type, encode_alert};
use relay::{DataPlane, End, Rung};

use super::super::segments::Stream;
use super::wire::{PIECE, Part, Sealer, Segmented, Wire, hear, hear_out, say, talk};
use super::{BULK, Counters, NO_LIMITS, Scene, pipes, plain_leg, relay, runtime, start, tls_leg};
use crate::openssl::{Manner, OpenSsl};
use crate::random::Random;
use crate::waiting::{read_exactly, write_all};

crate::tests![
    the_rung_is_reported_and_can_be_forced,
    bulk_from_the_client_is_received_by_the_kernel,
    bulk_from_the_target_is_sent_by_the_kernel,
    bulk_is_spliced,
    bulk_both_ways_at_once,
    bulk_between_two_legs_with_tls,
    bulk_to_a_client_that_is_a_target,
    small_messages_stay_out_of_the_kernel,
    bulk_then_quiet_then_bulk,
    bulk_in_small_records,
    empty_records_are_nothing,
    random_segments,
    openssl_as_the_client,
];

fn the_rung_is_reported_and_can_be_forced() {
    let ladder = relay().ladder();
    assert_eq!((ladder.rung(), ladder.rung().to_string()), (Rung::UringKtls, "uring-ktls".into()));
    assert!(ladder.why().contains("it was asked for"), "{}", ladder.why());
    let planes = [
        (DataPlane::Auto, Rung::UringKtls, (1, 1)),
        (DataPlane::Uring, Rung::Uring, (0, 0)),
        (DataPlane::Epoll, Rung::Epoll, (0, 0)),
    ];
    for (plane, rung, in_kernel) in planes {
        crate::at(format!("{plane:?}"));
        let relay = start(plane);
        assert_eq!(relay.ladder().rung(), rung, "{}", relay.ladder().why());
        let before = Counters::now();
        let scene = Scene::on(&relay, Suite::Aes128Gcm, NO_LIMITS);
        both_ways(&scene);
        assert_eq!(Counters::since(before), in_kernel);
    }
}

/// Everything through one stream, both ways at once, until both ends have closed in order.
fn both_ways(scene: &Scene) {
    let (mut client, mut target) = scene.connect();
    let (up, down) = (Stream::new(60), Stream::new(61));
    converse(&mut client, &mut target, (&up, &down), BULK);
    let outcome = scene.outcome();
    assert!(matches!(outcome.end, End::Closed), "{outcome:?}");
    let length = u64::try_from(BULK).unwrap();
    assert_eq!((outcome.bytes_from_client, outcome.bytes_from_target), (length, length));
}

/// Each end says its stream, and closes; then hears the other's close.
fn converse(
    client: &mut (impl Wire + Send),
    target: &mut (impl Wire + Send),
    (up, down): (&Stream, &Stream),
    length: usize,
) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let part = Part { say: (down, 0..length), hear: (up, 0..length) };
            talk(target, part, || PIECE).unwrap();
            target.close();
            assert!(hear_out(target, up, length).1.is_ok());
        });
        let part = Part { say: (up, 0..length), hear: (down, 0..length) };
        talk(client, part, || PIECE).unwrap();
        client.close();
        let (heard, end) = hear_out(client, down, length);
        assert_eq!(heard, length);
        end.unwrap();
    });
}

fn bulk_from_the_client_is_received_by_the_kernel() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let before = Counters::now();
        let (mut client, mut target) = scene.connect();
        let stream = Stream::new(62);
        thread::scope(|scope| {
            scope.spawn(|| hear(&mut target, &stream, 0..BULK));
            say(&mut client, &stream, 0..BULK).unwrap();
        });
        assert_eq!(Counters::since(before), (0, 1), "received by the kernel, and only that");
        client.close();
        target.close();
        let outcome = scene.outcome();
        assert!(matches!(outcome.end, End::Closed), "{outcome:?}");
        assert_eq!(outcome.bytes_from_client, u64::try_from(BULK).unwrap());
    }
}

fn bulk_from_the_target_is_sent_by_the_kernel() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let before = Counters::now();
        let (mut client, mut target) = scene.connect();
        let stream = Stream::new(63);
        thread::scope(|scope| {
            scope.spawn(|| say(&mut target, &stream, 0..BULK).unwrap());
            hear(&mut client, &stream, 0..BULK);
        });
        assert_eq!(Counters::since(before), (1, 0), "sent by the kernel, and only that");
        client.close();
        target.close();
        let outcome = scene.outcome();
        assert!(matches!(outcome.end, End::Closed), "{outcome:?}");
        assert_eq!(outcome.bytes_from_target, u64::try_from(BULK).unwrap());
    }
}

/// A relay has no pipes until it splices, and keeps some afterwards.
fn bulk_is_spliced() {
    for upwards in [true, false] {
        crate::at(if upwards { "from the client" } else { "from the target" });
        let relay = start(DataPlane::UringKtls);
        let scene = Scene::on(&relay, Suite::Aes128Gcm, NO_LIMITS);
        let (mut client, mut target) = scene.connect();
        let stream = Stream::new(76);
        say(&mut client, &stream, 0..10).unwrap();
        hear(&mut target, &stream, 0..10);
        let before = pipes();
        thread::scope(|scope| {
            if upwards {
                scope.spawn(|| hear(&mut target, &stream, 10..BULK));
                say(&mut client, &stream, 10..BULK).unwrap();
            } else {
                scope.spawn(|| say(&mut target, &stream, 10..BULK).unwrap());
                hear(&mut client, &stream, 10..BULK);
            }
        });
        assert!(pipes() >= before + 2, "no pipe was needed");
    }
}

fn bulk_both_ways_at_once() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let before = Counters::now();
        both_ways(&scene);
        assert_eq!(Counters::since(before), (1, 1));
    }
}

/// Handed over by the control plane, as a tunnel's connection is: TLS ends on both sides, with suites of their own.
fn bulk_between_two_legs_with_tls() {
    let suites = Suite::ALL.into_iter().zip(Suite::ALL.into_iter().cycle().skip(1));
    for (one, other) in suites {
        crate::at(format!("{}, {}", one.name(), other.name()));
        let before = Counters::now();
        let ((mut client, client_leg), (mut target, target_leg)) = (tls_leg(one), tls_leg(other));
        let running = runtime().spawn(async move {
            let legs = (client_leg, target_leg);
            relay().run(relay().next_id(), legs, NO_LIMITS, Bytes::new()).await
        });
        converse(&mut client, &mut target, (&Stream::new(64), &Stream::new(65)), BULK);
        let outcome = runtime().block_on(running).unwrap();
        assert!(matches!(outcome.end, End::Closed), "{outcome:?}");
        assert_eq!(Counters::since(before), (2, 2), "the kernel has all four directions");
    }
}

/// The leg with TLS is the target, the one in the clear the client.
fn bulk_to_a_client_that_is_a_target() {
    let before = Counters::now();
    let ((mut client, client_leg), (mut target, target_leg)) =
        (plain_leg(), tls_leg(Suite::Chacha20Poly1305));
    let running = runtime().spawn(async move {
        let legs = (client_leg, target_leg);
        relay().run(relay().next_id(), legs, NO_LIMITS, Bytes::new()).await
    });
    converse(&mut client, &mut target, (&Stream::new(66), &Stream::new(67)), BULK);
    let outcome = runtime().block_on(running).unwrap();
    assert!(matches!(outcome.end, End::Closed), "{outcome:?}");
    assert_eq!(Counters::since(before), (1, 1));
}

fn small_messages_stay_out_of_the_kernel() {
    let scene = Scene::new(Suite::Aes256Gcm);
    let before = Counters::now();
    let (mut client, mut target) = scene.connect();
    let stream = Stream::new(68);
    let mut random = Random::new(69);
    let mut place = 0;
    // More than makes bulk, had it come at once.
    for _ in 0..500 {
        let length = random.within(1..=1500);
        say(&mut client, &stream, place..place + length).unwrap();
        hear(&mut target, &stream, place..place + length);
        say(&mut target, &stream, place..place + length).unwrap();
        hear(&mut client, &stream, place..place + length);
        place += length;
    }
    assert!(place > 256 << 10, "{place} bytes");
    assert_eq!(Counters::since(before), (0, 0));
    client.close();
    target.close();
    assert!(matches!(scene.outcome().end, End::Closed));
}

/// Once in the kernel, a direction stays there; what is small then is read and written, not spliced.
fn bulk_then_quiet_then_bulk() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let before = Counters::now();
        let (mut client, mut target) = scene.connect();
        let (up, down) = (Stream::new(70), Stream::new(71));
        let mut place = 0;
        for round in 0..3 {
            let bulk = place..place + BULK / 3;
            thread::scope(|scope| {
                let part = Part { say: (&down, bulk.clone()), hear: (&up, bulk.clone()) };
                scope.spawn(|| talk(&mut target, part, || PIECE).unwrap());
                let part = Part { say: (&up, bulk.clone()), hear: (&down, bulk.clone()) };
                talk(&mut client, part, || PIECE).unwrap();
            });
            place = bulk.end;
            assert_eq!(Counters::since(before), (1, 1), "round {round}");
            for _ in 0..50 {
                say(&mut client, &up, place..place + 100).unwrap();
                hear(&mut target, &up, place..place + 100);
                say(&mut target, &down, place..place + 100).unwrap();
                hear(&mut client, &down, place..place + 100);
                place += 100;
            }
            thread::sleep(std::time::Duration::from_millis(50));
        }
        client.close();
        target.close();
        assert!(matches!(scene.outcome().end, End::Closed));
    }
}

/// Records that are much smaller than a read; many of them are bulk all the same.
fn bulk_in_small_records() {
    let scene = Scene::new(Suite::Aes128Gcm);
    let before = Counters::now();
    let (mut client, mut target) = scene.connect();
    client.tls.set_buffer_limit(None);
    let stream = Stream::new(72);
    thread::scope(|scope| {
        scope.spawn(|| hear(&mut target, &stream, 0..BULK));
        let mut sealed = Vec::new();
        for place in (0..BULK).step_by(1024) {
            sealed.extend(client.seal(&stream.at(place, 1024)));
            if sealed.len() > 100_000 {
                write_all(&client.socket, &sealed).unwrap();
                sealed.clear();
            }
        }
        write_all(&client.socket, &sealed).unwrap();
    });
    assert_eq!(Counters::since(before), (0, 1));
    client.close();
    target.close();
    assert!(matches!(scene.outcome().end, End::Closed));
}

/// RFC 8446, section 5.1: data records may be empty.
fn empty_records_are_nothing() {
    let scene = Scene::new(Suite::Chacha20Poly1305);
    let before = Counters::now();
    let (mut client, mut target) = scene.connect();
    let stream = Stream::new(73);
    thread::scope(|scope| {
        scope.spawn(|| hear(&mut target, &stream, 0..BULK));
        say(&mut client, &stream, 0..BULK).unwrap();
    });
    assert_eq!(Counters::since(before), (0, 1));
    let mut client = Sealer::new(client);
    let mut place = BULK;
    for round in 0..10 {
        crate::at(format!("round {round}"));
        // Enough to be bulk, so that the relay comes upon the empty record by a splice.
        let end = place + 20 * ktls::RECORD_BYTES_MAX;
        thread::scope(|scope| {
            scope.spawn(|| hear(&mut target, &stream, place..end));
            for start in (place..end).step_by(ktls::RECORD_BYTES_MAX) {
                let bytes = stream.at(start, ktls::RECORD_BYTES_MAX);
                client.send(content_type::APPLICATION_DATA, &bytes);
            }
            client.send(content_type::APPLICATION_DATA, &[]);
        });
        place = end;
    }
    client.send(content_type::APPLICATION_DATA, &stream.at(place, 10));
    hear(&mut target, &stream, place..place + 10);
    client.send(content_type::ALERT, &encode_alert(alert_description::CLOSE_NOTIFY));
    assert!(hear_out(&mut target, &stream, place + 10).1.is_ok());
    target.close();
    assert!(matches!(scene.outcome().end, End::Closed));
}

/// Lengths of pieces: mostly small, now and then so much that it is bulk.
fn lengths(seed: u64) -> impl FnMut() -> usize {
    let mut random = Random::new(seed);
    move || if random.once_in(300) { random.within(100_000..=400_000) } else { random.length() }
}

/// In each direction.
const SEGMENTS: usize = 6000;

/// Records, segments and writes of lengths that have nothing to do with each other.
fn random_segments() {
    for (suite, seed) in Suite::ALL.into_iter().zip(200..) {
        crate::at(format!("{}, seed {seed}", suite.name()));
        let count = SEGMENTS.div_ceil(Suite::ALL.len());
        let total = |seed: u64| std::iter::repeat_with(lengths(seed)).take(count).sum::<usize>();
        let (there, back) = (total(seed), total(!seed));
        let (up, down) = (Stream::new(seed), Stream::new(!seed));
        let scene = Scene::new(suite);
        let before = Counters::now();
        let (client, mut target) = scene.connect();
        let mut client = Segmented::new(client, Random::new(seed.rotate_left(32)));
        thread::scope(|scope| {
            scope.spawn(|| {
                let part = Part { say: (&down, 0..back), hear: (&up, 0..there) };
                talk(&mut target, part, lengths(!seed)).unwrap();
                target.close();
                assert!(hear_out(&mut target, &up, there).1.is_ok());
            });
            let part = Part { say: (&up, 0..there), hear: (&down, 0..back) };
            talk(&mut client, part, lengths(seed)).unwrap();
            client.close();
            let (heard, end) = hear_out(&mut client, &down, back);
            assert_eq!(heard, back);
            end.unwrap();
        });
        assert!(matches!(scene.outcome().end, End::Closed));
        assert_eq!(Counters::since(before), (1, 1), "some of it was bulk");
    }
}

/// Its records are as large as it likes, or padded.
fn openssl_as_the_client() {
    let manners = [Manner::Data, Manner::Padded, Manner::Data];
    for (suite, manner) in Suite::ALL.into_iter().zip(manners) {
        crate::at(format!("{}, {manner:?}", suite.name()));
        let scene = Scene::new(suite);
        let before = Counters::now();
        let mut client = OpenSsl::client(&scene.entrance.to_string(), suite, manner);
        let target = scene.accept();
        let (mut to_client, mut from_client) = client.pipes();
        let (up, down) = (Stream::new(74), Stream::new(75));
        thread::scope(|scope| {
            scope.spawn(|| to_client.write_all(&up.at(0, BULK)).unwrap());
            scope.spawn(|| write_all(&target, &down.at(0, BULK)).unwrap());
            scope.spawn(|| assert!(read_exactly(&target, BULK) == up.at(0, BULK), "up"));
            let mut bytes = vec![0; BULK];
            from_client.read_exact(&mut bytes).unwrap();
            assert!(bytes == down.at(0, BULK), "down");
        });
        assert_eq!(Counters::since(before), (1, 1));
        drop((to_client, from_client));
        drop(client);
        // It is killed, and says no close_notify.
        let outcome = scene.outcome();
        assert!(matches!(outcome.end, End::Failed(_)), "{outcome:?}");
    }
}
