//! The guest's files, as the archive that a kernel unpacks into its memory: cpio in the form "newc", uncompressed. Written
//! here, since that is short, and lets a device node be made without root.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::kernels::{Kernel, captured};
use super::modules;

/// Where the guest finds a program of ours: busybox for the shell and modprobe, openssl as the tests' peer.
const PROGRAMS: &[(&str, &str)] = &[("busybox", "bin/busybox"), ("openssl", "usr/bin/openssl")];

/// The archive with everything that the tests need.
pub(super) fn build(kernel: &Kernel, tests: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.add("dev/console", Entry::Device { major: 5, minor: 1 });
    for folder in ["etc", "mnt", "proc", "root", "run", "sys", "tmp", "var/spool"] {
        archive.add(folder, Entry::Folder);
    }
    let init = crate::root().join("kernel-tests/init");
    archive.add("init", program(&init)?);
    archive.add("bin/kernel-tests", program(tests)?);
    for (name, place) in PROGRAMS {
        let path = crate::setup::find_program(name)
            .with_context(|| format!("there is no {name} on the path"))?;
        archive.add(place, program(&path)?);
        for library in libraries(&path) {
            archive.add(&library, program(Path::new(&library))?);
        }
    }
    archive.add("bin/sh", Entry::Link("busybox".to_owned()));
    // Where the kernel calls it.
    archive.add("sbin/modprobe", Entry::Link("../bin/busybox".to_owned()));

    let modules = modules::read(kernel)?;
    let base = format!("lib/modules/{}", kernel.release);
    archive.add(&format!("{base}/modules.dep"), Entry::data(modules.dependencies));
    archive.add(&format!("{base}/modules.alias"), Entry::data(modules.aliases));
    for path in modules.paths {
        archive.add(&format!("{base}/{path}"), program(&kernel.modules.join(&path))?);
    }
    Ok(archive.bytes())
}

fn program(path: &Path) -> Result<Entry> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Entry::File { bytes, mode: 0o755 })
}

/// Absolute paths of what a program is linked with; none where it is static, of which ldd complains.
fn libraries(program: &Path) -> Vec<String> {
    let said = captured(Command::new("ldd").arg(program)).unwrap_or_default();
    said.lines().filter_map(library).map(str::to_owned).collect()
}

/// `libz.so.1 => /lib/libz.so.1 (0x…)`, or the loader without an arrow.
fn library(line: &str) -> Option<&str> {
    let path = line.split_once("=>").map_or(line, |(_, path)| path);
    path.split_whitespace().next().filter(|path| path.starts_with('/'))
}

#[derive(Debug)]
enum Entry {
    Device { major: u32, minor: u32 },
    File { bytes: Vec<u8>, mode: u32 },
    Folder,
    Link(String),
}

impl Entry {
    fn data(text: String) -> Self {
        Self::File { bytes: text.into_bytes(), mode: 0o644 }
    }
}

/// Files by their paths from the root; in the archive a folder comes before what is in it.
#[derive(Debug, Default)]
struct Archive(BTreeMap<String, Entry>);

impl Archive {
    fn add(&mut self, path: &str, entry: Entry) {
        let path = path.trim_start_matches('/');
        for (slash, _) in path.match_indices('/') {
            if let Some(folder) = path.get(..slash) {
                self.0.entry(folder.to_owned()).or_insert(Entry::Folder);
            }
        }
        self.0.insert(path.to_owned(), entry);
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.0) {
            let (mode, device, body) = match entry {
                Entry::Device { major, minor } => (0o020_600, (*major, *minor), &[][..]),
                Entry::File { bytes, mode } => (0o100_000 | mode, (0, 0), bytes.as_slice()),
                Entry::Folder => (0o040_755, (0, 0), &[][..]),
                Entry::Link(to) => (0o120_777, (0, 0), to.as_bytes()),
            };
            append(&mut out, number, path, mode, device, body);
        }
        append(&mut out, 0, "TRAILER!!!", 0, (0, 0), &[]);
        out
    }
}

/// One entry, as Documentation/driver-api/early-userspace/buffer-format.rst of the kernel has it.
fn append(
    out: &mut Vec<u8>,
    number: u32,
    path: &str,
    mode: u32,
    (major, minor): (u32, u32),
    body: &[u8],
) {
    let (uid, gid, links, time, check) = (0, 0, 1, 0, 0);
    let lengths = [body.len(), path.len() + 1];
    // Both far below 4 GiB: files of a guest that has less memory than that.
    let [size, name_size] = lengths.map(|length| u32::try_from(length).unwrap_or(u32::MAX));
    out.extend(b"070701");
    for field in [number, mode, uid, gid, links, time, size, 0, 0, major, minor, name_size, check] {
        out.extend(format!("{field:08x}").bytes());
    }
    out.extend(path.bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(body);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_as_the_kernel_wants_it() {
        let mut archive = Archive::default();
        archive.add("/dev/console", Entry::Device { major: 5, minor: 1 });
        archive.add("a", Entry::data("hello".to_owned()));
        let text = String::from_utf8(archive.bytes()).unwrap();
        let header = |number, mode: u32, size, major, minor, name: usize| {
            format!(
                "070701{number:08x}{mode:08x}{:032x}{size:08x}{:016x}{major:08x}{minor:08x}{name:08x}{:08x}",
                1_u64 << 32,
                0,
                0
            )
        };
        let expect = [
            header(1, 0o100_644, 5, 0, 0, 2) + "a\0hello\0\0\0",
            header(2, 0o040_755, 0, 0, 0, 4) + "dev\0\0\0",
            header(3, 0o020_600, 0, 5, 1, 12) + "dev/console\0\0\0",
            header(0, 0, 0, 0, 0, 11) + "TRAILER!!!\0\0\0\0",
        ];
        assert_eq!(text, expect.concat());
        assert_eq!(text.len() % 4, 0);
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        fn check(line: &str, expect: Option<&str>) {
            assert_eq!(library(line), expect);
        }
        check("\tlinux-vdso.so.1 (0x00007f)", None);
        check(
            "\tlibssl.so.3 => /lib/x86_64-linux-gnu/libssl.so.3 (0x7f)",
            Some("/lib/x86_64-linux-gnu/libssl.so.3"),
        );
        check("\t/lib64/ld-linux-x86-64.so.2 (0x7f)", Some("/lib64/ld-linux-x86-64.so.2"));
        check("\tlibgone.so => not found", None);
    }
}
