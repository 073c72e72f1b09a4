//! What people see of capture: the tree of a session, its events beside its recording, what a node's kernel tells. Says of
//! what is told only that it is there: with a kernel that tells more, more is there. Needs root, as capture does.

use std::fs;

use serde_json::Value;

use crate::cluster::{NODE, at, shared};
use crate::run::{Run, program, until};

/// A program of its own for a test, by which its session is found.
fn own_program(name: &str, of: &str) -> String {
    let path = shared().path().join(name);
    fs::copy(of, &path).unwrap();
    fs::canonicalize(path).unwrap().to_str().unwrap().to_owned()
}

/// A role that asks the kernel for everything, and a user who has it.
fn captured_user(name: &str) -> crate::cluster::User {
    let allow = r#"{"logins": ["{{internal.logins}}"], "node_labels": {"*": "*"}}"#;
    let options = r#"{"enhanced_recording": ["command", "disk", "network"]}"#;
    shared().role_with("captured-all", allow, "{}", options);
    shared().user(name, "captured-all", "root")
}

fn session_of(path: &str) -> String {
    let event = shared().event("session.command", |event| event["path"] == path);
    event["sid"].as_str().unwrap().to_owned()
}

/// The tree, once the program at `path` has ended in it.
fn tree(sid: &str, path: &str) -> Value {
    until("the program's end in the tree", || {
        let tree = shared().json(&["session", "tree", "--format", "json", sid]);
        process(&tree, path)["exit_code"].is_i64().then_some(tree)
    })
}

fn processes(tree: &Value) -> &Vec<Value> {
    tree["processes"].as_array().unwrap()
}

/// The process that has executed a program last.
fn process<'t>(tree: &'t Value, path: &str) -> &'t Value {
    let runs = |process: &&Value| {
        process["commands"].as_array().unwrap().iter().any(|command| command["path"] == path)
    };
    processes(tree).iter().find(runs).unwrap_or(&Value::Null)
}

#[test]
fn the_tree_of_a_session_has_its_programs_under_one_another() {
    let user = captured_user("treed");
    let (outer, inner) = (own_program("treed-sh", "/bin/sh"), own_program("treed-cat", "/bin/cat"));
    let script = format!("{inner} /etc/hostname /none 2>/dev/null; exit 3");
    let line = format!("{outer} -c '{script}' $(printf 'a\\033[2J\\nb'); kill -9 $$");
    shared().openssh("ssh", &user).args([&at("root"), &line]).wait();
    let sid = session_of(&inner);
    let all = tree(&sid, &outer);
    assert_eq!((&all["sid"], &all["user"]), (&sid.as_str().into(), &"treed".into()));
    assert!(["A", "B"].contains(&all["capture"].as_str().unwrap()));
    let (cat, shell) = (process(&all, &inner), process(&all, &outer));
    assert_eq!(cat["parent"], shell["id"]);
    assert_eq!((&cat["exit_code"], &shell["exit_code"]), (&1.into(), &3.into()));
    let login = &processes(&all)[usize::try_from(shell["parent"].as_u64().unwrap()).unwrap()];
    assert_eq!(login["parent"], Value::Null, "{login}");
    let text = shared().tctl().args(["session", "tree", "--full", &sid]).wait().good().text();
    assert!(text.starts_with(&format!("session {sid} of treed as root on {NODE}\n")), "{text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    let at = |path: &str| text.lines().find(|line| line.contains(&format!(" {path} "))).unwrap();
    assert!(at(&outer).contains("[exit 3 ") && at(&outer).contains(r"$'a\x1b[2J"), "{text}");
    assert!(at(&inner).contains("[exit 1 ") && at(&inner).contains("─ "), "{text}");
    let indented = |line: &str| line.chars().take_while(|c| !c.is_ascii_digit()).count();
    assert!(indented(at(&inner)) > indented(at(&outer)), "{text}");
}

#[test]
fn a_tree_of_nothing_is_refused_with_the_next_step() {
    let none = "00000000-0000-4000-8000-000000000000";
    let missing = shared().tctl().args(["session", "tree", none]).wait();
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("tctl events ls"), "{}", missing.stderr);
    assert_eq!(shared().tctl().args(["session", "tree", "../x"]).wait().code, 2);
    // A person without the right to events gets no tree either.
    let user = shared().user("treeless", "access-all", "root");
    let remote = Run::new(program("tctl"))
        .env("TELEPORT_HOME", &user.home)
        .args(["--proxy", &shared().proxy(), "session", "tree", none])
        .wait();
    remote.refused("access denied");
}

#[test]
fn types_and_pages_of_a_sessions_events() {
    let user = captured_user("paged");
    let echo = own_program("paged-echo", "/bin/echo");
    let line = format!("for i in $(seq 20); do {echo} $i; done");
    shared().openssh("ssh", &user).args([&at("root"), &line]).wait().good();
    let sid = session_of(&echo);
    let ends = until("all programs' ends", || {
        let types = ["--type", "session.command.exit", "--type=session.end", "--session", &sid];
        let ends = shared().events(&types);
        let count = |name: &str| ends.iter().filter(|event| event["event"] == name).count();
        (count("session.command.exit") >= 20 && count("session.end") == 1).then_some(ends)
    });
    assert!(ends.iter().all(|event| event["event"] != "session.command"));
    let few = shared()
        .tctl()
        .args(["events", "ls", "--session", &sid, "--limit", "5", "--format", "json"])
        .wait()
        .good();
    assert_eq!(few.text().lines().count(), 5);
    assert!(few.stderr.contains("Only the newest 5"), "{}", few.stderr);
}

#[test]
fn events_are_played_to_whoever_may_play_the_recording() {
    let cluster = shared();
    let user = captured_user("played");
    let id = own_program("played-id", "/usr/bin/id");
    let ssh = format!("ssh -tt -F {} {}", cluster.ssh_config(&user).display(), at("root"));
    let mut shell = Run::new("script")
        .args(["-qfec", &ssh, "/dev/null"])
        .env("TELEPORT_HOME", &user.home)
        .spawn();
    shell.say(&format!("echo played-$((1+1)); {id} -u\n"));
    shell.hear("played-2");
    shell.say("exit\n");
    shell.finish();
    let sid = session_of(&id);
    cluster.event("session.upload", |event| event["sid"] == sid.as_str());
    let play = |format: &str| {
        let words = ["play", "--events", "--format", format, &sid];
        cluster.tsh(&user).args(words).wait().good().text()
    };
    let text = until("the program among the lines", || {
        let text = play("text");
        text.contains(&format!("] {id} -u\n")).then_some(text)
    });
    let line = |part: &str| text.lines().find(|line| line.contains(part)).unwrap();
    assert!(line(&format!("] {id} -u")).contains("s  exec    ["), "{text}");
    assert!(line("played-2").contains("s  print   "), "{text}");
    assert!(text.lines().all(|line| line.starts_with(['+', '-', '!'])), "{text}");
    for json in play("json").lines() {
        let value: Value = serde_json::from_str(json).unwrap();
        assert!(value["time"].is_number() && value["event"].is_string(), "{json}");
    }
    let other = cluster.user("played-other", "access-all", "root");
    let none = "00000000-0000-4000-8000-000000000000";
    let refusal = |sid: &str, more: &[&str]| {
        let output = cluster.tsh(&other).arg("play").args(more).arg(sid).wait();
        assert_eq!(output.code, 1, "{}", output.text());
        assert!(output.stdout.is_empty());
        output.stderr.replace(sid, "SID")
    };
    let refused = refusal(&sid, &["--events"]);
    assert_eq!(refused, refusal(none, &["--events"]));
    assert_eq!(refused, refusal(&sid, &["--format", "text"]));
    let file = cluster.path().join("bastion/auth/recordings").join(format!("{sid}.cast"));
    let of_file = cluster.tsh(&user).args(["play", "--events"]).arg(&file).wait();
    assert_eq!(of_file.code, 2, "{}", of_file.stderr);
}

#[test]
fn a_node_says_how_much_its_kernel_tells() {
    let cluster = shared();
    let status = until("the node's word", || {
        let nodes = cluster.json(&["capture", "status", NODE, "--format", "json"]);
        nodes.get(0).filter(|node| !node["capture"].is_null()).cloned()
    });
    assert_eq!(status["nodename"], NODE);
    let capture = &status["capture"];
    let tier = capture["tier"].as_str().unwrap();
    assert!(["A", "B"].contains(&tier), "{status}");
    assert!(capture["programs"].as_u64().unwrap() >= 3, "{status}");
    let refused = capture["refused"].as_array().unwrap();
    assert!(refused.iter().all(|it| it["reason"].as_str().is_some_and(|it| !it.is_empty())));
    assert!(tier == "A" || !refused.is_empty(), "{status}");
    let text = cluster.tctl().args(["capture", "status"]).wait().good().text();
    assert!(
        text.contains(&format!("{NODE} (")) && text.contains(&format!("tier {tier}")),
        "{text}"
    );
    cluster.tctl().args(["capture", "status", "nowhere"]).wait().refused("tctl nodes ls");
    let dir = cluster.path().join(NODE);
    let local = Run::new(program("postern")).arg("status").arg("--data-dir").arg(dir).wait().good();
    assert!(local.text().contains(&format!("  capture   tier {tier}\n")), "{}", local.text());
}
