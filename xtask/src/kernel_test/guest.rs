//! One boot: qemu, the guest's console line by line, and the verdict that its last words give. A guest that ends without
//! them, is silent for too long or whose kernel complains has failed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::kernels::Kernel;
use crate::process;

/// From power on to power off, on a slow machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(2400);
/// Longer than any test may take (`kernel-tests` gives one 600 s), and than a boot.
const SILENCE_MAX: Duration = Duration::from_secs(630);
/// What lines of data begin with; see [`super::coverage`].
const DATA: &[&str] = &["case {", "program {"];
/// Of the console, where something went wrong.
const TAIL_LINES: usize = 40;
/// What a kernel says when it has a bug; `kernel-tests` cannot see it.
const COMPLAINTS: &[&str] =
    &["BUG:", "Kernel panic", "Oops", "WARNING: CPU", "WARNING: at", "general protection fault"];

/// How to boot a kernel with files for it; `words` go to its command line, and what it does not know to the init's
/// environment.
pub(super) fn command(kernel: &Kernel, files: &Path, only: &[String], words: &[String]) -> Command {
    let mut line = "console=ttyS0 panic=-1 loglevel=5 random.trust_cpu=on".to_owned();
    if !only.is_empty() {
        line.push_str(&format!(" kernel_tests={}", only.join(",")));
    }
    for word in words {
        line.push_str(&format!(" {word}"));
    }
    let mut command = Command::new("qemu-system-x86_64");
    // Never /dev/kvm: some machines have one under which a stock kernel does not boot. One thread for both processors: with a
    // thread each, qemu 7.2 at times runs code that the kernel has just patched ("Oops: int3" while booting).
    command.args(["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max"]);
    command.args(["-smp", "2", "-m", "1G", "-nographic", "-no-reboot", "-nic", "none"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(files);
    command.arg("-append").arg(line);
    command
}

/// What a run gives when it went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    /// The tests' own, in a line.
    pub(super) summary: String,
    /// Their lines of data.
    pub(super) data: Vec<String>,
}

/// Boots, or runs the tests here; prints the tests' lines as they come, `name` before each, and gives what they report.
pub(super) fn boot(name: &str, command: &mut Command, log: &Path) -> Result<Report> {
    let mut log_file =
        File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", process::line(command)))?;
    let (sender, lines) = sync_channel(1000);
    let pipes: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|pipe| Box::new(pipe) as _),
        child.stderr.take().map(|pipe| Box::new(pipe) as _),
    ];
    for pipe in pipes.into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let machine = Machine(child);
    let mut console = Console::default();
    let end = listen(name, &lines, &mut console, &mut log_file);
    drop(machine);
    match end.and_then(|()| console.verdict()) {
        Ok(report) => Ok(report),
        // The tests' own lines have said it all.
        Err(error) if console.exit.is_some() && console.complaint.is_none() => {
            bail!("{error}; the console is in {}", log.display())
        }
        Err(error) => {
            let tail: Vec<&str> = console.tail.iter().map(String::as_str).collect();
            bail!("{error}; the console, all of it in {}:\n{}", log.display(), tail.join("\n"))
        }
    }
}

/// A virtual machine that does not outlive us.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Off already, or to be switched off.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Until the machine is off.
fn listen(
    name: &str,
    lines: &Receiver<Vec<u8>>,
    console: &mut Console,
    log: &mut File,
) -> Result<()> {
    let started = Instant::now();
    loop {
        let left = BOOT_TIMEOUT.saturating_sub(started.elapsed());
        match lines.recv_timeout(SILENCE_MAX.min(left)) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                writeln!(log, "[{:7.2}] {line}", started.elapsed().as_secs_f32())?;
                if console.hear(line) {
                    println!("   {name} {}", console.tail.back().map_or("", String::as_str));
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                bail!("not over after {BOOT_TIMEOUT:?}")
            }
            Err(RecvTimeoutError::Timeout) => bail!("silent for {SILENCE_MAX:?}"),
        }
    }
}

/// What the guest said that counts.
#[derive(Debug, Default)]
struct Console {
    tail: VecDeque<String>,
    summary: Option<String>,
    exit: Option<String>,
    complaint: Option<String>,
    data: Vec<String>,
}

impl Console {
    /// Takes a line; whether a developer wants to see it.
    fn hear(&mut self, line: String) -> bool {
        let said = line.strip_prefix("kernel-tests: ");
        match said.map(|said| (said, said.strip_prefix("exit="))) {
            Some((_, Some(code))) => self.exit = Some(code.to_owned()),
            Some((said, None)) if said.contains(" passed") => self.summary = Some(said.to_owned()),
            _ => {}
        }
        let complains = COMPLAINTS.iter().any(|complaint| line.contains(complaint));
        if complains && self.complaint.is_none() && !line.starts_with("FAILED ") {
            self.complaint = Some(line.clone());
        }
        let shown =
            ["ok ", "FAILED ", "left out ", "note: "].iter().any(|word| line.starts_with(word));
        if DATA.iter().any(|word| line.starts_with(word)) {
            self.data.push(line.clone());
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
        shown || complains
    }

    fn verdict(&self) -> Result<Report> {
        match (&self.complaint, self.exit.as_deref(), &self.summary) {
            (Some(complaint), ..) => bail!("the kernel complained: {complaint}"),
            (None, Some("0"), Some(summary)) => {
                Ok(Report { summary: summary.clone(), data: self.data.clone() })
            }
            (None, Some(code), summary) => {
                let summary = summary.as_deref().unwrap_or("no summary");
                bail!("{summary} (exit code {code})")
            }
            (None, None, _) => bail!("the machine went off before the tests were over"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        fn check(lines: &[&str], expect: Result<&str, &str>) {
            let mut console = Console::default();
            for line in lines {
                console.hear((*line).to_owned());
            }
            match (console.verdict(), expect) {
                (Ok(report), Ok(expect)) => assert_eq!(report.summary, expect),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (verdict, expect) => panic!("{verdict:?}, not {expect:?}"),
            }
        }
        let passed = ["ok a (0.1 s)", "kernel-tests: 1 passed, 0 failed", "kernel-tests: exit=0"];
        check(&passed, Ok("1 passed, 0 failed"));
        check(&passed[..2], Err("went off"));
        check(&["kernel-tests: 0 passed, 1 failed", "kernel-tests: exit=1"], Err("1 failed"));
        check(&["kernel-tests: exit=139"], Err("139"));
        check(&["kernel-tests: exit=0"], Err("no summary"));
        check(&[&["[ 1.0] BUG: unable to handle"], &passed[..]].concat(), Err("complained"));
        check(&[], Err("went off"));
    }

    #[test]
    fn the_tail_is_bounded() {
        let mut console = Console::default();
        for number in 0..100 {
            assert!(!console.hear(number.to_string()));
        }
        assert_eq!(console.tail.len(), TAIL_LINES);
        assert!(console.hear("FAILED x: y".to_owned()) && console.hear("ok x (0 s)".to_owned()));
    }
}
