//! Against OpenSSL in user space, as client and as server.

use std::io::{Read, Write};
use std::thread;

use relay::ktls::{self, Suite};

use super::attach::can_rekey;
use super::control::take_tickets;
use super::rekey::{change_rx, change_tx, take_key_update};
use super::segments::{Stream, lengths, write_segments};
use crate::openssl::{Manner, OpenSsl, connect};
use crate::pair::{Near, Role, each};
use crate::splice::gather_exactly;

crate::tests![random_segments_both_ways_at_once, padded_records, openssl_changes_keys];

/// Writes in each direction; OpenSSL makes records of what it reads as it likes.
const SEGMENTS: usize = 1000;

/// A connection that has only data before it: a server of OpenSSL sends two tickets by itself.
fn connected(role: Role, suite: Suite, manner: Manner) -> (Near, OpenSsl) {
    let (mut near, far) = connect(role, suite, manner);
    if role == Role::Client {
        take_tickets(&mut near, 2);
    }
    (near, far)
}

fn random_segments_both_ways_at_once() {
    each(|role, suite| {
        let (near, mut far) = connected(role, suite, Manner::Data);
        let (mut to_far, mut from_far) = far.pipes();
        let (there, back) = (Stream::new(50), Stream::new(51));
        thread::scope(|scope| {
            scope.spawn(|| write_segments(&near.socket, &there, 52, SEGMENTS));
            scope.spawn(|| {
                let mut sent = 0;
                for length in lengths(53).take(SEGMENTS) {
                    to_far.write_all(&back.at(sent, length)).unwrap();
                    sent += length;
                }
            });
            scope.spawn(|| {
                let length = lengths(53).take(SEGMENTS).sum();
                assert!(near.read_exactly(length) == back.at(0, length), "from OpenSSL");
            });
            let mut bytes = vec![0; lengths(52).take(SEGMENTS).sum()];
            from_far.read_exact(&mut bytes).unwrap();
            assert!(bytes == there.at(0, bytes.len()), "to OpenSSL");
        });
    });
}

/// Padding is no data; where none was promised it costs time, no more.
fn padded_records() {
    each(|role, suite| {
        for promised in [false, true] {
            let (near, mut far) = connected(role, suite, Manner::Padded);
            let (mut to_far, mut from_far) = far.pipes();
            if promised {
                ktls::set_rx_no_pad(near.fd()).unwrap();
            }
            let stream = Stream::new(54);
            let bytes = stream.at(0, 50_001);
            thread::scope(|scope| {
                scope.spawn(|| to_far.write_all(&bytes).unwrap());
                assert!(near.read_exactly(20_000) == bytes[..20_000]);
                assert!(gather_exactly(&near.socket, 30_001) == bytes[20_000..]);
            });
            near.write(b"answer");
            let mut answer = [0; 6];
            from_far.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"answer");
        }
    });
}

/// It asks for a change of ours as well; data passes before, between and after.
fn openssl_changes_keys() {
    if !can_rekey() {
        return crate::not_here("this kernel cannot change keys");
    }
    each(|role, suite| {
        let (mut near, mut far) = connected(role, suite, Manner::Commands);
        let (mut to_far, mut from_far) = far.pipes();
        for round in ["one\n", "two\n"] {
            to_far.write_all(b"K\n").unwrap();
            assert!(take_key_update(&near), "asks for one of ours");
            change_rx(&mut near);
            to_far.write_all(round.as_bytes()).unwrap();
            assert_eq!(near.read_exactly(4), round.as_bytes());
            change_tx(&mut near, false);
            near.write(format!("answer {round}").as_bytes());
        }
        let mut heard = String::new();
        let mut buffer = [0; 1000];
        while !heard.contains("answer two") {
            let length = from_far.read(&mut buffer).unwrap();
            assert!(length > 0, "it ended after: {heard}");
            heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        assert!(heard.contains("answer one"), "{heard}");
    });
}
