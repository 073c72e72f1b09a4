//! `cargo xtask ebpf`: the C header of the records from `ebpf/abi`, the kernel programs' object from `ebpf/src`. Both are
//! committed, so that building needs no clang: `--check` says whether they are what the sources give. The same compiler
//! gives the same bytes: nothing of the machine goes into them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{process, setup};

/// Arguments of `cargo xtask ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Changes nothing; an error where what is committed is not what the sources give.
    #[arg(long)]
    check: bool,
}

const CLANG: &str = "clang-19";
const STRIP: &str = "llvm-strip-19";

/// Whether what is committed is what the sources give.
pub(crate) fn check() -> Result<()> {
    run(&Options { check: true })
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::prepare(setup::Purpose::Ebpf)?;
    let room = crate::root().join("ebpf");
    let header = header()?;
    keep(options, &room.join("src/records.h"), header.as_bytes())?;
    let object = compile(&room)?;
    keep(options, &room.join("capture.bpf.o"), &object)
}

fn header() -> Result<String> {
    let mut cargo = crate::cargo();
    cargo.args(["run", "--quiet", "--locked", "--package", "ebpf-abi", "--bin", "header"]);
    let (success, text) = process::output(&mut cargo)?;
    if !success {
        bail!("{} failed:\n{text}", process::line(&cargo));
    }
    Ok(text)
}

/// The object, without what only a debugger needs; BTF stays.
fn compile(room: &Path) -> Result<Vec<u8>> {
    let folder = crate::target_dir().join("ebpf");
    fs::create_dir_all(&folder)?;
    let object: PathBuf = folder.join("capture.bpf.o");
    let mut clang = Command::new(CLANG);
    // Relative names only: they end up in the object.
    clang.current_dir(room).args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3"]);
    clang.args(["-D__TARGET_ARCH_x86", "-idirafter", "/usr/include/x86_64-linux-gnu"]);
    clang.args(["-fdebug-compilation-dir=.", "-c", "src/capture.bpf.c", "-o"]).arg(&object);
    insist(&mut clang)?;
    insist(Command::new(STRIP).arg("--strip-debug").arg(&object))?;
    fs::read(&object).with_context(|| format!("cannot read {}", object.display()))
}

fn insist(command: &mut Command) -> Result<()> {
    let (success, said) = process::output(command)?;
    if !success {
        bail!("{} failed:\n{said}", process::line(command));
    }
    Ok(())
}

/// Writes what has changed, or says that it has.
fn keep(options: &Options, path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|committed| committed == bytes) {
        println!("{} is up to date", path.display());
        return Ok(());
    }
    if options.check {
        bail!("{} is not what its sources give; run: cargo xtask ebpf", path.display());
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}
