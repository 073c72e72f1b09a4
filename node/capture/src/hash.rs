//! SHA-256 of the programs that sessions execute, by name no sooner than they run: a file that runs cannot be written to.
//! What is known of a file is remembered as long as its size and times stay.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use proto::event::{Body as Event, Happened};
use rustix::fs::fstatfs;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::clock::Started;
use crate::lock;

/// A file as it was: device, inode, size, times of change in seconds and nanoseconds.
type Version = (u64, u64, u64, i64, i64, i64, i64);

static KNOWN: LazyLock<Mutex<HashMap<Version, Arc<str>>>> = LazyLock::new(Mutex::default);

/// Fills in the hashes of programs, of which is given when they were executed (nanoseconds since the machine's start); leaves
/// those empty whose file is gone, is another one, has changed since, is too long, or is not on a disk of the kernel's.
pub(crate) async fn fill(events: &mut [Happened], executed: &[(usize, u64)]) {
    let mut asked = Vec::new();
    for (at, when) in executed.iter().copied() {
        if let Some(Event::SessionCommand(command)) = events.get(at).map(|event| &event.body)
            && command.return_code == 0
            && let Some(ino) = inode(&command.file)
        {
            asked.push((at, command.pid, command.path.clone(), Executed { ino, when }));
        }
    }
    if asked.is_empty() {
        return;
    }
    // A file system may be a program of the session's, which never answers.
    let Ok(Ok(permit)) = timeout(HASH_WITHIN, READERS.acquire()).await else { return };
    let hashes = spawn_blocking(move || {
        let _permit = permit;
        let (started, began) = (Started::look(), Instant::now());
        let of_one = |(at, pid, path, mut executed): (_, _, String, Executed)| {
            executed.when = started.and(executed.when);
            (at, of_program(pid, &path, &executed))
        };
        let in_time = |_: &_| began.elapsed() < HASH_WITHIN;
        asked.into_iter().take_while(in_time).map(of_one).collect::<Vec<_>>()
    });
    let Ok(Ok(hashes)) = timeout(HASH_WITHIN, hashes).await else { return };
    for (at, hash) in hashes {
        let event = events.get_mut(at).map(|event| &mut event.body);
        if let (Some(Event::SessionCommand(command)), Some(hash)) = (event, hash) {
            command.sha256 = hash.to_string();
        }
    }
}

/// What was executed.
struct Executed {
    ino: u64,
    /// Nanoseconds: since the machine's start, then since 1970.
    when: u64,
}

/// From `major:minor:inode:links`.
fn inode(file: &str) -> Option<u64> {
    file.split(':').nth(2)?.parse().ok()
}

fn of_program(pid: u32, path: &str, executed: &Executed) -> Option<Arc<str>> {
    // What runs, also where no name leads to it; by its name, where the process is over or runs something else.
    [format!("/proc/{pid}/exe"), path.to_owned()].iter().find_map(|path| of_file(path, executed))
}

fn of_file(path: &str, executed: &Executed) -> Option<Arc<str>> {
    // Neither a pipe of that name nor a file system of somebody's must hold us up: it is looked at before it is opened.
    let there = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).ok()?;
    if NOT_THE_KERNELS.contains(&fstatfs(&there).ok()?.f_type) {
        return None;
    }
    let found = there.metadata().ok()?;
    if found.ino() != executed.ino || !found.is_file() || found.len() > BYTES_MAX {
        return None;
    }
    // Written to since: what ran is not known any more. The kernel's time of files is behind by up to a tick.
    let changed = found.ctime().saturating_mul(1_000_000_000).saturating_add(found.ctime_nsec());
    if u64::try_from(changed).map_or(true, |changed| changed > executed.when) {
        return None;
    }
    let version = version(&found);
    if let Some(known) = lock(&KNOWN).get(&version) {
        return Some(Arc::clone(known));
    }
    let file = File::open(format!("/proc/self/fd/{}", there.as_raw_fd())).ok()?;
    let hash: Arc<str> = sha256(&file)?.into();
    if self::version(&file.metadata().ok()?) != version {
        return None;
    }
    let mut known = lock(&KNOWN);
    if known.len() >= KNOWN_MAX {
        known.clear();
    }
    known.insert(version, Arc::clone(&hash));
    Some(hash)
}

fn version(file: &Metadata) -> Version {
    let (changed, changed_ns) = (file.ctime(), file.ctime_nsec());
    (file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec(), changed, changed_ns)
}

fn sha256(mut file: &File) -> Option<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer).ok()?;
        if count == 0 {
            return Some(hex::encode(hash.finalize()));
        }
        hash.update(buffer.get(..count)?);
    }
}

/// A longer program has no hash: reading it takes a second.
const BYTES_MAX: u64 = 512 << 20;
/// What takes longer has none either.
const HASH_WITHIN: Duration = Duration::from_secs(2);
/// So many threads read, of all sessions: programs that are changed again and again do not keep the machine busy.
static READERS: Semaphore = Semaphore::const_new(2);
/// File systems whose files another program or machine gives: FUSE, NFS, 9P, SMB, Ceph, AFS.
const NOT_THE_KERNELS: [i64; 7] =
    [0x6573_5546, 0x6969, 0x0102_1997, 0xfe53_4d42, 0xff53_4d42, 0x00c3_6400, 0x6b41_4653];
/// More than a machine has programs.
const KNOWN_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_hashed_and_another_of_its_name_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, "abc").unwrap();
        let ino = std::fs::metadata(&path).unwrap().ino();
        let path = path.to_str().unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let now = || {
            let since = std::time::UNIX_EPOCH.elapsed().unwrap();
            u64::try_from(since.as_nanos()).unwrap()
        };
        let then = Executed { ino, when: now() };
        assert_eq!(of_file(path, &then).as_deref(), Some(abc));
        assert_eq!(of_file(path, &then).as_deref(), Some(abc));
        assert_eq!(of_file(path, &Executed { ino: ino + 1, when: now() }), None);
        assert_eq!(of_file("/no/such", &then), None);
        // Something else ran then.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(path, "something else").unwrap();
        assert_eq!(of_file(path, &then), None);
    }

    #[test]
    fn the_inode_is_read() {
        assert_eq!(inode("8:1:131090:1"), Some(131_090));
        assert_eq!(inode(""), None);
    }
}
