//! An interactive shell through a real terminal: `script` (util-linux, in Debian's base system) opens the terminal and
//! runs the client in it, as a terminal window would. What is typed waits for what was seen before, like a person.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::process::{Dialog, Finished, quote};

/// The terminal's size, unlike any default, so that it is seen to arrive at the other end.
pub(super) const ROWS: u32 = 33;
pub(super) const COLUMNS: u32 = 111;

/// Login, a shell and a few commands; slow machines included.
const LIMIT: Duration = Duration::from_secs(60);

/// Types `lines` one by one into the shell that `client` opens, each after the prompt, and leaves with `exit`.
/// Gives everything that the terminal showed.
pub(super) fn interactive(client: &Command, lines: &[&str]) -> Result<String> {
    let words: Vec<String> = std::iter::once(client.get_program())
        .chain(client.get_args())
        .map(|word| quote(&word.to_string_lossy()))
        .collect();
    let inner = format!("stty rows {ROWS} cols {COLUMNS}; exec {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &inner, "/dev/null"]);
    for (name, value) in client.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    // `script` runs the command with this shell; the person's may be anything.
    script.env("SHELL", "/bin/sh");
    let mut dialog = Dialog::start(script, LIMIT)?;
    let mut prompts = 0;
    for line in lines.iter().chain(&["exit"]) {
        dialog.wait_for("a prompt", |shown| new_prompt(shown, prompts).then_some(()))?;
        prompts = dialog.wait_for("the screen", |shown| Some(shown.len()))?;
        dialog.say(&format!("{line}\n"));
    }
    let Finished { status, stdout, .. } = dialog.finish()?;
    if !status.success() {
        bail!("the shell ended with {status}; the terminal showed:\n{}", readable(&stdout));
    }
    ensure!(!stdout.is_empty(), "the terminal stayed empty");
    Ok(readable(&stdout))
}

/// Whether, beyond the first `seen` bytes, the screen ends in a prompt.
fn new_prompt(shown: &str, seen: usize) -> bool {
    let Some(fresh) = shown.get(seen..) else { return false };
    let fresh = readable(fresh);
    fresh.trim_end_matches(' ').ends_with(['$', '#', '%', '>'])
}

/// Without escape sequences and carriage returns.
fn readable(shown: &str) -> String {
    let mut text = String::new();
    let mut chars = shown.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => match chars.next() {
                // CSI … final byte.
                Some('[') => while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {},
                // OSC … BEL or ESC \.
                Some(']') => while chars.next_if(|c| !matches!(c, '\x07' | '\x1b')).is_some() {},
                _ => continue,
            },
            '\r' | '\x07' => continue,
            c => {
                text.push(c);
                continue;
            }
        }
        chars.next();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_in_a_terminal() {
        let mut shell = Command::new("sh");
        shell.env("PS1", "$ ").env_remove("ENV");
        let shown = interactive(&shell, &["stty size", "echo $((6*7))"]).unwrap();
        assert!(shown.contains(&format!("{ROWS} {COLUMNS}\n")), "{shown}");
        assert!(shown.contains("\n42\n"), "{shown}");
    }

    #[test]
    fn escapes_are_taken_out() {
        assert_eq!(readable("\x1b[?2004h\x1b]0;title\x07root# \x1b[0m\r\n"), "root# \n");
        assert!(new_prompt("\x1b[?2004hroot@host:~# ", 0));
        assert!(!new_prompt("root# ls\r\n", 0));
        assert!(!new_prompt("root# ", 6));
    }
}
