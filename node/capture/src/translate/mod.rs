//! From the kernel's records to events: one session's, with what has to be remembered between them.
//!
//! - `command`: programs
//! - `disk`: files
//! - `dns`: questions for names
//! - `network`: connections
//! - `other`: rights, the kernel, other processes
//! - `denial`: what a rule is about
//! - `delegation`: who does things for a session that it does not do itself

mod command;
mod delegation;
mod denial;
mod disk;
mod dns;
mod network;
mod other;

use std::collections::HashMap;
use std::sync::Arc;

use ebpf_abi::{Header, class};
use proto::event::{self, Body as Event};
use proto::id::SessionId;

use self::command::{Command, base_name};
use crate::record::{Body, Record};

/// A process, for good: its number may be another's later.
type Process = (u32, u64);

/// One session's.
#[derive(Debug)]
pub(crate) struct Translator {
    /// Which classes of events are wanted, as bits: programs have to be known for all.
    classes: u32,
    /// What is known of each process that lives, by its number.
    living: HashMap<u32, Living>,
    /// Programs whose arguments have not all come.
    unfinished: HashMap<Process, Command>,
}

#[derive(Debug)]
struct Living {
    /// When it was started.
    since: u64,
    /// What runs in it.
    program: Arc<str>,
    /// Who started it, also where that one has ended since.
    parent: u32,
}

/// What is known beside the record.
pub(crate) struct Context<'a> {
    /// Whose event it is.
    pub(crate) session: &'a event::Session,
    /// The other session, of a record that is about two.
    pub(crate) other: Option<&'a SessionId>,
    /// What the rule is called, of one that is about a rule.
    pub(crate) rule: &'a str,
}

impl Translator {
    pub(crate) fn new(classes: u32) -> Self {
        Self { classes, living: HashMap::new(), unfinished: HashMap::new() }
    }

    fn wants(&self, class: usize) -> bool {
        self.classes & (1 << class) != 0
    }

    /// What a record says; nothing while more of it is to come.
    pub(crate) fn translate(&mut self, context: &Context<'_>, record: Record<'_>) -> Vec<Event> {
        let header = record.header;
        let process = (header.tgid, header.process_ns);
        let mut events = Vec::new();
        match record.body {
            Body::Exec { exec, path, cwd, argv } => {
                let (path, cwd, argv) = (path.to_vec(), cwd.to_vec(), argv.to_vec());
                let header = Header { parent: self.parent(&header), ..header };
                events = self.executed(context, Command { header, exec, path, cwd, argv });
            }
            Body::Argv { at, bytes } => {
                let Some(command) = self.unfinished.get_mut(&process) else { return events };
                // A part that was lost leaves a gap, after which nothing is in its place.
                if command.argv.len() == at {
                    command.argv.extend_from_slice(bytes);
                }
                if command.is_whole() {
                    events.extend(self.finish(context, process));
                }
            }
            // Whatever is wanted beside.
            Body::Denial { denial, path } => {
                let program = self.program(&header);
                return vec![denial::event(context, &header, program, &denial, path)];
            }
            Body::Exit { status } => {
                events.extend(self.finish(context, process));
                let program = self.program(&header);
                let header = Header { parent: self.parent(&header), ..header };
                self.living.remove(&header.tgid);
                events.push(exit(context.session.clone(), &header, program, status));
            }
            Body::Fork => self.forked(process, &header),
            Body::Over => {
                let left: Vec<_> = self.unfinished.keys().copied().collect();
                events.extend(left.into_iter().filter_map(|process| self.finish(context, process)));
                self.living.clear();
            }
            Body::File { file, path, other } => {
                let program = self.program(&header);
                return disk::events(context, &header, program, &file, path, other);
            }
            Body::Net { net, name } => {
                let program = self.program(&header);
                return network::events(context, &header, program, &net, name);
            }
            Body::Rights(rights) => {
                let program = self.program(&header);
                events.push(other::rights(context, &header, program, &rights));
            }
            Body::Kernel { kernel, name } => {
                let program = self.program(&header);
                events.push(other::kernel(context, &header, program, &kernel, name));
            }
            Body::Trace { trace, name } => {
                let program = self.program(&header);
                events.extend(other::trace(context, &header, program, &trace, name));
            }
        }
        if !self.wants(class::CONTROL) {
            events.clear();
        }
        events
    }

    fn executed(&mut self, context: &Context<'_>, command: Command) -> Vec<Event> {
        let process = (command.header.tgid, command.header.process_ns);
        // What was left of the program before is all that there will be.
        let mut events = Vec::from_iter(self.finish(context, process));
        if command.exec.result == 0 {
            let parent = command.header.parent;
            self.runs(process, base_name(&text(&command.path)).into(), parent);
        }
        if command.is_whole() || self.unfinished.len() >= UNFINISHED_MAX {
            events.push(command.event(context.session.clone()));
        } else {
            self.unfinished.insert(process, command);
        }
        events
    }

    fn finish(&mut self, context: &Context<'_>, process: Process) -> Option<Event> {
        let command = self.unfinished.remove(&process)?;
        Some(command.event(context.session.clone()))
    }

    fn runs(&mut self, (tgid, since): Process, program: Arc<str>, parent: u32) {
        if self.living.len() < LIVING_MAX || self.living.contains_key(&tgid) {
            self.living.insert(tgid, Living { since, program, parent });
        }
    }

    /// The child runs what its parent ran, of which only the number is known here.
    fn forked(&mut self, child: Process, header: &Header) {
        if let Some(Living { program, .. }) = self.living.get(&header.parent) {
            self.runs(child, Arc::clone(program), header.parent);
        }
    }

    /// What runs in the process of a record; what it calls itself, where that is not known.
    fn program(&self, header: &Header) -> String {
        self.living(header).map_or_else(|| comm(&header.comm), |it| it.program.to_string())
    }

    /// Who started the process of a record; who is its parent now, where that is not known.
    fn parent(&self, header: &Header) -> u32 {
        self.living(header).map_or(header.parent, |it| it.parent)
    }

    fn living(&self, header: &Header) -> Option<&Living> {
        self.living.get(&header.tgid).filter(|it| it.since == header.process_ns)
    }
}

fn exit(session: event::Session, header: &Header, program: String, status: i32) -> Event {
    // As wait(2) has it: the low seven bits are a signal, 128 says that it left a core, the next eight are the code.
    let signal = status & 0x7f;
    event::SessionCommandExit {
        session,
        pid: header.tgid,
        ppid: header.parent,
        program,
        exit_code: if signal == 0 { (status >> 8) & 0xff } else { 128 + signal },
        signal,
    }
    .into()
}

/// `major:minor:inode:links`; the kernel's device numbers have 20 bits of minor.
fn file_identity(dev: u64, ino: u64, nlink: u32) -> String {
    if (dev, ino) == (0, 0) {
        return String::new();
    }
    let (major, minor) = (dev >> 20, dev & 0xf_ffff);
    format!("{major}:{minor}:{ino}:{nlink}")
}

/// A task's name for itself, which ends at a NUL.
fn comm(bytes: &[u8]) -> String {
    text(bytes.split(|byte| *byte == 0).next().unwrap_or_default())
}

/// Text from which the bytes can be had again: each byte that is no UTF-8 becomes U+FFFD and two hexadecimal digits, and so do
/// the three of a U+FFFD that was there before.
pub(crate) fn text(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.contains(char::REPLACEMENT_CHARACTER)
    {
        return text.to_owned();
    }
    let mut text = String::with_capacity(bytes.len() * 2);
    let escape = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            text.push(char::REPLACEMENT_CHARACTER);
            text.push_str(&hex::encode([*byte]));
        }
    };
    for chunk in bytes.utf8_chunks() {
        for (number, part) in chunk.valid().split(char::REPLACEMENT_CHARACTER).enumerate() {
            if number > 0 {
                escape(&mut text, "\u{fffd}".as_bytes());
            }
            text.push_str(part);
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

/// The provenance's name, from [`ebpf_abi::prov`].
fn prov(number: u32) -> String {
    let name = match number {
        ebpf_abi::prov::TP => "tp",
        ebpf_abi::prov::LSM => "lsm",
        ebpf_abi::prov::SYSCALL => "syscall",
        ebpf_abi::prov::URING => "uring",
        _ => "unknown",
    };
    name.to_owned()
}

/// Programs with long arguments that are being started at once in a session: more are told of without the rest.
const UNFINISHED_MAX: usize = 64;
/// Processes of a session that are known by their program; the others by what they call themselves.
const LIVING_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What `text` was made of.
    fn bytes(text: &str) -> Vec<u8> {
        let mut parts = text.split(char::REPLACEMENT_CHARACTER);
        let mut bytes = parts.next().unwrap().as_bytes().to_vec();
        for part in parts {
            bytes.extend(hex::decode(&part[..2]).unwrap());
            bytes.extend(part[2..].bytes());
        }
        bytes
    }

    #[test]
    fn what_is_no_text_is_marked() {
        for (from, to) in [
            (&b"/etc/passwd"[..], "/etc/passwd"),
            ("/gr\u{fc}n\\x2d\n".as_bytes(), "/gr\u{fc}n\\x2d\n"),
            (b"a\xffb", "a\u{fffd}ffb"),
            (b"\xe2\x82", "\u{fffd}e2\u{fffd}82"),
            ("\u{fffd}".as_bytes(), "\u{fffd}ef\u{fffd}bf\u{fffd}bd"),
        ] {
            assert_eq!(text(from), to);
            assert_eq!(bytes(to), from);
        }
    }

    proptest! {
        #[test]
        fn no_byte_is_lost(from in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(bytes(&text(&from)), from);
        }

        /// Where there are many of the same.
        #[test]
        fn no_mark_is_taken_for_another(from in "[\u{fffd}a0-9\\\\]{0,20}") {
            prop_assert_eq!(bytes(&text(from.as_bytes())), from.as_bytes());
        }
    }
}
