//! Maps of the kernel's programs, opened and changed by who did not make them.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::checked;

/// The commands, as linux/bpf.h numbers them.
const MAP_DELETE_ELEM: i32 = 3;
const MAP_GET_NEXT_ID: i32 = 12;
const MAP_GET_FD_BY_ID: i32 = 14;
const OBJ_GET_INFO_BY_FD: i32 = 15;

/// bpf(2). What the attributes point to must live until it returns. The kernel writes answers into them.
fn call<T>(command: i32, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the attributes live until the call returns, and the kernel uses no more of them than their size says; what
    // they point to is the callers', below.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    checked(done)
}

/// The ids of the maps that there are.
pub(crate) fn map_ids() -> impl Iterator<Item = u32> {
    let next = |after: &u32| {
        let mut attributes = [*after, 0, 0];
        call(MAP_GET_NEXT_ID, &mut attributes).ok().map(|_| attributes[1])
    };
    std::iter::successors(next(&0), next)
}

/// A map by its id.
pub(crate) fn open_map(id: u32) -> io::Result<OwnedFd> {
    let map = call(MAP_GET_FD_BY_ID, &mut [id, 0, 0])?;
    let map = map.try_into().map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, and it is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(map) })
}

/// What a map calls itself.
pub(crate) fn name(map: BorrowedFd<'_>) -> io::Result<String> {
    /// Of `struct bpf_map_info`, as far as it is wanted.
    #[repr(C)]
    struct Info {
        numbers: [u32; 6],
        name: [u8; 16],
    }
    #[repr(C)]
    struct Attributes {
        map: u32,
        length: u32,
        info: u64,
    }
    let info = Info { numbers: [0; 6], name: [0; 16] };
    let mut info = Box::new(info);
    let mut attributes = Attributes {
        map: map.as_raw_fd().cast_unsigned(),
        length: 40,
        info: (&raw mut *info).expose_provenance() as u64,
    };
    call(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let name = info.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Takes an entry out of a map whose keys are numbers of eight bytes.
pub(crate) fn delete(map: BorrowedFd<'_>, key: u64) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        map: u32,
        reserved: u32,
        key: u64,
        nothing: [u64; 2],
    }
    let mut attributes = Attributes {
        map: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: (&raw const key).expose_provenance() as u64,
        nothing: [0; 2],
    };
    call(MAP_DELETE_ELEM, &mut attributes).map(drop)
}
