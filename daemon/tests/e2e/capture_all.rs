//! What sessions touch and whom they talk to, from the kernel: files, connections, rights, in the audit log of their session.
//! The same events on kernels with LSM programs and without, but for who says so (`prov`).

use std::net::TcpListener;

use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::cluster::{Cluster, NODE, User, at, shared};
use crate::run::until;

/// A user whose sessions are told of in full.
fn user(cluster: &Cluster, name: &str) -> User {
    let allow = r#"{"logins": ["{{internal.logins}}"], "node_labels": {"*": "*"}}"#;
    let options = r#"{"enhanced_recording": ["command", "disk", "network"]}"#;
    cluster.role_with("all-told", allow, "{}", options);
    cluster.user(name, "all-told", "root")
}

/// Runs a command in a session; its events of a type, all of them before the end.
fn told(cluster: &Cluster, user: &User, line: &str, types: &[&str]) -> Vec<Value> {
    cluster.openssh("ssh", user).args([&at("root"), line]).wait().good();
    let over = cluster.event("session.end", |end| end["user"] == *user.name);
    let mut arguments = vec!["--session", over["sid"].as_str().unwrap()];
    types.iter().for_each(|name| arguments.extend(["--type", name]));
    cluster.events(&arguments)
}

fn find<'a>(events: &'a [Value], op: &str, path: &str) -> &'a Value {
    let found = events.iter().find(|event| event["op"] == op && event["path"] == path);
    found.unwrap_or_else(|| panic!("no {op} of {path} in {events:#?}"))
}

#[test]
fn files_are_told_with_their_final_paths() {
    let cluster = shared();
    let user = user(cluster, "filer");
    let room = cluster.path().join("filed");
    let room = room.to_str().unwrap();
    let line = format!(
        "mkdir {room} && cd {room} && echo x > ./made && ln made hard && ln -s made soft \
         && mv hard moved && chmod 600 made && truncate -s 0 made && cat /etc/shadow >/dev/null \
         && rm moved && rmdir {room}/../filed/none; true"
    );
    let events = told(cluster, &user, &line, &["session.disk"]);
    let made = find(&events, "create", &format!("{room}/made"));
    assert_eq!(made["program"], "bash");
    assert_ne!(made["file"], "");
    find(&events, "mkdir", room);
    find(&events, "chmod", &format!("{room}/made"));
    assert_eq!(find(&events, "chmod", &format!("{room}/made"))["mode"], 0o600);
    find(&events, "open", "/etc/shadow");
    find(&events, "unlink", &format!("{room}/moved"));
    let moved = find(&events, "rename", &format!("{room}/hard"));
    assert_eq!(moved["target_path"], format!("{room}/moved"));
    let soft = find(&events, "symlink", &format!("{room}/soft"));
    assert_eq!(soft["target_path"], "made");
}

#[test]
fn connections_are_told_with_both_ends_and_how_they_went() {
    let cluster = shared();
    let user = user(cluster, "talker");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let refused = {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap();
        gone.local_addr().unwrap().port()
    };
    let line = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}; echo hello >&3; exec 3>&-; \
         (exec 3<>/dev/tcp/127.0.0.1/{refused}) 2>/dev/null; \
         echo x > /dev/udp/127.0.0.9/9; true"
    );
    let events = told(cluster, &user, &line, &["session.network"]);
    let of = |op: &str, port: u16| {
        let found = events.iter().find(|event| event["op"] == op && event["dst_port"] == port);
        found.unwrap_or_else(|| panic!("no {op} of {port} in {events:#?}"))
    };
    let good = of("connect", port);
    assert_eq!((&good["return_code"], &good["protocol"]), (&0.into(), &"tcp".into()));
    assert_eq!((&good["dst_addr"], &good["version"]), (&"127.0.0.1".into(), &4.into()));
    assert_ne!(good["src_port"], 0);
    assert_eq!(of("close", port)["tx"], 6);
    assert_eq!(of("connect", refused)["return_code"], -111);
    assert_eq!(of("connect", 9)["protocol"], "udp");
}

#[test]
fn what_goes_on_while_no_node_runs_is_told_by_the_next() {
    let cluster = Cluster::start_apart();
    let user = user(&cluster, "goes-on");
    let (mark, go) = (cluster.path().join("late"), cluster.path().join("go"));
    std::fs::copy("/bin/true", &mark).unwrap();
    let mark = std::fs::canonicalize(mark).unwrap().display().to_string();
    let line = format!(
        "nohup setsid sh -c 'until test -e {go}; do sleep 0.1; done; {mark} without-node; sleep 3; {mark} again' \
         >/dev/null 2>&1 & exit 0",
        go = go.display()
    );
    cluster.openssh("ssh", &user).args([&at("root"), &line]).wait().good();
    let over = cluster.event("session.end", |end| end["user"] == *user.name);
    cluster.kill(NODE);
    std::fs::write(&go, "").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    cluster.start_node(NODE, "env=prod,team=web");
    for word in ["without-node", "again"] {
        let event = cluster
            .event("session.command", |event| event["path"] == *mark && event["argv"][0] == word);
        assert_eq!(event["sid"], over["sid"]);
        assert_eq!(event["user"], over["user"]);
    }
    let whole = cluster.event("session.capture", |event| event["sid"] == over["sid"]);
    assert_eq!(whole["lost"], 0);
}

#[test]
fn what_a_stopped_node_cannot_take_is_told_as_lost_and_nothing_else_is() {
    let cluster = Cluster::start_apart();
    let user = user(&cluster, "floods");
    let (go, done) = (cluster.path().join("go"), cluster.path().join("done"));
    let (go_name, done_name) = (go.display(), done.display());
    // More than a session may have on its way.
    let flood = "i=0; while test $i -lt 80000; do : >many; i=$((i + 1)); done";
    let line = format!(
        "cd {}; nohup setsid sh -c 'until test -e {go_name}; do sleep 0.1; done; {flood}; : >{done_name}' \
         >/dev/null 2>&1 & exit 0",
        cluster.path().display()
    );
    cluster.openssh("ssh", &user).args([&at("root"), &line]).wait().good();
    let over = cluster.event("session.end", |end| end["user"] == *user.name);
    cluster.signal(NODE, "-STOP");
    std::fs::write(&go, "").unwrap();
    until("the flood to end", || done.exists().then_some(()));
    cluster.signal(NODE, "-CONT");
    let whole = cluster.event("session.capture", |event| event["sid"] == over["sid"]);
    let sid = over["sid"].as_str().unwrap();
    let losses = cluster.events(&["--session", sid, "--type", "session.loss"]);
    assert!(losses.iter().all(|loss| loss["class"] == "file"), "{losses:?}");
    let lost: u64 = losses.iter().map(|loss| loss["count"].as_u64().unwrap()).sum();
    assert_ne!(lost, 0);
    assert_eq!(whole["lost"], lost);
    let all = ["--session", sid, "--type", "session.disk", "--limit", "100000"];
    let told = u64::try_from(cluster.events(&all).len()).unwrap();
    assert_eq!(whole["file"], told + lost, "{told} told and {lost} lost");
}

#[test]
fn events_have_the_time_of_what_they_tell_of() {
    let cluster = shared();
    let user = user(cluster, "waits");
    let room = cluster.path().join("timed");
    std::fs::create_dir(&room).unwrap();
    let line = format!("cd {}; : >before; sleep 0.7; : >after", room.display());
    let events = told(cluster, &user, &line, &["session.disk"]);
    let time = |name: &str| {
        let event = find(&events, "create", room.join(name).to_str().unwrap());
        OffsetDateTime::parse(event["time"].as_str().unwrap(), &Rfc3339).unwrap()
    };
    let between = time("after") - time("before");
    assert!(between >= Duration::milliseconds(699), "{between}");
}
