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
        let mut arguments = self.argv.split(|byte| *byte == 0).map(text).collect::<Vec<_>>();
        // Each ends with a NUL, the last one, too, where all of it is here.
        if self.argv.last().is_none_or(|last| *last == 0) {
            arguments.pop();
        }
        let exec = self.exec;
        event::SessionCommand {
            session,
            pid: self.header.tgid,
            ppid: exec.parent,
            program,
            path,
            argv: arguments.into_iter().skip(1).collect(),
            argv_missing: exec.argv_total.saturating_sub(captured),
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

/// Programs with long arguments that are being started at once in a session: more are told of without the rest.
const UNFINISHED_MAX: usize = 64;
