//! Runs a client command against a time limit, and either keeps what it says or only counts it.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::program::{Core, wrapped};

/// More than any client takes, short of one that hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// Of what a client says on standard error, for the message when it fails.
const COMPLAINT_BYTES_MAX: u64 = 64 << 10;

/// Runs it, gives it `input`, and gives back its standard output.
pub(crate) fn run(command: &Command, input: &str) -> Result<String> {
    let mut talk = Talk::start(Core::Load, command)?;
    talk.say(input);
    talk.finish()
}

/// Runs it; how many bytes it wrote to standard output, and how long it took.
pub(crate) fn count(core: Core, command: &Command) -> Result<(u64, Duration)> {
    let started = Instant::now();
    let mut client = Client::start(core, command)?;
    drop(client.child.stdin.take());
    let mut output = client.child.stdout.take().context("no standard output")?;
    // Not on a thread: programs that we start die with the thread that started them.
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        match output.read(&mut buffer)? {
            0 => break,
            count => bytes += count as u64,
        }
        ensure!(started.elapsed() < LIMIT, "{} is not over after {LIMIT:?}", client.name);
    }
    client.end(started + LIMIT)?;
    Ok((bytes, started.elapsed()))
}

/// A client that is talked with: what it says comes in pieces. Dropped: it is killed.
#[derive(Debug)]
pub(crate) struct Talk {
    client: Client,
    said: Receiver<Vec<u8>>,
    heard: String,
    deadline: Instant,
}

impl Talk {
    pub(crate) fn start(core: Core, command: &Command) -> Result<Self> {
        let mut client = Client::start(core, command)?;
        let mut output = client.child.stdout.take().context("no standard output")?;
        let (say, said) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = output.read(&mut buffer)
                && count > 0
                && say.send(buffer.get(..count).unwrap_or_default().to_vec()).is_ok()
            {}
        });
        Ok(Self { client, said, heard: String::new(), deadline: Instant::now() + LIMIT })
    }

    /// Of the program: those that only pin it have made room.
    pub(crate) fn pid(&self) -> u32 {
        self.client.child.id()
    }

    /// One that no longer listens is no error here: how it ended says more.
    pub(crate) fn say(&mut self, text: &str) {
        if let Some(stdin) = &mut self.client.child.stdin
            && stdin.write_all(text.as_bytes()).is_err()
        {
            self.client.child.stdin = None;
        }
    }

    /// Waits until what it has said holds what `find` looks for.
    pub(crate) fn wait_for(&mut self, find: impl Fn(&str) -> Option<String>) -> Result<String> {
        loop {
            if let Some(found) = find(&self.heard) {
                return Ok(found);
            }
            if !self.listen()? {
                let complaint = self.client.complaint();
                bail!("{} ended too early: {complaint}", self.client.name);
            }
        }
    }

    /// Takes in one piece; false at the end.
    fn listen(&mut self) -> Result<bool> {
        match self.said.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
            Ok(piece) => {
                self.heard.push_str(&String::from_utf8_lossy(&piece));
                Ok(true)
            }
            Err(RecvTimeoutError::Disconnected) => Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} is not over after {LIMIT:?}", self.client.name)
            }
        }
    }

    /// Closes its standard input, waits for its end, and gives all that it said.
    pub(crate) fn finish(mut self) -> Result<String> {
        self.client.child.stdin = None;
        while self.listen()? {}
        self.client.end(self.deadline)?;
        Ok(std::mem::take(&mut self.heard))
    }
}

/// The process. Dropped: it and whatever it started are killed.
#[derive(Debug)]
struct Client {
    name: String,
    child: Child,
}

impl Client {
    fn start(core: Core, command: &Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = wrapped(core, command)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child })
    }

    fn end(&mut self, deadline: Instant) -> Result<()> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    let complaint = self.complaint();
                    bail!("{} ended with {status}: {complaint}", self.name);
                }
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} does not end", self.name);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it said on standard error. Only to be asked when it has ended.
    fn complaint(&mut self) -> String {
        let mut said = String::new();
        if let Some(pipe) = self.child.stderr.take() {
            drop(pipe.take(COMPLAINT_BYTES_MAX).read_to_string(&mut said));
        }
        said.trim().to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Gone already is as good as killed.
            kill_process_group(group, Signal::KILL).ok();
        }
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::command;

    #[test]
    fn output_is_counted() {
        let head = command("head", ["-c", "1000000", "/dev/zero"]);
        assert_eq!(count(Core::Any, &head).unwrap().0, 1_000_000);
        let error = count(Core::Any, &command("sh", ["-c", "echo why >&2; exit 1"])).unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    }

    #[test]
    fn a_talk() {
        let mut cat = Talk::start(Core::Any, &command("cat", [""; 0])).unwrap();
        cat.say("hello\n");
        let line = cat.wait_for(|said| said.strip_suffix('\n').map(str::to_owned)).unwrap();
        assert_eq!(line, "hello");
        assert_eq!(cat.finish().unwrap(), "hello\n");
    }
}
