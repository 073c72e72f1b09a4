//! One process of a session, and what it did: what is the same is counted, not listed.

use std::collections::BTreeMap;

use proto::event::{SessionCommand, SessionCommandExit, SessionDisk, SessionDns, SessionNetwork};

/// A process: a number, from when it was first heard of until its end.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// Who started it, as it was told; 0 where nobody did.
    pub(super) ppid: u32,
    pub(super) parent: Option<usize>,
    pub(super) children: Vec<usize>,
    /// Only heard of as somebody's parent.
    pub(super) is_hearsay: bool,
    /// What its events call it.
    pub(super) program: String,
    /// In the order in which it executed them, with those that it could not.
    pub(super) executed: Vec<Executed>,
    /// Unix milliseconds of its first and of its last event.
    pub(super) seen_ms: (i64, i64),
    pub(super) end: Option<End>,
    pub(super) files: BTreeMap<FileKey, Ops>,
    pub(super) connections: BTreeMap<Ends, Connection>,
    /// Names that it asked for, with the type of the question.
    pub(super) names: BTreeMap<(String, String), u64>,
    /// Rights, the kernel, other processes, work that was handed over: kind and words, and how often.
    pub(super) deeds: BTreeMap<(&'static str, String), u64>,
}

/// A program that was executed, or could not be.
#[derive(Debug, Clone)]
pub(super) struct Executed {
    pub(super) path: String,
    pub(super) argv: Vec<String>,
    /// Bytes of arguments that are not here: the kernel's, and ours.
    pub(super) argv_missing: u64,
    pub(super) cwd: String,
    pub(super) ruid: u32,
    pub(super) euid: u32,
    /// No name leads to its file.
    pub(super) is_deleted: bool,
    pub(super) is_script: bool,
    pub(super) return_code: i32,
    pub(super) at_ms: i64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) exit_code: i32,
    pub(super) signal: i32,
    /// Number of the event in the session.
    pub(super) ei: u64,
    /// Unix milliseconds.
    pub(super) at_ms: i64,
}

/// Path, and the other path of what has two.
pub(super) type FileKey = (String, String);
/// What was done, with which result, and how often.
pub(super) type Ops = BTreeMap<(String, i32), u64>;

/// Whom a process talked to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ends {
    pub(super) protocol: String,
    pub(super) src_addr: String,
    pub(super) dst_addr: String,
    pub(super) dst_port: u32,
    /// Our own port, where we listen; that of a connection tells nothing apart.
    pub(super) own_port: u16,
}

/// All between the same ends.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub(super) ops: Ops,
    /// Ports of our side, one that stands for all.
    pub(super) src_port: u16,
    pub(super) tx: u64,
    pub(super) rx: u64,
    pub(super) denied: u64,
}

impl Executed {
    /// At most so many bytes of arguments are kept.
    pub(super) fn of(command: SessionCommand, at_ms: i64, argv_bytes_max: usize) -> Self {
        let mut argv = Vec::new();
        let (mut left, mut argv_missing) = (argv_bytes_max, u64::from(command.argv_missing));
        for mut word in command.argv {
            let kept = word.floor_char_boundary(left.saturating_sub(WORD_BYTES));
            if kept < word.len() || left < WORD_BYTES {
                // The bytes, and the NUL behind them.
                argv_missing += bytes(word.len() - kept + 1);
                word.truncate(kept);
                word.shrink_to_fit();
            }
            if left >= WORD_BYTES {
                left -= WORD_BYTES + word.len();
                argv.push(word);
            }
        }
        Self {
            is_deleted: command.file.ends_with(":0"),
            path: command.path,
            argv,
            argv_missing,
            cwd: command.cwd,
            ruid: command.ruid,
            euid: command.euid,
            is_script: command.script,
            return_code: command.return_code,
            at_ms,
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let words = self.argv.iter().map(|word| word.len() + WORD_BYTES);
        self.path.len() + self.cwd.len() + words.sum::<usize>()
    }
}

/// Of a `String` beside its text.
const WORD_BYTES: usize = 24;

fn bytes(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl Process {
    /// The program that runs in it, or ran at its end.
    pub(super) fn runs(&self) -> Option<&Executed> {
        self.executed.iter().rev().find(|executed| executed.return_code == 0)
    }

    pub(super) fn ends(&mut self, end: &SessionCommandExit, ei: u64, at_ms: i64) {
        self.end = Some(End { exit_code: end.exit_code, signal: end.signal, ei, at_ms });
    }

    /// Gives whether there was none like it.
    pub(super) fn file(&mut self, disk: &SessionDisk) -> bool {
        let key = (disk.path.clone(), disk.target_path.clone());
        let ops = self.files.entry(key).or_default();
        let before = ops.len();
        let op = cli::captured::file_op(disk);
        *ops.entry((op, disk.return_code)).or_default() += disk.times.max(1);
        ops.len() > before
    }

    /// Gives whether there was none like it.
    pub(super) fn connection(&mut self, it: &SessionNetwork) -> bool {
        let serves = matches!(it.op.as_str(), "accept" | "bind" | "listen");
        let ends = Ends {
            protocol: it.protocol.clone(),
            src_addr: it.src_addr.clone(),
            dst_addr: it.dst_addr.clone(),
            // Whoever is accepted has any port.
            dst_port: if it.op == "accept" { 0 } else { it.dst_port },
            own_port: if serves { it.src_port } else { 0 },
        };
        let all = self.connections.entry(ends).or_default();
        let before = all.ops.len();
        *all.ops.entry((it.op.clone(), it.return_code)).or_default() += it.times.max(1);
        if it.src_port != 0 {
            all.src_port = it.src_port;
        }
        all.tx = all.tx.saturating_add(it.tx);
        all.rx = all.rx.saturating_add(it.rx);
        all.denied += u64::from(it.action != 0);
        all.ops.len() > before
    }

    /// Gives whether there was none like it.
    pub(super) fn asks(&mut self, asked: &SessionDns) -> bool {
        let before = self.names.len();
        let key = (asked.name.clone(), asked.qtype.clone());
        *self.names.entry(key).or_default() += 1;
        self.names.len() > before
    }

    /// Gives whether there was none like it.
    pub(super) fn does(&mut self, kind: &'static str, words: String, times: u64) -> bool {
        let before = self.deeds.len();
        *self.deeds.entry((kind, words)).or_default() += times.max(1);
        self.deeds.len() > before
    }
}
