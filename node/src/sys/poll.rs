//! A descriptor in the runtime's poller. Called by [`crate::ssh::fd`] and [`crate::capture`].
#![expect(
    unsafe_code,
    reason = "tokio's registration trusts the caller to keep the descriptor open"
)]

use std::io;
use std::os::fd::OwnedFd;

use aya::maps::{MapData, RingBuf};

use tokio::io::unix::AsyncFd;

/// Registers an owned descriptor. It must be pollable: a pipe, a socket, a terminal.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor must stay open and the same while registered. An `OwnedFd` owns it and always gives the same
    // number; the `AsyncFd` takes it by value and closes it only after it has deregistered it.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

/// Registers a ring of the kernel's, which is readable while there is something in it.
pub(crate) fn register_ring(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: as above: a ring owns its map's descriptor and always gives the same number; the `AsyncFd` takes it by value.
    unsafe { AsyncFd::register(ring) }.map_err(Into::into)
}
