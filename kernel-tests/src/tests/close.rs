//! Ends: each direction closes for itself, a cut is no close, and what is torn down leaves nothing behind.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use relay::ktls::{Alert, alert_description, content_type, encode_alert, parse_alert};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;

use crate::pair::{Near, Role, each, pair};
use crate::random::Random;
use crate::splice::{Pipe, gather};
use crate::waiting::write_all;

crate::tests![
    the_far_end_closes_first,
    the_near_end_closes_first,
    an_end_without_close_notify_is_seen,
    an_end_within_a_record_is_seen,
    a_reset_is_a_reset,
    teardown_within_a_record_leaves_nothing,
];

const LENGTH: usize = 100_000;

/// Takes the close_notify that the stream is at.
fn take_close_notify(near: &Near) {
    let (before, end) = gather(&near.socket);
    assert!(before.is_empty(), "{} bytes before the close", before.len());
    assert_eq!(end.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    let (kind, record) = near.receive_record().unwrap();
    assert_eq!((kind, parse_alert(&record).unwrap()), (content_type::ALERT, Alert::CloseNotify));
}

fn send_close_notify(near: &Near) {
    near.send_record(content_type::ALERT, &encode_alert(alert_description::CLOSE_NOTIFY));
    near.socket.shutdown(Shutdown::Write).unwrap();
}

/// No data, no type of record: the end of TCP.
fn is_at_end(near: &Near) -> bool {
    near.receive_record().unwrap() == (content_type::APPLICATION_DATA, Vec::new())
}

fn the_far_end_closes_first() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        let bytes = Random::new(20).bytes(LENGTH);
        far.send(b"last words");
        far.tls.send_close_notify();
        far.send_pending();
        far.socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(near.read_exactly(10), b"last words");
        take_close_notify(&near);
        assert!(is_at_end(&near));
        // The other direction goes on.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                near.write(&bytes);
                send_close_notify(&near);
            });
            assert!(far.receive_exactly(LENGTH) == bytes);
            assert_eq!(far.receive(&mut [0; 10]).unwrap(), 0, "a clean close");
        });
    });
}

fn the_near_end_closes_first() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        near.write(b"last words");
        send_close_notify(&near);
        assert_eq!(far.receive_exactly(10), b"last words");
        assert_eq!(far.receive(&mut [0; 10]).unwrap(), 0, "a clean close");
        // The other direction goes on.
        let bytes = Random::new(21).bytes(LENGTH);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                far.send(&bytes);
                far.tls.send_close_notify();
                far.send_pending();
            });
            assert!(near.read_exactly(LENGTH) == bytes);
            take_close_notify(&near);
        });
    });
}

fn an_end_without_close_notify_is_seen() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        far.send(b"data");
        far.socket.shutdown(Shutdown::Write).unwrap();
        let (bytes, end) = gather(&near.socket);
        end.unwrap();
        assert_eq!(bytes, b"data");
        assert!(is_at_end(&near));
        // And rustls sees ours.
        near.socket.shutdown(Shutdown::Write).unwrap();
        let error = far.receive(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    });
}

fn an_end_within_a_record_is_seen() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        far.send(b"data");
        let sealed = far.seal(&[7; 1000]);
        write_all(&far.socket, &sealed[..sealed.len() - 1]).unwrap();
        far.socket.shutdown(Shutdown::Write).unwrap();
        let (bytes, end) = gather(&near.socket);
        end.unwrap();
        assert_eq!(bytes, b"data");
        assert!(is_at_end(&near));
    });
}

fn a_reset_is_a_reset() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        far.send(b"data");
        assert_eq!(near.read_exactly(4), b"data");
        set_socket_linger(&far.socket, Some(Duration::ZERO)).unwrap();
        drop(far);
        let (_, end) = gather(&near.socket);
        assert_eq!(end.unwrap_err().raw_os_error(), Some(libc::ECONNRESET));
        // Writes go on to be taken, and lead nowhere: that the peer is gone is for poll to say.
        write_all(&near.socket, b"more").unwrap();
        let mut files = [PollFd::new(&near.socket, PollFlags::OUT)];
        poll(&mut files, Some(&Timespec::default())).unwrap();
        assert!(files[0].revents().contains(PollFlags::HUP));
    });
}

/// Half a record received, a record held open, more written than the socket takes: dropped at once, in any combination.
fn teardown_within_a_record_leaves_nothing() {
    let before = sessions();
    for round in 0..20 {
        each(|role, suite| {
            let (near, mut far) = pair(role, suite);
            if round % 2 == 0 {
                let sealed = far.seal(&[7; 1000]);
                write_all(&far.socket, &sealed[..500]).unwrap();
            }
            if round % 3 == 0 {
                let pipe = Pipe::new();
                pipe.put(b"half");
                pipe.drain(&near.socket, 4, true).unwrap();
            }
            if round % 5 == 0 {
                let mut socket = &near.socket;
                while std::io::Write::write(&mut socket, &[9; 50_000]).is_ok() {}
            }
            if round % 4 == 0 {
                set_socket_linger(&near.socket, Some(Duration::ZERO)).unwrap();
            }
            match role {
                Role::Client => drop(near),
                Role::Server => drop(far),
            }
        });
    }
    let started = Instant::now();
    while sessions() != before {
        assert!(started.elapsed() < crate::waiting::WAIT, "{:?} left", sessions());
        std::thread::yield_now();
    }
}

/// The kernel's counts of sockets with keys: to send, to receive.
fn sessions() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/tls_stat").unwrap();
    let current = table.lines().filter(|line| line.starts_with("TlsCurr"));
    current.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}
