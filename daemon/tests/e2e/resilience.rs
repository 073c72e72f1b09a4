//! Things die and come back.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, NODE, at};
use crate::run::{Run, until};

fn cluster() -> Cluster {
    let cluster = Cluster::start();
    cluster.access_all();
    cluster
}

/// Auth, proxy and node each in a process of its own.
fn apart() -> Cluster {
    let cluster = Cluster::start_apart();
    cluster.access_all();
    cluster
}

#[test]
fn sessions_open_while_auth_is_down_and_are_audited_when_it_is_back() {
    let cluster = apart();
    let user = cluster.user("offline", "access-all", "root");
    cluster.openssh("ssh", &user).args([&at("root"), "true"]).wait().good();
    cluster.kill("auth");
    let run = |mark: &str| {
        cluster.openssh("ssh", &user).args([&at("root"), &format!("echo {mark}")]).wait()
    };
    assert_eq!(run("without-auth").good().text(), "without-auth\n");
    // A node that starts while auth is away decides by the snapshot on its disk.
    cluster.kill(NODE);
    cluster.start_node(NODE, "env=prod,team=web");
    assert_eq!(run("after-restart").good().text(), "after-restart\n");
    cluster.start_auth();
    for mark in ["without-auth", "after-restart"] {
        let command = format!("echo {mark}");
        cluster.event("exec", |e| e["command"] == command.as_str() && e["exitCode"] == "0");
        let seen = cluster.events(&["--type", "exec"]);
        assert_eq!(seen.iter().filter(|e| e["command"] == command.as_str()).count(), 1);
    }
}

#[test]
fn auth_that_comes_back_knows_soon_what_nodes_capture() {
    let cluster = apart();
    let is_known = || {
        let nodes = cluster.json(&["capture", "status", NODE, "--format", "json"]);
        nodes.get(0).is_some_and(|node| !node["capture"].is_null()).then_some(())
    };
    until("the node's kernel", is_known);
    cluster.kill("auth");
    cluster.start_auth();
    let began = Instant::now();
    until("the node's kernel again", is_known);
    assert!(began.elapsed() < Duration::from_secs(15), "not before its next turn");
}

#[test]
fn the_tunnel_returns_after_the_proxy_dies() {
    let cluster = cluster();
    let user = cluster.user("tunnel", "access-all", "root");
    cluster.openssh("ssh", &user).args([&at("root"), "true"]).wait().good();
    cluster.kill("bastion");
    cluster.start_bastion();
    until("the node to dial again", || {
        (cluster.openssh("ssh", &user).args([&at("root"), "true"]).wait().code == 0).then_some(())
    });
}

#[test]
fn sigterm_lets_sessions_end_and_takes_no_new_ones() {
    let cluster = cluster();
    let user = cluster.user("drain", "access-all", "root");
    let mut ssh = cluster
        .openssh("ssh", &user)
        .args([&at("root"), "echo in; read line; echo got $line"])
        .spawn();
    ssh.hear("in\n");
    cluster.signal(NODE, "-TERM");
    until("new sessions to be refused", || {
        (cluster.openssh("ssh", &user).args([&at("root"), "true"]).wait().code != 0).then_some(())
    });
    ssh.say("hello\n");
    ssh.hear("got hello");
    assert_eq!(ssh.finish(), 0);
    cluster.event("session.end", |e| e["user"] == "drain");
    until("the node to end", || {
        let status = Run::new(crate::run::program("postern"))
            .args(["status", "--data-dir"])
            .arg(cluster.path().join(NODE))
            .wait();
        status.stderr.contains("no daemon answers").then_some(())
    });
}
