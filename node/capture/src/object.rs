//! The kernel programs in their object: loaded one by one, since a kernel that refuses one may take the others, and what
//! came of each. Probing is loading: what a kernel says of itself proves nothing.
//!
//! - [`replace`]: ours in the place of those of a node before us

mod replace;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::sync::Mutex;

use aya::maps::{Array, HashMap, Map, MapData, RingBuf};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{Program, ProgramError, ProgramFd, ProgramInfo, loaded_programs};
use aya::{Btf, Ebpf, EbpfLoader};
use ebpf_abi::{Credit, Session};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::lock;
use crate::pins::{LINK, Manifest, Pins};
use crate::rules::enforcer::{self, Enforcer};

/// Built by `cargo xtask ebpf`.
pub static PROGRAMS: &[u8] = aya::include_bytes_aligned!("../../../ebpf/capture.bpf.o");

/// Why nothing can be captured.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the kernel does not describe itself (BTF)")]
    Btf(#[source] aya::BtfError),
    #[error("the kernel takes no maps or programs of ours")]
    Ebpf(#[from] aya::EbpfError),
    #[error("the kernel refuses {0}, without which nothing can be told")]
    Essential(&'static str, #[source] Refusal),
    #[error("a map cannot be used")]
    Map(#[from] aya::maps::MapError),
    #[error("a program cannot be used")]
    Program(#[from] ProgramError),
    #[error("what outlives a node cannot be kept")]
    Pins(#[source] io::Error),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("no random number")]
    Seed(#[source] io::Error),
    #[error("no thread to read what the kernel tells")]
    Thread(#[source] io::Error),
}

/// Why a kernel does not take a program.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

/// Loaded and attached, until it is dropped.
#[derive(Debug)]
pub(crate) struct Object {
    /// What came of each program, by name.
    pub(crate) coverage: BTreeMap<String, Result<(), Refusal>>,
    /// They are of a node before us, and others than ours.
    pub(crate) is_behind: bool,
    /// Holds programs and links, where they are not pinned.
    _ebpf: Option<Ebpf>,
    /// Those that the kernel passes over where one is running on the CPU already.
    passed_over: Vec<ProgramFd>,
    /// How often a program could not find out whose a task is.
    unsure: Map,
    /// See [`is_asked`].
    asked: Map,
    /// Where they are: a session may remove a pin, and the program goes on.
    _links: Vec<PinnedLink>,
}

/// What the node and the kernel programs share.
#[derive(Debug)]
pub(crate) struct Maps {
    marks: Map,
    /// What sessions must not do.
    pub(crate) rules: Enforcer,
    sessions: Mutex<Words<Session>>,
    credits: Mutex<Words<Credit>>,
    our_programs: Mutex<HashMap<MapData, u32, u32>>,
}

/// A map by the number of a session. aya takes values of plain types only: words, between which there are no bytes.
#[derive(Debug)]
struct Words<T: Value>(HashMap<MapData, u64, T::Words>);

trait Value: FromBytes + IntoBytes + Immutable + Default {
    type Words: aya::Pod + std::fmt::Debug + FromBytes + IntoBytes + Immutable;
}
impl Value for Session {
    type Words = [u64; size_of::<Self>() / size_of::<u64>()];
}
impl Value for Credit {
    type Words = [u64; size_of::<Self>() / size_of::<u64>()];
}

impl<T: Value> Words<T> {
    fn get(&self, number: u64) -> Option<T> {
        T::read_from_bytes(self.0.get(&number, 0).ok()?.as_bytes()).ok()
    }

    fn put(&mut self, number: u64, value: &T) -> io::Result<()> {
        let words =
            T::Words::read_from_bytes(value.as_bytes()).map_err(|_| io::ErrorKind::InvalidData)?;
        self.0.insert(number, words, 0).map_err(io::Error::other)
    }

    fn remove(&mut self, number: u64) {
        if let Err(error) = self.0.remove(&number) {
            tracing::debug!(%error, number, "an entry of a session stays");
        }
    }

    fn retain(&mut self, has: &dyn Fn(u64) -> bool) {
        let numbers: Vec<u64> = self.0.keys().flatten().collect();
        numbers.into_iter().filter(|number| !has(*number)).for_each(|number| self.remove(number));
    }
}

/// By class.
pub(crate) type Rings = Vec<RingBuf<MapData>>;
/// Gives a map by its name.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&'static str) -> Result<Map, LoadError>;

impl Maps {
    fn take(take: Take<'_>) -> Result<(Self, Rings), LoadError> {
        let rules = Enforcer::take(take)?;
        let maps = Self {
            rules,
            marks: take("marks")?,
            sessions: Mutex::new(Words(HashMap::try_from(take("sessions")?)?)),
            credits: Mutex::new(Words(HashMap::try_from(take("credits")?)?)),
            our_programs: Mutex::new(HashMap::try_from(take("our_programs")?)?),
        };
        if !matches!(maps.marks, Map::Unsupported(_)) {
            return Err(LoadError::Missing("task storage"));
        }
        let mut rings = Vec::new();
        for name in RINGS {
            rings.push(RingBuf::try_from(take(name)?)?);
        }
        Ok((maps, rings))
    }

    /// Where tasks are marked; lives as long as this does.
    pub(crate) fn marks(&self) -> RawFd {
        let Map::Unsupported(data) = &self.marks else {
            // Never loaded so, see `Object::load`: a number that no call takes.
            return -1;
        };
        data.fd().as_fd().as_raw_fd()
    }

    /// A new session.
    pub(crate) fn insert(&self, number: u64, session: &Session) -> io::Result<()> {
        lock(&self.credits).put(number, &Credit::default())?;
        lock(&self.sessions).put(number, session)
    }

    /// One that was there before.
    pub(crate) fn restore(&self, number: u64, session: &Session) -> io::Result<()> {
        lock(&self.sessions).put(number, session)
    }

    pub(crate) fn counts(&self, number: u64) -> Option<Session> {
        lock(&self.sessions).get(number)
    }

    /// What was done with.
    pub(crate) fn credit_of(&self, number: u64) -> Credit {
        lock(&self.credits).get(number).unwrap_or_default()
    }

    /// What of its records is done with, all in all.
    pub(crate) fn credit(&self, number: u64, credit: Credit) {
        if let Err(error) = lock(&self.credits).put(number, &credit) {
            tracing::warn!(%error, number, "the kernel cannot be told what of a session is done with");
        }
    }

    /// Removes what is of other sessions than these.
    pub(crate) fn retain(&self, has: &dyn Fn(u64) -> bool) {
        lock(&self.sessions).retain(has);
        lock(&self.credits).retain(has);
    }

    pub(crate) fn remove(&self, number: u64) {
        self.rules.release(number);
        lock(&self.sessions).remove(number);
        lock(&self.credits).remove(number);
    }
}

impl Object {
    /// Loads everything that the kernel takes, or finds what a node before us has left; the rings beside it.
    ///
    /// # Errors
    /// The kernel takes not even what is essential.
    pub(crate) fn load(
        programs: &[u8],
        pins: Option<&Pins>,
    ) -> Result<(Self, Maps, Rings), LoadError> {
        let object = hex::encode(Sha256::digest(programs));
        if let Some(pins) = pins {
            if let Some(manifest) = pins.kept()
                && (manifest.object == object || replace::is_possible(programs, &manifest))
            {
                let is_behind = manifest.object != object;
                match Self::find(pins, manifest, is_behind) {
                    Ok(found) => return Ok(found),
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "what a node before this one left cannot be used");
                    }
                }
            }
            pins.clear().map_err(LoadError::Pins)?;
        }
        let btf = Btf::from_sys_fs().map_err(LoadError::Btf)?;
        // Task storage, of which aya knows only that it is a map.
        let seed = seed()?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf)).allow_unsupported_maps().override_global(SEED, &seed, true);
        let mut ebpf = loader.load(programs)?;
        if let Some(pins) = pins {
            for (name, map) in ebpf.maps() {
                // Sections of the object's data are no maps that anybody asks for.
                if !name.starts_with('.') {
                    pins.keep_map(name, map).map_err(LoadError::Pins)?;
                }
            }
        }
        let mut links = Vec::new();
        let place = pins.map(|pins| Place { pins, prefix: LINK });
        let coverage = attach_all(&mut ebpf, &btf, place, &mut links);
        has_essential(&coverage)?;
        name_ours(&mut ebpf)?;
        let mut take = |name| ebpf.take_map(name).ok_or(LoadError::Missing(name));
        let (maps, rings) = Maps::take(&mut take)?;
        let (unsure, asked) = (take("unsure")?, take("asked")?);
        if let Some(pins) = pins {
            remember(pins, programs, &coverage)?;
        }
        let passed_over = may_be_passed_over(&maps)?;
        let (is_behind, _ebpf, _links) = (false, Some(ebpf), links);
        let object = Self { coverage, is_behind, passed_over, unsure, asked, _ebpf, _links };
        Ok((object, maps, rings))
    }

    /// From the pins: the links hold the programs.
    fn find(
        pins: &Pins,
        manifest: Manifest,
        is_behind: bool,
    ) -> Result<(Self, Maps, Rings), LoadError> {
        let mut take = |name: &'static str| Ok(Map::from_map_data(pins.map(name)?)?);
        let (maps, rings) = Maps::take(&mut take)?;
        let (unsure, asked) = (take("unsure")?, take("asked")?);
        let done = |refused: Option<Refusal>| refused.map_or(Ok(()), Err);
        let coverage = manifest.coverage.into_iter().map(|(name, refused)| (name, done(refused)));
        let _links = pins.links().map_err(LoadError::Pins)?;
        let passed_over = may_be_passed_over(&maps)?;
        let (coverage, _ebpf) = (coverage.collect(), None);
        let object = Self { coverage, is_behind, passed_over, unsure, asked, _ebpf, _links };
        Ok((object, maps, rings))
    }

    /// How often the kernel did not run a program of ours, all in all, since the same one was preempted on that CPU; or did
    /// not say whose a task is, for the like reason.
    pub(crate) fn passed_over(&self) -> u64 {
        let misses = |program: &ProgramFd| {
            let info = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
            let text = std::fs::read_to_string(info).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?;
            line.trim().parse::<u64>().ok()
        };
        let unsure = Array::<_, u64>::try_from(&self.unsure).and_then(|count| count.get(&0, 0));
        self.passed_over.iter().filter_map(misses).sum::<u64>() + unsure.unwrap_or_default()
    }

    /// Whether the kernel still runs our LSM programs. Root can turn off what they hang on, and nothing says so.
    pub(crate) fn is_asked(&mut self) -> bool {
        let Ok(mut asked) = Array::<_, u32>::try_from(&mut self.asked) else { return false };
        asked.set(0, 0, 0).is_ok() && asked.get(&0, 0).is_ok_and(|once| once != 0)
    }

    /// Tier A: the kernel asks before things happen.
    pub(crate) fn has_lsm(&self) -> bool {
        has_lsm(&self.coverage)
    }
}

fn has_essential(coverage: &BTreeMap<String, Result<(), Refusal>>) -> Result<(), LoadError> {
    for name in ESSENTIAL {
        if let Some(Err(refusal)) = coverage.get(name) {
            return Err(LoadError::Essential(name, refusal.clone()));
        }
    }
    Ok(())
}

/// The name of [`seed`] in the programs.
const SEED: &str = "fold_seed";

/// For digests, of which nobody is to find two that are the same.
fn seed() -> Result<u64, LoadError> {
    let mut bytes = [0; 8];
    // So few are given whole, or not at all.
    let given = getrandom(&mut bytes, GetRandomFlags::empty());
    given.map_err(|error| LoadError::Seed(error.into()))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// For a node after us.
fn remember(
    pins: &Pins,
    programs: &[u8],
    coverage: &BTreeMap<String, Result<(), Refusal>>,
) -> Result<(), LoadError> {
    let refused = |done: &Result<(), Refusal>| done.as_ref().err().cloned();
    let coverage = coverage.iter().map(|(name, done)| (name.clone(), refused(done)));
    let manifest = Manifest {
        object: hex::encode(Sha256::digest(programs)),
        layout: replace::layout(programs)?,
        coverage: coverage.collect(),
    };
    pins.keep(&manifest).map_err(LoadError::Pins)
}

/// Where links are kept, and with what their names begin.
#[derive(Debug, Clone, Copy)]
struct Place<'p> {
    pins: &'p Pins,
    prefix: &'static str,
}

/// Our programs that the kernel may pass over: none of LSM from Linux 6.2 on.
fn may_be_passed_over(maps: &Maps) -> Result<Vec<ProgramFd>, LoadError> {
    let lsm_too = enforcer::is_before(&release(), (6, 2));
    let mut found = Vec::new();
    let ours = lock(&maps.our_programs);
    for info in loaded_programs() {
        // Of others', some may be gone by now.
        let Ok(info) = info else { continue };
        if ours.get(&info.id(), 0).is_ok() && (lsm_too || info.program_type() as u32 == TRACING) {
            found.push(info.fd()?);
        }
    }
    Ok(found)
}

/// `BPF_PROG_TYPE_TRACING` of linux/bpf.h.
const TRACING: u32 = 26;

/// Of the kernel that runs, as uname(1) has it.
pub(crate) fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// Tells the programs which maps and programs are ours, and no others: who takes hold of them in a session tampers.
fn name_ours(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let infos: Vec<_> = ebpf.programs().filter_map(|(_, program)| program.info().ok()).collect();
    let programs: Vec<u32> = infos.iter().map(ProgramInfo::id).collect();
    let used = infos.iter().filter_map(|info| info.map_ids().ok().flatten());
    let maps: Vec<u32> = used.flatten().collect();
    for (name, ids) in [("our_maps", maps), ("our_programs", programs)] {
        let map = ebpf.map_mut(name).ok_or(LoadError::Missing(name))?;
        let mut map = HashMap::<_, u32, u32>::try_from(map)?;
        for id in &ids {
            map.insert(id, 1, 0)?;
        }
        let before: Vec<u32> = map.keys().flatten().filter(|id| !ids.contains(id)).collect();
        for id in before {
            map.remove(&id)?;
        }
    }
    Ok(())
}

/// What came of the programs: first those of LSM, then those that go with them, or stand in for them where they are refused.
fn attach_all(
    ebpf: &mut Ebpf,
    btf: &Btf,
    place: Option<Place<'_>>,
    links: &mut Vec<PinnedLink>,
) -> BTreeMap<String, Result<(), Refusal>> {
    let mut coverage = BTreeMap::new();
    // First the one that tells whether programs of its kind run.
    let taken = ebpf.program_mut(ASKED).map(|program| attach(ASKED, program, btf, place, links));
    let never_run = matches!(taken, Some(Ok(()))) && !is_asked(ebpf);
    for (name, program) in ebpf.programs_mut().filter(|(_, program)| of_lsm(program)) {
        let done = match &taken {
            _ if never_run => Err(Refusal(NEVER_ASKED.to_owned())),
            Some(taken) if name == ASKED => taken.clone(),
            Some(_) | None => attach(name, program, btf, place, links),
        };
        coverage.insert(name.to_owned(), done);
    }
    let tier_a = has_lsm(&coverage);
    for (name, program) in ebpf.programs_mut().filter(|(_, program)| !of_lsm(program)) {
        let done = match (tier_a, program) {
            // Those that stand in are not worth a word where nobody needs them.
            (true, _) if stands_in(name) => continue,
            (false, Program::FExit(_)) => Err(Refusal(TOLD_ALREADY.to_owned())),
            (true | false, program) => attach(name, program, btf, place, links),
        };
        coverage.insert(name.to_owned(), done);
    }
    coverage
}

fn of_lsm(program: &Program) -> bool {
    matches!(program, Program::Lsm(_))
}

/// Whether a program is for kernels without LSM programs only.
pub fn stands_in(program: &str) -> bool {
    STAND_INS.contains(&program)
}

/// Whether LSM programs run: where `bpf` is not among the kernel's `lsm=`, they are attached and never asked. Any call of
/// bpf(2) asks, such as the one that reads the answer.
fn is_asked(ebpf: &Ebpf) -> bool {
    let Some(Ok(asked)) = ebpf.map("asked").map(Array::<_, u32>::try_from) else { return false };
    // The first reading may be the first call.
    (0..2).any(|_| asked.get(&0, 0).is_ok_and(|once| once != 0))
}

fn has_lsm(coverage: &BTreeMap<String, Result<(), Refusal>>) -> bool {
    matches!(coverage.get("task_alloc"), Some(Ok(())))
}

fn attach(
    name: &str,
    program: &mut Program,
    btf: &Btf,
    place: Option<Place<'_>>,
    links: &mut Vec<PinnedLink>,
) -> Result<(), Refusal> {
    let target = hook_of(name);
    let refusal = |error: ProgramError| Refusal(reason(&error));
    macro_rules! attach {
        ($hook:expr) => {{
            $hook.load(target, btf).map_err(refusal)?;
            let link = $hook.attach().map_err(refusal)?;
            let Some(Place { pins, prefix }) = place else { return Ok(()) };
            let link = $hook.take_link(link).map_err(refusal)?;
            let link = FdLink::try_from(link).map_err(|error| Refusal(error.to_string()))?;
            let link = pins.keep_link(prefix, name, link);
            links.push(link.map_err(|error| Refusal(reason(&error)))?);
            Ok(())
        }};
    }
    if let Program::BtfTracePoint(hook) = program {
        attach!(hook)
    } else if let Program::Lsm(hook) = program {
        attach!(hook)
    } else if let Program::FExit(hook) = program {
        attach!(hook)
    } else {
        Err(Refusal("of an unknown type".to_owned()))
    }
}

/// Programs are named for their hooks; where there are several of one, for what they do there, too: before it, or after `__`.
pub fn hook_of(program: &str) -> &str {
    let hook = PREFIXES.iter().find_map(|prefix| program.strip_prefix(prefix)).unwrap_or(program);
    // Of the kernel's own functions, underscores are the beginning.
    match hook.split_once("__") {
        Some((hook, _)) if !hook.is_empty() => hook,
        _ => hook,
    }
}

/// For kernels without LSM programs: at the end of each system call of everybody, which costs.
const STAND_INS: [&str; 4] =
    ["io_uring_submit_req", "io_uring_submit_sqe", "signal_generate", "sys_exit"];
/// The LSM program that tells whether such programs run.
const ASKED: &str = "bpf";
const NEVER_ASKED: &str = "it would never run: boot with `bpf` added to the kernel's lsm=";
const TOLD_ALREADY: &str = "not needed: the ends of all system calls are told of";
const PREFIXES: [&str; 2] = ["delegate_", "enforce_"];

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

/// By class.
const RINGS: [&str; 3] = ["control", "files", "network"];
/// Without these a session's processes are not known.
const ESSENTIAL: [&str; 3] = ["sched_process_exec", "sched_process_exit", "task_newtask"];
