//! This test program once more, as a process of its own: with limits of its own, or as a crowd of clients. A child is the
//! test `child::role` with its role in the environment; it lives until its standard input ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use relay::{DataPlane, Ladder};

use crate::bench::{Bench, SOON, echo, transfer};

const ROLE: &str = "RELAY_FAULTS_ROLE";
/// A user who owns nothing, as on Debian and Fedora alike.
const NOBODY: u32 = 65_534;

/// A child and what it says, line by line.
pub(crate) struct Helper {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Helper {
    /// Runs a role; as nobody, if this user may.
    pub(crate) fn start(role: &str, as_nobody: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child::role", "--nocapture", "--test-threads=1"]);
        command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped());
        if as_nobody && rustix::process::geteuid().is_root() {
            command.gid(NOBODY).uid(NOBODY);
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it says behind `word`; fails when it ends without.
    pub(crate) fn hear(&mut self, word: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "ended without {word}");
            if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Lets it end, and sees to it that it did so in order.
    pub(crate) fn end(mut self) {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Many connections that have said a little.
pub(crate) struct Crowd(Option<Helper>);

impl Crowd {
    pub(crate) fn connect(at: SocketAddr, count: usize, say: &[u8]) -> Self {
        let say: String = say.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut helper = Helper::start(&format!("crowd {at} {count} {say}"), false);
        helper.hear("connected");
        Self(Some(helper))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Some(helper) = self.0.take() {
            helper.end();
        }
    }
}

/// What a child does; nothing in the run that starts children.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.split(' ').collect();
    match words[..] {
        ["crowd", at, count, say] => crowd(at.parse().unwrap(), count.parse().unwrap(), say),
        ["few", plane, target, descriptors] => {
            let target = target.parse().unwrap();
            few_descriptors(plane.parse().unwrap(), target, descriptors.parse().unwrap());
        }
        ["pipeless", plane] => pipeless(plane.parse().unwrap()).await,
        ["forbidden"] => forbidden(),
        _ => panic!("no role: {role}"),
    }
}

fn say(words: &str) {
    println!("\n{words}");
    std::io::stdout().flush().unwrap();
}

fn until_told() {
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn crowd(at: SocketAddr, count: usize, say_first: &str) {
    let bytes: Vec<u8> = (0..say_first.len() / 2)
        .map(|i| u8::from_str_radix(&say_first[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let sockets: Vec<_> = (0..count)
        .map(|_| {
            let mut socket = std::net::TcpStream::connect_timeout(&at, SOON).unwrap();
            socket.write_all(&bytes).unwrap();
            socket
        })
        .collect();
    say("connected");
    until_told();
    drop(sockets);
}

/// A relay in a process that may have few descriptors.
fn few_descriptors(plane: DataPlane, target: SocketAddr, descriptors: u64) {
    let bench = Bench::new(plane, target, Duration::from_secs(60));
    let limit = rustix::process::Rlimit { current: Some(descriptors), maximum: Some(descriptors) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    say(&format!("listens at {}", bench.at));
    until_told();
}

/// A relay of a user who has taken all the pipes that a user may have.
async fn pipeless(plane: DataPlane) {
    let mut taken = Vec::new();
    while taken.len() < 4096 {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let grown = rustix::pipe::fcntl_setpipe_size(&write, 1 << 20);
        taken.push((read, write));
        if grown.is_err() {
            break;
        }
    }
    assert!(taken.len() < 4096, "a user may have as many as that: nothing is tested");
    let bench = Bench::new(plane, echo().await, SOON);
    transfer(bench.at, 64).await;
    say(&format!("intact without pipes, {} taken", taken.len()));
    // With pipes again.
    drop(taken);
    transfer(bench.at, 64).await;
    say("intact with pipes");
    until_told();
}

/// A relay where io_uring is refused, as containers' seccomp profiles do.
fn forbidden() {
    use seccompiler::{SeccompAction, SeccompFilter};
    let rules = [(libc::SYS_io_uring_setup, Vec::new())].into();
    let errno = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, arch).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
    let ladder = Ladder::probe(DataPlane::Auto).unwrap();
    say(&format!("rung {}, {}", ladder.rung(), ladder.why()));
    let refused = Ladder::probe(DataPlane::Uring).unwrap_err();
    say(&format!("forced: {refused}"));
    // From this thread, so that the workers are under the filter too.
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let bench = Bench::new(DataPlane::Auto, echo().await, SOON);
            transfer(bench.at, 8).await;
        });
    })
    .join()
    .unwrap();
    say("moved");
    until_told();
}
