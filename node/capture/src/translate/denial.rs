//! Deeds that a rule of the session's roles is about.

use std::net::{Ipv4Addr, Ipv6Addr};

use ebpf_abi::Header;
use ebpf_abi::rules::{Denial, deed, mode};
use proto::capture_rules::RuleMode;
use proto::event::{self, Body as Event};

use super::{Context, text};
use crate::rules::compile::{AF_INET, AF_INET6};

pub(super) fn event(
    context: &Context<'_>,
    header: &Header,
    program: String,
    record: &Denial,
    path: &[u8],
) -> Event {
    let mode = match record.mode {
        mode::AUDIT => RuleMode::Audit,
        mode::KILL => RuleMode::Kill,
        _ => RuleMode::Deny,
    };
    event::SessionDenied {
        session: context.session.clone(),
        pid: header.tgid,
        program,
        op: op(record.deed).to_owned(),
        path: text(path),
        dst_addr: address(record),
        dst_port: u16::try_from(record.port).unwrap_or(0),
        target_pid: record.other,
        rule: context.rule.to_owned(),
        mode: mode.name().to_owned(),
        times: record.times,
        return_code: record.result,
    }
    .into()
}

fn op(number: u32) -> &'static str {
    match number {
        deed::EXEC => "exec",
        deed::MAP_EXEC => "map_exec",
        deed::OPEN => "open",
        deed::TRUNCATE => "truncate",
        deed::UNLINK => "unlink",
        deed::RMDIR => "rmdir",
        deed::RENAME => "rename",
        deed::LINK => "link",
        deed::SYMLINK => "symlink",
        deed::MKDIR => "mkdir",
        deed::MKNOD => "mknod",
        deed::CHMOD => "chmod",
        deed::CHOWN => "chown",
        deed::CONNECT => "connect",
        deed::SEND => "send",
        deed::SOCKET => "socket",
        deed::BPF => "bpf",
        deed::TRACE => "trace",
        deed::MODULE => "module",
        deed::LOGINUID => "loginuid",
        deed::SIGNAL => "signal",
        deed::MOUNT => "mount",
        deed::PINS => "pins",
        _ => "unknown",
    }
}

fn address(record: &Denial) -> String {
    let v6 = Ipv6Addr::from(record.address);
    let [a, b, c, d, ..] = record.address;
    match record.family {
        AF_INET => Ipv4Addr::new(a, b, c, d).to_string(),
        AF_INET6 => v6.to_canonical().to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::id::{HostId, Login, NodeName, SessionId, UserName};

    fn translated(record: &Denial, path: &[u8]) -> event::SessionDenied {
        let session = event::Session {
            sid: SessionId::from_random([1; 16]),
            namespace: "default".into(),
            user: UserName::parse("alice").unwrap(),
            login: Login::parse("root").unwrap(),
            server_id: HostId::from_random([2; 16]),
            server_hostname: NodeName::parse("db-1").unwrap(),
            server_labels: proto::resource::Labels::new(),
            server_version: "0.1.0".into(),
            addr_remote: "192.0.2.7:50022".into(),
            proto: "ssh".into(),
        };
        let context = Context { session: &session, other: None, rule: "3/7" };
        let header = Header { tgid: 42, ..Header::default() };
        let event = event(&context, &header, "sh".to_owned(), record, path);
        let Event::SessionDenied(denied) = event else { panic!("{event:?}") };
        denied
    }

    #[test]
    fn a_path_an_address_a_process() {
        let record = Denial { deed: deed::OPEN, policy: 3, rule: 7, ..Denial::default() };
        let denied = translated(&Denial { mode: mode::KILL, result: -1, ..record }, b"/etc/x");
        let words = [&denied.op, &denied.path, &denied.rule, &denied.mode, &denied.dst_addr];
        assert_eq!(words, ["open", "/etc/x", "3/7", "kill", ""]);
        assert_eq!((denied.pid, denied.return_code), (42, -1));

        let v4 = [10, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let record = Denial { deed: deed::CONNECT, mode: mode::AUDIT, port: 22, ..record };
        let denied = translated(&Denial { family: AF_INET, address: v4, ..record }, b"");
        let words = [&denied.op, &denied.dst_addr, &denied.mode];
        assert_eq!(words, ["connect", "10.1.2.3", "audit"]);
        assert_eq!(denied.dst_port, 22);
        let v6 = Ipv6Addr::LOCALHOST.octets();
        let denied = translated(&Denial { family: AF_INET6, address: v6, ..record }, b"");
        assert_eq!(denied.dst_addr, "::1");
    }
}
