//! Where file systems are mounted, for paths that the kernel programs know only within theirs.

use std::fs;

use super::text;

/// A path within the file system of a device, as the process sees it, or we; nothing where it is mounted nowhere.
pub(super) fn resolve(pid: u32, dev: u64, path: &str) -> Option<String> {
    let of = |table: String| {
        // Somebody may have mounted something where the name is no text.
        let table = text(&fs::read(table).ok()?);
        find(&table, dev, path)
    };
    // The process may be over.
    of(format!("/proc/{pid}/mountinfo")).or_else(|| of("/proc/self/mountinfo".to_owned()))
}

/// Of proc_pid_mountinfo(5): the device is the third word, what of the file system is mounted the fourth, where the fifth.
fn find(table: &str, dev: u64, path: &str) -> Option<String> {
    let device = format!("{}:{}", dev >> 20, dev & 0xf_ffff);
    // What was mounted last hides the others.
    table.lines().rev().find_map(|line| {
        let mut words = line.split(' ').skip(2);
        let (found, root, at) = (words.next()?, words.next()?, words.next()?);
        let rest = path.strip_prefix(root.trim_end_matches('/'))?;
        if found != device || !(rest.is_empty() || rest.starts_with('/')) {
            return None;
        }
        Some(format!("{}{rest}", unescape(at).trim_end_matches('/')))
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
