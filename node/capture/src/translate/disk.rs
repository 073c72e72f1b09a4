//! Files: opened, changed, made and removed.

use ebpf_abi::{File, Header, file, flag, prov as provenance};
use proto::event::{self, Body as Event};

use super::{Context, delegation, file_identity, other, prov, text};
use crate::mounts;

/// The event of a record, and what it hands to others.
pub(super) fn events(
    context: &Context<'_>,
    header: &Header,
    program: String,
    file: &File,
    path: &[u8],
    other_path: &[u8],
) -> Vec<Event> {
    let typed = header.prov == provenance::SYSCALL || header.prov == provenance::URING;
    let clean = |bytes: &[u8]| if typed { normal(&text(bytes)) } else { text(bytes) };
    let in_fs = file.bits & flag::PATH_IN_FS != 0;
    let found = in_fs.then(|| mounts::resolve(header.tgid, file.dev, &text(path))).flatten();
    let cut = file.bits & flag::PATH_CUT != 0 || in_fs && found.is_none();
    let disk = event::SessionDisk {
        session: context.session.clone(),
        pid: header.tgid,
        program,
        op: name(file.op),
        path: found.unwrap_or_else(|| clean(path)),
        // What a symbolic link says, or what is mounted, is no path of ours.
        target_path: match file.op {
            file::SYMLINK | file::MOUNT | file::SETXATTR | file::REMOVEXATTR => text(other_path),
            _ => clean(other_path),
        },
        flags: file.flags,
        mode: file.mode & 0o7777,
        file: file_identity(file.dev, file.ino, file.nlink),
        times: file.times,
        prov: prov(header.prov),
        path_cut: cut,
        return_code: file.result,
    };
    let delegated = delegation::by_file(&disk);
    // Where the kernel is not asked before, this is how it is known.
    let reached = if header.prov == provenance::LSM { None } else { other::memory(&disk) };
    std::iter::once(disk.into()).chain(delegated).chain(reached).collect()
}

fn name(op: u32) -> String {
    let name = match op {
        file::OPEN => "open",
        file::CREATE => "create",
        file::WRITE => "write",
        file::TRUNCATE => "truncate",
        file::UNLINK => "unlink",
        file::RMDIR => "rmdir",
        file::RENAME => "rename",
        file::LINK => "link",
        file::SYMLINK => "symlink",
        file::MKDIR => "mkdir",
        file::MKNOD => "mknod",
        file::CHMOD => "chmod",
        file::CHOWN => "chown",
        file::SETXATTR => "setxattr",
        file::REMOVEXATTR => "removexattr",
        file::SETFLAGS => "setflags",
        file::MOUNT => "mount",
        file::UMOUNT => "umount",
        file::PIVOT_ROOT => "pivot_root",
        file::CHROOT => "chroot",
        file::MAP_EXEC => "map_exec",
        file::RECEIVE => "receive",
        other => return other.to_string(),
    };
    name.to_owned()
}

/// Without `.`, `..` and doubled slashes, as far as the text says.
fn normal(path: &str) -> String {
    if !path.starts_with('/') {
        return path.to_owned();
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_typed_are_made_plain() {
        for (typed, plain) in [
            ("/root/../etc//./passwd", "/etc/passwd"),
            ("/", "/"),
            ("/..", "/"),
            ("/a/b/", "/a/b"),
            ("memfd:x", "memfd:x"),
        ] {
            assert_eq!(normal(typed), plain);
        }
    }
}
