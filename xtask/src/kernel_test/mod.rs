//! `cargo xtask kernel-test`: boots Debian's kernels in qemu and runs the `kernel-tests` program in each. Emulated (TCG),
//! so that it works on every machine and says nothing about speed. What is tested is in `kernel-tests/`.
//!
//! - [`kernels`]: which kernels, and getting them from Debian's archive
//! - [`modules`]: what of their modules the tests need
//! - [`initramfs`]: the guest's files
//! - [`guest`]: one boot, and its verdict

mod guest;
mod initramfs;
mod kernels;
mod modules;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{process, setup};

pub(crate) use kernels::{Wanted, fetch};

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
    /// Print the kernels that are there, and do nothing.
    #[arg(long)]
    list: bool,
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
        [] => Wanted::ALL,
        named => named,
    };
    setup::kernel_test_packages()?;
    fetch(wanted)?;
    let program = build()?;
    let mut failed = Vec::new();
    for wanted in wanted {
        // Said already when it was looked for.
        let Some(kernel) = kernels::cached(*wanted) else { continue };
        if let Err(error) = test(&kernel, &program, options) {
            println!("{}: {error:#}", wanted.name());
            failed.push(wanted.name());
        }
    }
    if !failed.is_empty() {
        bail!("kernel tests failed on {}", failed.join(", "));
    }
    Ok(())
}

fn test(kernel: &Kernel, program: &std::path::Path, options: &Options) -> Result<()> {
    let started = Instant::now();
    let files = kernel.folder.join("initramfs.cpio");
    let archive = initramfs::build(kernel, program).context("the guest's files")?;
    fs::write(&files, archive).with_context(|| format!("cannot write {}", files.display()))?;
    let mut command = guest::command(kernel, &files, &options.only);
    println!("-- {}: Linux {}", kernel.wanted.name(), kernel.release);
    if options.keep {
        println!("$ {}", process::line(&command));
    }
    let log = kernel.folder.join("console.log");
    let verdict = guest::boot(&mut command, &log);
    if !options.keep {
        // A folder of the build; left over, it does no harm.
        drop(fs::remove_file(&files));
    }
    let summary = verdict?;
    println!("-- {}: {summary} in {:.0} s", kernel.wanted.name(), started.elapsed().as_secs_f32());
    Ok(())
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
