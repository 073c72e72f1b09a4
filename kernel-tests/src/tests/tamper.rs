//! Records that nobody sealed: nothing of them comes out, and nothing after them.

use std::io;

use crate::pair::{Near, each, pair};
use crate::random::Random;
use crate::splice::gather;
use crate::waiting::write_all;

crate::tests![a_changed_byte_ends_the_stream, a_record_twice_ends_the_stream, headers_are_checked,];

/// The stream gives what came before and then only this error, whichever way it is read.
fn ends_with(near: &Near, before: &[u8], error: i32) {
    let (bytes, end) = gather(&near.socket);
    assert!(bytes == before, "{} bytes before it", bytes.len());
    assert_eq!(end.unwrap_err().raw_os_error(), Some(error), "a splice");
    assert_eq!(near.read_error(), Some(error), "a read");
    let record = near.receive_record();
    assert_eq!(record.unwrap_err().raw_os_error(), Some(error), "a read of a record");
    assert_eq!(gather(&near.socket).1.unwrap_err().raw_os_error(), Some(error), "a splice again");
}

fn a_changed_byte_ends_the_stream() {
    let mut random = Random::new(30);
    for _ in 0..5 {
        let place = random.next();
        each(|role, suite| {
            let (near, mut far) = pair(role, suite);
            far.send(b"good");
            let mut sealed = far.seal(&[5; 2000]);
            // Not in the header, which the next test is about.
            let place = 5 + usize::try_from(place).unwrap() % (sealed.len() - 5);
            sealed[place] ^= 1;
            write_all(&far.socket, &sealed).unwrap();
            far.send(b"never seen");
            ends_with(&near, b"good", libc::EBADMSG);
        });
    }
}

fn a_record_twice_ends_the_stream() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        let sealed = far.seal(b"once");
        write_all(&far.socket, &sealed).unwrap();
        write_all(&far.socket, &sealed).unwrap();
        ends_with(&near, b"once", libc::EBADMSG);
    });
}

/// What the cipher has not been asked about yet: the header's version and length. The error may come once only, and silence
/// after it; so nothing to receive after EINVAL means a broken stream, not a stream to wait for.
fn headers_are_checked() {
    const CASES: &[(&str, [u8; 5], i32)] = &[
        ("another version", [23, 3, 1, 1, 0], libc::EINVAL),
        ("no TLS", *b"GET /", libc::EINVAL),
        ("too short", [23, 3, 3, 0, 16], libc::EBADMSG),
        ("too long", [23, 3, 3, 0x41, 1], libc::EMSGSIZE),
    ];
    for (name, header, error) in CASES {
        each(|role, suite| {
            for way in [Way::Splice, Way::Read, Way::Record] {
                crate::at(format!("{name}, {way:?}, {role:?}, {}", suite.name()));
                let (near, mut far) = pair(role, suite);
                far.send(b"good");
                write_all(&far.socket, &[&header[..], &[0; 20_000]].concat()).unwrap();
                assert_eq!(near.read_exactly(4), b"good");
                let broken = way.take(&near);
                assert_eq!(broken.unwrap_err().raw_os_error(), Some(*error));
                let after = relay::ktls::recv_record(near.fd(), &mut [0; 100]).unwrap_err();
                let number = after.raw_os_error();
                assert!(number == Some(libc::EAGAIN) || number == Some(*error), "{after}");
            }
        });
    }
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Splice,
    Read,
    Record,
}

impl Way {
    fn take(self, near: &Near) -> io::Result<()> {
        match self {
            Self::Splice => gather(&near.socket).1,
            Self::Read => crate::waiting::read(&near.socket, &mut [0; 100]).map(drop),
            Self::Record => near.receive_record().map(drop),
        }
    }
}
