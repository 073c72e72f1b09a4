//! Trees of sessions as they are, and as somebody who wants to be unseen would make them.

use proto::event::{self, Body, Event, Happened};
use proto::id::{ClusterName, HostId, SessionId};
use time::OffsetDateTime;

use super::order::Order;
use super::structured::structured;
use super::text::{Shape, text};
use super::tree::{Room, Tree};
use cli::output::Format;

fn session() -> event::Session {
    event::Session {
        sid: SessionId::from_random([1; 16]),
        namespace: "default".into(),
        user: "alice".parse().unwrap(),
        login: "root".parse().unwrap(),
        server_id: HostId::from_random([2; 16]),
        server_hostname: "web1".parse().unwrap(),
        server_labels: Default::default(),
        server_version: "0.1.0".into(),
        addr_remote: "192.0.2.7:50022".into(),
        proto: "ssh".into(),
    }
}

fn at(ei: u64, body: impl Into<Body>) -> Event {
    let time = OffsetDateTime::from_unix_timestamp(1_000).unwrap()
        + time::Duration::milliseconds(i64::try_from(ei.min(1 << 40)).unwrap());
    let body = body.into();
    Event::new(Happened { time, body }, ei, [0; 16], ClusterName::parse("example.com").unwrap())
}

fn start(ei: u64) -> Event {
    at(
        ei,
        event::SessionStart {
            session: session(),
            interactive: true,
            user_roles: vec![],
            size: String::new(),
            initial_command: String::new(),
            capture: "B".into(),
        },
    )
}

fn over(ei: u64, lost: u64) -> Event {
    let (control, file, network, folded) = (9, 8, 7, 0);
    let tier = "B".into();
    at(ei, event::SessionCapture { session: session(), tier, control, file, network, folded, lost })
}

fn exec_as(ei: u64, pid: u32, ppid: u32, path: &str, argv: &[&str], user: u32) -> Event {
    at(
        ei,
        event::SessionCommand {
            session: session(),
            pid,
            ppid,
            program: path.rsplit('/').next().unwrap().into(),
            path: path.into(),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            argv_missing: 0,
            cwd: "/".into(),
            ruid: 1000,
            euid: user,
            file: "8:1:7:1".into(),
            mode: 0o755,
            owner_uid: 0,
            owner_gid: 0,
            script: false,
            path_cut: false,
            sha256: String::new(),
            return_code: 0,
        },
    )
}

fn exec(ei: u64, pid: u32, ppid: u32, path: &str) -> Event {
    exec_as(ei, pid, ppid, path, &[], 1000)
}

pub(super) fn exit(ei: u64, pid: u32, ppid: u32, exit_code: i32) -> Event {
    let (session, program) = (session(), String::new());
    at(ei, event::SessionCommandExit { session, pid, ppid, program, exit_code, signal: 0 })
}

fn file(ei: u64, pid: u32, op: &str, path: &str, times: u64, return_code: i32) -> Event {
    at(
        ei,
        event::SessionDisk {
            session: session(),
            pid,
            program: "sh".into(),
            op: op.into(),
            path: path.into(),
            target_path: String::new(),
            flags: 0,
            mode: 0,
            file: String::new(),
            times,
            prov: "tp".into(),
            path_cut: false,
            return_code,
        },
    )
}

fn net(ei: u64, pid: u32, op: &str, src_port: u16, dst: (&str, u32), bytes: u64) -> Event {
    at(
        ei,
        event::SessionNetwork {
            session: session(),
            pid,
            program: "sh".into(),
            op: op.into(),
            protocol: "tcp".into(),
            src_addr: "192.0.2.7".into(),
            src_port,
            dst_addr: dst.0.into(),
            dst_port: dst.1,
            version: 4,
            operation: 0,
            action: 0,
            tx: bytes,
            rx: bytes * 2,
            times: 0,
            prov: "tp".into(),
            return_code: 0,
        },
    )
}

fn handed(ei: u64, pid: u32, path: &str) -> Event {
    at(
        ei,
        event::SessionDelegation {
            session: session(),
            pid,
            program: "sh".into(),
            via: "systemd".into(),
            path: path.into(),
            target_pid: 1,
            target_program: "systemd".into(),
            target_sid: String::new(),
        },
    )
}

fn denied(ei: u64, pid: u32, path: &str, times: u64) -> Event {
    at(
        ei,
        event::SessionDenied {
            session: session(),
            pid,
            program: "sh".into(),
            op: "open".into(),
            path: path.into(),
            dst_addr: String::new(),
            dst_port: 0,
            target_pid: 0,
            rule: "/etc/cron.d/".into(),
            mode: "deny".into(),
            times,
            return_code: -1,
        },
    )
}

#[test]
fn what_is_against_a_rule_is_marked_and_counted() {
    let lines = shown([
        exec(0, 10, 5, "/bin/sh"),
        denied(1, 10, "/etc/cron.d/a\u{7}", 0),
        denied(2, 10, "/etc/cron.d/a\u{7}", 4),
    ]);
    let expect = r"    !! RULE   open $'/etc/cron.d/a\x07' denied by /etc/cron.d/ = EPERM ×5";
    assert!(lines.contains(expect), "{lines}");
}

fn lost(ei: u64, count: u64, first: u64, last: u64) -> Event {
    let (session, class, reason) = (session(), "file".into(), "ring".into());
    at(ei, event::SessionLoss { session, class, reason, count, first, last })
}

fn tree_in(room: Room, events: impl IntoIterator<Item = Event>) -> Tree {
    let (mut tree, mut order) = (Tree::new(room), Order::new(4096));
    for event in events {
        order.push(event).into_iter().for_each(|event| tree.add(event));
    }
    order.rest().into_iter().for_each(|event| tree.add(event));
    tree.finish();
    tree
}

fn tree(events: impl IntoIterator<Item = Event>) -> Tree {
    tree_in(Room::BRIEF, events)
}

fn shown(events: impl IntoIterator<Item = Event>) -> String {
    text(&tree(events), &Shape { columns: None, full: false })
}

/// A session in which everything happens.
fn whole() -> Vec<Event> {
    vec![
        start(0),
        exec(1, 10, 5, "/bin/sh"),
        file(2, 10, "open", "/etc/passwd", 3, 0),
        file(3, 10, "open", "/etc/shadow", 0, -13),
        file(4, 10, "write", "/tmp/x", 0, 0),
        file(5, 10, "create", "/tmp/x", 0, 0),
        exec_as(6, 12, 10, "/usr/bin/sudo", &["id", "a b"], 0),
        exec_as(7, 12, 10, "/usr/bin/id", &[], 0),
        exit(8, 12, 10, 1),
        net(9, 10, "connect", 40_000, ("192.0.2.80", 443), 0),
        net(10, 10, "close", 40_000, ("192.0.2.80", 443), 100),
        handed(11, 10, "/run/dbus/system_bus_socket"),
        lost(12, 3, 100, 104),
        lost(13, 2, 200, 201),
        exit(14, 10, 5, 0),
        over(15, 5),
    ]
}

#[test]
fn a_session_for_people_and_programs() {
    insta::assert_snapshot!(shown(whole()));
    insta::assert_snapshot!(structured(&tree(whole()), Format::Json).unwrap());
}

#[test]
fn the_order_of_arrival_does_not_matter() {
    let mut events = whole();
    events.reverse();
    assert_eq!(shown(events), shown(whole()));
}

#[test]
fn a_number_is_another_process_after_its_end() {
    let events = [
        exec(0, 10, 5, "/bin/sh"),
        exec(1, 11, 10, "/bin/first"),
        exit(2, 11, 10, 1),
        exec(10_003, 12, 10, "/bin/middle"),
        // The number again, and below what was its sister.
        exec(10_004, 11, 12, "/bin/second"),
        // Now even as the parent of whoever is its parent.
        exec(10_005, 12, 11, "/bin/third"),
        exit(10_006, 11, 12, 2),
    ];
    let tree = tree(events);
    let all: Vec<_> = tree.processes.iter().filter(|process| process.pid == 11).collect();
    assert_eq!(all.len(), 2);
    assert_eq!(all.iter().map(|it| it.end.unwrap().exit_code).collect::<Vec<_>>(), [1, 2]);
    let second = tree.processes.iter().position(|it| it.program == "second").unwrap();
    let parent = tree.processes[second].parent.unwrap();
    assert_eq!(tree.processes[parent].executed[0].path, "/bin/middle");
    assert!(text(&tree, &Shape { columns: None, full: false }).contains("/bin/third"));
}

#[test]
fn nobody_becomes_their_own_ancestor() {
    let odd = [
        exec(0, 10, 10, "/bin/own-parent"),
        exit(1, 20, 21, 0),
        exit(2, 21, 22, 0),
        exit(0, 22, 20, 0),
        exit(3, 30, 31, 0),
        exec(4, 31, 30, "/bin/circle"),
    ];
    for turn in 0..odd.len() {
        let mut events = odd.to_vec();
        events.rotate_left(turn);
        let mut tree = Tree::new(Room::BRIEF);
        // As they come, without any order.
        events.into_iter().for_each(|event| tree.add(event));
        tree.finish();
        let lines = text(&tree, &Shape { columns: None, full: true });
        let hearsay = tree.processes.iter().filter(|it| it.is_hearsay && it.children.is_empty());
        let listed = lines.lines().filter(|line| !line.starts_with(['s', 'f', '!'])).count();
        assert_eq!(listed, tree.processes.len() - hearsay.count(), "each once: {lines}");
    }
}

#[test]
fn a_parent_that_executed_nothing_is_known_by_its_end() {
    let events = [
        exec(0, 10, 5, "/bin/sh"),
        exec(1, 12, 11, "/bin/in-a-subshell"),
        exit(2, 12, 11, 0),
        exit(3, 11, 10, 0),
    ];
    let tree = tree(events);
    let shell = tree.processes.iter().position(|it| it.pid == 10).unwrap();
    let subshell = tree.processes.iter().position(|it| it.pid == 11).unwrap();
    assert_eq!(tree.processes[subshell].parent, Some(shell));
    assert_eq!(tree.roots, [shell]);
}

#[test]
fn orphans_hang_from_a_root_of_which_nothing_is_known() {
    let events = [
        exec(0, 10, 5, "/bin/sh"),
        exec(1, 12, 11, "/bin/orphan"),
        file(2, 99, "open", "/x", 0, 0),
        exec(3, 13, 1, "/bin/adopted"),
    ];
    let lines = shown(events);
    assert!(lines.contains("11 ? (a parent of which nothing is known)\n└─ 12 "), "{lines}");
    assert!(lines.contains("1 ? (their parents had ended)\n└─ 13 "), "{lines}");
    assert!(
        lines.contains("99  [no end seen] sh (no program of its own) (its parent is not known)")
    );
    assert!(!lines.contains("\n5 ?"), "the session's first process is a root: {lines}");
}

#[test]
fn what_is_told_late_is_the_dead_ones() {
    let mut failed = exec(6, 11, 10, "/usr/local/bin/a");
    if let Body::SessionCommand(command) = &mut failed.body {
        command.return_code = -2;
    }
    let events = [
        exit(0, 12, 11, 2),
        exit(1, 11, 10, 1),
        exit(2, 10, 5, 0),
        // All three are told of when they have ended, the first not first.
        exec(3, 11, 10, "/bin/a"),
        exec(4, 10, 5, "/bin/sh"),
        exec(5, 12, 11, "/bin/b"),
        failed,
        net(7, 12, "close", 40_000, ("192.0.2.80", 443), 1),
    ];
    let lines = shown(events);
    let processes: Vec<_> = lines.lines().filter(|line| line.contains("[exit ")).collect();
    assert!(
        processes[0].starts_with("10  [exit 0 ") && processes[0].contains("/bin/sh"),
        "{lines}"
    );
    assert!(processes[1].starts_with("└─ 11  [exit 1 ") && processes[1].ends_with("/bin/a"));
    assert!(processes[2].starts_with("   └─ 12  [exit 2 ") && processes[2].ends_with("/bin/b"));
    assert_eq!(processes.len(), 3, "{lines}");
    assert!(lines.contains(" tried  /usr/local/bin/a = ENOENT\n"), "{lines}");
    assert!(!lines.contains("nothing is known"), "{lines}");
}

#[test]
fn an_end_that_was_not_told_is_seen_by_the_next_parent() {
    let events = [
        exec(0, 10, 5, "/bin/sh"),
        exec(1, 11, 10, "/bin/a"),
        exec(2, 12, 11, "/bin/b"),
        // 12 again, although its parent lives: another process.
        exec(3, 12, 10, "/bin/c"),
    ];
    let tree = tree(events);
    assert_eq!(tree.processes.iter().filter(|it| it.pid == 12).count(), 2);
}

#[test]
fn hostile_words_stay_on_their_line() {
    let events = [
        exec_as(0, 10, 5, "/bin/\u{1b}[2J", &["a\nb", "\u{202e}txt", "\u{9b}1m", ""], 0),
        file(1, 10, "open", "/tmp/a\n! LOST: nothing", 0, 0),
        file(2, 10, "od\u{7}d", "/tmp/b", 0, 0),
        net(3, 10, "connect", 1, ("/run/\rx", 0), 0),
        handed(4, 10, "/run/\u{1b}]0;x\u{7}"),
    ];
    let lines = shown(events);
    assert!(!lines.chars().any(|c| c.is_control() && c != '\n'), "{lines:?}");
    assert!(!lines.contains('\u{202e}'));
    insta::assert_snapshot!(lines);
}

#[test]
fn what_is_missing_is_said_first() {
    let gap = [start(0), exec(1, 10, 5, "/bin/sh"), exit(4, 10, 5, 0)];
    let lines = shown(gap);
    let notices: Vec<_> = lines.lines().filter(|line| line.starts_with('!')).collect();
    assert!(notices[0].contains("MISSING: 2 events"), "{lines}");
    assert!(notices[1].contains("NOT OVER"), "{lines}");
    let broken = [exec(1, 10, 5, "/bin/sh"), exit(0x7fff_fffd, 10, 5, 0)];
    assert!(shown(broken).contains("! BROKEN OFF"));
    let few = [start(0), over(1, 7), lost(2, 3, 1, 9)];
    let lines = shown(few);
    assert!(lines.contains("! LOST: 3 records of files (between numbers 1 and 9)"), "{lines}");
    assert!(lines.contains("! LOST: 7 records in all"), "{lines}");
    assert!(!shown(whole()).contains("MISSING"));
}

#[test]
fn lines_are_as_wide_as_the_terminal_but_for_what_is_missing() {
    let words: Vec<_> = (0..500).map(|n| n.to_string()).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let events = [exec_as(3, 10, 5, "/bin/x", &words, 0)];
    let tree = tree(events);
    let lines = text(&tree, &Shape { columns: Some(60), full: false });
    let wide = lines.lines().filter(|line| !line.starts_with('!'));
    assert!(wide.clone().all(|line| line.chars().count() <= 60));
    assert!(wide.clone().any(|line| line.ends_with('…')));
}

#[test]
fn memory_is_bounded_and_what_has_no_place_is_counted() {
    let long = "x".repeat(100_000);
    let mut first = exec_as(0, 10, 5, "/bin/x", &[&long, "", "last"], 0);
    if let Body::SessionCommand(command) = &mut first.body {
        command.argv_missing = 7;
    }
    let kept = tree([first]);
    let executed = &kept.processes.iter().find(|it| it.pid == 10).unwrap().executed[0];
    let kept_bytes: usize = executed.argv.iter().map(String::len).sum();
    assert!(kept_bytes <= 4096);
    let all = u64::try_from(long.len() + "last".len() - kept_bytes).unwrap();
    // A NUL behind each of the three.
    assert_eq!(executed.argv_missing, 7 + all + 3);
    let many = (0..200_000).map(|n| file(n, 10, "open", &format!("/{n}/{}", &long[..3000]), 0, 0));
    let tree = tree_in(Room::BRIEF, many);
    let listed = u64::try_from(tree.processes[0].files.len()).unwrap();
    assert_eq!(listed + tree.notices.left_out, 200_000);
    assert!(tree.notices.left_out > 0);
    let lines = text(&tree, &Shape { columns: None, full: false });
    assert!(lines.contains("MISSING: ") && lines.contains("more files: see them with --full"));
}

/// Also a chain so deep that nothing which calls itself would come back.
#[test]
fn a_hundred_thousand_events_are_quick_however_they_nest() {
    let begun = std::time::Instant::now();
    let chain = (0..100_000_u32).map(|n| exec(n.into(), n + 10, n + 9, "/bin/sh"));
    let deep = tree(chain);
    let lines = text(&deep, &Shape { columns: None, full: true });
    assert_eq!(lines.lines().filter(|line| line.contains("/bin/sh")).count(), 100_000);
    assert!(lines.len() < 100_000 * 200);
    // Backwards: each parent is heard of after its child.
    let mut tree = Tree::new(Room::BRIEF);
    (0..100_000_u32).rev().for_each(|n| tree.add(exec(n.into(), n + 10, n + 9, "/bin/sh")));
    tree.finish();
    assert_eq!(tree.processes.len(), 100_001);
    let wide = (0..100_000_u32).map(|n| exec(n.into(), n + 10, 9, "/bin/sh"));
    assert_eq!(shown(wide).lines().filter(|line| line.contains("/bin/sh")).count(), 100_000);
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}
