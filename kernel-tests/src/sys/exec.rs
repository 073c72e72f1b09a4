//! Programs that are executed in ways which no library has: from a descriptor, with arguments that are not in memory yet,
//! with arguments that another thread changes. All return only when they fail.

use std::ffi::{CString, NulError};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use super::text;

/// Pointers to texts, as execve(2) wants them; good as long as the texts.
fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

fn texts(words: &[&str]) -> Result<Vec<CString>, NulError> {
    words.iter().map(|word| CString::new(*word)).collect()
}

/// fexecve(3): what the descriptor shows, whether it has a name or not.
pub(crate) fn descriptor(program: RawFd, arguments: &[&str]) -> io::Error {
    let Ok(texts) = texts(arguments) else {
        return io::ErrorKind::InvalidInput.into();
    };
    let (arguments, environment) = (pointers(&texts), pointers(&[]));
    // SAFETY: both lists end with a null, and what they point to lives until the call returns, if it does.
    unsafe {
        libc::execveat(
            program,
            c"".as_ptr(),
            arguments.as_ptr().cast(),
            environment.as_ptr().cast(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// execve(2) itself, which a shell does not come after for what is no program.
pub(crate) fn path(program: &Path) -> io::Error {
    let Ok(path) = text(program) else { return io::ErrorKind::InvalidInput.into() };
    let (arguments, environment) = ([path.as_ptr(), ptr::null()], pointers(&[]));
    // SAFETY: both lists end with a null, and what they point to lives until the call returns, if it does.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// The whole of a file's bytes are one argument, from a mapping of which no page has been touched: whoever reads the
/// arguments where the call is entered finds nothing.
pub(crate) fn untouched(program: &Path, name: &str, argument: &File, length: usize) -> io::Error {
    let (Ok(path), Ok(name)) = (text(program), CString::new(name)) else {
        return io::ErrorKind::InvalidInput.into();
    };
    // SAFETY: a new mapping at a place of the kernel's choice.
    let mapping = unsafe {
        let file = argument.as_raw_fd();
        libc::mmap(ptr::null_mut(), length + 1, libc::PROT_READ, libc::MAP_PRIVATE, file, 0)
    };
    if mapping == libc::MAP_FAILED {
        return io::Error::last_os_error();
    }
    let arguments = [name.as_ptr(), mapping.cast_const().cast(), ptr::null()];
    let environment = pointers(&[]);
    // SAFETY: both lists end with a null; the argument ends with a NUL, since what is mapped behind a file's end is 0.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// While the call is under way, a thread writes one letter and then the other into the last argument, again and again.
pub(crate) fn changing(program: &Path, arguments: &[&str], one: u8, other: u8) -> io::Error {
    const LENGTH: usize = 64;
    let (Ok(path), Ok(texts)) = (text(program), texts(arguments)) else {
        return io::ErrorKind::InvalidInput.into();
    };
    // Leaked: the thread writes until the call replaces the process.
    let letters = (0..LENGTH).map(|_| AtomicU8::new(one)).chain([AtomicU8::new(0)]).collect();
    let argument: &'static [AtomicU8] = Vec::leak(letters);
    thread::spawn(move || {
        for letter in [other, one].into_iter().cycle() {
            for place in argument.iter().take(LENGTH) {
                place.store(letter, Ordering::Relaxed);
            }
        }
    });
    // Until it has begun.
    while argument.first().is_some_and(|place| place.load(Ordering::Relaxed) == one) {
        thread::yield_now();
    }
    let mut arguments = pointers(&texts);
    arguments.insert(texts.len(), argument.as_ptr().cast());
    let environment = pointers(&[]);
    // SAFETY: both lists end with a null; the argument's last byte stays 0, and the others are bytes that the kernel may read
    // while they change.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// How an argument is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vanish {
    /// Its page is given back to the kernel, so that it reads as zeros.
    Emptied,
    /// Nobody may read its page.
    Forbidden,
}

/// While the call is under way, a thread takes the last argument away and puts it back, again and again.
pub(crate) fn vanishing(program: &Path, arguments: &[&str], how: Vanish) -> io::Error {
    const LENGTH: usize = 64;
    const PAGE: usize = 4096;
    let (Ok(path), Ok(texts)) = (text(program), texts(arguments)) else {
        return io::ErrorKind::InvalidInput.into();
    };
    // SAFETY: a new page at a place of the kernel's choice.
    let page = unsafe {
        let (rights, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(ptr::null_mut(), PAGE, rights, flags, -1, 0)
    };
    if page == libc::MAP_FAILED {
        return io::Error::last_os_error();
    }
    // SAFETY: the page is ours, and longer than this.
    let fill =
        |page: *mut libc::c_void| unsafe { ptr::write_bytes(page.cast::<u8>(), b'x', LENGTH) };
    fill(page);
    let place = page.expose_provenance();
    thread::spawn(move || {
        let page: *mut libc::c_void = ptr::with_exposed_provenance_mut(place);
        loop {
            // SAFETY: nobody but the kernel reads the page, and nobody else changes it or its rights.
            unsafe {
                match how {
                    Vanish::Emptied => {
                        libc::madvise(page, PAGE, libc::MADV_DONTNEED);
                    }
                    Vanish::Forbidden => {
                        libc::mprotect(page, PAGE, libc::PROT_NONE);
                        thread::yield_now();
                        libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE);
                    }
                }
            }
            thread::yield_now();
            fill(page);
        }
    });
    let mut arguments = pointers(&texts);
    arguments.insert(texts.len(), page.cast_const().cast());
    let environment = pointers(&[]);
    // SAFETY: both lists end with a null. The last argument ends with a NUL whenever it can be read at all: the page's rest is
    // zero.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}
