//! The only room of this crate with `unsafe`. Marking a task as a session's: the one call to the kernel's BPF that has no
//! safe form elsewhere. Task storage is keyed by pidfd (Linux 5.11), and the child marks itself before it gives up its rights.
#![expect(unsafe_code, reason = "a map of this type has no typed access")]

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use ebpf_abi::Mark;

/// `BPF_MAP_UPDATE_ELEM` of bpf(2).
const MAP_UPDATE_ELEM: libc::c_int = 2;

/// The part of `union bpf_attr` that updates a map.
#[repr(C)]
struct UpdateElement {
    map: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Marks the calling process. Only system calls on values that live here: fit for the time between fork and exec.
///
/// # Errors
/// The kernel's: no memory for the storage, no right to it.
pub(crate) fn mark_self(map: RawFd, mark: Mark) -> io::Result<()> {
    // SAFETY: plain system calls on numbers.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    let pidfd =
        libc::c_int::try_from(pidfd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    if pidfd < 0 {
        return Err(io::Error::last_os_error());
    }
    let map = u32::try_from(map).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let update = UpdateElement {
        map,
        _padding: 0,
        key: (&raw const pidfd).addr() as u64,
        value: (&raw const mark).addr() as u64,
        flags: 0,
    };
    // SAFETY: key and value live until the call returns and are of the sizes that the map has: a descriptor and a `Mark`
    // (ebpf/src/common.h). The kernel reads no more of the attributes than their size says.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, MAP_UPDATE_ELEM, &raw const update, size_of::<UpdateElement>())
    };
    let result = if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: the descriptor was opened above and is nobody else's.
    unsafe { libc::close(pidfd) };
    result
}

/// Starts a program whose process is marked before it executes anything; one that cannot be marked does not start.
///
/// # Errors
/// The program cannot be started, or not be marked.
pub(crate) fn spawn_marked(command: &mut Command, map: RawFd, mark: Mark) -> io::Result<Child> {
    // SAFETY: between fork and exec only `mark_self` runs: system calls on values of its own stack, no memory is asked for, no
    // lock is taken. The map's descriptor is open until this returns, since whoever lends it outlives the call.
    unsafe { command.pre_exec(move || mark_self(map, mark)) };
    command.spawn()
}
