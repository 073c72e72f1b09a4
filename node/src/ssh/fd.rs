//! A pipe, a terminal's master or a socket as this runtime's: no buffer while nothing comes.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bytes::Bytes;
use tokio::io::unix::AsyncFd;

/// See the module.
#[derive(Debug)]
pub(crate) struct Endpoint(AsyncFd<OwnedFd>);

impl Endpoint {
    /// Takes a descriptor and makes it non-blocking. Both ends of a pipe have their own flags, so the program at the
    /// other end is not affected.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(crate::sys::poll::register(fd)?))
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }

    /// What is there, at most [`READ_BYTES`]; empty at the end. A terminal whose program is gone is at its end.
    pub(crate) async fn read(&self) -> io::Result<Bytes> {
        loop {
            let mut ready = self.0.readable().await?;
            // Made only now: an idle session holds no buffer.
            let mut buffer = Vec::with_capacity(READ_BYTES);
            let result = ready.try_io(|fd| {
                let spare = rustix::buffer::spare_capacity(&mut buffer);
                Ok(rustix::io::read(fd.get_ref(), spare)?)
            });
            match result {
                Ok(Ok(_)) => return Ok(shrunk(buffer)),
                Ok(Err(error)) if error.raw_os_error() == Some(EIO) => return Ok(Bytes::new()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// Writes some of it.
    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}

/// A keystroke's echo does not hold a whole read buffer while it waits for the window.
fn shrunk(buffer: Vec<u8>) -> Bytes {
    if buffer.len() * 4 < READ_BYTES { Bytes::copy_from_slice(&buffer) } else { buffer.into() }
}

/// A channel packet's size.
const READ_BYTES: usize = 32 * 1024;
/// What Linux says on a terminal's master after the last slave has closed (pty(7)).
const EIO: i32 = 5;
