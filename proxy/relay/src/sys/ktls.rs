//! The system calls of kernel TLS that no safe crate has: four socket options and two forms of control message. Owns
//! pointers and lengths, nothing else: what the bytes mean is [`crate::ktls`]'s, the only caller.
#![expect(
    unsafe_code,
    reason = "TLS socket options and control messages have no safe wrapper in our crates"
)]

use std::ffi::c_int;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// One way through a socket, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Transmit,
    Receive,
}

impl Direction {
    fn option(self) -> c_int {
        match self {
            Self::Transmit => libc::TLS_TX,
            Self::Receive => libc::TLS_RX,
        }
    }
}

/// `TCP_ULP` "tls". Linux 4.13.
pub(crate) fn attach(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_TCP, libc::TCP_ULP, b"tls")
}

/// `TLS_TX` or `TLS_RX` with a `struct tls12_crypto_info_*`. Linux 4.13 to send, 4.17 to receive; TLS 1.3 and AES-256
/// since 5.1, ChaCha20-Poly1305 since 5.11; a second time on one socket since 6.14.
pub(crate) fn set_crypto_info(
    socket: BorrowedFd<'_>,
    direction: Direction,
    info: &[u8],
) -> io::Result<()> {
    set(socket, libc::SOL_TLS, direction.option(), info)
}

/// Reads back what [`set_crypto_info`] set, with the sequence number as it stands. `info` is as long as the suite's
/// structure, or 4 bytes for version and suite only; any other length is EINVAL. Linux 4.13 to send, 5.13 to receive.
pub(crate) fn crypto_info(
    socket: BorrowedFd<'_>,
    direction: Direction,
    info: &mut [u8],
) -> io::Result<()> {
    let wanted = info.len();
    let mut length = length(wanted)?;
    // SAFETY: `socket` is open for the whole call. The kernel writes at most `length` bytes to the first pointer, which
    // is valid for writes of `info.len()` = `length` bytes, and the new length to the second, which is a live local. It
    // keeps neither.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_TLS,
            direction.option(),
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    check(result as isize)?;
    if usize::try_from(length) == Ok(wanted) {
        Ok(())
    } else {
        Err(io::Error::other("the kernel's TLS structure has another length than ours"))
    }
}

/// `TLS_RX_EXPECT_NO_PAD`. Linux 6.0; TLS 1.3 only, after the keys.
pub(crate) fn expect_no_padding(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: c_int = 1;
    set(socket, libc::SOL_TLS, libc::TLS_RX_EXPECT_NO_PAD, &on.to_ne_bytes())
}

/// Sends `payload` as a record of a type. Linux 4.13. Blocks or not as the socket does; no SIGPIPE.
pub(crate) fn send_record(
    socket: BorrowedFd<'_>,
    content_type: u8,
    payload: &[u8],
) -> io::Result<usize> {
    let mut control = RecordType::new(libc::TLS_SET_RECORD_TYPE, content_type);
    // The kernel only reads through this pointer: `sendmsg` has no way to write to the caller's buffers.
    let mut part =
        libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let message = header(&mut part, &mut control);
    uninterrupted(|| {
        // SAFETY: `socket` is open for the whole call. `message` points to one iovec and one control message, both live
        // locals, with their true lengths; the iovec covers `payload`, which outlives the call and is only read. The
        // kernel copies all of it before it returns: MSG_ZEROCOPY is not given.
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }
    })
}

/// Receives from one record, and its type where the kernel says it: always where a record was read, never at the end of
/// the stream. Linux 4.17. Blocks or not as the socket does.
pub(crate) fn receive_record(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(Option<u8>, usize)> {
    let mut control = RecordType::new(0, 0);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = header(&mut part, &mut control);
    let length = uninterrupted(|| {
        message.msg_controllen = mem::size_of::<RecordType>();
        // SAFETY: `socket` is open for the whole call. `message` points to one iovec and one control buffer with their
        // true lengths; both live, and what they cover is valid for writes (`buffer` is borrowed for it, `control` is a
        // local whose fields take any bytes). The kernel keeps no pointer.
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) }
    })?;
    if message.msg_controllen == 0 {
        return Ok((None, length));
    }
    let ours = control.header.cmsg_level == libc::SOL_TLS
        && control.header.cmsg_type == libc::TLS_GET_RECORD_TYPE
        && control.header.cmsg_len == RecordType::LENGTH;
    if ours && message.msg_flags & libc::MSG_CTRUNC == 0 {
        Ok((Some(control.value), length))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "a control message that is no record type"))
    }
}

/// A control message with one byte, laid out as `cmsg(3)` says: header, data, padding to the header's alignment.
#[repr(C)]
struct RecordType {
    header: libc::cmsghdr,
    value: u8,
    padding: [u8; 7],
}

impl RecordType {
    // SAFETY: arithmetic on a length; no precondition.
    const LENGTH: usize = unsafe { libc::CMSG_LEN(1) } as usize;

    fn new(kind: c_int, value: u8) -> Self {
        // SAFETY: a `cmsghdr` is integers only, for which all zeroes are valid. Zeroed rather than written as a literal,
        // since some C libraries pad it with a private field.
        let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
        header.cmsg_len = Self::LENGTH;
        header.cmsg_level = libc::SOL_TLS;
        header.cmsg_type = kind;
        Self { header, value, padding: [0; 7] }
    }
}

const _: () = {
    // SAFETY: arithmetic on a length; no precondition.
    assert!(mem::size_of::<RecordType>() == unsafe { libc::CMSG_SPACE(1) } as usize);
    assert!(mem::offset_of!(RecordType, value) + 1 == RecordType::LENGTH);
};

/// A message header that points to both; to be used while both are alive and not moved.
fn header(part: &mut libc::iovec, control: &mut RecordType) -> libc::msghdr {
    // SAFETY: a `msghdr` is integers and raw pointers, for which all zeroes are valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = ptr::from_mut(part);
    message.msg_iovlen = 1;
    message.msg_control = ptr::from_mut(control).cast();
    message.msg_controllen = mem::size_of::<RecordType>();
    message
}

fn set(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &[u8]) -> io::Result<()> {
    let length = length(value.len())?;
    // SAFETY: `socket` is open for the whole call. `value` is valid for reads of `length` bytes; the options of this
    // file have no pointers inside, so the kernel copies those bytes and looks at nothing else.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    check(result as isize).map(drop)
}

fn length(bytes: usize) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Again as long as a signal comes between.
fn uninterrupted(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Without kernel TLS no record type comes; the bytes and the end of the stream do.
    #[test]
    fn a_plain_socket_gives_bytes_without_a_type() {
        let (mut one, other) = UnixStream::pair().unwrap();
        one.write_all(b"hello").unwrap();
        let mut buffer = [0; 16];
        assert_eq!(receive_record(other.as_fd(), &mut buffer).unwrap(), (None, 5));
        assert_eq!(&buffer[..5], b"hello");
        drop(one);
        assert_eq!(receive_record(other.as_fd(), &mut buffer).unwrap(), (None, 0));
    }

    #[test]
    fn errors_are_the_kernels() {
        let (mut one, other) = UnixStream::pair().unwrap();
        let refused = |result: io::Result<()>| result.unwrap_err().raw_os_error().is_some();
        assert!(refused(attach(one.as_fd())));
        assert!(refused(set_crypto_info(one.as_fd(), Direction::Transmit, &[0; 56])));
        assert!(refused(crypto_info(one.as_fd(), Direction::Receive, &mut [0; 4])));
        assert!(refused(expect_no_padding(one.as_fd())));
        drop(other);
        // No SIGPIPE: the process is still there to see the error.
        let error = send_record(one.as_fd(), 21, &[1, 0]).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
        assert_eq!(one.read(&mut [0; 1]).unwrap(), 0);
    }
}
