//! What the developer reads: a sentence per step with a tick and the time it took, the commands as one would type
//! them, and what they said where that is worth reading.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Lines of a command's output shown per step; the demo is read, not studied.
const SHOWN_LINES_MAX: usize = 24;

/// Writes the story to standard output.
#[derive(Debug)]
pub(super) struct Narrator {
    dir: String,
    compact: bool,
    colour: bool,
    steps: u32,
    started: Instant,
}

/// What a step notes down while it runs.
#[derive(Debug, Default)]
pub(super) struct Notes {
    lines: Vec<String>,
}

impl Notes {
    /// A command as a person would type it.
    pub(super) fn command(&mut self, line: &str) {
        self.lines.push(format!("$ {line}"));
    }

    /// What it said.
    pub(super) fn output(&mut self, text: &str) {
        let lines: Vec<&str> = text.trim_end().lines().collect();
        self.lines.extend(lines.iter().take(SHOWN_LINES_MAX).map(|line| format!("  {line}")));
        if lines.len() > SHOWN_LINES_MAX {
            self.lines.push(format!("  … and {} more lines", lines.len() - SHOWN_LINES_MAX));
        }
    }
}

impl Narrator {
    pub(super) fn new(dir: &Path, compact: bool) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let dir = dir.display().to_string();
        let narrator = Self { dir, compact, colour, steps: 0, started: Instant::now() };
        narrator.say(&format!(
            "\nPostern on loopback. Everything is in {}, written $D below.\n",
            narrator.dir
        ));
        narrator
    }

    /// One step: runs `work` and tells of it.
    pub(super) fn step<T>(
        &mut self,
        title: &str,
        work: impl FnOnce(&mut Notes) -> Result<T>,
    ) -> Result<T> {
        self.steps += 1;
        let mut notes = Notes::default();
        let started = Instant::now();
        let done = work(&mut notes);
        let (mark, colour) = if done.is_ok() { ("✓", "32") } else { ("✗", "31") };
        let mark = self.coloured(mark, colour);
        let elapsed = self.coloured(&milliseconds(started.elapsed()), "2");
        self.say(&format!("{mark} {title}  {elapsed}"));
        if !self.compact || done.is_err() {
            for line in notes.lines {
                let line = line.replace(&self.dir, "$D");
                let shade = if line.starts_with('$') { "36" } else { "0" };
                self.say(&format!("    {}", self.coloured(&line, shade)));
            }
        }
        done
    }

    /// What went wrong, and the ends of the daemons' logs.
    pub(super) fn failed(&self, error: &anyhow::Error, logs: &[(String, String)]) {
        let step = self.steps;
        self.say(&format!("\n{}", self.coloured(&format!("Step {step} failed: {error:#}"), "31")));
        for (name, tail) in logs {
            self.say(&format!("\nThe end of {name}:\n{}", tail.trim_end()));
        }
    }

    /// The last word.
    pub(super) fn done(&self) {
        let elapsed = self.started.elapsed().as_secs_f32();
        self.say(&format!(
            "\nDone: {} steps in {elapsed:.1} s. Everything is stopped and removed.",
            self.steps
        ));
        if !self.compact {
            self.say("To look around in a cluster that stays up: cargo xtask demo --keep");
        }
    }

    /// A line to standard output; nobody listening is no reason to stop.
    pub(super) fn say(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        drop(writeln!(out, "{text}").and_then(|()| out.flush()));
    }

    fn coloured(&self, text: &str, colour: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn milliseconds(elapsed: Duration) -> String {
    format!("{} ms", elapsed.as_millis())
}
