//! What is mounted where, by proc_pid_mountinfo(5): for paths that the kernel programs know only within their file system, and
//! for what kind of file system a file is on.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use crate::lock;
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
    let mut tables = lock(&TABLES);
    if tables.since.elapsed() > KEPT {
        *tables = Tables::new();
    }
    // The process may be over.
    [pid.to_string().as_str(), "self"].into_iter().find_map(|process| {
        let process = Path::new("/proc").join(process);
        let namespace = fs::read_link(process.join("ns/mnt")).ok()?;
        let known = tables.by_namespace.get(&namespace).map(Arc::clone);
        known.and_then(|table| find(&table, dev, path)).or_else(|| {
            let table = tables.read(namespace, &process.join("mountinfo"))?;
            find(&table, dev, path)
        })
    })
}

/// The tables that were read of late, by the namespace. A session makes namespaces and mounts as it likes, and has them
/// asked for as often: so many are read in a while and no more, and of none more than so much.
struct Tables {
    since: Instant,
    read: u32,
    by_namespace: HashMap<PathBuf, Arc<str>>,
}

static TABLES: LazyLock<Mutex<Tables>> = LazyLock::new(|| Mutex::new(Tables::new()));

impl Tables {
    fn new() -> Self {
        Self { since: Instant::now(), read: 0, by_namespace: HashMap::new() }
    }

    fn read(&mut self, namespace: PathBuf, table: &Path) -> Option<Arc<str>> {
        if self.read >= READ_MAX {
            return None;
        }
        self.read += 1;
        let mut bytes = Vec::new();
        File::open(table).ok()?.take(TABLE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        // Somebody may have mounted something where the name is no text.
        let table: Arc<str> = text(&bytes).into();
        self.by_namespace.insert(namespace, Arc::clone(&table));
        Some(table)
    }
}

const KEPT: Duration = Duration::from_millis(200);
/// In that time. The longest takes 6 ms.
const READ_MAX: u32 = 4;
/// Some 4,000 mounts.
const TABLE_BYTES_MAX: u64 = 256 << 10;

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
    fn only_so_many_tables_are_read_in_a_while() {
        let mut tables = Tables::new();
        let mut read = |number: u32| {
            tables.read(format!("mnt:[{number}]").into(), Path::new("/proc/self/mountinfo"))
        };
        assert!((0..READ_MAX).all(|number| read(number).is_some_and(|table| !table.is_empty())));
        assert!(read(READ_MAX).is_none());
    }

    #[test]
    fn paths_are_found_where_they_are_mounted() {
        assert_eq!(find(TABLE, 5, "/a").as_deref(), Some("/tmp/my room/a"));
        assert_eq!(find(TABLE, 8 << 20 | 1, "/etc/passwd").as_deref(), Some("/etc/passwd"));
        assert_eq!(find(TABLE, 8 << 20 | 1, "/srv/data/x").as_deref(), Some("/data/x"));
        assert_eq!(find(TABLE, 9, "/a"), None);
    }
}
