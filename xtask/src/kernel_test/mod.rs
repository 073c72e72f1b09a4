//! `cargo xtask kernel-test`: boots Debian's kernels in qemu and runs the `kernel-tests` program in each. Emulated (TCG),
//! so that it works on every machine and says nothing about speed. What is tested is in `kernel-tests/`.
//!
//! - [`kernels`]: getting kernels from Debian's archive
//! - [`pinned`]: which ones exactly
//! - [`modules`]: what of their modules the tests need
//! - [`initramfs`]: the guest's files
//! - [`guest`]: one boot, and its verdict
//! - [`coverage`]: what the capture saw, compared with what it saw before

mod coverage;
mod guest;
mod initramfs;
mod kernels;
mod modules;
mod pinned;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{process, setup};

pub(crate) use kernels::{Wanted, fetch};

use coverage::Coverage;
use guest::Report;
use kernels::Kernel;

/// Arguments of `cargo xtask kernel-test`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// The kernels to test on; all of them where none is named.
    #[arg(value_enum)]
    kernels: Vec<Wanted>,
    /// Run only tests whose names contain this; may be given again.
    #[arg(long, value_name = "WORD")]
    only: Vec<String>,
    /// Leave the guest's files, and print how to boot them by hand.
    #[arg(long)]
    keep: bool,
    /// Run the tests of the capture on this machine, too, or only here where no kernel is named. Needs root.
    #[arg(long)]
    native: bool,
    /// Have the capture's tests print every event; they stand in the console's file.
    #[arg(long)]
    events: bool,
    /// Boot only so that no LSM programs run (Tier B); without this, some kernels are booted both ways for the capture.
    #[arg(long)]
    without_lsm: bool,
    /// Words for the kernel's command line, such as preempt=full.
    #[arg(long, value_name = "WORD")]
    boot: Vec<String>,
    /// Make what the capture sees the measure, and write it to docs/reference.
    #[arg(long)]
    write_coverage: bool,
    /// Print the kernels that are there, and do nothing.
    #[arg(long)]
    list: bool,
}

impl Options {
    /// Everything, as a test: all kernels, and this machine where that can be.
    pub(crate) fn as_test() -> Self {
        Self { native: setup::is_root(), kernels: Wanted::ALL.to_vec(), ..Self::default() }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.list {
        return list();
    }
    if cfg!(not(target_arch = "x86_64")) {
        bail!("the kernels and the test program are for x86-64 machines");
    }
    if let Some(word) = options.only.iter().find(|word| word.contains([' ', ',', '"'])) {
        bail!("{word:?} cannot stand on a kernel's command line");
    }
    let wanted = match options.kernels.as_slice() {
        [] if options.native && !options.write_coverage => &[],
        [] => Wanted::ALL,
        named => named,
    };
    if !wanted.is_empty() {
        setup::kernel_test_packages()?;
        fetch(wanted)?;
    }
    let program = build()?;
    let (coverage, failed) = (Mutex::new(Coverage::default()), Mutex::new(Vec::new()));
    let try_all = |places: &mut dyn Iterator<Item = Place>| {
        for place in places {
            if let Err(error) = test(&place, &program, options, &coverage) {
                println!("{}: {error:#}", place.name());
                lock(&failed).push(place.name());
            }
        }
    };
    // An emulated machine keeps one core busy. Those of one kernel share its files.
    let next = Mutex::new(wanted.iter().rev());
    thread::scope(|scope| {
        for _ in 0..GUESTS_AT_ONCE {
            scope.spawn(|| {
                while let Some(wanted) = { lock(&next).next() } {
                    try_all(&mut places(*wanted, options));
                }
            });
        }
    });
    // By itself: it measures what goes on on the machine.
    try_all(&mut options.native.then_some(Place::Here).into_iter());
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let coverage = coverage.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failed.is_empty() {
        bail!("kernel tests failed on {}", failed.join(", "));
    }
    if options.write_coverage { coverage.write() } else { coverage.compare() }
}

const GUESTS_AT_ONCE: usize = 2;

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the tests run.
enum Place {
    Guest(Kernel, Lsm),
    Here,
}

/// Whether the kernel asks LSM programs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lsm {
    Bpf,
    /// As most distributions boot: the capture's Tier B.
    NoBpf,
}

/// How a kernel is booted. One that is missing here was told of when it was looked for.
fn places(wanted: Wanted, options: &Options) -> impl Iterator<Item = Place> {
    let is_for_capture = options.only.is_empty()
        || options
            .only
            .iter()
            .any(|word| word.contains("capture") || "capture".contains(word.as_str()));
    let both = wanted.is_booted_without_lsm() && is_for_capture;
    let ways = [
        (!options.without_lsm).then_some(Lsm::Bpf),
        (options.without_lsm || both).then_some(Lsm::NoBpf),
    ];
    let ways = ways.into_iter().flatten();
    ways.filter_map(move |lsm| kernels::cached(wanted).map(|kernel| Place::Guest(kernel, lsm)))
}

/// What the tests' environment has where they are to print events.
const EVENTS: &str = "KERNEL_TESTS_EVENTS";
/// The name of this machine among the kernels.
const NATIVE: &str = "native";

impl Place {
    fn name(&self) -> &'static str {
        match self {
            Self::Guest(kernel, _) => kernel.wanted.name(),
            Self::Here => NATIVE,
        }
    }

    /// Whether it is the same wherever the tests run.
    fn is_pinned(&self) -> bool {
        match self {
            Self::Guest(kernel, _) => !kernel.is_stand_in(),
            Self::Here => false,
        }
    }
}

fn test(
    place: &Place,
    program: &Path,
    options: &Options,
    coverage: &Mutex<Coverage>,
) -> Result<()> {
    let started = Instant::now();
    let report = match place {
        Place::Guest(kernel, lsm) => test_in_guest(kernel, *lsm, program, options),
        Place::Here => test_here(program, options),
    }?;
    let mut coverage = lock(coverage);
    coverage.take(place.name(), place.is_pinned(), &report.data)?;
    let (name, summary) = (place.name(), report.summary);
    println!("-- {name}: {summary} in {:.0} s", started.elapsed().as_secs_f32());
    // All tests of a kernel cannot be none.
    if options.only.is_empty() && summary.starts_with("nothing") {
        bail!("no test ran");
    }
    for summary in coverage.summaries(name) {
        println!("-- {name}: {summary}");
    }
    Ok(())
}

fn test_in_guest(kernel: &Kernel, lsm: Lsm, program: &Path, options: &Options) -> Result<Report> {
    let files = kernel.folder.join("initramfs.cpio");
    let archive = initramfs::build(kernel, program).context("the guest's files")?;
    fs::write(&files, archive).with_context(|| format!("cannot write {}", files.display()))?;
    let only = match options.only.as_slice() {
        [] if lsm == Lsm::NoBpf => vec!["capture".to_owned()],
        [] => kernel.wanted.only().iter().map(ToString::to_string).collect(),
        named => named.to_vec(),
    };
    let (modules, log, note) = match lsm {
        Lsm::Bpf => ("lsm=lockdown,capability,landlock,yama,bpf", "console.log", ""),
        Lsm::NoBpf => {
            ("lsm=lockdown,capability,landlock,yama", "without-lsm.log", ", without LSM programs")
        }
    };
    let mut words = vec![modules.to_owned()];
    words.extend(options.boot.iter().cloned());
    words.extend(options.events.then(|| format!("{EVENTS}=1")));
    let mut command = guest::command(kernel, &files, &only, &words);
    println!("-- {}: Linux {}{note}", kernel.wanted.name(), kernel.release);
    if kernel.is_stand_in() {
        println!("-- {}: not the one that is pinned", kernel.wanted.name());
    }
    if options.keep {
        println!("$ {}", process::line(&command));
    }
    let report = guest::boot(kernel.wanted.name(), &mut command, &kernel.folder.join(log));
    if !options.keep {
        // A folder of the build; left over, it does no harm.
        drop(fs::remove_file(&files));
    }
    report
}

/// The tests of the capture only: the others are for kernels with kernel TLS. They see to it that nothing here is changed.
fn test_here(program: &Path, options: &Options) -> Result<Report> {
    println!("-- {NATIVE}: this machine");
    let folder = crate::target_dir().join("kernels");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // The last words are the init's in a guest.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "\"$@\"; echo \"kernel-tests: exit=$?\"", "sh"]).arg(program);
    if options.events {
        command.env(EVENTS, "1");
    }
    match options.only.as_slice() {
        [] => command.arg("capture"),
        named => command.args(named),
    };
    guest::boot(NATIVE, &mut command, &folder.join("native.log"))
}

/// Builds the guest's program; statically, so that it needs no file of ours beside it.
fn build() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    const PROFILE: &str = "kernel-test";
    let mut flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    flags.push_str(" -C target-feature=+crt-static");
    let mut cargo = crate::cargo();
    cargo.args(["build", "--locked", "--package", "kernel-tests"]);
    // Named although it is the host's: build scripts and macros then keep the ordinary flags.
    cargo.args(["--target", TARGET, "--profile", PROFILE]);
    process::show(cargo.env("RUSTFLAGS", flags.trim()))?;
    Ok(crate::target_dir().join(TARGET).join(PROFILE).join("kernel-tests"))
}

fn list() -> Result<()> {
    for wanted in Wanted::ALL {
        let there = kernels::cached(*wanted);
        let state = there.map_or_else(|| "not fetched yet".to_owned(), |kernel| kernel.release);
        println!("{:6}  {state:32}  {}", wanted.name(), wanted.about());
    }
    Ok(())
}
