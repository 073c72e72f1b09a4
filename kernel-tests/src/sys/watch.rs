//! seccomp's notifications: a process has its system calls answered by another, which does in its stead what it likes.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use super::checked;

/// From now on, whoever reads the descriptor answers our calls of this number.
pub(crate) fn ask_for(call: i64) -> io::Result<RawFd> {
    const NEW_LISTENER: u64 = 8;
    let number = u32::try_from(call).map_err(io::Error::other)?;
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        // BPF's codes have eight bits.
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the filter has as many steps as it says and lives until the call returns, which copies it.
    let listener = unsafe {
        let (call, mode) = (libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER);
        libc::syscall(call, mode, NEW_LISTENER, &raw const program)
    };
    checked(listener)?.try_into().map_err(io::Error::other)
}

/// Waits for a call, does `deed`, and lets the call return 0.
pub(crate) fn answer_one(listener: BorrowedFd<'_>, deed: impl FnOnce()) -> io::Result<()> {
    /// `SECCOMP_IOCTL_NOTIF_RECV` and `_SEND` of linux/seccomp.h.
    const RECEIVE: libc::c_ulong = 0xc050_2100;
    const SEND: libc::c_ulong = 0xc018_2101;
    let mut asked = [0_u64; size_of::<libc::seccomp_notif>() / size_of::<u64>()];
    // SAFETY: the room is of the size that the number of the call says, and zeroed, as the kernel wants it.
    let received = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, asked.as_mut_ptr()) };
    checked(received.into())?;
    deed();
    // The id, no value, no error, no flags.
    let answer = [asked.first().copied().unwrap_or_default(), 0, 0];
    // SAFETY: as above; the kernel reads an id, a value, an error and flags, together three words.
    let sent = unsafe { libc::ioctl(listener.as_raw_fd(), SEND, answer.as_ptr()) };
    checked(sent.into()).map(drop)
}
