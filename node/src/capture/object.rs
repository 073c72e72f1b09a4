//! The kernel programs in their object: loaded one by one, since a kernel that refuses one may take the others, and what
//! came of each. Probing is loading: what a kernel says of itself proves nothing.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};

use aya::maps::{HashMap, Map, MapData, RingBuf};
use aya::programs::Program;
use aya::{Btf, Ebpf, EbpfLoader};
use ebpf_abi::Counts;
use zerocopy::{FromBytes as _, IntoBytes as _};

/// Built by `cargo xtask ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/capture.bpf.o");

/// Why nothing can be captured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("the kernel does not describe itself (BTF)")]
    Btf(#[source] aya::BtfError),
    #[error("the kernel takes no maps or programs of ours")]
    Ebpf(#[from] aya::EbpfError),
    #[error("the kernel refuses {0}, without which nothing can be told")]
    Essential(&'static str, #[source] Refusal),
    #[error("a map cannot be used")]
    Map(#[from] aya::maps::MapError),
    #[error("the object lacks {0}")]
    Missing(&'static str),
}

/// Why a kernel does not take a program.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(String);

/// Loaded and attached, until it is dropped.
#[derive(Debug)]
pub(crate) struct Object {
    /// What came of each program, by name.
    pub(crate) coverage: BTreeMap<String, Result<(), Refusal>>,
    pub(crate) sessions: Sessions,
    marks: Map,
    /// Holds programs and links.
    _ebpf: Ebpf,
}

/// The kernel's counts by session.
#[derive(Debug)]
pub(crate) struct Sessions(HashMap<MapData, u64, Words>);

/// [`Counts`] as the map's type: words, for which there are no bytes between.
type Words = [u64; size_of::<Counts>() / size_of::<u64>()];

impl Sessions {
    /// One task lives: the one that will be marked.
    pub(crate) fn insert(&mut self, session: u64) -> io::Result<()> {
        let counts = Counts { tasks: 1, ..Counts::default() };
        let words = Words::read_from_bytes(counts.as_bytes()).unwrap_or_default();
        self.0.insert(session, words, 0).map_err(io::Error::other)
    }

    pub(crate) fn counts(&self, session: u64) -> Option<Counts> {
        let words = self.0.get(&session, 0).ok()?;
        Counts::read_from_bytes(words.as_bytes()).ok()
    }

    pub(crate) fn remove(&mut self, session: u64) {
        if let Err(error) = self.0.remove(&session) {
            tracing::debug!(%error, session, "a session's counts stay");
        }
    }
}

impl Object {
    /// Loads everything that the kernel takes; the ring of control records beside it.
    ///
    /// # Errors
    /// The kernel takes not even what is essential.
    pub(crate) fn load() -> Result<(Self, RingBuf<MapData>), LoadError> {
        let btf = Btf::from_sys_fs().map_err(LoadError::Btf)?;
        // Task storage, of which aya knows only that it is a map.
        let mut ebpf = EbpfLoader::new().btf(Some(&btf)).allow_unsupported_maps().load(OBJECT)?;
        let coverage = attach_each(&mut ebpf, &btf);
        for name in ESSENTIAL {
            if let Some(Err(refusal)) = coverage.get(name) {
                return Err(LoadError::Essential(name, refusal.clone()));
            }
        }
        let mut take = |name| ebpf.take_map(name).ok_or(LoadError::Missing(name));
        let ring = RingBuf::try_from(take("control")?)?;
        let sessions = Sessions(HashMap::try_from(take("sessions")?)?);
        let marks = take("marks")?;
        Ok((Self { coverage, sessions, marks, _ebpf: ebpf }, ring))
    }

    /// Where tasks are marked; lives as long as this does.
    pub(crate) fn marks(&self) -> Option<RawFd> {
        let Map::Unsupported(data) = &self.marks else { return None };
        Some(data.fd().as_fd().as_raw_fd())
    }

    /// Tier A: the kernel asks before things happen.
    pub(crate) fn has_lsm(&self) -> bool {
        matches!(self.coverage.get("task_alloc"), Some(Ok(())))
    }
}

/// Programs are named for their hooks.
fn attach_each(ebpf: &mut Ebpf, btf: &Btf) -> BTreeMap<String, Result<(), Refusal>> {
    let attach = |(name, program): (&str, &mut Program)| {
        let done = if let Program::BtfTracePoint(hook) = program {
            hook.load(name, btf).and_then(|()| hook.attach()).map(drop)
        } else if let Program::Lsm(hook) = program {
            hook.load(name, btf).and_then(|()| hook.attach()).map(drop)
        } else {
            return (name.to_owned(), Err(Refusal("of an unknown type".to_owned())));
        };
        (name.to_owned(), done.map_err(|error| Refusal(reason(&error))))
    };
    ebpf.programs_mut().map(attach).collect()
}

/// The error and what it came from, in a line.
fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    // What follows is the verifier's, in many lines.
    let (line, _) = text.split_once("Verifier output").unwrap_or((&text, ""));
    line.trim_end_matches(['.', ' ']).to_owned()
}

/// Without these a session's processes are not known.
const ESSENTIAL: [&str; 3] = ["sched_process_exec", "sched_process_exit", "task_newtask"];
