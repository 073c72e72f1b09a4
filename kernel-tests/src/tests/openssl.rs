//! Against OpenSSL in user space, as client and as server.

use std::io::{Read, Write};
use std::thread;

use relay::ktls::{HandshakeMessage, content_type, handshake_messages};

use super::attach::can_rekey;
use super::rekey::{change_rx, change_tx, take_key_update};
use super::segments::{Stream, lengths, write_segments};
use crate::openssl::{Input, connect};
use crate::pair::{Near, Role, each};
use crate::splice::gather;

crate::tests![random_segments_both_ways_at_once, openssl_changes_keys];

/// Writes in each direction; OpenSSL makes records of what it reads as it likes.
const SEGMENTS: usize = 1000;

fn random_segments_both_ways_at_once() {
    each(|role, suite| {
        let (mut near, mut far) = connect(role, suite, Input::Data);
        let (mut to_far, mut from_far) = far.pipes();
        let (there, back) = (Stream::new(50), Stream::new(51));
        take_tickets(&mut near, role);
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

/// A server of OpenSSL sends two tickets by itself.
fn take_tickets(near: &mut Near, role: Role) {
    let mut tickets = if role == Role::Client { 2 } else { 0 };
    while tickets > 0 {
        let (before, end) = gather(&near.socket);
        assert!(before.is_empty());
        assert_eq!(end.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let (kind, record) = near.receive_record().unwrap();
        assert_eq!(kind, content_type::HANDSHAKE);
        for message in handshake_messages(&record) {
            match message.unwrap() {
                HandshakeMessage::NewSessionTicket(ticket) => near.keys().take_ticket(ticket),
                other => panic!("{other:?}"),
            }
            tickets -= 1;
        }
    }
}

/// It asks for a change of ours as well; data passes before, between and after.
fn openssl_changes_keys() {
    if !can_rekey() {
        return;
    }
    each(|role, suite| {
        let (mut near, mut far) = connect(role, suite, Input::Commands);
        let (mut to_far, mut from_far) = far.pipes();
        take_tickets(&mut near, role);
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
