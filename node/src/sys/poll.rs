//! A descriptor in the runtime's poller. Called by [`crate::ssh::fd`] and [`crate::ssh::process`].
#![expect(
    unsafe_code,
    reason = "tokio's registration trusts the caller to keep the descriptor open"
)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers an owned descriptor. It must be pollable: a pipe, a socket, a terminal.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor must stay open and the same while registered. An `OwnedFd` owns it and always gives the same
    // number; the `AsyncFd` takes it by value and closes it only after it has deregistered it.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}
