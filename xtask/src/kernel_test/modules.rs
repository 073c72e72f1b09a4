//! The modules that kernel TLS may ask for: it and every cipher, with all that they need by `modules.dep`; and what deeds of
//! the capture's tests want: a disk in memory, sockets between machines. Which of them
//! are loaded is the kernel's choice, as on a real machine: it calls modprobe, which reads the same tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::kernels::{Kernel, captured};

/// Beginnings of the paths of modules that are taken: folders whole, or single ones.
const FOLDERS: &[&str] = &[
    "kernel/arch/x86/crypto/",
    "kernel/crypto/",
    "kernel/drivers/block/brd.ko",
    "kernel/lib/crypto/",
    "kernel/net/tls/",
    "kernel/net/vmw_vsock/vsock",
];

/// Paths below the modules' folder, with what busybox's modprobe reads to find them.
#[derive(Debug)]
pub(super) struct Modules {
    pub(super) paths: BTreeSet<String>,
    /// `modules.dep`, for these.
    pub(super) dependencies: String,
    /// `modules.alias`, for these.
    pub(super) aliases: String,
}

/// Makes the tables, which a package brings only when installed, and unpacks what is compressed.
pub(super) fn prepare(kernel: &Kernel) -> Result<()> {
    depmod(kernel)?;
    let taken = read(kernel)?;
    let packed: Vec<&String> = taken.paths.iter().filter(|path| path.ends_with(".xz")).collect();
    if !packed.is_empty() {
        captured(Command::new("xz").arg("--decompress").args(packed).current_dir(&kernel.modules))?;
        depmod(kernel)?;
    }
    let tls = read(kernel)?.paths.iter().any(|path| path.ends_with("/tls.ko"));
    if tls { Ok(()) } else { bail!("Linux {} has no module tls", kernel.release) }
}

fn depmod(kernel: &Kernel) -> Result<()> {
    let base = kernel.modules.ancestors().nth(3).context("modules without a base folder")?;
    let program = ["/sbin/depmod", "/usr/sbin/depmod"].into_iter().find(|p| Path::new(p).exists());
    let mut command = Command::new(program.unwrap_or("depmod"));
    captured(command.arg("--basedir").arg(base).arg(&kernel.release)).map(drop)
}

/// What is to be taken of a kernel's modules.
pub(super) fn read(kernel: &Kernel) -> Result<Modules> {
    let table = |name: &str| {
        let path = kernel.modules.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    Ok(choose(&table("modules.dep")?, &table("modules.alias")?))
}

fn choose(dependencies: &str, aliases: &str) -> Modules {
    let needs: BTreeMap<&str, Vec<&str>> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (path, needs.split_whitespace().collect()))
        .collect();
    let mut paths = BTreeSet::new();
    let mut open: Vec<&str> =
        needs.keys().copied().filter(|path| FOLDERS.iter().any(|f| path.starts_with(f))).collect();
    while let Some(path) = open.pop() {
        if paths.insert(path.to_owned()) {
            open.extend(needs.get(path).into_iter().flatten());
        }
    }
    let names: BTreeSet<String> = paths.iter().map(|path| name(path)).collect();
    let of_these = |line: &&str| line.split(' ').next_back().is_some_and(|m| names.contains(m));
    let taken = |line: &&str| line.split_once(':').is_some_and(|(path, _)| paths.contains(path));
    Modules {
        dependencies: lines(dependencies.lines().filter(taken)),
        aliases: lines(aliases.lines().filter(of_these)),
        paths,
    }
}

/// As the kernel calls it: `kernel/crypto/ghash-generic.ko.xz` is `ghash_generic`.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

fn lines<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_taken_and_nothing_else() {
        let dependencies = "kernel/net/tls/tls.ko:\n\
            kernel/crypto/gcm.ko.xz: kernel/odd/ghash-generic.ko.xz\n\
            kernel/odd/ghash-generic.ko.xz: kernel/odd/deep.ko.xz\n\
            kernel/odd/deep.ko.xz:\nkernel/net/wireless/radio.ko.xz: kernel/crypto/gcm.ko.xz\n";
        let aliases =
            "# Aliases\nalias tcp-ulp-tls tls\nalias crypto-ghash ghash_generic\nalias x radio\n";
        let modules = choose(dependencies, aliases);
        let paths: Vec<&str> = modules.paths.iter().map(String::as_str).collect();
        assert_eq!(
            paths,
            [
                "kernel/crypto/gcm.ko.xz",
                "kernel/net/tls/tls.ko",
                "kernel/odd/deep.ko.xz",
                "kernel/odd/ghash-generic.ko.xz",
            ]
        );
        assert_eq!(modules.dependencies.lines().count(), 4);
        assert_eq!(modules.aliases, "alias tcp-ulp-tls tls\nalias crypto-ghash ghash_generic\n");
    }
}
