//! Data: both directions, both roles, every suite; read, written and spliced.

use std::net::Shutdown;
use std::thread;

use relay::ktls::{self, Suite};

use crate::pair::{Role, each, pair, sockets};
use crate::random::Random;
use crate::splice::{Pipe, carry, gather_exactly};
use crate::waiting::{read_exactly, write_all};

crate::tests![
    bytes_pass_both_ways_at_once,
    splice_from_tls_to_plain,
    splice_from_plain_to_tls,
    splice_from_tls_to_tls,
    splice_with_the_promise_of_no_padding,
    splice_holds_a_record_back_while_more_follows,
];

const LENGTH: usize = 300_000;

fn bytes_pass_both_ways_at_once() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        let bytes = Random::new(1).bytes(LENGTH);
        thread::scope(|scope| {
            scope.spawn(|| near.write(&bytes));
            scope.spawn(move || {
                let mut buffer = [0; 10_000];
                let mut left = LENGTH;
                while left > 0 {
                    let count = far.receive(&mut buffer).unwrap();
                    far.send(&buffer[..count]);
                    left -= count;
                }
            });
            assert!(near.read_exactly(LENGTH) == bytes);
        });
    });
}

fn splice_from_tls_to_plain() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        let (plain, target) = sockets();
        let bytes = Random::new(2).bytes(LENGTH);
        thread::scope(|scope| {
            scope.spawn(|| {
                far.send(&bytes);
                far.socket.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(|| {
                let (carried, end) = carry(&near.socket, &plain);
                end.unwrap();
                assert_eq!(carried, LENGTH);
            });
            assert!(read_exactly(&target, LENGTH) == bytes);
        });
    });
}

fn splice_from_plain_to_tls() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        let (plain, source) = sockets();
        let bytes = Random::new(3).bytes(LENGTH);
        thread::scope(|scope| {
            scope.spawn(|| {
                write_all(&source, &bytes).unwrap();
                source.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(|| {
                let (carried, end) = carry(&plain, &near.socket);
                end.unwrap();
                assert_eq!(carried, LENGTH);
            });
            assert!(far.receive_exactly(LENGTH) == bytes);
        });
    });
}

fn splice_from_tls_to_tls() {
    each(|role, suite| {
        let (client_leg, mut client) = pair(role, suite);
        let (target_leg, mut target) = pair(Role::Client, Suite::Aes256Gcm);
        let bytes = Random::new(4).bytes(LENGTH);
        thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&bytes);
                client.socket.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(|| {
                carry(&client_leg.socket, &target_leg.socket).1.unwrap();
            });
            assert!(target.receive_exactly(LENGTH) == bytes);
        });
    });
}

fn splice_with_the_promise_of_no_padding() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        ktls::set_rx_no_pad(near.fd()).unwrap();
        let bytes = Random::new(5).bytes(LENGTH);
        thread::scope(|scope| {
            scope.spawn(|| far.send(&bytes));
            assert!(near.read_exactly(LENGTH / 2) == bytes[..LENGTH / 2]);
            let rest = gather_exactly(&near.socket, LENGTH - LENGTH / 2);
            assert!(rest == bytes[LENGTH / 2..]);
        });
    });
}

/// `SPLICE_F_MORE` fills records, and what comes without it sends them: nothing waits for ever.
fn splice_holds_a_record_back_while_more_follows() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        let begin = ktls::tx_sequence(near.fd()).unwrap();
        let pipe = Pipe::new();
        for more in [true, true, false] {
            pipe.put(b"some");
            pipe.drain(&near.socket, 4, more).unwrap();
        }
        assert_eq!(far.receive_exactly(12), b"somesomesome");
        assert_eq!(ktls::tx_sequence(near.fd()).unwrap(), begin + 1);
    });
}
