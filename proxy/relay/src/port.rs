//! One side of a stream on a worker: a socket, and TLS over it or not. Driven by [`crate::direction`].
//!
//! - [`socket`]: the socket, and what the kernel last said of it
//! - [`tls`]: records, here or in the kernel

pub(crate) mod socket;
pub(crate) mod tls;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use bytes::{Buf, Bytes};

use crate::chunk::Chunk;
use crate::direction::Side;
use crate::ktls::Features;
use crate::pipes::Pipe;
use crate::tls::session::{Outgoing, Session};

use self::socket::{Readiness, Socket};
use self::tls::TlsPort;

/// One side of a stream.
#[derive(Debug)]
pub(crate) struct Port {
    socket: Socket,
    /// Read before the stream came here.
    pending: Bytes,
    tls: Option<Box<TlsPort>>,
}

impl Port {
    pub(crate) fn plain(socket: OwnedFd, pending: Bytes) -> Self {
        Self { socket: Socket::new(socket), pending, tls: None }
    }

    /// `incoming` is what was read of TLS and not opened, `outgoing` what was sealed and has not left.
    pub(crate) fn tls(
        socket: OwnedFd,
        session: Session,
        incoming: Vec<u8>,
        outgoing: Outgoing,
        features: Option<Features>,
    ) -> Self {
        Self::plain(socket, Bytes::new()).with_tls(session, incoming, outgoing, features)
    }

    /// With TLS from now on.
    pub(crate) fn with_tls(
        self,
        session: Session,
        incoming: Vec<u8>,
        outgoing: Outgoing,
        features: Option<Features>,
    ) -> Self {
        let tls = TlsPort::new(session, incoming, outgoing, features);
        Self { tls: Some(Box::new(tls)), ..self }
    }

    /// From another process; `tls` says, with the keys in the kernel, which ends have been said.
    pub(crate) fn moved(socket: OwnedFd, pending: Bytes, tls: Option<(bool, bool)>) -> Self {
        let tls = tls.map(|(peer, ours)| Box::new(TlsPort::in_kernel(peer, ours)));
        Self { tls, ..Self::plain(socket, pending) }
    }

    /// What another process must know beside the socket; none where that is not enough for it. With TLS, the keys go to
    /// the kernel now if they can.
    pub(crate) fn make_movable(&mut self) -> bool {
        if let Some(tls) = &mut self.tls {
            tls.offload_receive(&self.socket);
            tls.offload_transmit(&mut self.socket);
        }
        self.movable().is_some()
    }

    /// See [`Port::make_movable`].
    pub(crate) fn movable(&self) -> Option<Option<(bool, bool)>> {
        match &self.tls {
            None => Some(None),
            Some(tls) => tls.movable().map(Some),
        }
    }

    /// With bytes that were read, and opened, before.
    pub(crate) fn with_pending(self, pending: Bytes) -> Self {
        Self { pending, ..self }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    /// What an event says.
    pub(crate) fn ready(&mut self, says: Readiness) {
        self.socket.ready(says);
    }

    /// Nothing is tried before an event.
    pub(crate) fn wait_for_event(&mut self) {
        self.socket.readable = false;
    }

    /// Makes the coming close a reset, unless the peer has just been told why by an alert.
    pub(crate) fn abort(&self) {
        if !self.tls.as_ref().is_some_and(|tls| tls.has_parted()) {
            self.socket.abort();
        }
    }

    /// The socket and what was read ahead.
    pub(crate) fn into_parts(self) -> (OwnedFd, Bytes) {
        (self.socket.into_fd(), self.pending)
    }

    pub(crate) fn send_slices<'a>(
        &mut self,
        slices: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<usize> {
        self.socket.send(slices)
    }
}

impl Side for Port {
    type Pipe = Pipe;

    fn is_readable(&self) -> bool {
        self.socket.readable
            || !self.pending.is_empty()
            || self.tls.as_ref().is_some_and(|tls| tls.holds())
    }

    fn is_writable(&self) -> bool {
        self.socket.writable && self.tls.as_ref().is_none_or(|tls| tls.outgoing.is_empty())
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
        if let Some(tls) = &mut self.tls {
            return tls.read(&mut self.socket, chunk, max);
        }
        let (buffer, _) = chunk.parts();
        let room = max.min(buffer.len());
        let count = self.socket.receive(buffer.get_mut(..room).unwrap_or_default())?;
        chunk.set(count);
        Ok(count)
    }

    fn write(&mut self, chunk: &mut Chunk) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.send(chunk.slices()),
            Some(tls) => tls.write(&mut self.socket, chunk),
        }
    }

    fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.send(std::iter::once(bytes)),
            Some(tls) => tls.write_bytes(&mut self.socket, bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => Ok(()),
            Some(tls) => tls.flush(&mut self.socket),
        }
    }

    fn is_gone(&self) -> bool {
        self.socket.is_gone()
    }

    fn backlog(&self) -> usize {
        self.tls.as_ref().map_or(0, |tls| tls.outgoing.bytes().len())
    }

    fn close_write(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => self.socket.shut(),
            Some(tls) => tls.close_write(&mut self.socket),
        }
    }

    fn end_is_certain(&self) -> bool {
        // TLS has a word for it.
        self.tls.is_some() || self.socket.has_ended()
    }

    fn prepare_splice_in(&mut self) -> bool {
        self.pending.is_empty()
            && self.tls.as_mut().is_none_or(|tls| tls.offload_receive(&self.socket))
    }

    fn prepare_splice_out(&mut self) -> bool {
        self.tls.as_mut().is_none_or(|tls| tls.offload_transmit(&mut self.socket))
    }

    fn splice_in(&mut self, pipe: &Pipe, max: usize) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.splice_in(pipe, max),
            Some(tls) => tls.splice_in(&mut self.socket, pipe, max),
        }
    }

    fn splice_out(&mut self, pipe: &Pipe, len: usize) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.splice_out(pipe, len),
            Some(tls) => tls.splice_out(&mut self.socket, pipe, len),
        }
    }
}
