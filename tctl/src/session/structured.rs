//! The tree for programs: a flat list, in which each process names its parent. A nested one could be deeper than readers bear.

use serde::Serialize;

use cli::failure::Failure;
use cli::output::{self, Format};

use super::process::{Connection, Ends, Executed, Ops, Process};
use super::tree::Tree;

#[derive(Debug, Serialize)]
struct Whole<'a> {
    sid: String,
    user: String,
    login: String,
    server_hostname: String,
    /// `A`, `B`; empty for nothing, or not known.
    capture: &'a str,
    /// Nothing is missing.
    complete: bool,
    /// What is missing, for people.
    missing: Vec<String>,
    lost: Vec<Loss<'a>>,
    /// Events that are not in the log.
    gaps: u64,
    processes: Vec<One<'a>>,
}

#[derive(Debug, Serialize)]
struct Loss<'a> {
    class: &'a str,
    reason: &'a str,
    count: u64,
    first: u64,
    last: u64,
}

#[derive(Debug, Serialize)]
struct One<'a> {
    id: usize,
    /// The `id` of another; null for a root.
    parent: Option<usize>,
    pid: u32,
    ppid: u32,
    program: &'a str,
    /// Heard of as a parent only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unknown: bool,
    commands: Vec<Command<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    /// Unix milliseconds of its first and of its last event.
    first_ms: i64,
    last_ms: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<File<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    connections: Vec<Talk<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<Name<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deeds: Vec<Deed<'a>>,
}

#[derive(Debug, Serialize)]
struct Command<'a> {
    path: &'a str,
    argv: &'a [String],
    #[serde(skip_serializing_if = "is_zero")]
    argv_missing: u64,
    cwd: &'a str,
    ruid: u32,
    euid: u32,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    script: bool,
    return_code: i32,
    at_ms: i64,
}

#[derive(Debug, Serialize)]
struct File<'a> {
    path: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    target_path: &'a str,
    ops: Vec<Op<'a>>,
}

#[derive(Debug, Serialize)]
struct Talk<'a> {
    protocol: &'a str,
    src_addr: &'a str,
    /// Of one of them.
    src_port: u16,
    dst_addr: &'a str,
    dst_port: u32,
    ops: Vec<Op<'a>>,
    tx: u64,
    rx: u64,
    denied: u64,
}

#[derive(Debug, Serialize)]
struct Op<'a> {
    op: &'a str,
    return_code: i32,
    times: u64,
}

#[derive(Debug, Serialize)]
struct Name<'a> {
    name: &'a str,
    qtype: &'a str,
    times: u64,
}

#[derive(Debug, Serialize)]
struct Deed<'a> {
    /// `RULE`, `handed`, `rights`, `kernel`, `trace`.
    kind: &'a str,
    text: &'a str,
    times: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// # Errors
/// The value has no such form.
pub(super) fn structured(tree: &Tree, format: Format) -> Result<String, Failure> {
    let notices = &tree.notices;
    let facts = notices.facts.as_ref();
    let missing = notices.lines();
    let losses = notices.losses.iter().map(|((class, reason), loss)| Loss {
        class,
        reason,
        count: loss.count,
        first: loss.first,
        last: loss.last,
    });
    let whole = Whole {
        sid: facts.map(|facts| facts.sid.to_string()).unwrap_or_default(),
        user: facts.map(|facts| facts.user.to_string()).unwrap_or_default(),
        login: facts.map(|facts| facts.login.to_string()).unwrap_or_default(),
        server_hostname: facts.map(|facts| facts.server_hostname.to_string()).unwrap_or_default(),
        capture: notices.tier.as_deref().unwrap_or_default(),
        complete: missing.is_empty(),
        missing,
        lost: losses.collect(),
        gaps: notices.gaps(),
        processes: tree.processes.iter().enumerate().map(one).collect(),
    };
    output::structured(&whole, format)
}

fn one((id, process): (usize, &Process)) -> One<'_> {
    One {
        id,
        parent: process.parent,
        pid: process.pid,
        ppid: process.ppid,
        program: &process.program,
        unknown: process.is_hearsay,
        commands: process.executed.iter().map(command).collect(),
        exit_code: process.end.map(|end| end.exit_code),
        signal: process.end.map(|end| end.signal).filter(|signal| *signal != 0),
        first_ms: process.seen_ms.0,
        last_ms: process.seen_ms.1,
        files: process
            .files
            .iter()
            .map(|((path, target_path), done)| File { path, target_path, ops: ops(done) })
            .collect(),
        connections: process.connections.iter().map(talk).collect(),
        names: process
            .names
            .iter()
            .map(|((name, qtype), times)| Name { name, qtype, times: *times })
            .collect(),
        deeds: process
            .deeds
            .iter()
            .map(|((kind, text), times)| Deed { kind, text, times: *times })
            .collect(),
    }
}

fn command(executed: &Executed) -> Command<'_> {
    Command {
        path: &executed.path,
        argv: &executed.argv,
        argv_missing: executed.argv_missing,
        cwd: &executed.cwd,
        ruid: executed.ruid,
        euid: executed.euid,
        deleted: executed.is_deleted,
        script: executed.is_script,
        return_code: executed.return_code,
        at_ms: executed.at_ms,
    }
}

fn talk<'a>((ends, all): (&'a Ends, &'a Connection)) -> Talk<'a> {
    Talk {
        protocol: &ends.protocol,
        src_addr: &ends.src_addr,
        src_port: all.src_port,
        dst_addr: &ends.dst_addr,
        dst_port: ends.dst_port,
        ops: ops(&all.ops),
        tx: all.tx,
        rx: all.rx,
        denied: all.denied,
    }
}

fn ops(done: &Ops) -> Vec<Op<'_>> {
    let done = done.iter();
    done.map(|((op, code), times)| Op { op, return_code: *code, times: *times }).collect()
}
