//! SHA-256 of the programs that sessions execute, by name no sooner than they run: a file that runs cannot be written to.
//! What is known of a file is remembered as long as its size and times stay.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use proto::event::{Body as Event, Happened};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::clock::Started;
use crate::lock;
use crate::mounts::Mount;

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
            && let Some(executed) = Executed::of(&command.file, when)
        {
            asked.push((at, command.pid, command.path.clone(), executed));
        }
    }
    if asked.is_empty() {
        return;
    }
    // A file system may be a program of the session's, which never answers.
    let Ok(Ok(permit)) = timeout(WAIT_MAX, READERS.acquire()).await else { return };
    let hashes = spawn_blocking(move || {
        let _permit = permit;
        let (started, began, mounts) = (Started::look(), Instant::now(), Mounts::look());
        let of_one = |(at, pid, path, mut executed): (_, _, String, Executed)| {
            executed.when = started.and(executed.when);
            (at, of_program(pid, &path, &executed, &mounts))
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
    dev: String,
    ino: u64,
    /// Nanoseconds: since the machine's start, then since 1970.
    when: u64,
}

impl Executed {
    /// `file` is `major:minor:inode:links`.
    fn of(file: &str, when: u64) -> Option<Self> {
        let (dev, ino) = file.rsplit_once(':')?.0.rsplit_once(':')?;
        Some(Self { dev: dev.to_owned(), ino: ino.parse().ok()?, when })
    }
}

/// What is mounted where we are: device and type of file system, by the number of the mount.
struct Mounts(HashMap<String, (String, String)>);

impl Mounts {
    fn look() -> Self {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let of_line = |line| {
            let Mount { id, dev, kind, .. } = Mount::of_line(line)?;
            Some((id.to_owned(), (dev.to_owned(), kind.to_owned())))
        };
        Self(text.lines().filter_map(of_line).collect())
    }

    /// Whether a file is on a device of the kernel's own, and on this one. It itself is not asked: what answers for it may be
    /// a program, which never does.
    fn has(&self, file: &File, dev: &str) -> bool {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()));
        let info = info.unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        let mounted = id.and_then(|id| self.0.get(id.trim()));
        mounted.is_some_and(|(on, kind)| {
            on == dev && !OF_OTHERS.iter().any(|other| kind.starts_with(other))
        })
    }
}

fn of_program(pid: u32, path: &str, executed: &Executed, mounts: &Mounts) -> Option<Arc<str>> {
    let exe = format!("/proc/{pid}/exe");
    // A memfd is mounted nowhere.
    let Some(name) = path.starts_with('/').then_some(path) else {
        return of_file(&open(&exe)?, executed);
    };
    // What runs, also where no name leads to it; by its name, where the process is over or runs something else.
    [&exe, name].into_iter().find_map(|path| {
        let file = open(path)?;
        if mounts.has(&file, &executed.dev) { of_file(&file, executed) } else { None }
    })
}

/// Not to be read: neither a pipe nor a file system of somebody's must hold us up.
fn open(path: &str) -> Option<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).ok()
}

fn of_file(there: &File, executed: &Executed) -> Option<Arc<str>> {
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

/// A longer program has no hash: reading it takes half a second.
const BYTES_MAX: u64 = 256 << 20;
/// What takes longer has none either.
const HASH_WITHIN: Duration = Duration::from_secs(2);
/// So many threads read, of all sessions: programs that are changed again and again do not keep the machine busy, and who does
/// that is not waited for.
static READERS: Semaphore = Semaphore::const_new(2);
const WAIT_MAX: Duration = Duration::from_millis(250);
/// File systems whose files another program or machine gives.
const OF_OTHERS: [&str; 8] = ["9p", "afs", "ceph", "cifs", "fuse", "nfs", "smb", "virtiofs"];
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
        let path = path.to_str().unwrap();
        let ino = fs::metadata(path).unwrap().ino();
        let mounts = Mounts::look();
        let (dev, _) =
            mounts.0.values().find(|(dev, _)| mounts.has(&open(path).unwrap(), dev)).unwrap();
        let of = |path: &str, executed: &Executed| of_program(0, path, executed, &mounts);
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let executed = |ino: u64| {
            let since = std::time::UNIX_EPOCH.elapsed().unwrap();
            let when = since.as_nanos().try_into().unwrap();
            Executed { dev: dev.clone(), ino, when }
        };
        let then = executed(ino);
        assert_eq!(of(path, &then).as_deref(), Some(abc));
        assert_eq!(of(path, &then).as_deref(), Some(abc));
        assert_eq!(of(path, &executed(ino + 1)), None);
        assert_eq!(of(path, &Executed { dev: "0:0".to_owned(), ..executed(ino) }), None);
        assert_eq!(of("/no/such", &then), None);
        // Something else ran then.
        std::thread::sleep(Duration::from_millis(20));
        fs::write(path, "something else").unwrap();
        assert_eq!(of(path, &then), None);
    }

    #[test]
    fn a_file_is_known_by_device_and_inode() {
        let executed = Executed::of("8:1:131090:1", 7).unwrap();
        assert_eq!((executed.dev.as_str(), executed.ino), ("8:1", 131_090));
        assert!(Executed::of("", 0).is_none());
    }
}
