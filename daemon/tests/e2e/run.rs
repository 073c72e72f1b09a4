//! Running programs: where they are, what they print, when to give up.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Any single command: generous, since two cores build and test at once.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);

/// One of ours, built beside this test.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask test`", path.display());
    path
}

/// The repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Output {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    /// Fails the test unless the command succeeded.
    #[track_caller]
    pub(crate) fn good(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.text(), self.stderr);
        self
    }
    /// Fails the test unless the command failed and said `message`.
    #[track_caller]
    pub(crate) fn refused(self, message: &str) -> Self {
        assert_ne!(self.code, 0, "it went through: {}", self.text());
        let said = format!("{}{}", self.text(), self.stderr);
        assert!(said.contains(message), "{message:?} is not in: {said}");
        self
    }
}

/// A command, to be run with input and a limit.
#[derive(Debug)]
pub(crate) struct Run {
    command: Command,
    input: Vec<u8>,
}

impl Run {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env_remove("SSH_AUTH_SOCK").env("LC_ALL", "C.UTF-8");
        Self { command, input: Vec::new() }
    }
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }
    pub(crate) fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }
    /// Runs to the end.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Output {
        let what = format!("{:?}", self.command);
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        let input = self.input;
        thread::spawn(move || {
            // A program that does not read its input is no failure.
            let _closed = stdin.write_all(&input);
        });
        let stdout = collect(child.stdout.take().unwrap());
        let stderr = collect(child.stderr.take().unwrap());
        let code = wait_for(&mut child, &what);
        let stdout = stdout.recv_timeout(WITHIN).expect("standard output ends");
        let stderr = stderr.recv_timeout(WITHIN).expect("standard error ends");
        Output { code, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() }
    }
    /// Starts it with pipes and leaves it running.
    #[track_caller]
    pub(crate) fn spawn(mut self) -> Background {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        Background { child: self.command.spawn().unwrap() }
    }
}

fn collect(mut from: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (to, bytes) = mpsc::channel();
    thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).unwrap();
        to.send(all)
    });
    bytes
}

fn wait_for(child: &mut Child, what: &str) -> i32 {
    let end = Instant::now() + WITHIN;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("{what} did not end within {WITHIN:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A program that runs beside the test; killed when dropped.
#[derive(Debug)]
pub(crate) struct Background {
    pub(crate) child: Child,
}

impl Background {
    /// Writes to its standard input.
    #[track_caller]
    pub(crate) fn say(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }
    /// Reads its standard output until `text` was seen.
    #[track_caller]
    pub(crate) fn hear(&mut self, text: &str) -> String {
        let stdout = self.child.stdout.as_mut().unwrap();
        let mut heard = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&heard).contains(text) {
            let count = stdout.read(&mut byte).unwrap();
            assert_ne!(
                count,
                0,
                "{text:?} was not said, but {:?}",
                String::from_utf8_lossy(&heard)
            );
            heard.push(byte[0]);
        }
        String::from_utf8_lossy(&heard).into_owned()
    }
    /// Closes its input and waits for its exit status.
    #[track_caller]
    pub(crate) fn finish(mut self) -> i32 {
        drop(self.child.stdin.take());
        wait_for(&mut self.child, "the program")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Asks until the answer is `Some`; fails the test after [`WITHIN`].
#[track_caller]
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + WITHIN;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {WITHIN:?} for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
