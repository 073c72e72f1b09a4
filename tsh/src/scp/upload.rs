//! From here to the host.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use russh_sftp::protocol::FileAttributes;

use crate::scp::CopySettings;
use crate::scp::place::{RemotePlace, join};
use crate::scp::progress::Progress;
use crate::scp::remote::{Remote, is_dir};
use cli::failure::{Failure, Fallible as _};

/// # Errors
/// The first file that cannot be copied.
pub(crate) async fn run(
    remote: &Remote,
    from: &[String],
    to: &RemotePlace,
    how: CopySettings,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let into = remote.stat(&to.path).await?.is_some_and(|attrs| is_dir(&attrs));
    if from.len() > 1 && !into {
        return Err(Failure::new(format!("{} is not a folder on the host", to.path)));
    }
    for source in from {
        let path = Path::new(source);
        let metadata = fs::metadata(path).doing(source)?;
        let name = fs::canonicalize(path).doing(source)?;
        let name = name.file_name().and_then(|name| name.to_str());
        let target = match name {
            // `/` has no name: its content goes into the folder.
            Some(name) if into && !source.ends_with("/.") && source != "." => join(&to.path, name),
            _ => to.path.clone(),
        };
        if metadata.is_dir() && !how.recursive {
            return Err(Failure::usage(format!("{source} is a folder: pass -r")));
        }
        copy(remote, path, &metadata, &target, how, progress).await?;
    }
    Ok(())
}

/// A file, or a folder with all that is in it; links are followed, as scp does.
async fn copy(
    remote: &Remote,
    from: &Path,
    metadata: &Metadata,
    to: &str,
    how: CopySettings,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut stack = vec![(from.to_owned(), metadata.clone(), to.to_owned(), 0)];
    // Folders' times are set last: copying into them changes them.
    let mut folders = Vec::new();
    while let Some((path, metadata, target, depth)) = stack.pop() {
        if depth > DEPTH_MAX {
            return Err(Failure::new(format!("{}: folders nest too deep", path.display())));
        }
        if metadata.is_dir() {
            remote.make_dir(&target, metadata.mode() & 0o777 | 0o700).await?;
            folders.push((target.clone(), metadata));
            for entry in fs::read_dir(&path).doing(path.display())? {
                let entry = entry.doing(path.display())?;
                let name = entry.file_name();
                let name = name.to_str().ok_or_else(|| {
                    Failure::new(format!("{}: a name that is not UTF-8", entry.path().display()))
                })?;
                let metadata = fs::metadata(entry.path()).doing(entry.path().display())?;
                stack.push((entry.path(), metadata, join(&target, name), depth + 1));
            }
        } else if metadata.is_file() {
            put(remote, &path, &metadata, &target, how, progress).await?;
        } else {
            eprintln!("{}: not a regular file, skipped", path.display());
        }
    }
    if how.preserve {
        for (target, metadata) in folders.iter().rev() {
            remote.set(target, preserved(metadata)).await?;
        }
    }
    Ok(())
}

async fn put(
    remote: &Remote,
    path: &Path,
    metadata: &Metadata,
    target: &str,
    how: CopySettings,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let file = File::open(path).doing(path.display())?;
    progress.begin(&path.display().to_string(), metadata.len());
    let attrs =
        FileAttributes { permissions: Some(metadata.mode() & 0o777), ..FileAttributes::empty() };
    let partial = |failure: Failure| failure.hint("The host may hold a part of the file.");
    remote.put(file, target, attrs, progress).await.map_err(partial)?;
    if how.preserve {
        remote.set(target, preserved(metadata)).await?;
    }
    progress.end();
    Ok(())
}

/// Permissions and times, which SFTP version 3 holds in 32 bits.
fn preserved(metadata: &Metadata) -> FileAttributes {
    FileAttributes {
        permissions: Some(metadata.mode() & 0o777),
        atime: u32::try_from(metadata.atime()).ok(),
        mtime: u32::try_from(metadata.mtime()).ok(),
        ..FileAttributes::empty()
    }
}

/// Deeper is a loop of links.
const DEPTH_MAX: usize = 64;
