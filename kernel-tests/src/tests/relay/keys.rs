//! KeyUpdates through the relay. Where the kernel can change keys the stream goes on; where it cannot, the client is told
//! by an alert. Nowhere does anything wrong arrive, and nothing hangs.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use relay::ktls::Suite;
use relay::{DataPlane, End};
use rustls::AlertDescription;

use super::super::attach::can_rekey;
use super::super::segments::Stream;
use super::wire::{PIECE, Part, Wire, alert, hear, hear_out, say, talk};
use super::{BULK, Counters, NO_LIMITS, Scene, relay, start};
use crate::openssl::{Manner, OpenSsl};
use crate::pair::Far;
use crate::waiting::{read_exactly, readable, write_all};

crate::tests![
    the_client_changes_keys_while_it_sends_bulk,
    the_client_changes_keys_while_it_receives_bulk,
    the_client_changes_keys_in_the_middle_of_both,
    the_client_changes_keys_before_there_is_bulk,
    a_change_without_a_request_needs_no_answer,
    too_many_changes_are_refused_in_user_space,
    too_many_changes_are_refused_in_the_kernel,
];

const ROUNDS: usize = 3;

/// The client was told that the stream cannot go on, and it has failed.
fn told(scene: &Scene, client: &mut Far, down: &Stream, place: usize, expect: AlertDescription) {
    let (_, end) = hear_out(client, down, place);
    let error = end.unwrap_err();
    assert_eq!(alert(&error), Some(expect), "{error}");
    client.socket.shutdown(Shutdown::Both).ok();
    let outcome = scene.outcome();
    assert!(matches!(outcome.end, End::Failed(_)), "{outcome:?}");
}

fn the_client_changes_keys_while_it_sends_bulk() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let (mut client, mut target) = scene.connect();
        let (up, down) = (Stream::new(90), Stream::new(91));
        let before = Counters::now();
        thread::scope(|scope| {
            let heard = scope.spawn(|| hear_out(&mut target, &up, 0));
            say(&mut client, &up, 0..BULK).unwrap();
            let mut sent = Ok(());
            for round in 1..=ROUNDS {
                client.tls.refresh_traffic_keys().unwrap();
                sent = say(&mut client, &up, round * BULK..(round + 1) * BULK);
                if sent.is_err() {
                    break;
                }
            }
            if can_rekey() {
                sent.unwrap();
                client.close();
                let (heard, end) = heard.join().unwrap();
                assert_eq!(heard, (ROUNDS + 1) * BULK);
                end.unwrap();
                // Each was answered, which the client has checked by opening what comes now.
                let (_, changes) = Counters::changes_since(before);
                assert_eq!(changes, u64::try_from(ROUNDS).unwrap());
            } else {
                told(&scene, &mut client, &down, 0, AlertDescription::InternalError);
                let (heard, end) = heard.join().unwrap();
                assert!(heard <= BULK, "{heard} bytes, some of which were under the new key");
                end.unwrap_err();
            }
        });
        if can_rekey() {
            say(&mut target, &down, 0..BULK / 4).unwrap();
            target.close();
            let (heard, end) = hear_out(&mut client, &down, 0);
            assert_eq!(heard, BULK / 4);
            end.unwrap();
            assert!(matches!(scene.outcome().end, End::Closed));
        }
    }
}

fn the_client_changes_keys_while_it_receives_bulk() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let (mut client, mut target) = scene.connect();
        let down = Stream::new(92);
        let before = Counters::now();
        thread::scope(|scope| {
            let mut source = target.try_clone().unwrap();
            let stream = &down;
            // More than the sockets hold, where the stream is going to end before all of it was heard.
            let length = if can_rekey() { (ROUNDS + 1) * BULK } else { 50 * BULK };
            let said = scope.spawn(move || say(&mut source, stream, 0..length));
            hear(&mut client, &down, 0..BULK);
            assert_eq!(Counters::since(before), (1, 0));
            if can_rekey() {
                for round in 1..=ROUNDS {
                    client.tls.refresh_traffic_keys().unwrap();
                    hear(&mut client, &down, round * BULK..(round + 1) * BULK);
                }
                said.join().unwrap().unwrap();
                // What it sends is under the new key.
                say(&mut client, &down, 0..10).unwrap();
                hear(&mut target, &down, 0..10);
                // One answer may be to several requests (RFC 8446, section 4.6.3), when they come before it can be sent.
                let (changes, _) = Counters::changes_since(before);
                assert!(
                    (1..=u64::try_from(ROUNDS).unwrap()).contains(&changes),
                    "{changes} changes"
                );
                client.close();
                target.close();
                assert!(matches!(scene.outcome().end, End::Closed));
            } else {
                client.tls.refresh_traffic_keys().unwrap();
                client.send_pending();
                told(&scene, &mut client, &down, BULK, AlertDescription::InternalError);
                said.join().unwrap().unwrap_err();
            }
        });
    }
}

fn the_client_changes_keys_in_the_middle_of_both() {
    if !can_rekey() {
        return crate::not_here("this kernel cannot change keys");
    }
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let (mut client, mut target) = scene.connect();
        let (up, down) = (Stream::new(93), Stream::new(94));
        let before = Counters::now();
        let (rounds, length) = (8, BULK / 4);
        thread::scope(|scope| {
            scope.spawn(|| {
                let part =
                    Part { say: (&down, 0..rounds * length), hear: (&up, 0..rounds * length) };
                talk(&mut target, part, || PIECE).unwrap();
                target.close();
                assert!(hear_out(&mut target, &up, rounds * length).1.is_ok());
            });
            for round in 0..rounds {
                crate::at(format!("{}, round {round}", suite.name()));
                let range = round * length..(round + 1) * length;
                let part = Part { say: (&up, range.clone()), hear: (&down, range) };
                talk(&mut client, part, || PIECE).unwrap();
                client.tls.refresh_traffic_keys().unwrap();
            }
            client.close();
            let (heard, end) = hear_out(&mut client, &down, rounds * length);
            assert_eq!(heard, rounds * length);
            end.unwrap();
        });
        let outcome = scene.outcome();
        assert!(matches!(outcome.end, End::Closed), "{outcome:?}");
        let (sending, receiving) = Counters::changes_since(before);
        assert!(sending > 1 && receiving > 1, "{sending}, {receiving}");
    }
}

/// In user space keys change on every kernel; then the direction is bulk, and the kernel gets the later ones.
fn the_client_changes_keys_before_there_is_bulk() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let scene = Scene::new(suite);
        let (mut client, mut target) = scene.connect();
        let (up, down) = (Stream::new(95), Stream::new(96));
        for round in 0..3 {
            client.tls.refresh_traffic_keys().unwrap();
            say(&mut client, &up, round * 10..round * 10 + 10).unwrap();
            hear(&mut target, &up, round * 10..round * 10 + 10);
            say(&mut target, &down, round * 10..round * 10 + 10).unwrap();
            hear(&mut client, &down, round * 10..round * 10 + 10);
        }
        let before = Counters::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                let part = Part { say: (&down, 30..BULK), hear: (&up, 30..BULK) };
                talk(&mut target, part, || PIECE).unwrap();
                target.close();
            });
            let part = Part { say: (&up, 30..BULK), hear: (&down, 30..BULK) };
            talk(&mut client, part, || PIECE).unwrap();
            client.close();
            let (heard, end) = hear_out(&mut client, &down, BULK);
            assert_eq!(heard, BULK);
            end.unwrap();
        });
        assert_eq!(Counters::since(before), (1, 1));
        assert!(matches!(scene.outcome().end, End::Closed));
    }
}

/// OpenSSL's `k`: its own keys change and it asks for nothing, so a kernel that only sends has nothing to change.
fn a_change_without_a_request_needs_no_answer() {
    let scene = Scene::new(Suite::Aes128Gcm);
    let before = Counters::now();
    let mut client = OpenSsl::client(&scene.entrance.to_string(), scene.suite, Manner::Commands);
    let target = scene.accept();
    let (mut to_client, mut from_client) = client.pipes();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut heard = Vec::new();
            let mut buffer = [0; 10_000];
            while !heard.ends_with(b"the end") {
                let count = from_client.read(&mut buffer).unwrap();
                assert!(count > 0, "it ended");
                heard.extend_from_slice(&buffer[..count]);
            }
            assert!(heard.iter().filter(|byte| **byte == b'.').count() >= BULK);
        });
        write_all(&target, &vec![b'.'; BULK]).unwrap();
        for _ in 0..3 {
            to_client.write_all(b"k\n").unwrap();
            // Alone, or it would be data.
            thread::sleep(std::time::Duration::from_millis(300));
            to_client.write_all(b"under the next key\n").unwrap();
            assert_eq!(read_exactly(&target, 19), b"under the next key\n");
        }
        assert_eq!(Counters::since(before), (1, 0));
        write_all(&target, b"the end").unwrap();
    });
}

/// One KeyUpdate at a time, each answered before the next: how many until an alert.
fn storm(client: &mut Far, limit: usize) -> (usize, AlertDescription) {
    let socket: &TcpStream = &client.socket.try_clone().unwrap();
    for count in 0..limit {
        client.tls.refresh_traffic_keys().unwrap();
        client.send_pending();
        // The answer, or the alert.
        loop {
            readable(socket);
            client.tls.read_tls(&mut &*socket).unwrap();
            match client.tls.process_new_packets() {
                Ok(_) if client.tls.wants_write() => panic!("it asks back"),
                Ok(_) => {}
                Err(rustls::Error::AlertReceived(description)) => return (count, description),
                Err(error) => panic!("{error} after {count}"),
            }
            if !crate::waiting::is_readable(socket, std::time::Duration::ZERO) {
                break;
            }
        }
    }
    panic!("{limit} changes were answered");
}

fn too_many_changes_are_refused_in_user_space() {
    for plane in [DataPlane::UringKtls, DataPlane::Epoll] {
        crate::at(format!("{plane:?}"));
        let other;
        let relay = if plane == DataPlane::UringKtls {
            relay()
        } else {
            other = start(plane);
            &other
        };
        let scene = Scene::on(relay, Suite::Aes128Gcm, NO_LIMITS);
        let (mut client, mut target) = scene.connect();
        let up = Stream::new(97);
        say(&mut client, &up, 0..10).unwrap();
        hear(&mut target, &up, 0..10);
        let (count, description) = storm(&mut client, 200);
        assert_eq!(description, AlertDescription::UnexpectedMessage);
        assert!((8..=64).contains(&count), "{count}");
        assert!(matches!(scene.outcome().end, End::Failed(_)));
        assert!(hear_out(&mut target, &up, 10).1.is_err());
    }
}

fn too_many_changes_are_refused_in_the_kernel() {
    if !can_rekey() {
        return crate::not_here("this kernel cannot change keys");
    }
    let scene = Scene::new(Suite::Aes128Gcm);
    let (mut client, mut target) = scene.connect();
    let (up, down) = (Stream::new(98), Stream::new(99));
    thread::scope(|scope| {
        let part = Part { say: (&down, 0..BULK), hear: (&up, 0..BULK) };
        scope.spawn(|| talk(&mut target, part, || PIECE).unwrap());
        let part = Part { say: (&up, 0..BULK), hear: (&down, 0..BULK) };
        talk(&mut client, part, || PIECE).unwrap();
    });
    let (count, description) = storm(&mut client, 200);
    assert_eq!(description, AlertDescription::UnexpectedMessage);
    assert!((8..=64).contains(&count), "{count}");
    assert!(matches!(scene.outcome().end, End::Failed(_)));
    assert!(hear_out(&mut target, &up, BULK).1.is_err());
}
