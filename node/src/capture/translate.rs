//! From the kernel's records to events: what a session's processes execute, with arguments that may come in parts, and how
//! they end.

use std::collections::HashMap;

use ebpf_abi::{Exec, Header, flag};
use proto::event::{self, Body as Event};

use super::record::{Body, Record};

/// A process, for good: its number may be another's later.
type Process = (u32, u64);

/// One session's.
#[derive(Debug, Default)]
pub(super) struct Translator {
    /// Programs whose arguments have not all come.
    unfinished: HashMap<Process, Command>,
}

/// A program that was executed.
#[derive(Debug)]
struct Command {
    header: Header,
    exec: Exec,
    path: Vec<u8>,
    cwd: Vec<u8>,
    argv: Vec<u8>,
}

impl Translator {
    /// What a record says; nothing while more of it is to come.
    pub(super) fn translate(&mut self, session: &event::Session, record: Record<'_>) -> Vec<Event> {
        let process = (record.header.tgid, record.header.process_ns);
        let mut events = Vec::new();
        match record.body {
            Body::Exec { exec, path, cwd, argv } => {
                // What was left of the program before is all that there will be.
                events.extend(self.finish(session, process));
                let command = Command {
                    header: record.header,
                    exec,
                    path: path.to_vec(),
                    cwd: cwd.to_vec(),
                    argv: argv.to_vec(),
                };
                if command.is_whole() {
                    events.push(command.event(session.clone()));
                } else if self.unfinished.len() < UNFINISHED_MAX {
                    self.unfinished.insert(process, command);
                } else {
                    events.push(command.event(session.clone()));
                }
            }
            Body::Argv { at, bytes } => {
                let Some(command) = self.unfinished.get_mut(&process) else { return events };
                // A part that was lost leaves a gap, after which nothing is in its place.
                if command.argv.len() == at {
                    command.argv.extend_from_slice(bytes);
                }
                if command.is_whole() {
                    events.extend(self.finish(session, process));
                }
            }
            Body::Exit { status } => {
                events.extend(self.finish(session, process));
                events.push(exit(session.clone(), &record.header, status));
            }
            Body::Over => {
                let left: Vec<_> = self.unfinished.keys().copied().collect();
                events.extend(left.into_iter().filter_map(|process| self.finish(session, process)));
            }
        }
        events
    }

    fn finish(&mut self, session: &event::Session, process: Process) -> Option<Event> {
        self.unfinished.remove(&process).map(|command| command.event(session.clone()))
    }
}

impl Command {
    fn is_whole(&self) -> bool {
        self.exec.flags & flag::ARGV_UNREADABLE != 0
            || self.argv.len() >= usize::try_from(self.exec.argv_captured).unwrap_or(usize::MAX)
    }

    fn event(self, session: event::Session) -> Event {
        let path = text(&self.path);
        let program = path.rsplit('/').next().unwrap_or_default().to_owned();
        let captured = u32::try_from(self.argv.len()).unwrap_or(u32::MAX);
        let (argv, left_out) = arguments(&self.argv);
        let exec = self.exec;
        event::SessionCommand {
            session,
            pid: self.header.tgid,
            ppid: exec.parent,
            program,
            path,
            argv,
            argv_missing: exec.argv_total.saturating_sub(captured).saturating_add(left_out),
            cwd: text(&self.cwd),
            ruid: exec.real_uid,
            euid: self.header.uid,
            file: file(&exec),
            script: exec.flags & flag::SCRIPT != 0,
            path_cut: exec.flags & (flag::PATH_CUT | flag::CWD_CUT) != 0,
            return_code: 0,
        }
        .into()
    }
}

/// The arguments but for the first, as far as an event can hold them; how many bytes it cannot.
fn arguments(bytes: &[u8]) -> (Vec<String>, u32) {
    // Each ends with a NUL; the last one may have been cut off.
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let mut argv = Vec::new();
    let (mut room, mut left_out) = (ARGV_JSON_BYTES_MAX, 0_usize);
    for argument in bytes.split(|byte| *byte == 0).skip(1) {
        let whole = text(argument);
        // Quotes and the comma, too.
        let length = serde_json::to_string(&whole).map_or(usize::MAX, |json| json.len() + 1);
        if length <= room {
            room -= length;
            argv.push(whole);
            continue;
        }
        // As much as fits at the worst, which is six bytes for one.
        let part = argument.get(..room.saturating_sub(3) / 6).unwrap_or_default();
        if !part.is_empty() {
            argv.push(text(part));
        }
        room = 0;
        left_out = left_out.saturating_add(argument.len().saturating_sub(part.len()));
    }
    (argv, u32::try_from(left_out).unwrap_or(u32::MAX))
}

/// `major:minor:inode:links`; the kernel's device numbers have 20 bits of minor.
fn file(exec: &Exec) -> String {
    let (major, minor) = (exec.dev >> 20, exec.dev & 0xf_ffff);
    format!("{major}:{minor}:{}:{}", exec.ino, exec.nlink)
}

fn exit(session: event::Session, header: &Header, status: i32) -> Event {
    // As wait(2) has it: the low seven bits are a signal, 128 says that it left a core, the next eight are the code.
    let signal = status & 0x7f;
    event::SessionCommandExit {
        session,
        pid: header.tgid,
        exit_code: if signal == 0 { (status >> 8) & 0xff } else { 128 + signal },
        signal,
    }
    .into()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Of all arguments, as JSON: with paths that need six bytes for each of theirs, an event stays below the 256 KiB that the
/// spool and auth take.
const ARGV_JSON_BYTES_MAX: usize = 160 * 1024;
/// Programs with long arguments that are being started at once in a session: more are told of without the rest.
const UNFINISHED_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], argv: &[&str], left_out: u32) {
        assert_eq!(arguments(bytes), (argv.iter().map(ToString::to_string).collect(), left_out));
    }

    #[test]
    fn arguments_are_taken_apart() {
        check(b"", &[], 0);
        check(b"sh\0", &[], 0);
        check(b"sh\0-c\0exit 3\0", &["-c", "exit 3"], 0);
        check(b"sh\0\0\0", &["", ""], 0);
        check(b"sh\0cut of", &["cut of"], 0);
        check(b"sh\0\xff\0", &["\u{fffd}"], 0);
    }

    #[test]
    fn an_event_is_never_too_long() {
        let one_long = [b"sh\0".to_vec(), vec![1; 130_000]].concat();
        let many_short = [b"sh".to_vec(), b"\0x".repeat(65_000)].concat();
        let no_text = [b"sh\0".to_vec(), vec![0xff; 130_000]].concat();
        for bytes in [one_long, many_short, no_text] {
            let (argv, left_out) = arguments(&bytes);
            let json = serde_json::to_string(&argv).unwrap();
            assert!(json.len() <= ARGV_JSON_BYTES_MAX + 8, "{}", json.len());
            assert!(left_out > 0 && json.len() > ARGV_JSON_BYTES_MAX / 4, "{}", json.len());
        }
    }
}
