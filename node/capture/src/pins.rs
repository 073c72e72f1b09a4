//! What stays in the kernel while no node runs: programs, links and maps in the BPF file system, so that sessions that go on
//! lose nothing, and beside the node's own data whose they are. The next node goes on from there; one with other programs
//! puts its own in their place when no session runs, or begins anew where records or maps are others.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, MapError};
use aya::programs::links::{FdLink, PinnedLink};
use proto::capture_rules::CaptureRules;
use proto::event;
use proto::id::RoleName;
use rustix::fs::{FlockOperation, flock, statfs};
use rustix::mount::{MountFlags, mount};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::Refusal;

/// Where a node keeps what outlives it.
#[derive(Debug, Clone)]
pub struct Home {
    /// Tells this node from others of the machine.
    pub name: String,
    /// Of the node's data.
    pub folder: PathBuf,
    /// The kernel programs: [`crate::PROGRAMS`], but for tests.
    pub programs: &'static [u8],
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pins {
    /// In the BPF file system.
    folder: PathBuf,
    state: PathBuf,
    /// Two nodes must not read the same rings.
    _lock: File,
}

/// What was loaded.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// SHA-256 of the object.
    pub(crate) object: String,
    /// What another object has to agree with to take its place; a node before this one did not say.
    #[serde(default)]
    pub(crate) layout: String,
    /// Of each program, why it was refused.
    pub(crate) coverage: BTreeMap<String, Option<Refusal>>,
}

/// A session as the next node needs it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) number: u64,
    pub(crate) facts: event::Session,
    pub(crate) classes: u32,
    /// Where its rules come from; a node before this one did not say.
    #[serde(default)]
    pub(crate) roles: Vec<RoleName>,
    pub(crate) rules: Value,
    /// Of the machine's start: after another, nothing of it lives.
    pub(crate) boot: String,
}

/// Tells one start of the machine from another; empty where that cannot be known.
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Pins {
    /// Makes the folders; removes what nodes that are no more have left.
    pub(crate) fn open(home: &Home) -> io::Result<Self> {
        let state = home.folder.clone();
        private_dir(&state)?;
        private_dir(&state.join("sessions"))?;
        let lock = File::create(state.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        mount_bpf_fs()?;
        remove_abandoned();
        let folder = Path::new(BPF_FS).join(format!("{PREFIX}{}", home.name));
        Ok(Self { folder, state, _lock: lock })
    }

    /// What is there.
    pub(crate) fn kept(&self) -> Option<Manifest> {
        let text = fs::read(self.manifest()).ok()?;
        let manifest: Manifest = serde_json::from_slice(&text).ok()?;
        // Somebody was killed while he put programs in the place of others: both are there, or some of both. Or somebody has
        // taken some away.
        let is_torn = !self.named(NEXT).ok()?.is_empty();
        let links = self.named(LINK).ok()?;
        let mut attached = manifest.coverage.iter().filter(|(_, refused)| refused.is_none());
        let is_whole = attached.all(|(name, _)| links.contains_key(name));
        (!is_torn && is_whole).then_some(manifest)
    }

    /// Begins anew.
    pub(crate) fn clear(&self) -> io::Result<()> {
        // First: nothing that is made from now on is what it says.
        match fs::remove_file(self.manifest()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        remove(&self.folder)?;
        private_dir(&self.folder)?;
        std::os::unix::fs::symlink(&self.state, self.folder.join(OWNER))
    }

    /// Nothing goes on: nothing has to stay.
    pub(crate) fn remove(&self) {
        if let Err(error) = remove(&self.folder) {
            tracing::warn!(%error, folder = %self.folder.display(), "programs stay in the kernel");
        }
        drop(fs::remove_file(self.manifest()));
    }

    fn manifest(&self) -> PathBuf {
        self.state.join(MANIFEST)
    }

    pub(crate) fn keep(&self, manifest: &Manifest) -> io::Result<()> {
        self.write(MANIFEST, &serde_json::to_vec(manifest)?)
    }

    pub(crate) fn keep_map(&self, name: &str, map: &Map) -> io::Result<()> {
        map.pin(self.folder.join(name)).map_err(io::Error::other)
    }

    /// To be held: a session may remove the pin.
    pub(crate) fn keep_link(
        &self,
        prefix: &str,
        name: &str,
        link: FdLink,
    ) -> io::Result<PinnedLink> {
        link.pin(self.folder.join(format!("{prefix}{name}"))).map_err(io::Error::other)
    }

    /// Those that were kept.
    pub(crate) fn links(&self) -> io::Result<Vec<PinnedLink>> {
        let paths = self.named(LINK)?.into_values();
        paths.map(|path| PinnedLink::from_pin(path).map_err(io::Error::other)).collect()
    }

    pub(crate) fn remove_links(&self, prefix: &str) -> io::Result<()> {
        self.named(prefix)?.into_values().try_for_each(fs::remove_file)
    }

    pub(crate) fn rename_links(&self, from: &str, to: &str) -> io::Result<()> {
        let names = self.named(from)?.into_iter();
        let mut places = names.map(|(name, path)| (path, self.folder.join(format!("{to}{name}"))));
        places.try_for_each(|(path, place)| fs::rename(path, place))
    }

    /// The maps, by name.
    pub(crate) fn maps(&self) -> io::Result<BTreeMap<String, PathBuf>> {
        let is_map = |name: &str| ![LINK, NEXT, OWNER].iter().any(|other| name.starts_with(other));
        Ok(self.named("")?.into_iter().filter(|(name, _)| is_map(name)).collect())
    }

    /// What has names that begin so, by what follows.
    fn named(&self, prefix: &str) -> io::Result<BTreeMap<String, PathBuf>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if let Some(rest) = entry.file_name().to_string_lossy().strip_prefix(prefix) {
                found.insert(rest.to_owned(), entry.path());
            }
        }
        Ok(found)
    }

    pub(crate) fn map(&self, name: &str) -> Result<MapData, MapError> {
        MapData::from_pin(self.folder.join(name))
    }

    /// Before its first task runs.
    pub(crate) fn remember(&self, session: &Kept) -> io::Result<()> {
        self.write(&file_name(session.number), &serde_json::to_vec(session)?)
    }

    /// Of a session that is remembered: its rules are others now.
    pub(crate) fn remember_rules(&self, number: u64, rules: &CaptureRules) -> io::Result<()> {
        let rules = serde_json::to_value(rules)?;
        let kept: Kept = serde_json::from_slice(&fs::read(self.state.join(file_name(number)))?)?;
        self.remember(&Kept { rules, ..kept })
    }

    pub(crate) fn forget(&self, number: u64) {
        drop(fs::remove_file(self.state.join(file_name(number))));
    }

    /// Those that a node before us watched. What cannot be read is nobody's.
    pub(crate) fn sessions(&self) -> Vec<Kept> {
        let files = fs::read_dir(self.state.join("sessions")).into_iter().flatten().flatten();
        let read = |path: PathBuf| serde_json::from_slice(&fs::read(path).ok()?).ok();
        let is_whole = |path: &PathBuf| path.extension().is_some_and(|end| end == "json");
        files.map(|file| file.path()).filter(is_whole).filter_map(read).collect()
    }

    /// Whole or not at all; after a power cut there is nothing that it belongs to.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (path, new) = (self.state.join(name), self.state.join(format!("{name}.new")));
        fs::write(&new, bytes)?;
        fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        fs::rename(new, path)
    }
}

fn file_name(number: u64) -> String {
    format!("sessions/{number}.json")
}

fn private_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Nodes whose data are gone will not come back for their pins.
fn remove_abandoned() {
    for entry in fs::read_dir(BPF_FS).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let owner = fs::read_link(entry.path().join(OWNER));
        if ours && owner.is_ok_and(|owner| !owner.exists()) {
            drop(remove(&entry.path()));
        }
    }
}

/// The BPF file system, which a machine without systemd may not have mounted.
fn mount_bpf_fs() -> io::Result<()> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    if statfs(BPF_FS)?.f_type == BPF_FS_MAGIC {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", BPF_FS, "bpf", flags, c"mode=700").map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("the BPF file system cannot be mounted on {BPF_FS}: {error}"),
        )
    })
}

const MANIFEST: &str = "manifest.json";
const BPF_FS: &str = "/sys/fs/bpf";
/// Of links in it, beside maps: maps and hooks may be called the same. Without a dot, which this file system refuses.
pub(crate) const LINK: &str = "link_";
/// Of those that are to take their place.
pub(crate) const NEXT: &str = "next_";
/// Of a folder with what a node has loaded.
const PREFIX: &str = "postern-";
/// In it, where the node's data are.
const OWNER: &str = "owner";
