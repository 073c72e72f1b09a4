//! One side of a stream on the ring: a non-blocking socket, and TLS over it or not. Knows when the kernel last said that
//! there is nothing to read, or no room to write. With kernel TLS, keys go to the kernel once a direction is bulk.
//! Driven by [`crate::direction`].

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use bytes::{Buf, Bytes};
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};
use rustix::pipe::SpliceFlags;

use crate::chunk::Chunk;
use crate::direction::Side;
use crate::pipes::Pipe;
use crate::tls::session::{Outgoing, RECORD_BYTES_MAX, Session, record_length};

/// One side of a stream.
#[derive(Debug)]
pub(crate) struct Port {
    socket: OwnedFd,
    readable: bool,
    writable: bool,
    /// The peer's end has been seen coming: there is something to read until a read says so.
    ending: bool,
    /// Read before the stream came here.
    pending: Bytes,
    tls: Option<Box<TlsPort>>,
}

/// TLS in user space.
#[derive(Debug)]
struct TlsPort {
    session: Session,
    /// The beginning of a record that is not whole yet, or whole ones that nobody has asked for.
    incoming: Vec<u8>,
    outgoing: Outgoing,
}

impl Port {
    pub(crate) fn plain(socket: OwnedFd, pending: Bytes) -> Self {
        Self { socket, readable: true, writable: true, ending: false, pending, tls: None }
    }

    /// `incoming` is what was read of TLS and not opened, `outgoing` what was sealed and has not left.
    pub(crate) fn tls(
        socket: OwnedFd,
        session: Session,
        incoming: Vec<u8>,
        outgoing: Outgoing,
    ) -> Self {
        let tls = Some(Box::new(TlsPort { session, incoming, outgoing }));
        Self { tls, ..Self::plain(socket, Bytes::new()) }
    }

    /// With bytes that were read, and opened, before.
    pub(crate) fn with_pending(self, pending: Bytes) -> Self {
        Self { pending, ..self }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// What an event says.
    pub(crate) fn ready(&mut self, readable: bool, writable: bool, closed: bool) {
        self.readable |= readable;
        self.writable |= writable;
        self.ending |= closed;
    }

    /// Nothing is tried before an event.
    pub(crate) fn wait_for_event(&mut self) {
        self.readable = false;
    }

    /// Makes the coming close a reset.
    pub(crate) fn abort(&self) {
        if let Err(error) = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO)) {
            tracing::debug!(%error, "a socket could not be set to end by reset");
        }
    }

    /// The socket and what was read ahead.
    pub(crate) fn into_parts(self) -> (OwnedFd, Bytes) {
        (self.socket, self.pending)
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match retry_on_intr(|| rustix::net::recv(&self.socket, &mut *into, RecvFlags::DONTWAIT)) {
            Ok((count, _)) => {
                if count < into.len() {
                    // All that was there; what comes later is announced anew. An announced end has to be read.
                    self.readable = self.ending && count > 0;
                }
                Ok(count)
            }
            Err(error) => {
                self.readable = false;
                Err(error.into())
            }
        }
    }

    fn sent(&mut self, result: rustix::io::Result<usize>) -> io::Result<usize> {
        match result {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => Ok(count),
            Err(error) => {
                self.writable = false;
                Err(error.into())
            }
        }
    }

    pub(crate) fn send_slices<'a>(
        &mut self,
        slices: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<usize> {
        let mut list = [IoSlice::new(&[]); SLICES_MAX];
        let mut used = 0_usize;
        for (slot, slice) in list.iter_mut().zip(slices.filter(|slice| !slice.is_empty())) {
            *slot = IoSlice::new(slice);
            used = used.saturating_add(1);
        }
        let result = match list.get(..used).unwrap_or_default() {
            [] => return Ok(0),
            [one] => retry_on_intr(|| rustix::net::send(&self.socket, one, SEND_FLAGS)),
            several => retry_on_intr(|| {
                let mut none = rustix::net::SendAncillaryBuffer::default();
                rustix::net::sendmsg(&self.socket, several, &mut none, SEND_FLAGS)
            }),
        };
        self.sent(result)
    }

    /// Opens records into `chunk`.
    fn read_tls(
        &mut self,
        mut tls: Box<TlsPort>,
        chunk: &mut Chunk,
        max: usize,
    ) -> (Box<TlsPort>, io::Result<usize>) {
        let result = self.read_records(&mut tls, chunk, max);
        (tls, result)
    }

    fn read_records(
        &mut self,
        tls: &mut TlsPort,
        chunk: &mut Chunk,
        max: usize,
    ) -> io::Result<usize> {
        loop {
            if tls.session.peer_closed() {
                return Ok(0);
            }
            let (buffer, pieces) = chunk.parts();
            let early = tls.incoming.len();
            let room = max.max(early.saturating_add(RECORD_BYTES_MAX)).min(buffer.len());
            let buffer = buffer.get_mut(..room).unwrap_or_default();
            let mut filled = 0;
            if let Some(front) = buffer.get_mut(..early) {
                front.copy_from_slice(&tls.incoming);
                filled = early;
            }
            if record_length(&tls.incoming)?.is_none() {
                if !self.readable {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                match self.receive(buffer.get_mut(filled..).unwrap_or_default()) {
                    // The end without a word: whatever the last bytes were meant to be, somebody may have cut them.
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => filled = filled.saturating_add(count),
                    Err(error) => return Err(error),
                }
            }
            let wire = buffer.get_mut(..filled).unwrap_or_default();
            let opened = tls.session.open(wire, pieces, usize::MAX, &mut tls.outgoing)?;
            let left = wire.get(opened.consumed..).unwrap_or_default();
            tls.incoming = if opened.closed { Vec::new() } else { left.to_vec() };
            let count = chunk.len();
            if count > 0 || opened.closed {
                return Ok(count);
            }
        }
    }

    fn write_tls(&mut self, slices: &[&[u8]]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return Ok(0) };
        tls.session.seal(slices, &mut tls.outgoing)?;
        match self.flush() {
            Ok(()) => {}
            // Accepted all the same; it leaves when there is room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }
}

impl Side for Port {
    type Pipe = Pipe;

    fn is_readable(&self) -> bool {
        self.readable || !self.pending.is_empty() || self.holds_record()
    }

    fn is_writable(&self) -> bool {
        self.writable && self.tls.as_ref().is_none_or(|tls| tls.outgoing.is_empty())
    }

    fn read(&mut self, chunk: &mut Chunk, max: usize) -> io::Result<usize> {
        if !self.pending.is_empty() {
            let (buffer, _) = chunk.parts();
            let count = self.pending.len().min(buffer.len());
            let room = buffer.get_mut(..count).unwrap_or_default();
            self.pending.copy_to_slice(room);
            chunk.set(count);
            return Ok(count);
        }
        if let Some(tls) = self.tls.take() {
            let (tls, result) = self.read_tls(tls, chunk, max);
            self.tls = Some(tls);
            return result;
        }
        let (buffer, _) = chunk.parts();
        let room = max.min(buffer.len());
        let count = self.receive(buffer.get_mut(..room).unwrap_or_default())?;
        chunk.set(count);
        Ok(count)
    }

    fn write(&mut self, chunk: &Chunk) -> io::Result<usize> {
        if self.tls.is_some() {
            let slices: Vec<&[u8]> = chunk.slices().collect();
            return self.write_tls(&slices);
        }
        self.send_slices(chunk.slices())
    }

    fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.tls.is_some() {
            return self.write_tls(&[bytes]);
        }
        self.send_slices(std::iter::once(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            let Some(tls) = &mut self.tls else { return Ok(()) };
            if tls.outgoing.is_empty() {
                return Ok(());
            }
            if !self.writable {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            // Out of the way for the call: records and socket are both parts of us.
            let mut outgoing = std::mem::take(&mut tls.outgoing);
            let result = self.send_slices(outgoing.slices());
            if let Ok(count) = result {
                outgoing.wrote(count);
            }
            if let Some(tls) = &mut self.tls {
                tls.outgoing = outgoing;
            }
            result?;
        }
    }

    fn close_write(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.session.close(&mut tls.outgoing)?;
        }
        self.flush()?;
        match rustix::net::shutdown(&self.socket, Shutdown::Write) {
            Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn prepare_splice_in(&mut self) -> bool {
        self.tls.is_none() && self.pending.is_empty()
    }

    fn prepare_splice_out(&mut self) -> bool {
        self.tls.is_none()
    }

    fn splice_in(&mut self, pipe: &Pipe, max: usize) -> io::Result<usize> {
        let result = retry_on_intr(|| {
            rustix::pipe::splice(&self.socket, None, &pipe.write, None, max, SPLICE_FLAGS)
        });
        if result.is_err() {
            self.readable = false;
        }
        Ok(result?)
    }

    fn splice_out(&mut self, pipe: &Pipe, len: usize) -> io::Result<usize> {
        let result = retry_on_intr(|| {
            rustix::pipe::splice(&pipe.read, None, &self.socket, None, len, SPLICE_FLAGS)
        });
        self.sent(result)
    }
}

impl Port {
    fn holds_record(&self) -> bool {
        // A fault counts as readable: the read reports it.
        self.tls.as_ref().is_some_and(|tls| {
            tls.session.peer_closed() || !matches!(record_length(&tls.incoming), Ok(None))
        })
    }
}

const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
const SPLICE_FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);
/// Records of one full chunk; more goes with the next call.
const SLICES_MAX: usize = 32;
