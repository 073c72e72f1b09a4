//! Processes: forks, namespaces, and reaching into others.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::checked;

/// The child's number in the parent, nothing in the child. For a process with one thread: another may hold a lock that the
/// child then waits for in vain.
///
/// # Errors
/// The kernel's, and that there is more than one thread.
pub(crate) fn fork() -> io::Result<Option<u32>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with threads does not fork"));
    }
    // SAFETY: there is no other thread, so that the child is as whole as its parent.
    let child = checked(unsafe { libc::fork() }.into())?;
    Ok(u32::try_from(child).ok().filter(|child| *child > 0))
}

/// The status of a child that has ended, as wait(2) gives it.
pub(crate) fn wait(child: u32) -> io::Result<i32> {
    let (child, mut status) = (child.cast_signed(), 0);
    // SAFETY: the status lives here.
    checked(unsafe { libc::waitpid(child, &raw mut status, 0) }.into())?;
    Ok(status)
}

/// Sends a signal with a value, which kill(2) does not.
pub(crate) fn queue_signal(to: i32, signal: i32) -> io::Result<()> {
    let value = libc::sigval { sival_ptr: std::ptr::null_mut() };
    // SAFETY: the value is passed on as it is, and nobody follows it.
    checked(unsafe { libc::sigqueue(to, signal, value) }.into()).map(drop)
}

/// A namespace of one's own: `CLONE_NEWNS` and others. For a process with one thread, or a thread by itself.
pub(crate) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: numbers only; no flag of ours takes files or memory away from other threads.
    checked(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Into the namespace that a descriptor shows.
pub(crate) fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a descriptor and a number.
    checked(unsafe { libc::setns(namespace.as_raw_fd(), 0) }.into()).map(drop)
}

/// Stops another process, changes a word of its memory, and lets it go.
pub(crate) fn inject(other: u32, address: u64, word: u64) -> io::Result<()> {
    let other = other.cast_signed();
    // SAFETY: numbers; it is the other's memory that changes.
    unsafe {
        checked(libc::ptrace(libc::PTRACE_ATTACH, other, 0, 0))?;
        let mut status = 0;
        checked(libc::waitpid(other, &raw mut status, 0).into())?;
        let done = checked(libc::ptrace(libc::PTRACE_POKEDATA, other, address, word));
        checked(libc::ptrace(libc::PTRACE_DETACH, other, 0, 0))?;
        done.map(drop)
    }
}

/// Writes into another process' memory.
pub(crate) fn write_memory(other: u32, address: u64, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let place = usize::try_from(address).map_err(io::Error::other)?;
    let remote =
        libc::iovec { iov_base: std::ptr::without_provenance_mut(place), iov_len: bytes.len() };
    // SAFETY: what is read lives here and is as long as it says; what is written is the other's.
    let written = unsafe {
        libc::process_vm_writev(other.cast_signed(), &raw const local, 1, &raw const remote, 1, 0)
    };
    checked(written as i64).map(drop)
}
