//! A non-blocking socket that remembers what the kernel last said: whether there is something to read, whether there is
//! room to write. Events set it, EAGAIN clears it. No call here waits.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};
use rustix::pipe::SpliceFlags;

use crate::pipes::Pipe;

/// See the module.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer's end has been seen coming: there is something to read until a read says so.
    ending: bool,
    /// The peer has said that it sends no more, when nothing was broken yet.
    ended: bool,
    /// The connection is gone: closed both ways, or broken.
    gone: bool,
    /// Urgent data is about, at whose mark reads stop short although more is there.
    urgent: bool,
}

/// What an event says of a socket.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer has closed its half.
    pub(crate) closed: bool,
    /// The connection is gone: closed both ways, or broken.
    pub(crate) gone: bool,
    /// There is urgent data (tcp(7)).
    pub(crate) urgent: bool,
}

impl Socket {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            readable: true,
            writable: true,
            ending: false,
            ended: false,
            gone: false,
            urgent: false,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// What an event says.
    pub(crate) fn ready(&mut self, says: Readiness) {
        self.readable |= says.readable || says.closed || says.gone;
        self.writable |= says.writable || says.gone;
        self.ending |= says.closed || says.gone;
        self.ended |= says.closed && !says.gone;
        self.gone |= says.gone;
        self.urgent |= says.urgent;
    }

    /// Whether the peer's end came in order, whatever came after it.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether the connection is gone: closed both ways, or broken.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone
    }

    /// A read gave so many bytes of `room`.
    pub(crate) fn received(&mut self, count: usize, room: usize) {
        if count < room && !self.urgent {
            // All that was there; what comes later is announced anew. An announced end has to be read.
            self.readable = self.ending && count > 0;
        }
    }

    /// A read failed.
    pub(crate) fn not_received(&mut self, error: Errno) -> io::Error {
        if error == Errno::AGAIN {
            self.readable = false;
        }
        error.into()
    }

    /// A write gave this.
    pub(crate) fn sent(&mut self, result: Result<usize, Errno>) -> io::Result<usize> {
        match result {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => Ok(count),
            Err(error) => {
                if error == Errno::AGAIN {
                    self.writable = false;
                }
                Err(error.into())
            }
        }
    }

    pub(crate) fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match retry_on_intr(|| rustix::net::recv(&self.fd, &mut *into, RecvFlags::DONTWAIT)) {
            Ok((count, _)) => {
                self.received(count, into.len());
                Ok(count)
            }
            Err(error) => Err(self.not_received(error)),
        }
    }

    /// Sends a prefix of the slices.
    pub(crate) fn send<'a>(&mut self, slices: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        let mut list = [IoSlice::new(&[]); SLICES_MAX];
        let mut used = 0_usize;
        for (slot, slice) in list.iter_mut().zip(slices.filter(|slice| !slice.is_empty())) {
            *slot = IoSlice::new(slice);
            used = used.saturating_add(1);
        }
        let result = match list.get(..used).unwrap_or_default() {
            [] => return Ok(0),
            [one] => retry_on_intr(|| rustix::net::send(&self.fd, one, SEND_FLAGS)),
            several => retry_on_intr(|| {
                let mut none = rustix::net::SendAncillaryBuffer::default();
                rustix::net::sendmsg(&self.fd, several, &mut none, SEND_FLAGS)
            }),
        };
        self.sent(result)
    }

    /// Sends a prefix, of which what does not fill a packet waits for what follows at once: more, or the end.
    pub(crate) fn send_before_more(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SEND_FLAGS.union(SendFlags::MORE);
        let result = retry_on_intr(|| rustix::net::send(&self.fd, bytes, flags));
        self.sent(result)
    }

    pub(crate) fn splice_in(&mut self, pipe: &Pipe, max: usize) -> io::Result<usize> {
        retry_on_intr(|| rustix::pipe::splice(&self.fd, None, &pipe.write, None, max, SPLICE_FLAGS))
            .map_err(|error| self.not_received(error))
    }

    pub(crate) fn splice_out(&mut self, pipe: &Pipe, len: usize) -> io::Result<usize> {
        let result = retry_on_intr(|| {
            rustix::pipe::splice(&pipe.read, None, &self.fd, None, len, SPLICE_FLAGS)
        });
        self.sent(result)
    }

    /// Says that no more bytes come.
    pub(crate) fn shut(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.fd, Shutdown::Write)?)
    }

    /// Makes the coming close a reset.
    pub(crate) fn abort(&self) {
        if let Err(error) = sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO)) {
            tracing::debug!(%error, "a socket could not be set to end by reset");
        }
    }

    /// Takes the error off that the kernel keeps for the next call.
    pub(crate) fn forget_error(&self) {
        if let Ok(Err(error)) = sockopt::socket_error(&self.fd) {
            tracing::debug!(%error, "a socket's error is passed over");
        }
    }

    /// Lets TCP send what it has. Linux before 6.5 keeps records back that were spliced from several pages, until the last
    /// page; when the socket is full before that, nothing is sent that could be acknowledged, and it stays full.
    pub(crate) fn push(&self) {
        // To set it again sends at once, see tcp(7); every socket here has it set.
        if let Err(error) = sockopt::set_tcp_nodelay(&self.fd, true) {
            tracing::debug!(%error, "a socket could not be told to send");
        }
    }

    /// Whether the connection is broken. With kernel TLS a write to a broken one is taken and leads nowhere.
    pub(crate) fn is_broken(&self) -> bool {
        self.ending && matches!(sockopt::socket_error(&self.fd), Ok(Err(_)) | Err(_))
    }
}

const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
const SPLICE_FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);
/// Records of one full chunk, all but the first and the last of which are full; more goes with the next call.
const SLICES_MAX: usize = crate::chunk::CHUNK_BYTES / (16 * 1024) + 2;
