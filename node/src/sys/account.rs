//! The operating system's user and group databases, through libc, so that NSS sources (LDAP, sssd) work.
//! Calls may block: callers use a blocking thread. Called by [`crate::account`].
#![expect(unsafe_code, reason = "getpwnam_r and getgrouplist have no safe wrapper in our crates")]

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// A line of the user database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

/// The account with this name, if there is one.
pub(crate) fn by_name(name: &str) -> io::Result<Option<Entry>> {
    let Ok(name) = CString::new(name) else { return Ok(None) };
    lookup(|entry, buffer, result| {
        // SAFETY: `name` is NUL-terminated and lives through the call; `entry`, `result` and `buffer` are valid for
        // writes, and the length is the buffer's.
        unsafe {
            libc::getpwnam_r(name.as_ptr(), entry, buffer.as_mut_ptr().cast(), buffer.len(), result)
        }
    })
}

/// The account with this number, if there is one.
pub(crate) fn by_uid(uid: u32) -> io::Result<Option<Entry>> {
    lookup(|entry, buffer, result| {
        // SAFETY: as in `by_name`; the key is a plain number.
        unsafe { libc::getpwuid_r(uid, entry, buffer.as_mut_ptr().cast(), buffer.len(), result) }
    })
}

fn lookup(
    call: impl Fn(*mut libc::passwd, &mut [u8], *mut *mut libc::passwd) -> libc::c_int,
) -> io::Result<Option<Entry>> {
    let mut buffer = vec![0_u8; BUFFER_BYTES_FIRST];
    loop {
        let mut entry = MaybeUninit::<libc::passwd>::zeroed();
        let mut found = std::ptr::null_mut();
        let status = call(entry.as_mut_ptr(), &mut buffer, &raw mut found);
        if status == libc::ERANGE && buffer.len() < BUFFER_BYTES_MAX {
            let larger = buffer.len() * 2;
            buffer.resize(larger, 0);
            continue;
        }
        if found.is_null() {
            // POSIX leaves it open which errors mean "no such account"; glibc and NSS modules use these.
            return match status {
                0 | libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => Ok(None),
                other => Err(io::Error::from_raw_os_error(other)),
            };
        }
        // SAFETY: `found` is not null, so libc filled `entry` and its pointers point into `buffer`, which lives on.
        let entry = unsafe { entry.assume_init() };
        let name = text(entry.pw_name);
        return Ok(Some(Entry {
            name: String::from_utf8_lossy(&name).into_owned(),
            uid: entry.pw_uid,
            gid: entry.pw_gid,
            home: PathBuf::from(OsString::from_vec(text(entry.pw_dir))),
            shell: PathBuf::from(OsString::from_vec(text(entry.pw_shell))),
        }));
    }
}

/// Copies a C string out of a filled entry; empty when the database has none.
fn text(pointer: *const libc::c_char) -> Vec<u8> {
    if pointer.is_null() {
        return Vec::new();
    }
    // SAFETY: not null, and libc promises a NUL-terminated string inside the caller's buffer, which outlives this call.
    unsafe { CStr::from_ptr(pointer) }.to_bytes().to_vec()
}

/// All groups of an account, its primary group among them.
pub(crate) fn groups(name: &str, gid: u32) -> io::Result<Vec<u32>> {
    let name = CString::new(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut count: libc::c_int = 64;
    loop {
        let room = usize::try_from(count).unwrap_or(0);
        let mut groups = vec![0_u32; room];
        let asked = count;
        // SAFETY: `name` is NUL-terminated; `groups` has room for `count` numbers, and libc writes no more than that.
        let status =
            unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) };
        if status >= 0 {
            groups.truncate(usize::try_from(count).unwrap_or(0));
            return Ok(groups);
        }
        if count <= asked || count > GROUPS_MAX {
            return Err(io::Error::other("the group database gives too many groups"));
        }
    }
}

/// The number of a group, if there is one of this name.
pub(crate) fn group_id(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let mut buffer = vec![0_u8; BUFFER_BYTES_MAX];
    let mut entry = MaybeUninit::<libc::group>::zeroed();
    let mut found = std::ptr::null_mut();
    // SAFETY: as in `by_name`, for the group database.
    unsafe {
        libc::getgrnam_r(
            name.as_ptr(),
            entry.as_mut_ptr(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            &raw mut found,
        )
    };
    if found.is_null() {
        return None;
    }
    // SAFETY: `found` is not null, so libc filled `entry`.
    Some(unsafe { entry.assume_init() }.gr_gid)
}

/// Fits nearly every entry.
const BUFFER_BYTES_FIRST: usize = 1024;
/// An entry beyond this is damage, not an account.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// The kernel's limit of groups per process (`NGROUPS_MAX`, Linux 2.6.4).
const GROUPS_MAX: libc::c_int = 65536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_by_name_and_number() {
        let root = by_name("root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(by_uid(0).unwrap().unwrap(), root);
        assert!(groups("root", 0).unwrap().contains(&0));
        assert_eq!(group_id("root"), Some(0));
    }

    #[test]
    fn unknown_names_are_no_error() {
        assert_eq!(by_name("no-such-account-here").unwrap(), None);
        assert_eq!(by_name("a\0b").unwrap(), None);
        assert_eq!(group_id("no-such-group-here"), None);
    }
}
