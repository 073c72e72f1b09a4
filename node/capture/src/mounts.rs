//! What is mounted where, by proc_pid_mountinfo(5): for paths that the kernel programs know only within their file system, and
//! for what kind of file system a file is on.

use std::fs;

use crate::translate::text;

/// A line of it.
pub(crate) struct Mount<'a> {
    /// The number of the mount.
    pub(crate) id: &'a str,
    /// `major:minor`.
    pub(crate) dev: &'a str,
    /// What of the file system is mounted, and where; blanks and the like escaped.
    root: &'a str,
    at: &'a str,
    /// The type of file system.
    pub(crate) kind: &'a str,
}

impl<'a> Mount<'a> {
    /// `36 35 98:0 /root /point rw - ext4 /dev/root rw`; before the dash may be more.
    pub(crate) fn of_line(line: &'a str) -> Option<Self> {
        let (mount, source) = line.split_once(" - ")?;
        let mut words = mount.split(' ');
        let (id, dev, root) = (words.next()?, words.nth(1)?, words.next()?);
        Some(Self { id, dev, root, at: words.next()?, kind: source.split(' ').next()? })
    }
}

/// A path within the file system of a device, as the process sees it, or we; nothing where it is mounted nowhere.
pub(crate) fn resolve(pid: u32, dev: u64, path: &str) -> Option<String> {
    let of = |table: String| {
        // Somebody may have mounted something where the name is no text.
        let table = text(&fs::read(table).ok()?);
        find(&table, dev, path)
    };
    // The process may be over.
    of(format!("/proc/{pid}/mountinfo")).or_else(|| of("/proc/self/mountinfo".to_owned()))
}

fn find(table: &str, dev: u64, path: &str) -> Option<String> {
    let device = format!("{}:{}", dev >> 20, dev & 0xf_ffff);
    // What was mounted last hides the others.
    table.lines().rev().filter_map(Mount::of_line).find_map(|mount| {
        let rest = path.strip_prefix(mount.root.trim_end_matches('/'))?;
        if mount.dev != device || !(rest.is_empty() || rest.starts_with('/')) {
            return None;
        }
        Some(format!("{}{rest}", unescape(mount.at).trim_end_matches('/')))
    })
}

/// Blanks and the like are written as three octal digits.
fn unescape(text: &str) -> String {
    ["040", "011", "012", "134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, meant)| text.replace(&format!("\\{code}"), meant))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        30 22 0:5 / /tmp/my\\040room rw - tmpfs tmpfs rw\n\
        31 22 8:1 /srv/data /data rw - ext4 /dev/sda1 rw\n";

    #[test]
    fn paths_are_found_where_they_are_mounted() {
        assert_eq!(find(TABLE, 5, "/a").as_deref(), Some("/tmp/my room/a"));
        assert_eq!(find(TABLE, 8 << 20 | 1, "/etc/passwd").as_deref(), Some("/etc/passwd"));
        assert_eq!(find(TABLE, 8 << 20 | 1, "/srv/data/x").as_deref(), Some("/data/x"));
        assert_eq!(find(TABLE, 9, "/a"), None);
    }
}
