//! Programs: what was executed, with arguments that may come in parts.

use ebpf_abi::{Exec, Header, flag};
use proto::event::{self, Body as Event};

use super::{file_identity, text};

/// A program that was executed.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) header: Header,
    pub(super) exec: Exec,
    pub(super) path: Vec<u8>,
    pub(super) cwd: Vec<u8>,
    pub(super) argv: Vec<u8>,
}

impl Command {
    pub(super) fn is_whole(&self) -> bool {
        self.exec.flags & flag::ARGV_UNREADABLE != 0
            || self.argv.len() >= usize::try_from(self.exec.argv_captured).unwrap_or(usize::MAX)
    }

    pub(super) fn event(self, session: event::Session) -> Event {
        let path = text(&self.path);
        let captured = u32::try_from(self.argv.len()).unwrap_or(u32::MAX);
        let (argv, left_out) = arguments(&self.argv);
        let exec = self.exec;
        event::SessionCommand {
            session,
            pid: self.header.tgid,
            ppid: self.header.parent,
            program: base_name(&path).to_owned(),
            path,
            argv,
            argv_missing: exec.argv_total.saturating_sub(captured).saturating_add(left_out),
            cwd: text(&self.cwd),
            ruid: exec.real_uid,
            euid: self.header.uid,
            file: file_identity(exec.dev, exec.ino, exec.nlink),
            mode: exec.mode & 0o7777,
            owner_uid: exec.owner_uid,
            owner_gid: exec.owner_gid,
            script: exec.flags & flag::SCRIPT != 0,
            path_cut: exec.flags & (flag::PATH_CUT | flag::CWD_CUT) != 0,
            sha256: String::new(),
            return_code: exec.result,
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

/// The last part of a path.
pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Of all arguments, as JSON: with paths that need six bytes for each of theirs, an event stays below the 256 KiB that the
/// spool and auth take.
const ARGV_JSON_BYTES_MAX: usize = 160 * 1024;
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
        check(b"sh\0\xff\0", &["\u{fffd}ff"], 0);
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
