//! What sessions do, from the kernel: programs with all of their arguments, whoever starts them and whatever the terminal
//! shows, in the audit log before the session's end; also what outlives the session. Needs root, as sessions of others do.

use std::fs;

use serde_json::Value;

use crate::cluster::{NODE, at, shared};
use crate::run::until;

/// Programs of one session, in the order of the log.
fn commands(sid: &str) -> Vec<Value> {
    shared().events(&["--type", "session.command", "--session", sid])
}

fn argv(event: &Value) -> Vec<&str> {
    event["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// The session that ran a program with this path.
fn session_of(path: &str) -> String {
    let event = shared().event("session.command", |event| event["path"] == path);
    assert_eq!(event["server_hostname"], NODE);
    event["sid"].as_str().unwrap().to_owned()
}

/// A program of its own for a test, by which its session is found.
fn program(name: &str, of: &str) -> String {
    let path = shared().path().join(name);
    fs::copy(of, &path).unwrap();
    fs::canonicalize(path).unwrap().to_str().unwrap().to_owned()
}

#[test]
fn programs_are_told_with_all_that_belongs_to_them() {
    let cluster = shared();
    let user = cluster.user("captured", "access-all", "root");
    let echo = program("captured-echo", "/bin/echo");
    // Longer than one record, shorter than what is taken down.
    let long = format!(
        "cd /usr/lib; {echo} 'a b' \"$(head -c 100000 /dev/zero | tr '\\0' x)\" '' last >/dev/null; exit 7"
    );
    let output = cluster.openssh("ssh", &user).args([&at("root"), &long]).wait();
    assert_eq!(output.code, 7);
    let sid = session_of(&echo);
    let told = commands(&sid);
    let event = told.iter().find(|event| event["path"] == *echo).unwrap();
    assert_eq!(event["program"], "captured-echo");
    assert_eq!(event["cwd"], "/usr/lib");
    assert_eq!((&event["ruid"], &event["euid"]), (&0.into(), &0.into()));
    let words = argv(event);
    assert_eq!((words[0], words[1].len(), words[2], words[3]), ("a b", 100_000, "", "last"));
    assert!(event.get("argv_missing").is_none());
    // The shell that started it, told before it.
    let shell = told.iter().find(|shell| shell["pid"] == event["ppid"]).unwrap();
    assert!(shell["ei"].as_u64() < event["ei"].as_u64());
    assert!(argv(shell).contains(&"-c"), "{shell}");
    // Ends: the shell's with its status, all before the session's.
    let ends = cluster.events(&["--type", "session.command.exit", "--session", &sid]);
    let end = ends.iter().find(|end| end["pid"] == shell["pid"]).unwrap();
    assert_eq!(end["exit_code"], 7);
    let over = cluster.event("session.end", |end| end["sid"] == *sid);
    assert_eq!(over["enhanced_recording"], true);
    assert!(end["ei"].as_u64() < over["ei"].as_u64());
}

#[test]
fn what_outlives_its_session_is_told_too() {
    let cluster = shared();
    let user = cluster.user("outlived", "access-all", "root");
    let late = program("captured-late", "/bin/true");
    let line = format!("setsid nohup sh -c 'sleep 2; {late}; kill -9 $$' >/dev/null 2>&1 & exit 0");
    cluster.openssh("ssh", &user).args([&at("root"), &line]).wait().good();
    let sid = session_of(&late);
    let over = cluster.event("session.end", |end| end["sid"] == *sid);
    let told = commands(&sid);
    let event = told.iter().find(|event| event["path"] == *late).unwrap();
    assert!(event["ei"].as_u64() > over["ei"].as_u64(), "not after the end");
    until("the shell to be killed", || {
        let ends = cluster.events(&["--type", "session.command.exit", "--session", &sid]);
        ends.iter().any(|end| end["signal"] == 9 && end["exit_code"] == 137).then_some(())
    });
}

#[test]
fn deleted_programs_and_scripts_are_known_for_what_they_are() {
    let cluster = shared();
    let user = cluster.user("odd", "access-all", "root");
    let odd = program("captured-odd", "/bin/sleep");
    let script = cluster.path().join("captured-script");
    fs::write(&script, "#!/bin/sh\nexit 0\n").unwrap();
    let script = script.to_str().unwrap();
    // Executed by its descriptor when no name leads to it any more.
    let line =
        format!("chmod +x {script}; {script} told; exec 7<{odd}; rm {odd}; /proc/self/fd/7 0.01");
    cluster.openssh("ssh", &user).args([&at("root"), &line]).wait().good();
    let deleted = shared().event("session.command", |event| event["path"] == *odd);
    assert!(deleted["file"].as_str().unwrap().ends_with(":0"), "{deleted}");
    let sid = deleted["sid"].as_str().unwrap();
    let told = commands(sid);
    let run = told.iter().find(|event| argv(event).contains(&"told")).unwrap();
    assert_eq!(argv(run), [script, "told"]);
    assert_eq!(run["script"], true);
}

#[test]
fn who_executes_what_a_session_wrote_is_told() {
    let cluster = shared();
    let user = cluster.user("writer", "access-all", "root");
    let path = cluster.path().join("captured-gift");
    let line = format!("cp /bin/true {}", path.display());
    cluster.openssh("ssh", &user).args([&at("root"), &line]).wait().good();
    let mut given = std::process::Command::new(&path).spawn().unwrap();
    assert!(given.wait().unwrap().success());
    let path = path.to_str().unwrap();
    let handed = cluster.event("session.delegation", |event| event["path"] == path);
    assert_eq!((&handed["via"], &handed["user"]), (&"file".into(), &user.name.as_str().into()));
    assert_eq!(handed["target_pid"], given.id());
}

#[test]
fn a_role_that_asks_for_nothing_gets_nothing() {
    let cluster = shared();
    cluster.role_with(
        "uncaptured",
        r#"{"logins": ["{{internal.logins}}"], "node_labels": {"*": "*"}}"#,
        "{}",
        r#"{"enhanced_recording": []}"#,
    );
    let user = cluster.user("uncaptured", "uncaptured", "root");
    cluster.openssh("ssh", &user).args([&at("root"), "/bin/true"]).wait().good();
    let over = cluster.event("session.end", |end| end["user"] == *user.name);
    assert_eq!(over["enhanced_recording"], false);
    assert!(commands(over["sid"].as_str().unwrap()).is_empty());
}
