//! How streams end whose TLS is in the kernel: closes in order and in halves, cuts and resets, changed bytes, and peers
//! that do not read.

use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use relay::ktls::Suite;
use relay::{End, Limits};
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustls::AlertDescription;

use super::super::segments::Stream;
use super::wire::{PIECE, Part, Wire, alert, hear, hear_out, say, talk};
use super::{
    BULK, Counters, NO_LIMITS, Scene, plain_leg, relay, runtime, shake, tls_leg, tls_leg_with_room,
};
use crate::pair::Far;
use crate::random::Random;
use crate::waiting::{WAIT, write_all};

crate::tests![
    the_client_closes_first,
    the_target_closes_first,
    a_client_that_is_cut_off_is_no_close,
    a_client_that_is_cut_off_within_a_record_is_no_close,
    a_reset_by_the_client_reaches_the_target,
    a_reset_by_the_target_reaches_the_client,
    a_changed_record_ends_the_stream,
    a_broken_header_ends_the_stream,
    a_client_that_never_reads_is_bounded_and_ends_idle,
    a_target_that_never_reads_is_bounded_and_ends_idle,
    a_slow_reader_gets_the_end_too,
    a_stream_is_cut_by_its_id,
];

/// A stream whose two directions are bulk and in the kernel; both ends have moved [`BULK`] bytes.
struct Warm {
    client: Far,
    target: TcpStream,
    up: Stream,
    down: Stream,
}

fn warm(scene: &Scene) -> Warm {
    let before = Counters::now();
    let (mut client, mut target) = scene.connect();
    let (up, down) = (Stream::new(80), Stream::new(81));
    exchange(&mut client, &mut target, (&up, &down));
    assert_eq!(Counters::since(before), (1, 1));
    Warm { client, target, up, down }
}

fn exchange(client: &mut Far, target: &mut TcpStream, (up, down): (&Stream, &Stream)) {
    thread::scope(|scope| {
        let part = Part { say: (down, 0..BULK), hear: (up, 0..BULK) };
        scope.spawn(|| talk(target, part, || PIECE).unwrap());
        let part = Part { say: (up, 0..BULK), hear: (down, 0..BULK) };
        talk(client, part, || PIECE).unwrap();
    });
}

fn the_client_closes_first() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let Warm { mut client, mut target, up, down } = warm(&scene);
        say(&mut client, &up, BULK..BULK + 10).unwrap();
        client.close();
        let (heard, end) = hear_out(&mut target, &up, BULK);
        assert_eq!(heard, BULK + 10);
        end.unwrap();
        // The other direction goes on.
        thread::scope(|scope| {
            scope.spawn(|| {
                say(&mut target, &down, BULK..2 * BULK).unwrap();
                target.close();
            });
            let (heard, end) = hear_out(&mut client, &down, BULK);
            assert_eq!(heard, 2 * BULK);
            end.unwrap();
        });
        assert!(matches!(scene.outcome().end, End::Closed));
    }
}

fn the_target_closes_first() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let Warm { mut client, mut target, up, down } = warm(&scene);
        say(&mut target, &down, BULK..BULK + 10).unwrap();
        target.close();
        let (heard, end) = hear_out(&mut client, &down, BULK);
        assert_eq!(heard, BULK + 10);
        end.unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                say(&mut client, &up, BULK..2 * BULK).unwrap();
                client.close();
            });
            let (heard, end) = hear_out(&mut target, &up, BULK);
            assert_eq!(heard, 2 * BULK);
            end.unwrap();
        });
        assert!(matches!(scene.outcome().end, End::Closed));
    }
}

/// The stream failed, and the target learns of it by a reset after what came before.
fn fails(scene: &Scene, target: &mut TcpStream, up: &Stream, heard: usize) {
    let (place, end) = hear_out(target, up, BULK);
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // A reset may overtake what was sent before it, so less may have been heard; never more, never something else.
    assert!(place <= heard, "{place} of {heard}");
    let outcome = scene.outcome();
    assert!(matches!(outcome.end, End::Failed(_)), "{outcome:?}");
}

fn a_client_that_is_cut_off_is_no_close() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let Warm { mut client, mut target, up, .. } = warm(&scene);
        say(&mut client, &up, BULK..BULK + 100_000).unwrap();
        client.socket.shutdown(Shutdown::Write).unwrap();
        fails(&scene, &mut target, &up, BULK + 100_000);
    }
}

fn a_client_that_is_cut_off_within_a_record_is_no_close() {
    let scene = Scene::new(Suite::Aes128Gcm);
    let Warm { mut client, mut target, up, .. } = warm(&scene);
    let sealed = client.seal(&up.at(BULK, 100_000));
    write_all(&client.socket, &sealed[..sealed.len() - 1]).unwrap();
    client.socket.shutdown(Shutdown::Write).unwrap();
    fails(&scene, &mut target, &up, BULK + 100_000 - 1);
}

fn reset(socket: &TcpStream) {
    set_socket_linger(socket, Some(Duration::ZERO)).unwrap();
}

/// While bytes are under way both ways.
fn a_reset_by_the_client_reaches_the_target() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let Warm { mut client, mut target, up, down } = warm(&scene);
        thread::scope(|scope| {
            let part = Part { say: (&down, BULK..50 * BULK), hear: (&up, BULK..2 * BULK) };
            let end = scope.spawn(move || talk(&mut target, part, || PIECE));
            say(&mut client, &up, BULK..BULK + 100_000).unwrap();
            hear(&mut client, &down, BULK..2 * BULK);
            reset(&client.socket);
            drop(client);
            let end = end.join().unwrap().unwrap_err();
            assert_eq!(end.kind(), ErrorKind::ConnectionReset);
        });
        let outcome = scene.outcome();
        assert!(matches!(outcome.end, End::Failed(_)), "{outcome:?}");
    }
}

fn a_reset_by_the_target_reaches_the_client() {
    let scene = Scene::new(Suite::Aes256Gcm);
    let Warm { mut client, target, up, down } = warm(&scene);
    reset(&target);
    drop(target);
    let (heard, end) = hear_out(&mut client, &down, BULK);
    assert_eq!((heard, end.unwrap_err().kind()), (BULK, ErrorKind::ConnectionReset));
    assert!(say(&mut client, &up, BULK..2 * BULK).is_err());
    let outcome = scene.outcome();
    assert!(matches!(outcome.end, End::Failed(_)), "{outcome:?}");
}

/// What is wrong stands in the middle of bulk; what came before has arrived, nothing of it or after it does.
fn ends_with(expect: AlertDescription, spoil: impl Fn(&mut Vec<u8>)) {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let Warm { mut client, mut target, up, down } = warm(&scene);
        let good = BULK + 300_000;
        thread::scope(|scope| {
            scope.spawn(|| fails(&scene, &mut target, &up, good));
            say(&mut client, &up, BULK..good).unwrap();
            let mut sealed = client.seal(&up.at(good, 10_000));
            spoil(&mut sealed);
            sealed.extend(client.seal(&up.at(good, 100_000)));
            // The stream may have ended before all of it is written.
            write_all(&client.socket, &sealed).ok();
            let (heard, end) = hear_out(&mut client, &down, BULK);
            let error = end.unwrap_err();
            assert_eq!((heard, alert(&error)), (BULK, Some(expect)), "{error}");
        });
    }
}

fn a_changed_record_ends_the_stream() {
    ends_with(AlertDescription::BadRecordMac, |sealed| sealed[5000] ^= 1);
}

fn a_broken_header_ends_the_stream() {
    ends_with(AlertDescription::UnexpectedMessage, |sealed| {
        sealed[..5].copy_from_slice(b"GET /");
    });
}

const BRIEF: Limits = Limits { idle_timeout: Some(Duration::from_millis(1500)) };
/// More than all sockets on the way may hold.
const FLOOD: usize = 60 << 20;

/// How much of a flood is taken before nothing more is, and that the stream then ends.
fn flood(mut from: impl Wire, stream: &Stream) -> usize {
    let mut place = BULK;
    let mut piece = stream.at(place, PIECE);
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < WAIT, "it does not end");
        match from.try_send(&piece) {
            Ok(count) => {
                place += count;
                piece = stream.at(place, PIECE);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(_) => return place - BULK,
        }
        assert!(place < FLOOD, "all of it is taken");
    }
}

fn a_client_that_never_reads_is_bounded_and_ends_idle() {
    let scene = Scene::on(relay(), Suite::Aes128Gcm, BRIEF);
    // Its window stays small, so that the test is short.
    let socket = TcpStream::connect(scene.entrance).unwrap();
    set_socket_recv_buffer_size(&socket, 100_000).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut client = shake(socket, scene.suite);
    let mut target = scene.accept();
    let down = Stream::new(82);
    let before = Counters::now();
    thread::scope(|scope| {
        scope.spawn(|| say(&mut target, &down, 0..BULK).unwrap());
        hear(&mut client, &down, 0..BULK);
    });
    assert_eq!(Counters::since(before), (1, 0));
    let taken = flood(target, &down);
    assert!(taken > 0, "{taken}");
    let outcome = scene.outcome();
    assert!(matches!(outcome.end, End::Idle), "{outcome:?}");
    // It was cut off: what it had not read yet does not end in order.
    let (_, end) = hear_out(&mut client, &down, BULK);
    assert!(end.is_err());
}

fn a_target_that_never_reads_is_bounded_and_ends_idle() {
    let scene = Scene::on(relay(), Suite::Aes128Gcm, BRIEF);
    set_socket_recv_buffer_size(&scene.target, 100_000).unwrap();
    let Warm { client, mut target, up, .. } = warm(&scene);
    let taken = flood(client, &up);
    assert!(taken > 0, "{taken}");
    let outcome = scene.outcome();
    assert!(matches!(outcome.end, End::Idle), "{outcome:?}");
    let (_, end) = hear_out(&mut target, &up, BULK);
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// The target closes while the sockets on the way are full, so that the kernel has records that wait for room: they, and
/// the close, still come.
fn a_slow_reader_gets_the_end_too() {
    let mut random = Random::new(83);
    let down = Stream::new(84);
    for round in 0..30 {
        let length = BULK / 4 + random.within(0..=100_000);
        let room = random.within(4_000..=60_000);
        crate::at(format!("round {round}: {length} bytes, room for {room}"));
        let ((mut client, client_leg), (mut target, target_leg)) =
            (tls_leg_with_room(Suite::Aes128Gcm, Some(room)), plain_leg());
        let running = runtime().spawn(async move {
            let legs = (client_leg, target_leg);
            relay().run(relay().next_id(), legs, NO_LIMITS, Bytes::new()).await
        });
        thread::scope(|scope| {
            scope.spawn(|| {
                say(&mut target, &down, 0..length).unwrap();
                target.close();
            });
            let (heard, end) = hear_out(&mut client, &down, 0);
            assert_eq!((heard, end.err().map(|error| error.to_string())), (length, None));
        });
        client.close();
        let outcome = runtime().block_on(running).unwrap();
        assert!(matches!(outcome.end, End::Closed), "{outcome:?}");
    }
}

fn a_stream_is_cut_by_its_id() {
    let ((mut client, client_leg), (mut target, target_leg)) =
        (tls_leg(Suite::Aes128Gcm), plain_leg());
    let id = relay().next_id();
    let running = runtime().spawn(async move {
        relay().run(id, (client_leg, target_leg), NO_LIMITS, Bytes::new()).await
    });
    let (up, down) = (Stream::new(85), Stream::new(86));
    let before = Counters::now();
    exchange(&mut client, &mut target, (&up, &down));
    assert_eq!(Counters::since(before), (1, 1));
    thread::scope(|scope| {
        // Bulk is under way when it is cut.
        let part = Part { say: (&down, BULK..50 * BULK), hear: (&up, BULK..BULK + 1) };
        let ended = scope.spawn(move || talk(&mut target, part, || PIECE));
        hear(&mut client, &down, BULK..BULK + 100_000);
        assert!(relay().cut(id));
        let outcome = runtime().block_on(running).unwrap();
        assert!(matches!(outcome.end, End::Cut), "{outcome:?}");
        assert!(!relay().cut(id));
        let (_, end) = hear_out(&mut client, &down, BULK + 100_000);
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let end = ended.join().unwrap().unwrap_err();
        assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    });
}
