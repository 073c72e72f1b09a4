//! What a deed has at hand, in the process that does it. It says what it does by lines of a key and a value, so that what is
//! told of it can be compared.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{cases, stage};

/// `kernel-tests deed NUMBER PART FOLDER`.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let [number, part, folder] = arguments else { return ExitCode::FAILURE };
    let number = number.to_str().and_then(|number| number.parse::<u8>().ok());
    let case = cases::all().find(|case| Some(case.number) == number);
    let (Some(case), Some(part)) = (case, part.to_str()) else { return ExitCode::FAILURE };
    (case.deed)(&Deed { folder: PathBuf::from(folder) }, part);
    ExitCode::SUCCESS
}

/// See the module.
#[derive(Debug)]
pub(super) struct Deed {
    folder: PathBuf,
}

impl Deed {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file with something in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, name).unwrap();
        path
    }

    pub(super) fn tell(&self, key: &str, value: impl std::fmt::Display) {
        println!("{key} {value}");
    }

    /// This kernel has no such thing: the process ends.
    pub(super) fn impossible(&self, why: impl std::fmt::Display) -> ! {
        println!("impossible {why}");
        std::process::exit(0)
    }

    /// busybox under another name: a program of this case only.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::copy(busybox(), &path).unwrap();
        path
    }

    /// Opens a file and runs a program, so that it shows whether the session is still watched.
    pub(super) fn afterwards(&self) {
        let file = self.file("after");
        drop(File::open(&file).unwrap());
        self.tell("after-file", file.display());
        self.tell("after-program", busybox().display());
        self.tell("after-pid", run_true(&busybox()));
    }

    /// Says who we are, in the PID namespace where the session began.
    pub(super) fn tell_pid(&self, key: &str) {
        self.tell(key, std::process::id());
    }

    /// What another part of the case has said of itself.
    pub(super) fn heard<T: std::str::FromStr>(&self, part: &str, key: &str) -> T {
        let facts = fs::read_to_string(self.path(&format!("{part}.facts"))).unwrap();
        let mut lines = facts.lines().filter_map(|line| line.split_once(' '));
        let value = lines.find_map(|(said, value)| (said == key).then(|| value.parse().ok())?);
        value.unwrap_or_else(|| panic!("{part} does not say {key}: {facts}"))
    }

    /// Says that others may begin, and waits to be ended.
    pub(super) fn ready_forever(&self) -> ! {
        self.tell("ready", "");
        loop {
            thread::park();
        }
    }
}

/// busybox, by its real path.
pub(super) fn busybox() -> PathBuf {
    stage::find("busybox").unwrap()
}

/// busybox, or a copy of it, as another of its programs.
pub(super) fn applet(program: &Path, name: &str) -> Command {
    let mut command = Command::new(program);
    command.arg0(name).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Runs a copy of busybox as `true`; its number.
pub(super) fn run_true(program: &Path) -> u32 {
    let mut child = applet(program, "true").spawn().unwrap();
    finish(&mut child);
    child.id()
}

pub(super) fn finish(child: &mut Child) {
    assert!(child.wait().unwrap().success());
}

/// Forks; what the child does. The child's number.
pub(super) fn forked(deed: impl FnOnce()) -> u32 {
    match crate::sys::process::fork().unwrap() {
        Some(child) => child,
        None => {
            deed();
            std::process::exit(0)
        }
    }
}

/// The same, and waits for its good end.
pub(super) fn forked_to_end(deed: impl FnOnce()) -> u32 {
    let child = forked(deed);
    assert_eq!(crate::sys::process::wait(child).unwrap(), 0, "the child's end");
    child
}

pub(super) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(10), "no {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
