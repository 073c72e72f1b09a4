//! 10^5 random segments: writes, records and reads of lengths that have nothing to do with each other, with a seed that
//! the failure names.

use std::net::{Shutdown, TcpStream};
use std::thread;

use relay::ktls::{self, Alert, Suite, alert_description, content_type, encode_alert, parse_alert};
use rustix::net::{SendFlags, send};

use crate::pair::{Far, Near, Role, pair};
use crate::random::Random;
use crate::splice::Pipe;
use crate::waiting::{readable, retry, writable, write_all};

crate::tests![segments_to_the_kernel, segments_from_the_kernel];

/// Of both tests together, over all suites and roles.
const SEGMENTS: usize = 100_000;
/// Suites times roles times directions.
const CASES: usize = 3 * 2 * 2;

/// Bytes without a period that lengths could hit: any stretch of the stream says where it is from.
pub(super) struct Stream(Vec<u8>);

impl Stream {
    pub(super) fn new(seed: u64) -> Self {
        Self(Random::new(seed).bytes(1_000_003))
    }

    pub(super) fn at(&self, place: usize, length: usize) -> Vec<u8> {
        let place = place % self.0.len();
        let rest = &self.0[place..];
        let first = length.min(rest.len());
        let mut bytes = rest[..first].to_vec();
        while bytes.len() < length {
            let next = self.0.len().min(length - bytes.len());
            bytes.extend_from_slice(&self.0[..next]);
        }
        bytes
    }
}

fn each_seeded(test: impl Fn(Near, Far, u64)) {
    let seeds = 100..;
    let cases = Suite::ALL.into_iter().flat_map(|s| [(Role::Client, s), (Role::Server, s)]);
    for ((role, suite), seed) in cases.zip(seeds) {
        crate::at(format!("{role:?}, {}, seed {seed}", suite.name()));
        let (near, far) = pair(role, suite);
        test(near, far, seed);
    }
}

fn segments_to_the_kernel() {
    each_seeded(|near, mut far, seed| {
        let stream = Stream::new(seed);
        thread::scope(|scope| {
            let sender = scope.spawn(|| send_segments(&mut far, &stream, &mut Random::new(seed)));
            let received = check_segments(&near, &stream, &mut Random::new(!seed));
            assert_eq!(received, sender.join().unwrap());
        });
    });
}

/// Records of one length, segments of another.
fn send_segments(far: &mut Far, stream: &Stream, random: &mut Random) -> usize {
    let mut sealed: Vec<u8> = Vec::new();
    let mut sent = 0;
    for _ in 0..SEGMENTS.div_ceil(CASES) {
        let length = random.length();
        while sealed.len() < length {
            let record = random.length();
            sealed.extend(far.seal(&stream.at(sent, record)));
            sent += record;
        }
        let rest = sealed.split_off(length);
        write_all(&far.socket, &sealed).unwrap();
        sealed = rest;
    }
    far.tls.send_close_notify();
    sealed.extend(far.pending());
    write_all(&far.socket, &sealed).unwrap();
    far.socket.shutdown(Shutdown::Write).unwrap();
    sent
}

/// Spliced, read or received as records, until the close.
pub(super) fn check_segments(near: &Near, stream: &Stream, random: &mut Random) -> usize {
    let pipe = Pipe::new();
    let mut received = 0;
    loop {
        let mut buffer = vec![0; random.length()];
        let length = match random.within(1..=3) {
            1 => {
                let filled = pipe.fill(&near.socket, buffer.len());
                filled.inspect(|length| buffer[..*length].copy_from_slice(&pipe.take(*length)))
            }
            2 => crate::waiting::read(&near.socket, &mut buffer),
            _ => match retry(|| readable(near.fd()), || ktls::recv_record(near.fd(), &mut buffer))
                .unwrap()
            {
                (content_type::ALERT, length) => {
                    let mut alert = buffer[..length].to_vec();
                    if length < 2 {
                        alert.extend(near.receive_record().unwrap().1);
                    }
                    assert_eq!(parse_alert(&alert).unwrap(), Alert::CloseNotify);
                    return received;
                }
                (kind, length) => {
                    assert_eq!(kind, content_type::APPLICATION_DATA);
                    Ok(length)
                }
            },
        };
        match length {
            Ok(length) => {
                assert!(length > 0, "an end without a close after {received}");
                assert!(buffer[..length] == stream.at(received, length), "wrong after {received}");
                received += length;
            }
            Err(error) => {
                let number = error.raw_os_error();
                assert!(matches!(number, Some(libc::EINVAL | libc::EIO)), "{error}");
                let (kind, record) = near.receive_record().unwrap();
                assert_eq!(kind, content_type::ALERT);
                assert_eq!(parse_alert(&record).unwrap(), Alert::CloseNotify);
                return received;
            }
        }
    }
}

fn segments_from_the_kernel() {
    each_seeded(|near, mut far, seed| {
        let stream = Stream::new(seed);
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let count = SEGMENTS.div_ceil(CASES);
                let sent = write_segments(&near.socket, &stream, seed, count);
                near.send_record(
                    content_type::ALERT,
                    &encode_alert(alert_description::CLOSE_NOTIFY),
                );
                sent
            });
            let mut random = Random::new(!seed);
            let mut received = 0;
            loop {
                let mut buffer = vec![0; random.length()];
                let length = far.receive(&mut buffer).unwrap();
                if length == 0 {
                    break;
                }
                assert!(buffer[..length] == stream.at(received, length), "wrong after {received}");
                received += length;
            }
            assert_eq!(received, sender.join().unwrap());
        });
    });
}

/// The lengths of writes that a seed leads to.
pub(super) fn lengths(seed: u64) -> impl Iterator<Item = usize> {
    let mut random = Random::new(seed);
    std::iter::repeat_with(move || random.length())
}

/// Written, written with more to come, or spliced; the last one sends what waits.
pub(super) fn write_segments(
    socket: &TcpStream,
    stream: &Stream,
    seed: u64,
    count: usize,
) -> usize {
    let mut random = Random::new(seed.rotate_left(32));
    let pipe = Pipe::new();
    let mut sent = 0;
    for (index, length) in lengths(seed).take(count).enumerate() {
        let bytes = stream.at(sent, length);
        let more = index + 1 < count && random.once_in(3);
        if random.once_in(3) {
            pipe.put(&bytes);
            pipe.drain(socket, length, more).unwrap();
        } else {
            let mut flags = SendFlags::NOSIGNAL;
            flags.set(SendFlags::MORE, more);
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let written = retry(|| writable(socket), || Ok(send(socket, rest, flags)?));
                rest = &rest[written.unwrap()..];
            }
        }
        sent += length;
    }
    sent
}
