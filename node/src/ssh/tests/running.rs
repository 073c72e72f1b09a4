//! Sessions that are allowed: commands, shells, signals, forwards, and how they end.

use std::collections::BTreeSet;

use proto::event::{Body, PortPhase};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::fixture::{Cluster, WAIT, listen, listen_for, own_login};

#[tokio::test]
async fn a_command_runs_and_everything_of_it_is_told() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.set_env(false, "LANG", "C.UTF-8").await.unwrap();
    channel.set_env(false, "LD_PRELOAD", "/tmp/x.so").await.unwrap();
    let command = "echo out $LANG $USER [$LD_PRELOAD]; echo err >&2; exit 3";
    channel.exec(true, command).await.unwrap();
    let said = listen(&mut channel).await;
    assert_eq!(said.output, format!("out C.UTF-8 {} []\n", own_login()));
    assert_eq!((said.error.as_str(), said.status, said.eof), ("err\n", Some(3), true));

    let Body::SessionEnd(end) = cluster.audit.wait("session.end").await else { panic!() };
    assert!(!end.interactive && !end.recording_truncated);
    assert_eq!(end.session_recording, "node");
    let Body::Exec(exec) = cluster.audit.wait("exec").await else { panic!() };
    assert_eq!((exec.command.as_str(), exec.exit_code.as_str()), (command, "3"));
    let events = cluster.audit.events();
    assert_eq!(events[0].0.name(), "session.start");
    let mut indexes: Vec<_> = events.iter().map(|(_, ei)| *ei).collect();
    indexes.sort_unstable();
    assert_eq!(indexes, [0, 1, 2, 3]);
    let Body::SessionStart(start) = &events[0].0 else { panic!() };
    assert_eq!(start.session.user.as_str(), "alice");
    assert_eq!(start.session.addr_remote, "192.0.2.7:4711");
    assert_eq!(start.user_roles, ["dev"]);
    let (text, note) = cluster.recording();
    assert!(text.contains("out C.UTF-8") && text.contains("err"), "{text}");
    assert!(note.is_complete());
    assert_eq!(note.sid(), &end.session.sid);
    assert_eq!(note.summary().command, command);
}

#[tokio::test]
async fn input_and_its_end_reach_the_program() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "wc -c").await.unwrap();
    let piece = vec![b'x'; 100_000];
    for _ in 0..30 {
        channel.data(piece.as_slice()).await.unwrap();
    }
    channel.eof().await.unwrap();
    let said = listen(&mut channel).await;
    assert_eq!((said.output.trim(), said.status), ("3000000", Some(0)));
    let Body::SessionData(data) = cluster.audit.wait("session.data").await else { panic!() };
    assert_eq!(data.rx, 3_000_000);
}

#[tokio::test]
async fn much_output_arrives_whole() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "head -c 5000000 /dev/zero | tr '\\0' x").await.unwrap();
    let said = listen(&mut channel).await;
    assert_eq!((said.output.len(), said.status), (5_000_000, Some(0)));
}

#[tokio::test]
async fn a_shell_has_a_terminal_that_follows_the_client() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.request_pty(true, "xterm", 101, 31, 0, 0, &[]).await.unwrap();
    channel.request_shell(true).await.unwrap();
    channel.data(&b"stty size; tty; echo $TERM ${SSH_TTY%/*}\n"[..]).await.unwrap();
    let first = listen_for(&mut channel, "xterm /dev/pts").await;
    assert!(first.contains("31 101"), "{first}");
    channel.window_change(120, 40, 0, 0).await.unwrap();
    cluster.audit.wait("resize").await;
    channel.data(&b"stty size; exit 5\n"[..]).await.unwrap();
    let said = listen(&mut channel).await;
    assert!(said.output.contains("40 120"), "{said:?}");
    assert_eq!(said.status, Some(5));
    let Body::SessionEnd(end) = cluster.audit.wait("session.end").await else { panic!() };
    assert!(end.interactive);
    let (text, _) = cluster.recording();
    assert!(text.starts_with(r#"{"version":2,"width":101,"height":31"#), "{text}");
    assert!(text.contains(r#""r","120x40""#), "{text}");
    assert!(text.contains("40 120"), "{text}");
    let Body::SessionStart(start) = cluster.audit.wait("session.start").await else { panic!() };
    assert_eq!(start.size, "101:31");
    assert!(!cluster.audit.names().contains(&"exec"));
}

#[tokio::test]
async fn a_signal_reaches_the_program_and_its_end_the_client() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "echo ready; exec sleep 1000").await.unwrap();
    listen_for(&mut channel, "ready").await;
    channel.signal(russh::Sig::TERM).await.unwrap();
    let said = listen(&mut channel).await;
    assert_eq!((said.status, said.signal.as_deref()), (None, Some("TERM")));
    let Body::Exec(exec) = cluster.audit.wait("exec").await else { panic!() };
    assert_eq!(exec.exit_error, "killed by signal 15");
}

#[tokio::test]
async fn a_client_that_goes_leaves_nothing_behind() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "echo $$; sleep 1000; true").await.unwrap();
    let pid: i32 = listen_for(&mut channel, "\n").await.trim().parse().unwrap();
    drop((channel, handle));
    cluster.audit.wait("session.end").await;
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    assert!(rustix::process::test_kill_process(pid).is_err());
    assert_eq!(cluster.node.sessions.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn rules_that_come_later_and_cannot_be_kept_end_what_runs() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "echo in; cat").await.unwrap();
    listen_for(&mut channel, "in").await;
    // What is only watched is no reason, nor is a role that says nothing.
    cluster.options(r#"{"capture_rules":{"mode":"audit","deny_open_write":["/etc/"]}}"#);
    channel.data(&b"still here\n"[..]).await.unwrap();
    listen_for(&mut channel, "still here").await;
    cluster.options(r#"{"capture_rules":{"deny_open_write":["/etc/"]}}"#);
    let Body::ClientDisconnect(cut) = cluster.audit.wait("client.disconnect").await else {
        panic!()
    };
    assert!(cut.reason.contains("capture_rules"), "{}", cut.reason);
    let said = listen(&mut channel).await;
    assert!(said.error.contains("rules"), "{said:?}");
    cluster.audit.wait("session.end").await;
    // The next one is refused from the start.
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "echo in").await.unwrap();
    let said = listen(&mut channel).await;
    assert!(said.is_refusal(), "{said:?}");
}

#[tokio::test]
async fn a_lock_ends_what_runs_and_says_so() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    // Ignores the hang-up, and so does its child.
    channel.exec(true, "trap '' HUP; sleep 1000 & echo $!; wait").await.unwrap();
    let pid: i32 = listen_for(&mut channel, "\n").await.trim().parse().unwrap();
    cluster.lock(r#"{"user":"alice"}"#);
    let Body::ClientDisconnect(cut) = cluster.audit.wait("client.disconnect").await else {
        panic!()
    };
    assert!(cut.reason.contains("lock"), "{}", cut.reason);
    cluster.audit.wait("session.end").await;
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    // An orphan is init's to reap; dead it is in any case.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    assert!(stat.is_err() || stat.unwrap().contains(") Z "));
    timeout(WAIT, async {
        while !handle.is_closed() {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
}

/// The session ids of all events of this name.
fn ids_of(cluster: &Cluster, name: &str) -> BTreeSet<String> {
    let events = cluster.audit.events().into_iter().filter(|(body, _)| body.name() == name);
    events.map(|(body, _)| body.session_id().unwrap().to_string()).collect()
}

#[tokio::test]
async fn a_cut_is_told_in_each_session_that_runs() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut ended = handle.channel_open_session().await.unwrap();
    ended.exec(true, "true").await.unwrap();
    listen(&mut ended).await;
    let over = ids_of(&cluster, "session.end");
    let mut channels = Vec::new();
    for _ in 0..2 {
        let mut channel = handle.channel_open_session().await.unwrap();
        channel.exec(true, "echo on; sleep 1000").await.unwrap();
        listen_for(&mut channel, "on").await;
        channels.push(channel);
    }
    cluster.lock(r#"{"user":"alice"}"#);
    timeout(WAIT, async {
        while ids_of(&cluster, "session.end").len() < 3 {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
    let began = ids_of(&cluster, "session.start");
    let told = ids_of(&cluster, "client.disconnect");
    assert_eq!(told, began.difference(&over).cloned().collect());
    assert_eq!(cluster.audit.names().iter().filter(|n| **n == "client.disconnect").count(), 2);
    for sid in told {
        let of_session: Vec<_> = cluster
            .audit
            .events()
            .into_iter()
            .filter(|(body, _)| body.session_id().is_some_and(|id| id.as_str() == sid))
            .map(|(body, ei)| (ei, body.name()))
            .collect();
        assert_eq!(of_session[..2], [(0, "session.start"), (1, "client.disconnect")]);
    }
}

#[tokio::test]
async fn a_cut_without_sessions_is_told_once() {
    let cluster = Cluster::new("{}");
    let _handle = cluster.sign_in().await;
    cluster.lock(r#"{"user":"alice"}"#);
    let Body::ClientDisconnect(cut) = cluster.audit.wait("client.disconnect").await else {
        panic!()
    };
    assert_eq!(cut.session.user.as_str(), "alice");
    assert_eq!(cluster.audit.names(), ["client.disconnect"]);
}

#[tokio::test]
async fn a_lock_ends_what_an_ended_program_left_behind() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    // The shell ends at once; its child keeps the output open.
    channel.exec(true, "trap '' HUP; sleep 1000 & echo $!").await.unwrap();
    let pid: i32 = listen_for(&mut channel, "\n").await.trim().parse().unwrap();
    cluster.lock(r#"{"user":"alice"}"#);
    let Body::Exec(exec) = cluster.audit.wait("exec").await else { panic!() };
    assert_eq!(exec.exit_code, "0", "the shell's own status");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    assert!(stat.is_err() || stat.unwrap().contains(") Z "));
}

#[tokio::test]
async fn an_idle_connection_is_ended() {
    let cluster = Cluster::new(r#"{"client_idle_timeout":"1s"}"#);
    let handle = cluster.sign_in().await;
    let channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "sleep 1000").await.unwrap();
    let Body::ClientDisconnect(cut) = cluster.audit.wait("client.disconnect").await else {
        panic!()
    };
    assert_eq!(cut.reason, "idle for 1 s");
    cluster.audit.wait("session.end").await;
}

#[tokio::test]
async fn a_session_ends_with_its_certificate_where_roles_say_so() {
    let cluster = Cluster::new(r#"{"disconnect_expired_cert":true}"#);
    let now = net::unix_now();
    let short = pki::authority::Validity { not_before: now - 60, not_after: now + 2 };
    let person = cluster.person(&[own_login()], short);
    let mut handle = cluster.connect().await;
    assert!(person.try_sign_in(&mut handle, own_login()).await.success());
    let channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "sleep 1000").await.unwrap();
    let Body::ClientDisconnect(cut) = cluster.audit.wait("client.disconnect").await else {
        panic!()
    };
    assert_eq!(cut.reason, "the certificate has expired");
}

#[tokio::test]
async fn a_stopping_node_ends_its_sessions() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "echo on; sleep 1000").await.unwrap();
    listen_for(&mut channel, "on").await;
    cluster.node.shutdown.stop();
    cluster.audit.wait("session.end").await;
}

#[tokio::test]
async fn a_connection_is_forwarded_with_half_close() {
    let cluster = Cluster::new("{}");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut text = String::new();
        // Answers only after the client's end: a relay without half-close would never get here.
        socket.read_to_string(&mut text).await.unwrap();
        socket.write_all(format!("got {text}").as_bytes()).await.unwrap();
    });
    let handle = cluster.sign_in().await;
    let mut channel =
        handle.channel_open_direct_tcpip("127.0.0.1", port.into(), "127.0.0.1", 1).await.unwrap();
    channel.data(&b"hello"[..]).await.unwrap();
    channel.eof().await.unwrap();
    let said = listen(&mut channel).await;
    assert_eq!(said.output, "got hello");
    server.await.unwrap();
    let phases = || {
        let events = cluster.audit.events();
        let ports = events.iter().filter_map(|(body, _)| match body {
            Body::Port(port) => Some((port.phase, port.outcome.success)),
            _ => None,
        });
        ports.collect::<Vec<_>>()
    };
    timeout(WAIT, async {
        while phases().len() < 2 {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
    assert_eq!(phases(), [(PortPhase::Start, true), (PortPhase::Stop, true)]);
}

#[tokio::test]
async fn a_strict_session_ends_when_its_recording_fails() {
    let cluster = Cluster::new(r#"{"record_session":{"default":"strict"}}"#);
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "echo begun; while :; do echo more; sleep 0.05; done").await.unwrap();
    listen_for(&mut channel, "begun").await;
    cluster.node.recorder.break_disk();
    let said = listen(&mut channel).await;
    assert!(said.error.contains("must be recorded"), "{said:?}");
    let Body::SessionEnd(end) = cluster.audit.wait("session.end").await else { panic!() };
    assert!(end.recording_truncated);
}

#[tokio::test]
async fn a_best_effort_session_outlives_its_recording() {
    let cluster = Cluster::new(r#"{"record_session":{"default":"best_effort"}}"#);
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "echo begun; read x; head -c 200000 /dev/zero; exit 4").await.unwrap();
    listen_for(&mut channel, "begun").await;
    cluster.node.recorder.break_disk();
    channel.data(&b"go\n"[..]).await.unwrap();
    assert_eq!(listen(&mut channel).await.status, Some(4));
    let Body::SessionEnd(end) = cluster.audit.wait("session.end").await else { panic!() };
    assert!(end.recording_truncated);
}

#[tokio::test]
async fn many_sessions_share_a_connection() {
    let cluster = Cluster::new(r#"{"max_sessions":2}"#);
    let handle = cluster.sign_in().await;
    let mut first = handle.channel_open_session().await.unwrap();
    let mut second = handle.channel_open_session().await.unwrap();
    first.exec(true, "read x; echo $x").await.unwrap();
    second.exec(true, "echo two").await.unwrap();
    assert!(handle.channel_open_session().await.is_err(), "max_sessions");
    assert_eq!(listen(&mut second).await.output, "two\n");
    first.data(&b"one\n"[..]).await.unwrap();
    assert_eq!(listen(&mut first).await.output, "one\n");
    let Body::SessionRejected(rejected) = cluster.audit.wait("session.rejected").await else {
        panic!()
    };
    assert_eq!(rejected.reason, "too many sessions on one connection");
}
