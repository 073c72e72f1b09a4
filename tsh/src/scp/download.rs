//! From the host to here. The host may be hostile: its names are checked, its links never become links here, set-user-id
//! bits are dropped, and nothing outside the destination is touched.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use russh_sftp::protocol::FileAttributes;

use crate::scp::CopySettings;
use crate::scp::place::{RemotePlace, base_name, is_safe_name, join};
use crate::scp::progress::Progress;
use crate::scp::remote::{Remote, is_dir, is_file};
use cli::failure::{Failure, Fallible as _};
use cli::output::plain;

/// # Errors
/// The first file that cannot be copied.
pub(crate) async fn run(
    remote: &Remote,
    from: &[RemotePlace],
    to: &str,
    how: CopySettings,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let to = Path::new(to);
    let into = to.is_dir();
    if from.len() > 1 && !into {
        return Err(Failure::new(format!("{} is not a folder", to.display())));
    }
    for source in from {
        let attrs = remote
            .stat(&source.path)
            .await?
            .ok_or_else(|| Failure::new(format!("{}: no such file on the host", source.path)))?;
        if is_dir(&attrs) && !how.recursive {
            return Err(Failure::usage(format!("{} is a folder: pass -r", source.path)));
        }
        let target = match base_name(&source.path) {
            Some(name) if into => to.join(name),
            _ => to.to_owned(),
        };
        copy(remote, &source.path, attrs, &target, how, progress).await?;
    }
    Ok(())
}

async fn copy(
    remote: &Remote,
    from: &str,
    attrs: FileAttributes,
    to: &Path,
    how: CopySettings,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut stack = vec![(from.to_owned(), attrs, to.to_owned(), 0)];
    let mut folders = Vec::new();
    while let Some((path, attrs, target, depth)) = stack.pop() {
        if depth > DEPTH_MAX {
            return Err(Failure::new(format!("{}: folders nest too deep", plain(&path))));
        }
        if is_dir(&attrs) {
            make_dir(&target)?;
            for name in names(remote, &path).await? {
                let inner = join(&path, &name);
                // A link that leads nowhere is no reason to stop.
                match remote.stat(&inner).await? {
                    Some(attrs) => stack.push((inner, attrs, target.join(&name), depth + 1)),
                    None => eprintln!("{}: leads nowhere, skipped", plain(&inner)),
                }
            }
            folders.push((target, attrs));
        } else if is_file(&attrs) {
            fetch(remote, &path, &attrs, &target, how, progress).await?;
        } else {
            eprintln!("{}: not a regular file, skipped", plain(&path));
        }
    }
    for (target, attrs) in folders.iter().rev().filter(|_| how.preserve) {
        let folder = File::open(target).doing(target.display())?;
        preserve(&folder, attrs).doing(target.display())?;
    }
    Ok(())
}

/// The names in a remote folder; one that is no plain name ends the copy, because no honest host sends it.
async fn names(remote: &Remote, dir: &str) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for entry in remote.list(dir).await? {
        match entry.name.as_str() {
            "." | ".." => {}
            name if is_safe_name(name) => names.push(entry.name),
            _ => {
                return Err(Failure::new(format!(
                    "the host sent an unsafe file name in {}: {:?}",
                    plain(dir),
                    entry.name
                )));
            }
        }
    }
    Ok(names)
}

fn make_dir(path: &PathBuf) -> Result<(), Failure> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.doing(path.display()),
    }
}

async fn fetch(
    remote: &Remote,
    path: &str,
    attrs: &FileAttributes,
    target: &Path,
    how: CopySettings,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mode = attrs.permissions.unwrap_or(0o666) & 0o777;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        // Emptied once the host has opened its side: a refusal costs nobody their file.
        .truncate(false)
        .mode(mode | 0o200)
        .open(target)
        .doing(target.display())?;
    let copy = file.try_clone().doing(target.display())?;
    progress.begin(&plain(path), attrs.len());
    remote.fetch(path, attrs.len(), copy, progress).await?;
    if how.preserve {
        preserve(&file, attrs).doing(target.display())?;
    }
    progress.end();
    Ok(())
}

fn preserve(file: &File, attrs: &FileAttributes) -> std::io::Result<()> {
    let at = |seconds: u32| UNIX_EPOCH + Duration::from_secs(seconds.into());
    let mut times = FileTimes::new();
    if let Some(mtime) = attrs.mtime {
        times = times.set_modified(at(mtime));
    }
    if let Some(atime) = attrs.atime {
        times = times.set_accessed(at(atime));
    }
    file.set_times(times)?;
    match attrs.permissions {
        Some(mode) => file.set_permissions(Permissions::from_mode(mode & 0o777)),
        None => Ok(()),
    }
}

/// Deeper is a loop of links.
const DEPTH_MAX: usize = 64;
