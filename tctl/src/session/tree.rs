//! Events become processes, and processes a tree. A process is a number until its end: the same number later is another
//! process. A parent of which nothing is known but its number is kept as hearsay until it is known better, and is a root
//! then if it is not. Nothing here trusts what events say: no order, no number, no size. Pure.

use std::collections::HashMap;

use proto::event::{Body, Event, SessionCommand, SessionCommandExit};

use super::notice::Notices;
use super::process::{Executed, Process};
use cli::captured::{denial, doer, told};

/// How much of a session is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Of one program's arguments.
    argv_bytes: usize,
    /// Of everything, about.
    bytes: usize,
}

impl Room {
    /// For lines of a terminal's width.
    pub(super) const BRIEF: Self = Self { argv_bytes: 4096, bytes: 256 << 20 };
    /// For all that was told.
    pub(super) const WHOLE: Self = Self { argv_bytes: usize::MAX, bytes: 1 << 30 };

    fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) notices: Notices,
    /// In the order in which they were first heard of.
    pub(super) processes: Vec<Process>,
    /// Indices of those without a parent, the session's first process before the others.
    pub(super) roots: Vec<usize>,
    /// Who has a number, or had it last.
    by_pid: HashMap<u32, usize>,
    /// Who was the first to execute something, as far as was told.
    leader: Option<usize>,
    room: Room,
}

/// When something happened.
#[derive(Debug, Clone, Copy)]
struct Moment {
    ei: u64,
    ms: i64,
}

impl Tree {
    pub(super) fn new(room: Room) -> Self {
        Self {
            notices: Notices::default(),
            processes: Vec::new(),
            roots: Vec::new(),
            by_pid: HashMap::new(),
            leader: None,
            room,
        }
    }

    /// The next event.
    pub(super) fn add(&mut self, event: Event) {
        self.notices.note(&event);
        let ms = i64::try_from(event.time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        let at = Moment { ei: event.ei, ms };
        let Some((pid, program)) = doer(&event.body) else { return };
        if self.room.bytes == 0 {
            self.notices.left_out += 1;
        } else if let Body::SessionCommandExit(end) = &event.body {
            self.ended(end, at);
        } else if let Body::SessionCommand(command) = event.body {
            self.command(command, at);
        } else {
            let own = self.of_pid(pid, at);
            self.deed(own, program, &event.body, at);
        }
    }

    /// An event that cannot be read.
    pub(super) fn not_understood(&mut self) {
        self.notices.not_understood += 1;
    }

    /// There are more events than are read.
    pub(super) fn cut_off(&mut self) {
        self.notices.is_cut_off = true;
    }

    fn command(&mut self, command: SessionCommand, at: Moment) {
        let parent = self.parent(command.ppid, at);
        let own = match self.living(command.pid, at) {
            Some(own) if !self.is_replaced(own, command.ppid, parent) => own,
            Some(_) | None => self.new_process(command.pid, at),
        };
        self.hang(own, command.ppid, parent);
        if command.return_code == 0 {
            self.leader.get_or_insert(own);
        }
        let executed = Executed::of(command, at.ms, self.room.argv_bytes);
        self.room.spend(GROUP_BYTES + executed.bytes());
        if let Some(process) = self.seen(own, at) {
            process.program = base_name(&executed.path).to_owned();
            process.executed.push(executed);
        }
    }

    fn ended(&mut self, end: &SessionCommandExit, at: Moment) {
        let parent = self.parent(end.ppid, at);
        let own = self.of_pid(end.pid, at);
        self.hang(own, end.ppid, parent);
        if let Some(process) = self.seen(own, at) {
            process.ends(end, at.ei, at.ms);
            if process.program.is_empty() {
                process.program.clone_from(&end.program);
            }
        }
    }

    /// What a process did, beside executing and ending.
    fn deed(&mut self, own: usize, program: &str, body: &Body, at: Moment) {
        let Some(process) = self.seen(own, at) else { return };
        if process.program.is_empty() {
            process.program = program.to_owned();
        }
        let (text_bytes, is_new) = if let Body::SessionDisk(disk) = body {
            (disk.path.len() + disk.target_path.len(), process.file(disk))
        } else if let Body::SessionNetwork(it) = body {
            (it.dst_addr.len(), process.connection(it))
        } else if let Body::SessionDns(asked) = body {
            (asked.name.len(), process.asks(asked))
        } else if let Body::SessionDenied(it) = body {
            let words = denial(it);
            (words.len(), process.does("RULE", words, it.times))
        } else if let Some(told) = told(body) {
            (told.text.len(), process.does(told.kind, told.text, 1))
        } else {
            return;
        };
        if is_new {
            self.room.spend(GROUP_BYTES + text_bytes);
        }
    }

    /// Who has a number, or had it when that happened: also a little after the end, since not all is told in its order.
    fn living(&self, pid: u32, at: Moment) -> Option<usize> {
        let index = *self.by_pid.get(&pid)?;
        let end = self.processes.get(index)?.end;
        end.is_none_or(|end| at.ei <= end.ei.saturating_add(LATE_EVENTS)).then_some(index)
    }

    /// As [`Self::living`]; a new one, where nobody has it.
    fn of_pid(&mut self, pid: u32, at: Moment) -> usize {
        self.living(pid, at).unwrap_or_else(|| self.new_process(pid, at))
    }

    fn new_process(&mut self, pid: u32, at: Moment) -> usize {
        let index = self.processes.len();
        let seen_ms = (at.ms, at.ms);
        self.processes.push(Process { pid, seen_ms, ..Process::default() });
        self.by_pid.insert(pid, index);
        self.room.spend(PROCESS_BYTES);
        index
    }

    /// The process of an event.
    fn seen(&mut self, index: usize, at: Moment) -> Option<&mut Process> {
        let process = self.processes.get_mut(index)?;
        process.is_hearsay = false;
        process.seen_ms = (process.seen_ms.0.min(at.ms), process.seen_ms.1.max(at.ms));
        Some(process)
    }

    /// Whoever has the number of a parent; of nobody's there is only hearsay.
    fn parent(&mut self, ppid: u32, at: Moment) -> Option<usize> {
        if ppid == 0 {
            return None;
        }
        Some(self.living(ppid, at).unwrap_or_else(|| {
            let index = self.new_process(ppid, at);
            if let Some(process) = self.processes.get_mut(index) {
                process.is_hearsay = true;
            }
            index
        }))
    }

    /// Another process has the number now, and nobody told of the end of the one before: its parent is another, although
    /// its own lives. A child whose parent has ended gets another and stays the same.
    fn is_replaced(&self, own: usize, ppid: u32, parent: Option<usize>) -> bool {
        let Some(process) = self.processes.get(own) else { return false };
        let before = process.parent.and_then(|before| self.processes.get(before));
        before.is_some_and(|before| {
            process.ppid != ppid
                && process.parent != parent
                && before.end.is_none()
                && !before.is_hearsay
        })
    }

    /// Gives a process its parent, if it has none yet and nobody becomes their own ancestor.
    fn hang(&mut self, own: usize, ppid: u32, parent: Option<usize>) {
        let Some(parent) = parent else { return };
        let has_children = match self.processes.get(own) {
            Some(process) if process.parent.is_none() => !process.children.is_empty(),
            Some(_) | None => return,
        };
        if parent == own || has_children && self.is_below(parent, own) {
            return;
        }
        if let Some(process) = self.processes.get_mut(own) {
            (process.parent, process.ppid) = (Some(parent), ppid);
        }
        if let Some(process) = self.processes.get_mut(parent) {
            process.children.push(own);
        }
    }

    /// Whether `index` is below `above`; a tree that is too high to say counts as yes.
    fn is_below(&self, index: usize, above: usize) -> bool {
        let mut at = Some(index);
        for _ in 0..ANCESTORS_MAX {
            match at {
                None => return false,
                Some(at) if at == above => return true,
                Some(index) => at = self.processes.get(index).and_then(|process| process.parent),
            }
        }
        true
    }

    /// The first above it of which there is more than hearsay.
    fn topmost(&self, index: usize) -> usize {
        let known = |index: usize| {
            let parent = self.processes.get(index)?.parent?;
            (!self.processes.get(parent)?.is_hearsay).then_some(parent)
        };
        std::iter::successors(Some(index), |index| known(*index)).last().unwrap_or(index)
    }

    /// All events are in: who has no parent is a root. Of whom there is only hearsay is one only for its children, and the
    /// session's first process is a root by itself.
    pub(super) fn finish(&mut self) {
        let leader = self.leader.map(|first| self.topmost(first));
        let above = leader.and_then(|leader| self.processes.get(leader)?.parent);
        if let (Some(leader), Some(above)) = (leader, above) {
            if let Some(process) = self.processes.get_mut(leader) {
                process.parent = None;
            }
            if let Some(above) = self.processes.get_mut(above) {
                above.children.retain(|child| *child != leader);
            }
        }
        let is_root = |(_, process): &(usize, &Process)| {
            process.parent.is_none() && !(process.is_hearsay && process.children.is_empty())
        };
        let roots = self.processes.iter().enumerate().filter(is_root).map(|(index, _)| index);
        self.roots = roots.collect();
        self.roots.sort_by_key(|root| Some(*root) != leader);
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What a process takes, and what something that it did takes beside its text: about.
const PROCESS_BYTES: usize = 512;
const GROUP_BYTES: usize = 192;
/// Numbers are given in turn, and each process has an end of its own: within so many events nobody has the same number again.
const LATE_EVENTS: u64 = 4096;
/// No shell nests so deep; a search for a circle ends here.
const ANCESTORS_MAX: usize = 4096;
