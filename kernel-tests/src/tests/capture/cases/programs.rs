//! Programs under other names, with other arguments, or too short-lived to be looked at.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use rustix::fs::MemfdFlags;
use serde_json::{Value, json};

use super::super::deed::{Deed, applet, busybox, finish, forked_to_end};
use super::super::stage::{Scene, find};
use super::super::told::Found;
use super::{Case, Play};
use crate::sys::exec;

pub(super) const CASES: &[Case] = &[
    Case { number: 6, name: "memfd and fexecve", play: Play::Here(memory), deed: do_memory },
    Case { number: 7, name: "deleted binary", play: Play::Here(deleted), deed: do_deleted },
    Case { number: 8, name: "shebang chain", play: Play::Here(scripts), deed: do_scripts },
    Case { number: 9, name: "ld.so ./prog", play: Play::Here(loader), deed: do_loader },
    Case { number: 10, name: "argv of 64 KiB", play: Play::Here(long), deed: do_long },
    Case {
        number: 11,
        name: "argv pages that are not in memory",
        play: Play::Here(cold),
        deed: do_cold,
    },
    Case { number: 12, name: "exec that fails", play: Play::Here(failing), deed: do_failing },
    Case {
        number: 25,
        name: "a thread rewrites arguments after sys_enter",
        play: Play::Here(changing),
        deed: do_changing,
    },
    Case { number: 26, name: "ia32 int 0x80", play: Play::Here(old), deed: do_old },
    Case {
        number: 42,
        name: "SIGKILL between exec and event",
        play: Play::Here(killed),
        deed: do_killed,
    },
];

fn memory(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let no_name = |event: &Value| event["file"].as_str().is_some_and(|file| file.ends_with(":0"));
    vec![told.command("memfd:bypass").that(no_name).found()]
}

fn do_memory(_: &Deed, _: &str) {
    let file = rustix::fs::memfd_create("bypass", MemfdFlags::CLOEXEC).unwrap();
    let program = fs::read(busybox()).unwrap();
    let mut left = program.as_slice();
    while !left.is_empty() {
        left = &left[rustix::io::write(&file, left).unwrap()..];
    }
    panic!("{}", exec::descriptor(file.as_raw_fd(), &["true"]));
}

fn deleted(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let no_name = |event: &Value| event["file"].as_str().is_some_and(|file| file.ends_with(":0"));
    vec![told.command(&scene.text("gone")).that(no_name).found()]
}

fn do_deleted(deed: &Deed, _: &str) {
    let path = deed.program("gone");
    let file = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    panic!("{}", exec::descriptor(file.as_raw_fd(), &["true"]));
}

fn scripts(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let (outer, inner) = (scene.text("outer"), scene.text("inner"));
    let busybox = busybox().display().to_string();
    // The kernel puts each script before the arguments of what interprets it.
    let chain = told.command(&busybox).with("argv", json!(["sh", inner, outer, "last"]));
    vec![chain.with("script", true).by(told.facts.number("script")).found()]
}

fn do_scripts(deed: &Deed, _: &str) {
    let script = |name: &str, text: String| {
        let path = deed.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    };
    let inner = script("inner", format!("#!{} sh\nexit 0\n", busybox().display()));
    let outer = script("outer", format!("#!{}\n", inner.display()));
    let mut child = Command::new(outer).arg("last").spawn().unwrap();
    deed.tell("script", child.id());
    finish(&mut child);
}

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

fn loader(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let (program, pid) = (told.facts.text("program"), told.facts.number("loaded"));
    let loader = fs::canonicalize(LOADER).unwrap();
    let command = told.command(loader.to_str().unwrap());
    vec![
        command.with("argv", json!([program, "version"])).by(pid).found(),
        told.disk(&["map_exec", "open"], &program).by(pid).found(),
    ]
}

fn do_loader(deed: &Deed, _: &str) {
    let program = find("openssl").unwrap();
    deed.tell("program", program.display());
    let mut child = Command::new(LOADER).arg(program).arg("version").spawn().unwrap();
    deed.tell("loaded", child.id());
    finish(&mut child);
}

const LONG: usize = 65_536;

fn long(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let command = told.command(&busybox().display().to_string());
    let whole = command.with("argv", json!(["x".repeat(LONG), "last"]));
    vec![whole.by(told.facts.number("long")).found()]
}

fn do_long(deed: &Deed, _: &str) {
    let mut child =
        applet(&busybox(), "true").args(["x".repeat(LONG).as_str(), "last"]).spawn().unwrap();
    deed.tell("long", child.id());
    finish(&mut child);
}

fn cold(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let command = told.command(&busybox().display().to_string());
    vec![command.with("argv", json!(["argument"])).found()]
}

fn do_cold(deed: &Deed, _: &str) {
    let file = File::open(deed.file("argument")).unwrap();
    panic!("{}", exec::untouched(&busybox(), "true", &file, "argument".len()));
}

fn failing(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let failed =
        |name: &str, error: i32| told.command(&scene.text(name)).with("return_code", -error);
    vec![
        failed("missing", libc::ENOENT).by(told.facts.number("missing")).found(),
        failed("forbidden", libc::EACCES).by(told.facts.number("forbidden")).found(),
        failed("garbage", libc::ENOEXEC).by(told.facts.number("garbage")).found(),
    ]
}

fn do_failing(deed: &Deed, _: &str) {
    deed.file("forbidden");
    let garbage = deed.file("garbage");
    fs::set_permissions(garbage, Permissions::from_mode(0o755)).unwrap();
    for name in ["missing", "forbidden", "garbage"] {
        let path = deed.path(name);
        let child = forked_to_end(|| {
            let error = exec::path(&path);
            assert!(error.raw_os_error().is_some());
        });
        deed.tell(name, child);
    }
}

/// Which of the two it became, only the program that was started knows: its first argument.
fn changing(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let said = fs::read_to_string(scene.path("said")).unwrap_or_default();
    let command = told.command(&busybox().display().to_string());
    let right = command.with("argv", json!(["-c", "echo \"$0\" >said", said.trim_end()]));
    vec![right.found()]
}

/// The shell writes down what it was given. What it is given changes all the while.
fn do_changing(deed: &Deed, _: &str) {
    let _ = deed;
    panic!("{}", exec::changing(&busybox(), &["sh", "-c", "echo \"$0\" >said"], b'a', b'b'));
}

fn old(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let pid = told.facts.number("old");
    vec![
        told.command(&scene.text("old")).by(pid).found(),
        told.opened(&scene.text("read")).by(pid).found(),
        told.disk(&["unlink"], &scene.text("gone")).by(pid).found(),
    ]
}

fn do_old(deed: &Deed, _: &str) {
    deed.file("read");
    let gone = deed.file("gone");
    let path = deed.path("old");
    fs::write(&path, ia32()).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    let mut child = match Command::new(&path).stdin(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(error) => deed.impossible(format!("a 32-bit program: {error}")),
    };
    deed.tell("old", child.id());
    finish(&mut child);
    assert!(!gone.exists());
}

/// A static 32-bit program: `open("read", O_RDONLY)`, `unlink("gone")`, `exit(0)`, each by int 0x80. An ELF header and one
/// segment, and then:
/// ```text
/// b8 05 00 00 00  mov eax, 5 (open)     b8 0a 00 00 00  mov eax, 10 (unlink)   b8 01 00 00 00  mov eax, 1 (exit)
/// bb read         mov ebx, read         bb gone         mov ebx, gone          31 db           xor ebx, ebx
/// 31 c9           xor ecx, ecx          cd 80           int 0x80               cd 80           int 0x80
/// cd 80           int 0x80                                                     "read\0gone\0"
/// ```
fn ia32() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    const CODE: u32 = 14 + 12 + 9;
    const READ: u32 = BASE + HEADERS + CODE;
    const GONE: u32 = READ + 5;
    const SIZE: u32 = HEADERS + CODE + 10;
    const EXECUTABLE: u16 = 2;
    const I386: u16 = 3;
    const LOAD: u32 = 1;
    const READ_EXECUTE: u32 = 5;
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves = |elf: &mut Vec<u8>, words: &[u16]| {
        elf.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    };
    let words = |elf: &mut Vec<u8>, words: &[u32]| {
        elf.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    };
    halves(&mut elf, &[EXECUTABLE, I386]);
    // Version, entry, where the segments are described, where sections are, flags.
    words(&mut elf, &[1, BASE + HEADERS, 52, 0, 0]);
    // Sizes of the header and of a segment's, one segment, no sections.
    halves(&mut elf, &[52, 32, 1, 40, 0, 0]);
    words(&mut elf, &[LOAD, 0, BASE, BASE, SIZE, SIZE, READ_EXECUTE, 0x1000]);
    elf.extend([0xb8, 5, 0, 0, 0, 0xbb]);
    words(&mut elf, &[READ]);
    elf.extend([0x31, 0xc9, 0xcd, 0x80, 0xb8, 10, 0, 0, 0, 0xbb]);
    words(&mut elf, &[GONE]);
    elf.extend([0xcd, 0x80, 0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80]);
    elf.extend(b"read\0gone\0");
    elf
}

const KILLED: usize = 20;

fn killed(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let pids = told.facts.all("killed");
    assert!(pids.len() == KILLED);
    let mut found = Vec::new();
    for pid in pids.iter().filter_map(|pid| pid.parse().ok()) {
        found.push(told.command(&busybox().display().to_string()).with("pid", pid).by(pid).found());
        found.push(told.ended(libc::SIGKILL).with("pid", pid).by(pid).found());
    }
    found
}

/// A start returns as soon as the program has been executed.
fn do_killed(deed: &Deed, _: &str) {
    for _ in 0..KILLED {
        let mut child = applet(&busybox(), "sleep").arg(OsStr::from_bytes(b"100")).spawn().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        deed.tell("killed", child.id());
    }
}
