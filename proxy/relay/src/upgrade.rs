//! Live upgrade: a stream taken apart into what another process needs to go on with it, sent over a Unix socket with its
//! descriptors, and put together there. Sockets, pipes with what is in them, bytes held, counters, limits; with kernel
//! TLS the keys are in the socket. A stream whose TLS is in user space, or that is just ending, stays where it is.
//! Used by the daemon; the other side is the same program, a version later or earlier.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::Limits;
use crate::direction::{Direction, Held};
use crate::pipes::Pipe;
use crate::port::Port;
use crate::stream::Stream;

/// A stream on its way to another process.
#[derive(Debug)]
pub struct Moved {
    pub(crate) sides: (Port, Port),
    pub(crate) directions: (Direction<Pipe>, Direction<Pipe>),
    pub(crate) limits: Limits,
    pub(crate) tag: Bytes,
}

/// What is written of it; bytes and descriptors follow.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    tag_bytes: usize,
    idle_timeout_ms: Option<u64>,
    client: Side,
    target: Side,
    from_client: Way,
    from_target: Way,
}

#[derive(Debug, Serialize, Deserialize)]
struct Side {
    pending_bytes: usize,
    /// Kernel TLS: whether the peer's end and ours have been said.
    tls: Option<(bool, bool)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Way {
    moved: u64,
    over: bool,
    held_bytes: usize,
    in_pipe: bool,
}

impl Moved {
    /// What [`crate::Relay::run`] or [`crate::Next::Dial`] were told of the stream.
    pub fn tag(&self) -> &Bytes {
        &self.tag
    }

    /// Writes it. After an error the stream is lost, and so is the connection.
    ///
    /// # Errors
    /// The other process is gone.
    pub fn send(self, to: &UnixStream) -> io::Result<()> {
        let limits = self.limits;
        let (client, client_fd, client_pending) = side(self.sides.0)?;
        let (target, target_fd, target_pending) = side(self.sides.1)?;
        let mut descriptors = vec![client_fd, target_fd];
        let mut blobs = vec![self.tag.to_vec(), client_pending.to_vec(), target_pending.to_vec()];
        let mut way = |direction: Direction<Pipe>| -> io::Result<Way> {
            let (moved, held, over) = direction.into_parts().map_err(|_| not_movable())?;
            let (held_bytes, in_pipe) = match held {
                Held::Nothing => (0, false),
                Held::Bytes(bytes) => {
                    let count = bytes.len();
                    blobs.push(bytes);
                    (count, false)
                }
                Held::Pipe { pipe, held } => {
                    descriptors.extend([pipe.read, pipe.write]);
                    (held, true)
                }
            };
            Ok(Way { moved, over, held_bytes, in_pipe })
        };
        let (from_client, from_target) = (way(self.directions.0)?, way(self.directions.1)?);
        let idle_timeout_ms =
            limits.idle_timeout.map(|idle| u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
        let tag_bytes = self.tag.len();
        let record =
            Record { tag_bytes, idle_timeout_ms, client, target, from_client, from_target };
        let record = serde_json::to_vec(&record)?;
        send_descriptors(to, &record, &descriptors)?;
        let mut writer = to;
        blobs.iter().try_for_each(|blob| writer.write_all(blob))
    }

    /// Reads one; none at the end.
    ///
    /// # Errors
    /// The other process is gone, or sent what is none.
    pub fn receive(from: &UnixStream) -> io::Result<Option<Self>> {
        let Some((record, descriptors)) = receive_descriptors(from)? else { return Ok(None) };
        let record: Record = serde_json::from_slice(&record)?;
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(|| bad("a descriptor is missing"));
        let (client_fd, target_fd) = (next()?, next()?);
        let tag = read_blob(from, record.tag_bytes, TAG_BYTES_MAX)?;
        let client_pending = read_blob(from, record.client.pending_bytes, HELD_BYTES_MAX)?;
        let target_pending = read_blob(from, record.target.pending_bytes, HELD_BYTES_MAX)?;
        let mut way = |way: &Way| -> io::Result<Direction<Pipe>> {
            let held = if way.in_pipe {
                let pipe = Pipe { read: next()?, write: next()? };
                Held::Pipe { pipe, held: way.held_bytes }
            } else if way.held_bytes > 0 {
                Held::Bytes(read_blob(from, way.held_bytes, HELD_BYTES_MAX)?.to_vec())
            } else {
                Held::Nothing
            };
            Ok(Direction::resume(way.moved, held, way.over))
        };
        let directions = (way(&record.from_client)?, way(&record.from_target)?);
        Ok(Some(Self {
            sides: (
                Port::moved(client_fd, client_pending, record.client.tls),
                Port::moved(target_fd, target_pending, record.target.tls),
            ),
            directions,
            limits: Limits { idle_timeout: record.idle_timeout_ms.map(Duration::from_millis) },
            tag,
        }))
    }

    pub(crate) fn into_stream(self, now: Instant) -> Stream<Port> {
        Stream::resume(self.sides, self.directions, self.limits, now)
    }
}

fn side(port: Port) -> io::Result<(Side, OwnedFd, Bytes)> {
    let tls = port.movable().ok_or_else(not_movable)?;
    let (socket, pending) = port.into_parts();
    Ok((Side { pending_bytes: pending.len(), tls }, socket, pending))
}

/// Writes a record with descriptors.
///
/// # Errors
/// The other process is gone, or there are more descriptors than one message takes.
pub fn send_descriptors(to: &UnixStream, record: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let length = u32::try_from(record.len()).map_err(|_| bad("a record is too long"))?;
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space =
        [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(bad("a record has too many descriptors"));
    }
    // The descriptors travel with the first bytes: the length's four, which a stream socket takes together.
    let header = length.to_be_bytes();
    let sent =
        rustix::net::sendmsg(to, &[IoSlice::new(&header)], &mut control, SendFlags::NOSIGNAL)?;
    let mut writer = to;
    writer.write_all(header.get(sent..).unwrap_or_default())?;
    writer.write_all(record)
}

/// Reads a record with its descriptors; none at the end.
///
/// # Errors
/// The other process is gone in the middle of a record, or sent what is none.
pub fn receive_descriptors(from: &UnixStream) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut space =
        [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut header = [0; 4];
    let got = rustix::net::recvmsg(
        from,
        &mut [IoSliceMut::new(&mut header)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?
    .bytes;
    if got == 0 {
        return Ok(None);
    }
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let mut reader = from;
    reader.read_exact(header.get_mut(got..).unwrap_or_default())?;
    let length = u32::from_be_bytes(header) as usize;
    if length > RECORD_BYTES_MAX {
        return Err(bad("a record is too long"));
    }
    let mut record = vec![0; length];
    reader.read_exact(&mut record)?;
    Ok(Some((record, descriptors)))
}

fn read_blob(mut from: &UnixStream, length: usize, most: usize) -> io::Result<Bytes> {
    if length > most {
        return Err(bad("a record holds more bytes than a stream can"));
    }
    let mut blob = vec![0; length];
    from.read_exact(&mut blob)?;
    Ok(blob.into())
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn not_movable() -> io::Error {
    bad("a stream cannot be moved in this state")
}

/// Two sockets and two pipes; listeners of every worker.
const DESCRIPTORS_MAX: usize = 128;
const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Certificates and names.
const TAG_BYTES_MAX: usize = 256 * 1024;
/// See `direction`: what a direction may hold; and what may have been read ahead.
const HELD_BYTES_MAX: usize = crate::chunk::CHUNK_BYTES;

#[cfg(test)]
mod tests;
