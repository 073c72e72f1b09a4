//! The tree for people: what is missing first, then one line for each program, what it did below it, and its children. Deep
//! trees stop moving to the right. Pure; no recursion, since a session may nest as deep as it likes.

use std::rc::Rc;

use cli::captured::{endpoint, moved, op_words, result, times};
use cli::output::{quoted, shortened};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::process::{Connection, Ends, Executed, Ops, Process};
use super::tree::Tree;

/// How it is to look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Characters of a line; `None` for whole lines.
    pub(super) columns: Option<usize>,
    /// All files and connections of a process.
    pub(super) full: bool,
}

/// A process that is to be written, and what stands left of it.
struct Next {
    index: usize,
    prefix: Rc<str>,
    depth: usize,
    is_last: bool,
}

pub(super) fn text(tree: &Tree, shape: &Shape) -> String {
    let mut out = Out { text: String::new(), columns: shape.columns };
    head(tree, &mut out);
    let mut stack: Vec<Next> = tree.roots.iter().rev().map(|root| next_root(*root)).collect();
    while let Some(next) = stack.pop() {
        let Some(process) = tree.processes.get(next.index) else { continue };
        let (own, below) = prefixes(&next);
        out.line(&format!("{own}{}", program_line(tree, process, next.depth)));
        let bar = if process.children.is_empty() { "    " } else { "│   " };
        for line in doings(process, shape) {
            out.line(&format!("{below}{bar}{line}"));
        }
        let (prefix, depth): (Rc<str>, _) = (below.into(), next.depth + 1);
        let last = process.children.len().saturating_sub(1);
        stack.extend(process.children.iter().enumerate().rev().map(|(place, index)| Next {
            index: *index,
            prefix: prefix.clone(),
            depth,
            is_last: place == last,
        }));
    }
    out.text
}

fn next_root(index: usize) -> Next {
    Next { index, prefix: "".into(), depth: 0, is_last: true }
}

/// What stands left of a process' own line, and of what is below it.
fn prefixes(next: &Next) -> (String, String) {
    let prefix = &next.prefix;
    match (next.depth, next.is_last) {
        (0, _) => (String::new(), String::new()),
        (depth, _) if depth > DEPTH_SHOWN => (format!("{prefix}+ "), prefix.to_string()),
        (_, true) => (format!("{prefix}└─ "), format!("{prefix}   ")),
        (_, false) => (format!("{prefix}├─ "), format!("{prefix}│  ")),
    }
}

/// Lines, as wide as they may be.
struct Out {
    text: String,
    columns: Option<usize>,
}

impl Out {
    fn line(&mut self, line: &str) {
        match self.columns {
            Some(columns) => self.text.push_str(&shortened(line, columns)),
            None => self.text.push_str(line),
        }
        self.text.push('\n');
    }
}

fn head(tree: &Tree, out: &mut Out) {
    let notices = &tree.notices;
    if let Some(facts) = &notices.facts {
        let (user, login) = (&facts.user, &facts.login);
        out.line(&format!(
            "session {} of {user} as {login} on {}",
            facts.sid, facts.server_hostname
        ));
    }
    let tier = match notices.tier.as_deref() {
        Some("A") => "tier A",
        Some("B") => "tier B",
        Some(_) | None => "no tier",
    };
    let time = |time: Option<OffsetDateTime>| {
        time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| "?".to_owned())
    };
    let hearsay = tree.processes.iter().filter(|process| process.is_hearsay).count();
    out.line(&format!(
        "from {} to {}, processes: {}, {tier}",
        time(notices.start),
        time(notices.end),
        tree.processes.len() - hearsay,
    ));
    // Whole, however wide: what is missing is not cut.
    for line in notices.lines() {
        out.text.push_str(&format!("! {line}\n"));
    }
}

/// Number, program with arguments, user, end, duration.
fn program_line(tree: &Tree, process: &Process, depth: usize) -> String {
    let pid = process.pid;
    if process.is_hearsay {
        return match pid {
            1 => "1 ? (their parents had ended)".to_owned(),
            _ => format!("{pid} ? (a parent of which nothing is known)"),
        };
    }
    let mut text = pid.to_string();
    if depth > DEPTH_SHOWN {
        text.push_str(&format!(" (depth {depth})"));
    }
    let parent = process.parent.and_then(|parent| tree.processes.get(parent));
    let mut last = parent.and_then(Process::runs);
    text.push_str(&format!("  [{}]", end(process)));
    if process.runs().is_none() {
        text.push_str(&format!(" {} (no program of its own)", quoted(&process.program)));
    }
    let worked = process.executed.iter().filter(|executed| executed.return_code == 0);
    for (place, executed) in worked.enumerate() {
        text.push_str(if place == 0 { " " } else { "  then " });
        text.push_str(&user_change(last, executed));
        text.push_str(&words(executed));
        last = Some(executed);
    }
    if process.parent.is_none() && process.ppid == 0 && process.executed.is_empty() {
        text.push_str(" (its parent is not known)");
    }
    text
}

/// How it ended, and how long it lived.
fn end(process: &Process) -> String {
    let Some(end) = process.end else { return "no end seen".to_owned() };
    let seconds = span(end.at_ms.saturating_sub(process.seen_ms.0));
    match end.signal {
        0 => format!("exit {} {seconds}", end.exit_code),
        signal => format!("signal {signal} {seconds}"),
    }
}

/// `0.012s`, `3m05s`.
fn span(ms: i64) -> String {
    let ms = ms.max(0);
    match ms / 60_000 {
        0 => format!("{}.{:03}s", ms / 1000, ms % 1000),
        minutes => format!("{minutes}m{:02}s", ms / 1000 % 60),
    }
}

/// Where a program does not run as the one did that started it.
fn user_change(before: Option<&Executed>, executed: &Executed) -> String {
    let now = (executed.ruid, executed.euid);
    match before.map(|before| (before.ruid, before.euid)) {
        Some(before) if before == now => String::new(),
        Some((_, before)) => format!("(user {before} > {}) ", of(now)),
        None => format!("(user {}) ", of(now)),
    }
}

/// The user whose rights it has, and whose it is where that is another.
fn of((real, effective): (u32, u32)) -> String {
    if real == effective {
        return effective.to_string();
    }
    format!("{effective} for {real}")
}

fn words(executed: &Executed) -> String {
    let mut text = quoted(&executed.path);
    for word in &executed.argv {
        text.push(' ');
        text.push_str(&quoted(word));
    }
    if executed.argv_missing > 0 {
        text.push_str(&format!(" …and {} bytes", executed.argv_missing));
    }
    if executed.is_deleted {
        text.push_str(" (a deleted file)");
    }
    text + &result(executed.return_code)
}

/// What a process did; what is against a rule and work that it handed over first.
fn doings(process: &Process, shape: &Shape) -> Vec<String> {
    let mut lines = Vec::new();
    let (handed, deeds): (Vec<_>, Vec<_>) =
        process.deeds.iter().partition(|((kind, _), _)| matches!(*kind, "RULE" | "handed"));
    let deed = |mark: &str, ((kind, words), count): (&(&str, String), &u64)| {
        format!("{mark}{kind:<6} {words}{}", times(*count))
    };
    list(&mut lines, shape, "deeds", handed.into_iter().map(|it| deed("!! ", it)));
    list(&mut lines, shape, "deeds", deeds.into_iter().map(|it| deed("!  ", it)));
    let failed: Vec<_> = process.executed.iter().filter(|it| it.return_code != 0).collect();
    let tries = failed.into_iter().map(|it| format!("   tried  {}", words(it)));
    list(&mut lines, shape, "tries", tries);
    let names = process.names.iter().map(|((name, qtype), count)| {
        format!("   dns    {} {}{}", quoted(name), quoted(qtype), times(*count))
    });
    list(&mut lines, shape, "names", names);
    let connections = process.connections.iter().map(|(ends, all)| connection(ends, all));
    list(&mut lines, shape, "connections", connections);
    let mut files: Vec<_> = process.files.iter().collect();
    files.sort_by_key(|(_, done)| weight(done));
    let files = files.into_iter().map(|((path, target), done)| {
        let target =
            if target.is_empty() { String::new() } else { format!(" > {}", quoted(target)) };
        format!("   file   {}{target}  {}", quoted(path), ops(done))
    });
    list(&mut lines, shape, "files", files);
    lines
}

/// Changes come before what was only tried, and that before what was only read.
fn weight(done: &Ops) -> u8 {
    let is_read = |op: &str| matches!(op, "read" | "map_exec");
    let of_one = |(op, code): &(String, i32)| match (is_read(op), code) {
        (false, 0) => 0,
        (_, 0) => 2,
        _ => 1,
    };
    done.keys().map(of_one).min().unwrap_or(2)
}

/// Some of them, and how many there are beside.
fn list(
    lines: &mut Vec<String>,
    shape: &Shape,
    what: &str,
    all: impl ExactSizeIterator<Item = String>,
) {
    let room = if shape.full || all.len() <= LISTED_MAX + 1 { usize::MAX } else { LISTED_MAX };
    let beside = all.len().saturating_sub(room);
    lines.extend(all.take(room));
    if beside > 0 {
        lines.push(format!("   …and {beside} more {what}: see them with --full"));
    }
}

fn connection(ends: &Ends, all: &Connection) -> String {
    let count: u64 = all.ops.values().copied().fold(0, u64::saturating_add);
    let port = if count <= 2 || ends.own_port != 0 { all.src_port } else { 0 };
    let from = endpoint(&ends.src_addr, port.into());
    let to = endpoint(&ends.dst_addr, ends.dst_port);
    let both = match (from.as_str(), to.as_str()) {
        (from, "") => from.to_owned(),
        ("", to) => format!("> {to}"),
        (from, to) => format!("{from} > {to}"),
    };
    let denied = if all.denied > 0 { format!(", {} DENIED", all.denied) } else { String::new() };
    let bytes = moved(all.tx, all.rx);
    format!("   net    {} {both}  {}{bytes}{denied}", quoted(&ends.protocol), ops(&all.ops))
}

fn ops(done: &Ops) -> String {
    let one = |((op, code), count): (&(String, i32), &u64)| {
        format!("{}{}{}", op_words(op), times(*count), result(*code))
    };
    done.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Steps to the right; what is deeper says how deep it is.
const DEPTH_SHOWN: usize = 16;
/// Of each kind and process, without `--full`.
const LISTED_MAX: usize = 12;
