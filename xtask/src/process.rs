//! Running programs: shown to the developer as they run, or captured with a limit on the wait.
//! Knows nothing of what the programs are for.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between looks at a child that may have ended: short beside anything a person notices.
const POLL: Duration = Duration::from_millis(5);

/// Prints the command, runs it with our terminal and insists on success.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    println!("$ {}", line(command));
    quiet(command)
}

/// Runs a command with our terminal and insists on success.
pub(crate) fn quiet(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", line(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", line(command));
    }
    Ok(())
}

/// A command's standard output; its success is the caller's to judge.
pub(crate) fn output(command: &mut Command) -> Result<(bool, String)> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", line(command)))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    Ok((output.status.success(), text))
}

/// Program and arguments as a person would type them.
pub(crate) fn line(command: &Command) -> String {
    let mut text = String::new();
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        let word = word.to_string_lossy();
        let name = word.rsplit('/').next().unwrap_or(&word);
        let shown = if text.is_empty() { name } else { &word };
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&quote(shown));
    }
    text
}

/// A word as a POSIX shell reads it back.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%$*".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// How a program ended and what it said.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Both outputs, for a message.
    pub(crate) fn said(&self) -> String {
        let mut text = self.stdout.trim_end().to_owned();
        if !self.stderr.trim().is_empty() {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(self.stderr.trim_end());
        }
        text
    }
}

/// A running program that we talk with through pipes. Dropped while it runs, it is killed.
#[derive(Debug)]
pub(crate) struct Dialog {
    child: Child,
    stdin: Option<std::process::ChildStdin>,
    stdout: Heard,
    stderr: Heard,
    readers: Vec<JoinHandle<()>>,
    deadline: Instant,
    limit: Duration,
}

impl Dialog {
    /// Starts the program; all of it has to be over within `limit`.
    pub(crate) fn start(mut command: Command, limit: Duration) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", line(&command)))?;
        let (stdout, stderr) = (Heard::default(), Heard::default());
        let mut readers = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            readers.push(stdout.listen(pipe));
        }
        if let Some(pipe) = child.stderr.take() {
            readers.push(stderr.listen(pipe));
        }
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, stdout, stderr, readers, deadline: Instant::now() + limit, limit })
    }

    /// Writes to the program. One that no longer reads is no error here: how it ended says more.
    pub(crate) fn say(&mut self, text: &str) {
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).is_err()
        {
            self.stdin = None;
        }
    }

    /// Waits until standard output, as heard so far, gives what `find` looks for.
    pub(crate) fn wait_for<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        self.stdout.wait_for(self.deadline, find).with_context(|| {
            let heard = format!("{}{}", self.stdout.text(), self.stderr.text());
            format!("waited in vain for {what}; it said:\n{}", heard.trim_end())
        })
    }

    /// Closes standard input and waits for the end.
    pub(crate) fn finish(mut self) -> Result<Finished> {
        self.stdin = None;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > self.deadline {
                let said = format!("{}{}", self.stdout.text(), self.stderr.text());
                bail!("not over after {:?}; it said:\n{}", self.limit, said.trim_end());
            }
            std::thread::sleep(POLL);
        };
        // A grandchild may hold the pipes open: what was said by the deadline has to do.
        while self.readers.iter().any(|r| !r.is_finished()) && Instant::now() < self.deadline {
            std::thread::sleep(POLL);
        }
        Ok(Finished { status, stdout: self.stdout.text(), stderr: self.stderr.text() })
    }
}

impl Drop for Dialog {
    fn drop(&mut self) {
        // Over already, or not to be helped.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a program said so far on one pipe.
#[derive(Debug, Clone, Default)]
struct Heard(Arc<(Mutex<Said>, Condvar)>);

#[derive(Debug, Default)]
struct Said {
    bytes: Vec<u8>,
    over: bool,
}

/// More than any step prints; a program gone wild does not take the machine's memory.
const HEARD_BYTES_MAX: usize = 16 << 20;

impl Heard {
    fn listen(&self, mut pipe: impl Read + Send + 'static) -> JoinHandle<()> {
        let heard = self.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let (said, changed) = &*heard.0;
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                said.bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
                said.over = count == 0 || said.bytes.len() > HEARD_BYTES_MAX;
                changed.notify_all();
                if said.over {
                    return;
                }
            }
        })
    }

    fn text(&self) -> String {
        let said = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&said.bytes).into_owned()
    }

    fn wait_for<T>(&self, deadline: Instant, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let (said, changed) = &*self.0;
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = find(&String::from_utf8_lossy(&said.bytes)) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if said.over {
                bail!("its output ended");
            }
            if left.is_zero() {
                bail!("time is up");
            }
            said = changed.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        fn check(word: &str, expect: &str) {
            assert_eq!(quote(word), expect);
        }
        check("tsh", "tsh");
        check("--roles=a,b", "--roles=a,b");
        check("id; hostname", "'id; hostname'");
        check("it's", r"'it'\''s'");
        check("", "''");
    }

    #[test]
    fn a_dialog_hears_answers_and_ends() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo question; read answer; echo \"got $answer\"; exit 3"]);
        let mut dialog = Dialog::start(command, Duration::from_secs(20)).unwrap();
        dialog.wait_for("question", |text| text.contains("question").then_some(())).unwrap();
        dialog.say("42\n");
        let finished = dialog.finish().unwrap();
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.stdout, "question\ngot 42\n");
    }

    #[test]
    fn a_dialog_does_not_wait_for_ever() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let dialog = Dialog::start(command, Duration::from_millis(50)).unwrap();
        assert!(dialog.wait_for("a word", |text| text.contains("word").then_some(())).is_err());
        assert!(dialog.finish().is_err());
    }
}
