//! Golden audit events: `tests/golden/events.jsonl` is what SIEM rules match on. A line that changes here changes for
//! everybody who reads the stream: say so in the changelog. `POSTERN_BLESS=1` rewrites the file.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use proto::event::*;
use proto::id::{ClusterName, HostId, Login, NodeName, SessionId, UserName};
use time::macros::datetime;

fn session() -> Session {
    Session {
        sid: SessionId::from_random([1; 16]),
        namespace: "default".into(),
        user: UserName::parse("alice").unwrap(),
        login: Login::parse("root").unwrap(),
        server_id: HostId::from_random([2; 16]),
        server_hostname: NodeName::parse("db-1").unwrap(),
        server_labels: [("env".to_owned(), "prod".to_owned())].into(),
        server_version: "0.1.0".into(),
        addr_remote: "192.0.2.7:50022".into(),
        proto: "ssh".into(),
    }
}

fn actor() -> Actor {
    Actor { user: "bob".into(), addr_remote: String::new() }
}

fn server_id() -> HostId {
    HostId::from_random([2; 16])
}

fn alice() -> UserName {
    UserName::parse("alice").unwrap()
}

// tidy: long-function: a table, one row per event
fn samples() -> Vec<Body> {
    let time = datetime!(2026-11-22 12:00:00 UTC);
    let (ok, failed) = (Outcome::ok, || Outcome::failed("permission denied"));
    let sftp = |action, outcome| Sftp {
        session: session(),
        action,
        path: "/etc/motd".into(),
        working_directory: "/root".into(),
        target_path: String::new(),
        flags: String::new(),
        outcome,
    };
    let port =
        |phase, outcome| Port { session: session(), addr: "127.0.0.1:80".into(), phase, outcome };
    let exec = |exit_code: &str, exit_error: &str| Exec {
        session: session(),
        command: "uname -a".into(),
        exit_code: exit_code.into(),
        exit_error: exit_error.into(),
    };
    let login = |outcome| UserLogin {
        user: "alice".into(),
        method: "local".into(),
        addr_remote: "192.0.2.7:50022".into(),
        outcome,
    };
    let join = |outcome| InstanceJoin {
        node_name: "db-1".into(),
        host_id: server_id().to_string(),
        role: "node".into(),
        method: "token".into(),
        addr_remote: "192.0.2.9:40000".into(),
        outcome,
    };
    let name = || "dev".to_owned();
    let roles = || vec!["dev".to_owned()];
    vec![
        Auth {
            user: "alice".into(),
            login: "root".into(),
            server_id: server_id(),
            addr_remote: "192.0.2.7:50022".into(),
            outcome: Outcome::failed("the certificate has expired"),
        }
        .into(),
        CertCreate { cert_type: "user".into(), user: "alice".into(), expires: time }.into(),
        ClientDisconnect { session: session(), reason: "idle for 5m".into() }.into(),
        exec("0", "").into(),
        exec("127", "command not found").into(),
        join(ok()).into(),
        join(failed()).into(),
        JoinTokenCreate {
            actor: actor(),
            name: "0a1b2c3d".into(),
            roles: vec!["node".into()],
            expires: time,
        }
        .into(),
        LockCreated { actor: actor(), name: "l1".into(), target: "user:alice".into() }.into(),
        LockDeleted { actor: actor(), name: "l1".into() }.into(),
        MfaAdd { user: alice(), mfa_device_name: "otp".into(), mfa_device_type: "TOTP".into() }
            .into(),
        port(PortPhase::Start, ok()).into(),
        port(PortPhase::Stop, ok()).into(),
        port(PortPhase::Start, failed()).into(),
        ResetPasswordTokenCreate { actor: actor(), name: alice(), expires: time }.into(),
        Resize { session: session(), size: "120:40".into() }.into(),
        RoleCreated { actor: actor(), name: name() }.into(),
        RoleDeleted { actor: actor(), name: name() }.into(),
        RoleUpdated { actor: actor(), name: name() }.into(),
        SessionCommand {
            session: session(),
            pid: 4242,
            ppid: 4240,
            program: "tar".into(),
            path: "/usr/bin/tar".into(),
            argv: vec!["-xf".into(), "backup.tar".into()],
            argv_missing: 0,
            cwd: "/root".into(),
            ruid: 1000,
            euid: 0,
            file: "8:1:131090:1".into(),
            mode: 0o4755,
            owner_uid: 0,
            owner_gid: 0,
            script: false,
            path_cut: false,
            sha256: "00".into(),
            return_code: 0,
        }
        .into(),
        SessionData { session: session(), tx: 1234, rx: 56 }.into(),
        SessionEnd {
            session: session(),
            interactive: true,
            participants: vec![alice()],
            session_recording: "node".into(),
            enhanced_recording: false,
            recording_truncated: false,
            session_start: time,
            session_stop: time,
        }
        .into(),
        SessionRecordingAccess { actor: actor(), sid: SessionId::from_random([1; 16]) }.into(),
        SessionRejected {
            user: "alice".into(),
            login: "root".into(),
            server_id: server_id(),
            server_hostname: NodeName::parse("db-1").unwrap(),
            addr_remote: "192.0.2.7:50022".into(),
            reason: "no role allows login root on this node".into(),
        }
        .into(),
        SessionStart {
            session: session(),
            interactive: true,
            user_roles: roles(),
            size: "80:24".into(),
            initial_command: String::new(),
            capture: "A".into(),
        }
        .into(),
        SessionUpload {
            sid: SessionId::from_random([1; 16]),
            url: "file:///var/lib/postern/auth/recordings/x.cast".into(),
            bytes: 99,
            sha256: "00".into(),
        }
        .into(),
        sftp(SftpAction::Disallowed, failed()).into(),
        sftp(SftpAction::Link, ok()).into(),
        sftp(SftpAction::Mkdir, ok()).into(),
        sftp(SftpAction::Open, ok()).into(),
        sftp(SftpAction::Open, failed()).into(),
        sftp(SftpAction::Opendir, ok()).into(),
        sftp(SftpAction::Readdir, ok()).into(),
        sftp(SftpAction::Remove, ok()).into(),
        sftp(SftpAction::Rename, ok()).into(),
        sftp(SftpAction::Rmdir, ok()).into(),
        sftp(SftpAction::Setstat, ok()).into(),
        sftp(SftpAction::Symlink, ok()).into(),
        Subsystem { session: session(), name: "sftp".into(), exit_error: String::new() }.into(),
        Subsystem { session: session(), name: "x".into(), exit_error: "unknown subsystem".into() }
            .into(),
        UserCreate { actor: actor(), name: alice(), roles: roles() }.into(),
        UserDelete { actor: actor(), name: alice() }.into(),
        login(ok()).into(),
        login(failed()).into(),
        UserPasswordChange { user: alice() }.into(),
        UserUpdate { actor: actor(), name: alice(), roles: roles() }.into(),
    ]
}

/// What the kernel tells.
// tidy: long-function: a table, one row per event
fn captured() -> Vec<Body> {
    let (pid, program, prov) = (4242, "tar".to_owned(), "lsm".to_owned());
    vec![
        SessionCapture {
            session: session(),
            tier: "A".into(),
            control: 12,
            file: 40,
            network: 2,
            folded: 310,
            lost: 0,
        }
        .into(),
        SessionCommandExit {
            session: session(),
            pid,
            ppid: 4240,
            program: program.clone(),
            exit_code: 137,
            signal: 9,
        }
        .into(),
        SessionDelegation {
            session: session(),
            pid,
            program: program.clone(),
            via: "systemd".into(),
            path: "/run/dbus/system_bus_socket".into(),
            target_pid: 1,
            target_program: "systemd".into(),
            target_sid: String::new(),
        }
        .into(),
        SessionDenied {
            session: session(),
            pid,
            program: program.clone(),
            op: "open".into(),
            path: "/etc/cron.d/job".into(),
            dst_addr: String::new(),
            dst_port: 0,
            target_pid: 0,
            rule: "/etc/cron.d/".into(),
            mode: "deny".into(),
            times: 0,
            return_code: -1,
        }
        .into(),
        SessionDetached { session: session(), tasks: 2 }.into(),
        SessionDisk {
            session: session(),
            pid,
            program: program.clone(),
            op: "rename".into(),
            path: "/root/a".into(),
            target_path: "/root/b".into(),
            flags: 0,
            mode: 0,
            file: "8:1:131090:1".into(),
            times: 0,
            prov: prov.clone(),
            path_cut: false,
            return_code: 0,
        }
        .into(),
        SessionDns {
            session: session(),
            pid,
            program: program.clone(),
            name: "example.com".into(),
            qtype: "AAAA".into(),
            dst_addr: "192.0.2.53".into(),
            dst_port: 53,
        }
        .into(),
        SessionKernel {
            session: session(),
            pid,
            program: program.clone(),
            op: "bpf".into(),
            detail: "prog_load".into(),
            prov: prov.clone(),
            return_code: 0,
        }
        .into(),
        SessionLoss {
            session: session(),
            class: "file".into(),
            reason: "ring".into(),
            count: 3,
            first: 100,
            last: 104,
        }
        .into(),
        SessionNetwork {
            session: session(),
            pid,
            program: program.clone(),
            op: "connect".into(),
            protocol: "tcp".into(),
            src_addr: "192.0.2.7".into(),
            src_port: 40000,
            dst_addr: "192.0.2.80".into(),
            dst_port: 443,
            version: 4,
            operation: 0,
            action: 0,
            tx: 0,
            rx: 0,
            times: 0,
            prov: "tp".into(),
            return_code: 0,
        }
        .into(),
        SessionPrivilege {
            session: session(),
            pid,
            program: program.clone(),
            op: "setuid".into(),
            from: "1000:1000".into(),
            to: "1000:0".into(),
            prov: prov.clone(),
            return_code: 0,
        }
        .into(),
        SessionTrace {
            session: session(),
            pid,
            program,
            op: "ptrace".into(),
            target_pid: 99,
            target_program: "sshd".into(),
            target_sid: String::new(),
            detail: String::new(),
            prov,
            return_code: 0,
        }
        .into(),
    ]
}

#[test]
fn events_are_as_documented() {
    let cluster = ClusterName::parse("example.com").unwrap();
    let mut lines = String::new();
    for body in samples().into_iter().chain(captured()) {
        let time = datetime!(2026-11-22 12:00:00.5 UTC);
        let event = Event::new(Happened { time, body }, 3, [9; 16], cluster.clone());
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event, "{line}");
        lines.push_str(&line);
        lines.push('\n');
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/events.jsonl");
    if std::env::var_os("POSTERN_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &lines).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    for (got, expect) in lines.lines().zip(golden.lines()) {
        assert_eq!(got, expect);
    }
    assert_eq!(lines.lines().count(), golden.lines().count());
}

#[test]
fn every_event_type_has_a_sample() {
    let bodies: Vec<_> = samples().into_iter().chain(captured()).collect();
    let seen: std::collections::BTreeSet<_> = bodies.iter().map(Body::name).collect();
    let all: std::collections::BTreeSet<_> = NAMES.iter().copied().collect();
    assert_eq!(seen, all);
}

#[test]
fn names_and_codes_are_unique_per_outcome() {
    let bodies: Vec<_> = samples().into_iter().chain(captured()).collect();
    let mut codes: Vec<_> = bodies.iter().map(|body| (body.code(), body.name())).collect();
    codes.sort_unstable();
    codes.dedup();
    for pair in codes.windows(2) {
        assert!(pair[0].0 != pair[1].0, "{pair:?} share a code");
    }
}
