//! Splicing as the relay does it: from a socket that does not block into a pipe, from the pipe into another one.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use crate::waiting::{readable, retry, writable};

/// More than a record; a pipe's default room.
pub(crate) const CHUNK: usize = 65_536;

/// A pipe that holds bytes on their way.
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    pub(crate) fn new() -> Self {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        Self { read, write }
    }

    /// Takes at most so many bytes from a socket; 0 at its end. The pipe must be empty: one that is full would look like
    /// a socket with nothing to read.
    pub(crate) fn fill(&self, from: &TcpStream, length: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        retry(|| readable(from), || Ok(splice(from, None, &self.write, None, length, flags)?))
    }

    /// Gives so many bytes, all of which are in the pipe, to a socket. With `more`, bytes that are to fill a record follow.
    pub(crate) fn drain(&self, to: &TcpStream, mut length: usize, more: bool) -> io::Result<()> {
        let mut flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        flags.set(SpliceFlags::MORE, more);
        while length > 0 {
            length -=
                retry(|| writable(to), || Ok(splice(&self.read, None, to, None, length, flags)?))?;
        }
        Ok(())
    }

    /// Puts bytes in; no more than fit.
    pub(crate) fn put(&self, bytes: &[u8]) {
        assert_eq!(rustix::io::write(&self.write, bytes).unwrap(), bytes.len());
    }

    /// Takes bytes out.
    pub(crate) fn take(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            filled += rustix::io::read(&self.read, &mut bytes[filled..]).unwrap();
        }
        bytes
    }
}

/// Splices from one socket to another until the end of the first, or its first error; and how many bytes came.
pub(crate) fn carry(from: &TcpStream, to: &TcpStream) -> (usize, io::Result<()>) {
    let pipe = Pipe::new();
    let mut carried = 0;
    loop {
        match pipe.fill(from, CHUNK) {
            Ok(0) => return (carried, Ok(())),
            Ok(length) => {
                pipe.drain(to, length, false).unwrap();
                carried += length;
            }
            Err(error) => return (carried, Err(error)),
        }
    }
}

/// Splices what comes until the end of the stream or its first error, into memory.
pub(crate) fn gather(from: &TcpStream) -> (Vec<u8>, io::Result<()>) {
    let pipe = Pipe::new();
    let mut bytes = Vec::new();
    loop {
        match pipe.fill(from, CHUNK) {
            Ok(0) => return (bytes, Ok(())),
            Ok(length) => bytes.extend(pipe.take(length)),
            Err(error) => return (bytes, Err(error)),
        }
    }
}

/// Splices so many bytes into memory.
pub(crate) fn gather_exactly(from: &TcpStream, length: usize) -> Vec<u8> {
    let pipe = Pipe::new();
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let count = pipe.fill(from, CHUNK.min(length - bytes.len())).unwrap();
        assert!(count > 0, "the stream ended after {} of {length} bytes", bytes.len());
        bytes.extend(pipe.take(count));
    }
    bytes
}
