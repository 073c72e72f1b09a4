//! Private files, written whole: temporary file in the same folder, mode set before the first byte, fsync, rename,
//! fsync of the folder. A power cut leaves the old text or the new one.

use std::io;
use std::path::Path;

/// Replaces `path` with `bytes`, mode 0600.
///
/// # Errors
/// The operating system's.
pub fn write_private(_path: &Path, _bytes: &[u8]) -> io::Result<()> {
    todo!()
}

/// Replaces `path` with `bytes`, mode 0644.
///
/// # Errors
/// The operating system's.
pub fn write_public(_path: &Path, _bytes: &[u8]) -> io::Result<()> {
    todo!()
}

/// Makes a folder and its parents; the folder itself 0700, and refuses one that others may write to or somebody else owns.
///
/// # Errors
/// The operating system's, or the folder is not private.
pub fn private_dir(_path: &Path) -> io::Result<()> {
    todo!()
}
