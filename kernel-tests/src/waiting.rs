//! Waits with a limit: sockets do not block here, as in the relay, and what never comes ends the test.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long anything may take that the other end has sent already, or will when it has read what we sent.
pub(crate) const WAIT: Duration = Duration::from_secs(30);

/// Until there is something to read: bytes, an end or an error.
#[track_caller]
pub(crate) fn readable(file: impl AsFd) {
    assert!(poll_for(file, PollFlags::IN, WAIT), "nothing to read for {WAIT:?}");
}

/// Until there is room, or an error.
#[track_caller]
pub(crate) fn writable(file: impl AsFd) {
    assert!(poll_for(file, PollFlags::OUT, WAIT), "no room to write for {WAIT:?}");
}

/// Whether there is something to read before so long.
pub(crate) fn is_readable(file: impl AsFd, within: Duration) -> bool {
    poll_for(file, PollFlags::IN, within)
}

fn poll_for(file: impl AsFd, events: PollFlags, limit: Duration) -> bool {
    let mut files = [PollFd::new(&file, events)];
    poll(&mut files, Some(&Timespec::try_from(limit).unwrap())).unwrap() == 1
}

/// Again after a wait, as long as it says EAGAIN.
pub(crate) fn retry<T>(
    mut wait: impl FnMut(),
    mut call: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(),
            done => return done,
        }
    }
}

/// Writes all of it.
pub(crate) fn write_all(socket: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = retry(|| writable(socket), || { &*socket }.write(bytes))?;
        bytes = &bytes[count..];
    }
    Ok(())
}

/// Reads once; 0 at the end.
pub(crate) fn read(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    retry(|| readable(socket), || { &*socket }.read(buffer))
}

/// Reads until there are so many bytes.
#[track_caller]
pub(crate) fn read_exactly(socket: &TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match read(socket, &mut bytes[filled..]).unwrap() {
            0 => panic!("the stream ended after {filled} of {length} bytes"),
            count => filled += count,
        }
    }
    bytes
}
