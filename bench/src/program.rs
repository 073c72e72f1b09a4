//! Starting programs, pinned to a core, and ending them: each is the leader of a process group of its own, dies with us
//! (setpriv's `--pdeathsig`, which makes this work without unsafe code), and is killed when its [`Program`] is dropped.
//! Also: ports, and waiting until somebody listens on one.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Where a program runs. What is measured has a core for itself; everything that loads it shares the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Core {
    /// No pin: for what is judged by wall clock and would use both cores in real life.
    Any,
    Load,
    Measured,
}

impl Core {
    fn numbers(self) -> &'static [usize] {
        match self {
            Self::Any => &[0, 1],
            Self::Load => &[1],
            Self::Measured => &[0],
        }
    }

    /// As taskset takes it.
    fn list(self) -> String {
        let numbers: Vec<String> = self.numbers().iter().map(ToString::to_string).collect();
        numbers.join(",")
    }
}

/// Puts this thread, and every thread and program that it starts from now on, on a core.
pub(crate) fn pin(core: Core) -> Result<()> {
    let mut cores = CpuSet::new();
    core.numbers().iter().for_each(|number| cores.set(*number));
    sched_setaffinity(None, &cores).context("cannot use cores 0 and 1; the bench needs two")
}

/// Moves a running program, and whatever it starts from now on.
pub(crate) fn repin(pid: u32, core: Core) -> Result<()> {
    let (list, pid) = (core.list(), pid.to_string());
    let mut command = command("taskset", ["--all-tasks", "--cpu-list", "--pid", &list, &pid]);
    let output = command.stdin(Stdio::null()).output().context("cannot run taskset")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "taskset: {}", said.trim());
    Ok(())
}

/// Far more than any peer needs to start.
const START_LIMIT: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running program.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts it; what it says goes to `log`.
    pub(crate) fn start(name: &str, core: Core, command: &Command, log: PathBuf) -> Result<Self> {
        let said = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = wrapped(core, command)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .with_context(|| format!("cannot start {name}; `cargo xtask bench` installs it"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until it listens on `addr`.
    pub(crate) fn wait_listening(&mut self, addr: SocketAddr) -> Result<()> {
        let port = addr.port();
        self.wait_until(&format!("port {port}"), || listens(port))
    }

    /// Waits until `look` says yes; fails when the program ends meanwhile.
    pub(crate) fn wait_until(&mut self, what: &str, look: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        while !look() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} and said:\n{}", self.name, self.said().trim_end());
            }
            if started.elapsed() > START_LIMIT {
                let said = self.said();
                bail!("{} gave no {what} within {START_LIMIT:?}:\n{}", self.name, said.trim_end());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            // Gone already is as good as killed.
            kill_process_group(group, Signal::KILL).ok();
        }
        drop(self.child.wait());
    }
}

/// The command on its core, bound to our life. setpriv and taskset replace themselves by what they start, so the
/// process id is the program's own.
pub(crate) fn wrapped(core: Core, command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "taskset", "--cpu-list"]);
    wrapped.arg(core.list());
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        wrapped.current_dir(dir);
    }
    wrapped
}

/// A command from words.
pub(crate) fn command<W: Into<OsString>>(
    program: impl Into<OsString>,
    words: impl IntoIterator<Item = W>,
) -> Command {
    let mut command = Command::new(program.into());
    command.args(words.into_iter().map(Into::into));
    command
}

/// Where Debian puts it, whatever the path of the person says.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Below the ports that the kernel gives to outgoing connections: the load makes thousands of those.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
static NEXT_PORT: AtomicU16 = AtomicU16::new(PORTS.start);

/// An address on loopback whose port was free a moment ago, and was not given before.
pub(crate) fn free_address() -> Result<SocketAddr> {
    loop {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        ensure!(PORTS.contains(&port), "no free port in {PORTS:?}");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
    }
}

/// Whether somebody listens on a port of this machine. Looks at the kernel's table: a connection made to find out
/// would be a connection that the peer serves.
fn listens(port: u16) -> bool {
    const LISTEN: &str = "0A";
    let wanted = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|table| {
        let text = fs::read_to_string(table).unwrap_or_default();
        text.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            let local = words.next().unwrap_or_default();
            local.ends_with(&wanted) && words.nth(1) == Some(LISTEN)
        })
    })
}

/// The first line of what a program says about its version.
pub(crate) fn version_line(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let is_version = |line: &&str| line.contains(|c: char| c.is_ascii_digit());
    said.lines().map(str::trim).find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_a_number() {
        let said = "echo Getting ready; echo; echo 'tool 1.2 of today' >&2";
        let line = version_line(Path::new("sh"), &["-c", said]);
        assert_eq!(line.as_deref(), Some("tool 1.2 of today"));
    }

    #[test]
    fn a_listener_is_seen() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listens(port));
        drop(listener);
        assert!(!listens(port));
    }

    #[test]
    fn a_program_dies_with_its_handle() {
        let dir = tempfile::tempdir().unwrap();
        let sleep = command("sleep", ["600"]);
        let log = dir.path().join("log");
        let mut program = Program::start("sleep", Core::Any, &sleep, log).unwrap();
        let pid = program.pid();
        program
            .wait_until("process", || crate::measure::command_name(pid).as_deref() == Some("sleep"))
            .unwrap();
        drop(program);
        assert_eq!(crate::measure::command_name(pid), None);
    }

    #[test]
    fn a_program_that_ends_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let fails = command("sh", ["-c", "echo no such option; exit 3"]);
        let mut program = Program::start("it", Core::Any, &fails, dir.path().join("log")).unwrap();
        let error = program.wait_listening("127.0.0.1:1".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("no such option"), "{error}");
    }
}
