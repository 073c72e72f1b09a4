//! A session's recording: text while it runs, at auth afterwards, gone from the node only then.

use std::fs;

use crate::cluster::{Cluster, NODE, at, shared};
use crate::run::{Run, program, until};

/// Runs a shell with a terminal that prints `mark`, and gives its session's id.
fn record(cluster: &Cluster, name: &str, mark: &str) -> String {
    let user = cluster.user(name, "access-all", "root");
    let ssh = format!("ssh -tt -F {} {}", cluster.ssh_config(&user).display(), at("root"));
    let mut shell = Run::new("script")
        .args(["-qfec", &ssh, "/dev/null"])
        .env("TELEPORT_HOME", &user.home)
        .spawn();
    shell.say(&format!("echo {mark}-$((1+1))\n"));
    shell.hear(&format!("{mark}-2"));
    shell.say("exit\n");
    shell.finish();
    let end = cluster.event("session.end", |e| e["user"] == name);
    assert_eq!(end["session_recording"], "node");
    end["sid"].as_str().unwrap().to_owned()
}

#[test]
fn recorded_uploaded_replayed() {
    let cluster = shared();
    let sid = record(cluster, "rec", "marked");
    let upload = cluster.event("session.upload", |e| e["sid"] == sid.as_str());
    assert!(upload["bytes"].as_u64().unwrap() > 100);
    let local = cluster.path().join(NODE).join("node/recordings");
    until("the node's copy to be deleted", || {
        (!local.join(format!("{sid}.cast")).exists()).then_some(())
    });
    let user = cluster.user("rec", "access-all", "root");
    let list =
        cluster.tsh(&user).args(["recordings", "ls", "--format", "json"]).wait().good().text();
    assert!(list.contains(&sid), "{list}");
    assert!(
        cluster
            .tsh(&user)
            .args(["play", "--format", "text", &sid])
            .wait()
            .good()
            .text()
            .contains("marked-2")
    );
    let flat = cluster.path().join("bastion/auth/recordings").join(format!("{sid}.cast"));
    let text = fs::read_to_string(&flat).unwrap();
    let header: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(header["version"], 2);
    assert!(text.contains("marked-2"));
    // asciinema's own reader understands it.
    let cat = format!("asciinema cat {}", flat.display());
    let cat = Run::new("script")
        .args(["-qec", &cat, "/dev/null"])
        .env("HOME", cluster.path())
        .wait()
        .good();
    assert!(cat.text().contains("marked-2"));
    assert!(
        Run::new(program("tsh"))
            .args(["play", "--format", "text"])
            .arg(&flat)
            .wait()
            .good()
            .text()
            .contains("marked-2")
    );
    cluster.event("session.recording.access", |e| e["sid"] == sid.as_str() && e["user"] == "rec");
}

#[test]
fn other_peoples_recordings_are_not_shown() {
    let cluster = shared();
    let sid = record(cluster, "rec-owner", "private");
    cluster.event("session.upload", |e| e["sid"] == sid.as_str());
    let other = cluster.user("rec-other", "access-all", "root");
    assert!(
        !cluster
            .tsh(&other)
            .args(["recordings", "ls", "--format", "json"])
            .wait()
            .good()
            .text()
            .contains(&sid)
    );
    let refused = cluster.tsh(&other).args(["play", "--format", "text", &sid]).wait();
    let missing = cluster
        .tsh(&other)
        .args(["play", "--format", "text", "00000000-0000-4000-8000-000000000000"])
        .wait();
    assert_ne!(refused.code, 0);
    assert_eq!(
        refused.stderr.replace(&sid, "SID"),
        missing.stderr.replace("00000000-0000-4000-8000-000000000000", "SID")
    );
}

#[test]
fn what_was_typed_is_on_disk_within_a_second_and_survives_kill() {
    let cluster = Cluster::start();
    cluster.access_all();
    let user = cluster.user("crash", "access-all", "root");
    let ssh = format!("ssh -tt -F {} {}", cluster.ssh_config(&user).display(), at("root"));
    let mut shell = Run::new("script")
        .args(["-qfec", &ssh, "/dev/null"])
        .env("TELEPORT_HOME", &user.home)
        .spawn();
    shell.say("echo before-the-crash-$((1+1))\n");
    shell.hear("before-the-crash-2");
    let dir = cluster.path().join(NODE).join("node/recordings");
    until("the text to be in the file", || {
        let files = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        files
            .filter(|p| p.extension().is_some_and(|e| e == "cast"))
            .any(|p| fs::read_to_string(p).unwrap().contains("before-the-crash-2"))
            .then_some(())
    });
    cluster.kill(NODE);
    drop(shell);
    cluster.start_node(NODE, "env=prod,team=web");
    let end = cluster.event("session.end", |e| e["user"] == "crash");
    assert_eq!(end["recording_truncated"], true);
    let sid = end["sid"].as_str().unwrap().to_owned();
    cluster.event("session.upload", |e| e["sid"] == sid.as_str());
    assert!(
        cluster
            .tsh(&user)
            .args(["play", "--format", "text", &sid])
            .wait()
            .good()
            .text()
            .contains("before-the-crash-2")
    );
}
