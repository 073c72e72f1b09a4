//! What the kernel told of a session, in words: one line for one event. Everything in it was chosen by whoever the session
//! watches, so each word from elsewhere is quoted ([`quoted`]) and stays on its line. Pure.

use proto::event::{
    Body, SessionCapture, SessionCommand, SessionCommandExit, SessionDelegation, SessionDenied,
    SessionDisk, SessionDns, SessionLoss, SessionNetwork, SessionPrivilege, SessionTrace,
};

use crate::output::quoted;

/// An event in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// One word: `exec`, `file`.
    pub kind: &'static str,
    /// Whose doing it is; `None` for the session's.
    pub pid: Option<u32>,
    /// The rest, on one line.
    pub text: String,
}

/// What an event says; `None` for what the kernel has not told.
#[expect(clippy::wildcard_enum_match_arm, reason = "the others are not the kernel's")]
pub fn told(body: &Body) -> Option<Told> {
    let of = |kind, text| Some(Told { kind, pid: None, text });
    let by = |kind, pid, text| Some(Told { kind, pid: Some(pid), text });
    match body {
        Body::SessionCapture(all) => of("all", totals(all)),
        Body::SessionCommand(command) => by("exec", command.pid, executed(command)),
        Body::SessionCommandExit(end) => {
            by("exit", end.pid, format!("{}, {}", quoted(&end.program), ended(end)))
        }
        Body::SessionDelegation(it) => by("handed", it.pid, delegation(it)),
        Body::SessionDenied(it) => by("RULE", it.pid, denial(it) + &times(it.times)),
        Body::SessionDetached(left) => of("left", format!("{} tasks live on", left.tasks)),
        Body::SessionDisk(disk) => by("file", disk.pid, file(disk)),
        Body::SessionDns(asked) => by("dns", asked.pid, question(asked)),
        Body::SessionKernel(it) => {
            by("kernel", it.pid, words(&[&it.op, &it.detail]) + &result(it.return_code))
        }
        Body::SessionLoss(lost) => of("LOST", loss(lost)),
        Body::SessionNetwork(it) => by("net", it.pid, connection(it)),
        Body::SessionPrivilege(it) => by("rights", it.pid, rights(it)),
        Body::SessionTrace(it) => by("trace", it.pid, trace(it)),
        _ => None,
    }
}

/// The process that an event tells of, and the program in it.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the others are not the kernel's, or of no process"
)]
pub fn doer(body: &Body) -> Option<(u32, &str)> {
    let (pid, program) = match body {
        Body::SessionCommand(it) => (it.pid, &it.program),
        Body::SessionCommandExit(it) => (it.pid, &it.program),
        Body::SessionDelegation(it) => (it.pid, &it.program),
        Body::SessionDenied(it) => (it.pid, &it.program),
        Body::SessionDisk(it) => (it.pid, &it.program),
        Body::SessionDns(it) => (it.pid, &it.program),
        Body::SessionKernel(it) => (it.pid, &it.program),
        Body::SessionNetwork(it) => (it.pid, &it.program),
        Body::SessionPrivilege(it) => (it.pid, &it.program),
        Body::SessionTrace(it) => (it.pid, &it.program),
        _ => return None,
    };
    Some((pid, program))
}

fn words(parts: &[&str]) -> String {
    let parts = parts.iter().filter(|part| !part.is_empty()).map(|part| quoted(part));
    parts.collect::<Vec<_>>().join(" ")
}

/// Path and arguments, and what is odd about them.
fn executed(command: &SessionCommand) -> String {
    let mut text = quoted(&command.path);
    for word in &command.argv {
        text.push(' ');
        text.push_str(&quoted(word));
    }
    if command.argv_missing > 0 {
        text.push_str(&format!(" …and {} bytes", command.argv_missing));
    }
    if command.path_cut {
        text.push_str(" (the path is only its end)");
    }
    if has_no_name(command) {
        text.push_str(" (a deleted file)");
    }
    text + &result(command.return_code)
}

/// The file was deleted, or never had a name.
fn has_no_name(command: &SessionCommand) -> bool {
    command.file.ends_with(":0")
}

/// `exit 1`, `killed by signal 9`.
pub fn ended(end: &SessionCommandExit) -> String {
    match end.signal {
        0 => format!("exit {}", end.exit_code),
        signal => format!("killed by signal {signal}"),
    }
}

/// Operation, path, result.
fn file(disk: &SessionDisk) -> String {
    let cut = if disk.path_cut { " (only its end)" } else { "" };
    let to = match disk.target_path.as_str() {
        "" => String::new(),
        target => format!(" > {}", quoted(target)),
    };
    let (op, path) = (op_words(&file_op(disk)), quoted(&disk.path));
    format!("{op} {path}{cut}{to}{}{}", times(disk.times), result(disk.return_code))
}

/// The operation; of open(2) with what for.
pub fn file_op(disk: &SessionDisk) -> String {
    match (disk.op.as_str(), disk.flags & O_ACCMODE) {
        ("open", 0) => "read".to_owned(),
        ("open", 1) => "open to write".to_owned(),
        ("open", 2) => "open to read and write".to_owned(),
        ("chmod", _) => format!("chmod {:o}", disk.mode),
        (op, _) => op.to_owned(),
    }
}

/// An operation, to be shown.
pub fn op_words(op: &str) -> String {
    let is_plain = op.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, ' ' | '_'));
    if is_plain { op.to_owned() } else { quoted(op) }
}

/// Operation, protocol, both ends, result.
fn connection(it: &SessionNetwork) -> String {
    let from = endpoint(&it.src_addr, it.src_port.into());
    let to = endpoint(&it.dst_addr, it.dst_port);
    let ends = match (from.as_str(), to.as_str()) {
        ("", "") => String::new(),
        (from, "") => format!(" {from}"),
        ("", to) => format!(" > {to}"),
        (from, to) => format!(" {from} > {to}"),
    };
    let denied = if it.action == 0 { "" } else { " DENIED" };
    let (op, protocol) = (quoted(&it.op), quoted(&it.protocol));
    let (bytes, result) = (moved(it.tx, it.rx), result(it.return_code));
    format!("{op} {protocol}{ends}{bytes}{}{denied}{result}", times(it.times))
}

/// Bytes of a connection; empty for none.
pub fn moved(sent: u64, received: u64) -> String {
    match (sent, received) {
        (0, 0) => String::new(),
        (sent, received) => format!(", {sent} B out, {received} B in"),
    }
}

/// `192.0.2.7:443`, `[2001:db8::1]:443`, a socket's path; empty for none.
pub fn endpoint(address: &str, port: u32) -> String {
    match (address, port) {
        ("", 0) => String::new(),
        (address, 0) => quoted(address),
        (address, port) if address.contains(':') => format!("[{}]:{port}", quoted(address)),
        (address, port) => format!("{}:{port}", quoted(address)),
    }
}

/// What a rule is about, which one, and what came of it; without how often.
pub fn denial(it: &SessionDenied) -> String {
    let came = match it.mode.as_str() {
        "audit" => "happened, against the rule",
        "deny" => "denied by",
        "kill" => "denied, and killed, by",
        other => return format!("{} by {}", words(&[&it.op, other]), quoted(&it.rule)),
    };
    let what = words(&[&it.op, &it.path]);
    let whom = match endpoint(&it.dst_addr, it.dst_port.into()) {
        none if none.is_empty() => none,
        whom => format!(" > {whom}"),
    };
    let other =
        if it.target_pid == 0 { String::new() } else { format!(" on process {}", it.target_pid) };
    format!("{what}{whom}{other} {came} {}{}", quoted(&it.rule), result(it.return_code))
}

fn question(asked: &SessionDns) -> String {
    let whom = endpoint(&asked.dst_addr, asked.dst_port.into());
    format!("{} {} of {whom}", quoted(&asked.name), quoted(&asked.qtype))
}

/// From what, where that is known, to what.
fn rights(it: &SessionPrivilege) -> String {
    let before = words(&[&it.op, &it.from]);
    format!("{before} > {}{}", quoted(&it.to), result(it.return_code))
}

/// Who does it now, and how that came.
fn delegation(it: &SessionDelegation) -> String {
    let way = match it.path.as_str() {
        "" => String::new(),
        path => format!(" by {}", quoted(path)),
    };
    let other = match it.target_pid {
        0 => String::new(),
        pid => format!(" to {}", other(pid, &it.target_program, &it.target_sid)),
    };
    format!("over via {}{way}{other}", quoted(&it.via))
}

/// Into which process, and how.
fn trace(it: &SessionTrace) -> String {
    let what = words(&[&it.op, &it.detail]);
    let other = other(it.target_pid, &it.target_program, &it.target_sid);
    format!("{what} on {other}{}", result(it.return_code))
}

fn other(pid: u32, program: &str, sid: &str) -> String {
    let session =
        if sid.is_empty() { String::new() } else { format!(" of session {}", quoted(sid)) };
    match program {
        "" => format!("process {pid}{session}"),
        program => format!("process {pid} {}{session}", quoted(program)),
    }
}

/// How many records of what, and why.
fn loss(lost: &SessionLoss) -> String {
    let (what, why) = (loss_class(&lost.class), loss_reason(&lost.reason));
    let which = match (lost.first, lost.last) {
        (0, 0) => String::new(),
        (first, last) => format!(", numbers {first} to {last}"),
    };
    format!("{} {what}{which}{why}", lost.count)
}

/// For people.
pub fn loss_class(class: &str) -> String {
    match class {
        "control" => "records of programs and rights".to_owned(),
        "file" => "records of files".to_owned(),
        "network" => "records of the network".to_owned(),
        "task" => "processes that could not be followed".to_owned(),
        other => format!("records of {}", quoted(other)),
    }
}

/// For people, with its colon.
pub fn loss_reason(reason: &str) -> String {
    match reason {
        "" => String::new(),
        "ring" => ": the kernel's buffer was full".to_owned(),
        "budget" => ": more than one session may have on its way".to_owned(),
        other => format!(": {}", quoted(other)),
    }
}

fn totals(all: &SessionCapture) -> String {
    let SessionCapture { control, file, network, folded, lost, .. } = all;
    format!(
        "tier {}: {control} records of programs, {file} of files, {network} of the network, {folded} folded, {lost} lost",
        quoted(&all.tier)
    )
}

/// Repetitions that an event stands for; empty for one.
pub fn times(count: u64) -> String {
    if count > 1 { format!(" ×{count}") } else { String::new() }
}

/// Of a system call; empty when it went well.
pub fn result(code: i32) -> String {
    let name = match code.checked_neg() {
        Some(i32::MIN..=0) => return String::new(),
        Some(1) => "EPERM",
        Some(2) => "ENOENT",
        Some(11) => "EAGAIN",
        Some(13) => "EACCES",
        Some(16) => "EBUSY",
        Some(17) => "EEXIST",
        Some(20) => "ENOTDIR",
        Some(21) => "EISDIR",
        Some(22) => "EINVAL",
        Some(26) => "ETXTBSY",
        Some(30) => "EROFS",
        Some(40) => "ELOOP",
        Some(101) => "ENETUNREACH",
        Some(104) => "ECONNRESET",
        Some(110) => "ETIMEDOUT",
        Some(111) => "ECONNREFUSED",
        Some(113) => "EHOSTUNREACH",
        Some(115) => "EINPROGRESS",
        Some(_) | None => return format!(" = error {}", code.unsigned_abs()),
    };
    format!(" = {name}")
}

/// Of open(2), on all architectures of Linux.
const O_ACCMODE: u32 = 3;

#[cfg(test)]
mod tests {
    use proto::event::Event;

    use super::*;

    /// The golden events, in words: nothing that the kernel tells is left without.
    #[test]
    fn every_captured_event_has_words() {
        let golden = include_str!("../../proto/tests/golden/events.jsonl");
        let events = golden.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
        let mut told = Vec::new();
        for event in events {
            match super::told(&event.body) {
                Some(Told { kind, pid, text }) => {
                    assert!(proto::event::CAPTURED.contains(&event.name()));
                    let pid = pid.map(|pid| format!("[{pid}] ")).unwrap_or_default();
                    told.push(format!("{:<22} {kind:<7} {pid}{text}", event.name()));
                }
                None => {
                    let is_known = ["session.start", "session.end"].contains(&event.name());
                    assert!(is_known || !proto::event::CAPTURED.contains(&event.name()));
                }
            }
        }
        insta::assert_snapshot!(told.join("\n"));
    }

    #[test]
    fn results_have_their_names() {
        assert_eq!((result(0), result(3)), (String::new(), String::new()));
        assert_eq!(result(-13), " = EACCES");
        assert_eq!(result(-133), " = error 133");
        assert_eq!(result(i32::MIN), " = error 2147483648");
    }

    #[test]
    fn both_ends_are_written_as_people_write_them() {
        assert_eq!(endpoint("192.0.2.7", 443), "192.0.2.7:443");
        assert_eq!(endpoint("2001:db8::1", 443), "[2001:db8::1]:443");
        assert_eq!(endpoint("/run/a b", 0), "'/run/a b'");
        assert_eq!(endpoint("", 0), "");
    }
}
