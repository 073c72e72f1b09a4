//! Private files, written whole: temporary file in the same folder, mode set before the first byte, fsync, rename,
//! fsync of the folder. A power cut leaves the old text or the new one. Also where state is kept by default.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces `path` with `bytes`, mode 0600.
///
/// # Errors
/// The operating system's.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, bytes, PRIVATE)
}

/// Replaces `path` with `bytes`, mode 0644.
///
/// # Errors
/// The operating system's.
pub fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, bytes, PUBLIC)
}

/// Makes a folder and its parents; the folder itself 0700, and refuses one that others may write to or somebody else owns.
///
/// # Errors
/// The operating system's, or the folder is not private.
pub fn private_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(PRIVATE_DIR).create(path) {
        Ok(()) => return sync_dir(folder_of(path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let found = std::fs::metadata(path)?;
    if !found.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a folder"));
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "another user owns the folder",
        ));
    }
    if found.mode() & OTHERS_WRITE != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "other users may write to the folder; make it private with chmod 0700",
        ));
    }
    if found.mode() & OTHERS_ANY != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(PRIVATE_DIR))?;
    }
    Ok(())
}

/// Makes renames and removals in a folder survive a power cut.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The folder that holds `path`.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{:016x}.new", u64::from_ne_bytes(crate::random())));
    let temporary = folder_of(path).join(temporary);
    let written =
        write_new(&temporary, bytes, mode).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to tell; a leftover is without effect.
        std::fs::remove_file(&temporary).ok();
        return Err(error);
    }
    sync_dir(folder_of(path))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The process' umask may have taken more away than asked for; it never adds.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;
const PRIVATE_DIR: u32 = 0o700;
const OTHERS_WRITE: u32 = 0o022;
const OTHERS_ANY: u32 = 0o077;

/// Where the daemon keeps its state, and `tctl` looks for it, when nothing says otherwise: root's in the system's place,
/// others' where the XDG base directory specification (0.8) has state. None without a home.
pub fn default_data_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/postern"));
    }
    let variable = |name| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    Some(state?.join("postern"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn files_are_replaced_whole_with_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(mode(&path), 0o600);
        write_public(&path, b"pub").unwrap();
        assert_eq!(mode(&path), 0o644);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no leftovers");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        assert!(write_private(&path, b"x").is_err(), "a folder is not replaced by a file");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn folders_are_private_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("a/b/c");
        private_dir(&new).unwrap();
        assert_eq!(mode(&new), 0o700);
        std::fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        private_dir(&new).unwrap();
        assert_eq!(mode(&new), 0o700, "others may no longer read");
        for open in [0o770, 0o702, 0o777] {
            std::fs::set_permissions(&new, Permissions::from_mode(open)).unwrap();
            assert!(private_dir(&new).is_err(), "{open:o}");
        }
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(private_dir(&file).is_err());
    }
}
