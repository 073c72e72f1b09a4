//! The line on the terminal: name, share, bytes, speed. Nothing when standard error is no terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::ssh::terminal;
use cli::output::plain;

/// One copy's progress, file by file.
#[derive(Debug)]
pub(crate) struct Progress {
    shown: bool,
    file: String,
    size: u64,
    done: u64,
    began: Instant,
    drawn: Option<Instant>,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            shown: !quiet && std::io::stderr().is_terminal(),
            file: String::new(),
            size: 0,
            done: 0,
            began: Instant::now(),
            drawn: None,
        }
    }
    pub(crate) fn begin(&mut self, file: &str, size: u64) {
        self.file = plain(file.rsplit('/').next().unwrap_or(file));
        (self.size, self.done) = (size, 0);
        (self.began, self.drawn) = (Instant::now(), None);
    }
    pub(crate) fn add(&mut self, count: usize) {
        self.done = self.done.saturating_add(u64::try_from(count).unwrap_or(0));
        if self.shown && self.drawn.is_none_or(|drawn| drawn.elapsed() > DRAW_EVERY) {
            self.draw("\r");
        }
    }
    pub(crate) fn end(&mut self) {
        if self.shown {
            self.draw("\n");
        }
    }
    fn draw(&mut self, end: &str) {
        let columns = usize::try_from(terminal::size().columns).unwrap_or(80);
        let line = line(&self.file, self.size, self.done, self.began.elapsed(), columns);
        // A terminal that is gone has nobody to tell.
        drop(write!(std::io::stderr(), "\r{line}{end}"));
        self.drawn = Some(Instant::now());
    }
}

/// Exactly one line of the terminal, never wrapped.
fn line(file: &str, size: u64, done: u64, took: Duration, columns: usize) -> String {
    let share = done.saturating_mul(100).checked_div(size).unwrap_or(100).min(100);
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    let speed = done.saturating_mul(1000) / milliseconds;
    let right = format!(" {share:>3}% {:>9} {:>9}/s", bytes(done), bytes(speed));
    let room = columns.saturating_sub(right.len() + 1);
    let name: String = file.chars().take(room).collect();
    format!("{name:<room$}{right}")
}

fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut tenths = count.saturating_mul(10);
    let mut index = 0;
    while tenths >= 10_240 && index + 1 < units.len() {
        tenths /= 1024;
        index += 1;
    }
    let unit = units.get(index).copied().unwrap_or_default();
    if index == 0 {
        format!("{count} {unit}")
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

const DRAW_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_fits() {
        let second = Duration::from_secs(1);
        assert_eq!(
            line("a.txt", 4096, 1024, second, 40),
            "a.txt         25%   1.0 KiB   1.0 KiB/s"
        );
        assert_eq!(line(&"x".repeat(99), 0, 0, second, 40).chars().count(), 39);
        assert!(line("empty", 0, 0, Duration::ZERO, 40).contains("100%"));
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 * 1024 * 1024 * 1024), "5.0 GiB");
    }
}
