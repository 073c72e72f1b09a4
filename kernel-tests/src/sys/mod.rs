//! The only room of this crate with `unsafe`: system calls that deeds of the bypass suite do and that have no safe form
//! elsewhere. Each is for a process that has one thread and does nothing else.
//!
//! - [`bpf`]: maps that are another's
//! - [`exec`]: programs from descriptors, from memory that is not there yet, and from memory that changes
//! - [`process`]: forks, namespaces, and reaching into others
//! - [`uring`]: one operation through io_uring
//! - [`watch`]: system calls of another, done in its stead
#![expect(unsafe_code, reason = "system calls without a safe form")]

pub(crate) mod bpf;
pub(crate) mod exec;
pub(crate) mod process;
pub(crate) mod uring;
pub(crate) mod watch;

use std::fs::File;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// What a call gave, or the error that it left.
fn checked(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn text(path: &Path) -> io::Result<std::ffi::CString> {
    Ok(std::ffi::CString::new(path.as_os_str().as_bytes())?)
}

/// Cuts a file by its name, without opening it.
pub(crate) fn truncate(path: &Path) -> io::Result<()> {
    let path = text(path)?;
    // SAFETY: a text that ends with a NUL and lives until the call returns.
    checked(unsafe { libc::truncate(path.as_ptr(), 0) }.into()).map(drop)
}

/// Connects a socket to an address as the kernel has it, of whichever family.
pub(crate) fn connect(socket: RawFd, address: &[u8]) -> io::Result<()> {
    let length = u32::try_from(address.len()).map_err(io::Error::other)?;
    // SAFETY: the address lives until the call returns, and the length is its own.
    let done = unsafe { libc::connect(socket, address.as_ptr().cast(), length) };
    checked(done.into()).map(drop)
}

/// Such an address, `struct sockaddr_in`, of whichever family it says to be.
pub(crate) fn ipv4(family: u16, address: SocketAddrV4) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&family.to_ne_bytes());
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    bytes[4..8].copy_from_slice(&address.ip().octets());
    bytes
}

/// Sends bytes to such an address; the flags are those of sendto(2).
pub(crate) fn send_to(socket: RawFd, bytes: &[u8], address: &[u8], flags: i32) -> io::Result<()> {
    let length = u32::try_from(address.len()).map_err(io::Error::other)?;
    // SAFETY: bytes and address live until the call returns, and the lengths are their own.
    let sent = unsafe {
        let to = address.as_ptr().cast();
        libc::sendto(socket, bytes.as_ptr().cast(), bytes.len(), flags, to, length)
    };
    checked(sent as i64).map(drop)
}

/// A file by its handle, which is no path. Between asking for the one and for the other, `meanwhile` is done.
pub(crate) fn open_by_handle(path: &Path, meanwhile: impl FnOnce()) -> io::Result<File> {
    const HANDLE_BYTES_MAX: u32 = 128;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; HANDLE_BYTES_MAX as usize],
    }
    let mut handle = Handle { bytes: HANDLE_BYTES_MAX, kind: 0, handle: [0; 128] };
    let (name, mut mount) = (text(path)?, 0);
    let file = (&raw mut handle).cast();
    // SAFETY: the name ends with a NUL, the handle has room for as many bytes as it says, and all of them live here.
    let named =
        unsafe { libc::name_to_handle_at(libc::AT_FDCWD, name.as_ptr(), file, &raw mut mount, 0) };
    checked(named.into())?;
    meanwhile();
    let folder = File::open(path.parent().unwrap_or(path))?;
    // SAFETY: the kernel filled the handle above, and it lives here.
    let opened = unsafe { libc::open_by_handle_at(folder.as_raw_fd(), file, libc::O_RDONLY) };
    checked(opened.into())?;
    // SAFETY: the kernel has just made this descriptor, and it is nobody else's.
    Ok(unsafe { File::from_raw_fd(opened) })
}

/// Asks for another kernel from a file that holds none.
pub(crate) fn kexec(kernel: &File) -> io::Result<()> {
    const KEXEC_FILE_NO_INITRAMFS: libc::c_ulong = 4;
    // SAFETY: a descriptor and numbers; the command line is empty and not read.
    let done = unsafe {
        let (file, line) = (kernel.as_raw_fd(), c"".as_ptr());
        libc::syscall(libc::SYS_kexec_file_load, file, -1, 1, line, KEXEC_FILE_NO_INITRAMFS)
    };
    checked(done).map(drop)
}

/// Maps the beginning of a file to be read, and makes code of it then.
pub(crate) fn map_later(file: &File) -> io::Result<()> {
    const PAGE: usize = 4096;
    // SAFETY: a new mapping at a place of the kernel's choice; nothing of it is ever run.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            file.as_raw_fd(),
            0,
        );
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let done = libc::mprotect(at, PAGE, libc::PROT_READ | libc::PROT_EXEC);
        let result = if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        libc::munmap(at, PAGE);
        result
    }
}

/// Has the kernel tell `pid` by SIGIO when there is something to read.
pub(crate) fn told_by_signal(file: RawFd, pid: i32) -> io::Result<()> {
    for (what, value) in [(libc::F_SETOWN, pid), (libc::F_SETFL, libc::O_ASYNC)] {
        // SAFETY: both take a number.
        if unsafe { libc::fcntl(file, what, value) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
