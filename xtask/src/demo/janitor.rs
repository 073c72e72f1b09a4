//! Ends the demo's daemons and removes its folder, whatever happens to the demo: done, failed, Ctrl-C, killed.
//! A process of its own, in a process group of its own, at the other end of a pipe: when the demo goes away, however
//! it does, the pipe closes. So there is one way of cleaning up, and no signal handler.

use std::fs;
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Arguments of the hidden `cargo xtask janitor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The folder to remove.
    #[arg(long)]
    dir: PathBuf,
}

/// The demo's end of the pipe. Dropped: everything is cleaned up, and that is waited for.
#[derive(Debug)]
pub(super) struct Janitor {
    child: Mutex<(Child, Option<ChildStdin>)>,
}

impl Janitor {
    pub(super) fn start(dir: &Path) -> Result<Self> {
        // Ourselves, also when a build has replaced the file meanwhile.
        let mut child = Command::new("/proc/self/exe")
            .args(["janitor", "--dir"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start the janitor")?;
        let pipe = child.stdin.take();
        Ok(Self { child: Mutex::new((child, pipe)) })
    }

    /// A process to end.
    pub(super) fn watch(&self, pid: u32) -> Result<()> {
        self.tell(&format!("watch {pid}\n"))
    }

    /// Leaves everything as it is.
    pub(super) fn keep(&self) -> Result<()> {
        self.tell("keep\n")
    }

    fn tell(&self, line: &str) -> Result<()> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = child.1.as_mut().context("the janitor is gone")?;
        pipe.write_all(line.as_bytes()).context("the janitor is gone")
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.1 = None;
        // How it ended is no news to anybody.
        drop(child.0.wait());
    }
}

/// A daemon without sessions stops at once; after the second signal, one with sessions does.
const ASK_TWICE_AFTER: Duration = Duration::from_secs(3);
/// Then it is killed.
const KILL_AFTER: Duration = Duration::from_secs(10);

/// The janitor itself: reads what to watch until the pipe closes, then cleans up.
pub(crate) fn clean_up(options: &Options) -> Result<()> {
    let mut pids = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ') {
            Some(("watch", pid)) => pids.push(pid.parse::<u32>()?),
            _ if line == "keep" => return Ok(()),
            _ => {}
        }
    }
    stop(&pids)?;
    match fs::remove_dir_all(&options.dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", options.dir.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn stop(pids: &[u32]) -> Result<()> {
    let started = Instant::now();
    let mut steps = [(Duration::ZERO, "-TERM"), (ASK_TWICE_AFTER, "-TERM"), (KILL_AFTER, "-KILL")]
        .into_iter()
        .peekable();
    loop {
        let alive: Vec<String> =
            pids.iter().filter(|pid| runs(**pid)).map(ToString::to_string).collect();
        if alive.is_empty() {
            return Ok(());
        }
        match steps.next_if(|(after, _)| started.elapsed() >= *after) {
            Some((_, signal)) => {
                // The shell's own `kill`: present everywhere. One that ended meanwhile is no failure.
                let script = format!("kill {signal} {} 2>/dev/null", alive.join(" "));
                Command::new("sh").args(["-c", &script]).status()?;
            }
            None if started.elapsed() > 2 * KILL_AFTER => {
                anyhow::bail!("these processes do not end: {}", alive.join(" "))
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Whether a process is there and more than an entry that its parent has not read yet.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'X' | 'Z'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_ended() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        assert!(runs(child.id()));
        stop(&[child.id()]).unwrap();
        assert!(!runs(child.id()));
        assert!(!child.wait().unwrap().success());
    }
}
