//! Records that are no data, at every point of a stream: what splices and reads say there, and that nothing is lost.

use std::thread;

use relay::ktls::{
    self, Alert, HandshakeMessage, Suite, alert_description, content_type, encode_alert,
    handshake_messages, parse_alert,
};

use crate::pair::{Near, Role, each, pair, pair_with_tickets};
use crate::random::Random;
use crate::splice::{CHUNK, Pipe, gather};
use crate::waiting::{readable, retry};

crate::tests![
    a_splice_stops_at_an_alert,
    a_splice_stops_at_a_ticket,
    a_read_stops_at_an_alert,
    data_before_a_control_record_comes_first,
    a_long_control_record_comes_in_parts,
    tickets_of_rustls_are_taken,
    alerts_reach_rustls,
    control_records_at_random_points,
];

const CANCELED: [u8; 2] = [1, alert_description::USER_CANCELED];

/// Both ends in the kernel: the far one sends what no library would.
fn both(role: Role, suite: Suite) -> (Near, Near) {
    let (near, far) = pair(role, suite);
    (near, far.into_kernel())
}

/// Data, a record of a type, data: a splice gives the first data, EINVAL, and after the record the rest.
fn stops_at(kind: u8, body: &[u8]) {
    each(|role, suite| {
        let (near, far) = both(role, suite);
        let bytes = Random::new(10).bytes(45_000);
        far.write(&bytes[..40_000]);
        far.send_record(kind, body);
        far.write(&bytes[40_000..]);
        let (before, end) = gather(&near.socket);
        assert!(before == bytes[..40_000], "{} bytes before it", before.len());
        assert_eq!(end.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        // Again: it does not go away by itself.
        let again = Pipe::new().fill(&near.socket, CHUNK);
        assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(near.receive_record().unwrap(), (kind, body.to_vec()));
        drop(far);
        let (after, _end) = gather(&near.socket);
        assert!(after == bytes[40_000..], "{} bytes after it", after.len());
    });
}

fn a_splice_stops_at_an_alert() {
    stops_at(content_type::ALERT, &CANCELED);
}

fn a_splice_stops_at_a_ticket() {
    stops_at(content_type::HANDSHAKE, &[4, 0, 0, 3, 1, 2, 3]);
}

fn a_read_stops_at_an_alert() {
    each(|role, suite| {
        let (near, far) = both(role, suite);
        far.write(b"before");
        far.send_record(content_type::ALERT, &CANCELED);
        far.write(b"after");
        assert_eq!(near.read_exactly(6), b"before");
        assert_eq!(near.read_error(), Some(libc::EIO));
        assert_eq!(near.read_error(), Some(libc::EIO));
        assert_eq!(near.receive_record().unwrap(), (content_type::ALERT, CANCELED.to_vec()));
        assert_eq!(near.read_exactly(5), b"after");
    });
}

fn data_before_a_control_record_comes_first() {
    each(|role, suite| {
        let (near, far) = both(role, suite);
        far.write(b"da");
        far.write(b"ta");
        far.send_record(content_type::ALERT, &CANCELED);
        far.send_record(content_type::HANDSHAKE, &[4, 0, 0, 0]);
        far.write(b"more");
        let mut records: Vec<(u8, Vec<u8>)> = Vec::new();
        while records.last().is_none_or(|(_, bytes)| bytes != b"more") {
            let (kind, bytes) = near.receive_record().unwrap();
            match records.last_mut() {
                Some((last, joined)) if *last == kind && kind == content_type::APPLICATION_DATA => {
                    joined.extend(bytes);
                }
                _ => records.push((kind, bytes)),
            }
        }
        assert_eq!(
            records,
            [
                (content_type::APPLICATION_DATA, b"data".to_vec()),
                (content_type::ALERT, CANCELED.to_vec()),
                (content_type::HANDSHAKE, vec![4, 0, 0, 0]),
                (content_type::APPLICATION_DATA, b"more".to_vec()),
            ]
        );
    });
}

/// With a buffer that is too small the type comes with each part.
fn a_long_control_record_comes_in_parts() {
    let (near, far) = both(Role::Server, Suite::Aes128Gcm);
    let body = Random::new(11).bytes(ktls::RECORD_BYTES_MAX);
    far.send_record(content_type::HANDSHAKE, &body);
    far.write(b"data");
    let mut parts = Vec::new();
    while parts.len() < body.len() {
        let mut buffer = [0; 5000];
        let receive = || ktls::recv_record(near.fd(), &mut buffer);
        let (kind, length) = retry(|| readable(near.fd()), receive).unwrap();
        assert_eq!(kind, content_type::HANDSHAKE);
        parts.extend_from_slice(&buffer[..length]);
    }
    assert!(parts == body);
    assert_eq!(near.read_exactly(4), b"data");
}

fn tickets_of_rustls_are_taken() {
    for suite in Suite::ALL {
        crate::at(suite.name());
        let (mut near, mut far) = pair_with_tickets(suite, 2);
        far.send(b"data");
        take_tickets(&mut near, 2);
        assert_eq!(near.read_exactly(4), b"data");
    }
}

/// Takes the tickets that the stream is at.
pub(super) fn take_tickets(near: &mut Near, count: usize) {
    let mut taken = 0;
    while taken < count {
        let (before, end) = gather(&near.socket);
        assert!(before.is_empty(), "{} bytes before a ticket", before.len());
        assert_eq!(end.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let (kind, record) = near.receive_record().unwrap();
        assert_eq!(kind, content_type::HANDSHAKE);
        for message in handshake_messages(&record) {
            match message.unwrap() {
                HandshakeMessage::NewSessionTicket(ticket) => near.keys().take_ticket(ticket),
                other => panic!("{other:?}"),
            }
            taken += 1;
        }
    }
}

fn alerts_reach_rustls() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        near.write(b"data");
        // rustls gives out nothing more once it has read an alert.
        assert_eq!(far.receive_exactly(4), b"data");
        near.send_record(content_type::ALERT, &encode_alert(alert_description::INTERNAL_ERROR));
        let error = far.receive(&mut [0; 10]).unwrap_err();
        assert!(error.to_string().contains("InternalError"), "{error}");
    });
}

/// Data and control records in a random order, read by splices, reads and `recv_record` in a random order.
fn control_records_at_random_points() {
    each(|role, suite| {
        let (near, far) = both(role, suite);
        let mut random = Random::new(12);
        let records: Vec<(u8, Vec<u8>)> = (0..150)
            .map(|_| {
                let (kind, length) = match random.within(1..=4) {
                    1 => (content_type::HANDSHAKE, random.within(1..=3000)),
                    2 => return (content_type::ALERT, CANCELED.to_vec()),
                    _ => (content_type::APPLICATION_DATA, random.within(1..=20_000)),
                };
                (kind, body(&mut random, kind, length))
            })
            .collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                for (kind, body) in &records {
                    match *kind {
                        content_type::APPLICATION_DATA => far.write(body),
                        kind => far.send_record(kind, body),
                    }
                }
            });
            check_records(&near, &records, &mut Random::new(13));
        });
    });
}

/// A handshake record is a ticket: newer kernels look for KeyUpdates in them.
fn body(random: &mut Random, kind: u8, length: usize) -> Vec<u8> {
    let mut body = random.bytes(length);
    if kind == content_type::HANDSHAKE {
        let header = u32::try_from(length).unwrap() | 0x0400_0000;
        body.splice(..0, header.to_be_bytes());
    }
    body
}

fn check_records(near: &Near, records: &[(u8, Vec<u8>)], random: &mut Random) {
    let pipe = Pipe::new();
    for (kind, body) in records {
        let mut got = Vec::new();
        while got.len() < body.len() {
            let room = random.within(1..=30_000).min(body.len() - got.len());
            let data = *kind == content_type::APPLICATION_DATA;
            match random.within(1..=3) {
                1 if data => {
                    let length = pipe.fill(&near.socket, room).unwrap();
                    got.extend(pipe.take(length));
                }
                2 if data => got.extend(near.read_exactly(room)),
                _ if data => {
                    let mut buffer = vec![0; room];
                    let receive = || ktls::recv_record(near.fd(), &mut buffer);
                    let (kind, length) = retry(|| readable(near.fd()), receive).unwrap();
                    assert_eq!(kind, content_type::APPLICATION_DATA);
                    got.extend_from_slice(&buffer[..length]);
                }
                1 => {
                    let error = pipe.fill(&near.socket, room).unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
                }
                2 => assert_eq!(near.read_error(), Some(libc::EIO)),
                _ => {
                    let (received, bytes) = near.receive_record().unwrap();
                    assert_eq!(received, *kind);
                    got.extend(bytes);
                }
            }
        }
        assert!(got == *body);
        if *kind == content_type::ALERT {
            assert_eq!(parse_alert(&got).unwrap(), Alert::Warning);
        }
    }
}
