//! A proxy is replaced under running sessions: shells go on, a large transfer arrives whole, new sessions open, and
//! locks still reach what was handed over.

use std::process::Command;

use crate::cluster::{Cluster, at};
use crate::run::{Run, program, until};

/// A process that nobody else would end: the daemon's successor is no child of ours.
struct Ended(u64);

impl Drop for Ended {
    fn drop(&mut self) {
        let _gone = Command::new("kill").args(["-KILL", &self.0.to_string()]).status();
    }
}

fn upgrade(cluster: &Cluster) -> (Ended, u64, u64) {
    let data = cluster.path().join("proxy");
    let said = Run::new(program("postern"))
        .args(["upgrade", "--format=json", "--data-dir"])
        .arg(&data)
        .wait()
        .good()
        .text();
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let number = |key: &str| report[key].as_u64().unwrap();
    (Ended(number("pid")), number("moved"), number("stayed"))
}

fn proxy_pid(cluster: &Cluster) -> u64 {
    let data = cluster.path().join("proxy");
    let said = Run::new(program("postern"))
        .args(["status", "--format=json", "--data-dir"])
        .arg(&data)
        .wait()
        .text();
    serde_json::from_str::<serde_json::Value>(&said).unwrap()["pid"].as_u64().unwrap()
}

#[test]
fn sessions_do_not_notice_that_the_proxy_is_replaced() {
    let cluster = Cluster::start_apart();
    cluster.role(
        "access-all",
        r#"{"logins": ["{{internal.logins}}"], "node_labels": {"*": "*"}}"#,
        "{}",
    );
    let user = cluster.user("upgrade", "access-all", "root");
    let mut shell = cluster.openssh("ssh", &user).args([&at("root"), "cat"]).spawn();
    shell.say("before\n");
    shell.hear("before");
    let sum = "seq 1 12000000 | sha256sum";
    let expected = Run::new("sh").args(["-c", sum]).wait().good().text();
    // The client's side of the same: all bytes go through the proxy, all the time.
    let config = cluster.ssh_config(&user);
    let begun = cluster.path().join("download-begun");
    let download = format!(
        "ssh -F {} {} 'touch {}; seq 1 12000000 | (head -c 20000000; sleep 1; head -c 20000000; sleep 1; cat)' | sha256sum",
        config.display(),
        at("root"),
        begun.display(),
    );
    let download = std::thread::spawn(move || Run::new("sh").args(["-c", &download]).wait());
    until("the download to begin", || begun.exists().then_some(()));
    let mut last = None;
    for round in 0..3 {
        let (pid, moved, _) = upgrade(&cluster);
        assert!(moved >= 2, "round {round}: {moved} streams moved");
        shell.say(&format!("after {round}\n"));
        shell.hear(&format!("after {round}"));
        assert_eq!(proxy_pid(&cluster), pid.0);
        last = Some(pid);
    }
    assert_eq!(download.join().unwrap().good().text(), expected);
    // The node is on its way to the new process: a session that opens now waits for it.
    let ssh = cluster.openssh("ssh", &user).args([&at("root"), "echo new"]).wait().good();
    assert_eq!(ssh.text(), "new\n");
    // A lock reaches what another process had before.
    cluster.tctl().args(["lock", "--user=upgrade"]).wait().good();
    until("the proxy to cut the stream", || {
        let log = std::fs::read_to_string(cluster.log_path("proxy")).unwrap();
        log.lines().any(|line| line.contains("a stream is cut")).then_some(())
    });
    assert_ne!(shell.finish(), 0);
    drop(last);
}

#[test]
fn what_cannot_be_upgraded_says_so_and_goes_on() {
    let cluster = Cluster::start();
    let data = cluster.path().join("bastion");
    let upgrade = || Run::new(program("postern")).args(["upgrade", "--data-dir"]).arg(&data).wait();
    upgrade().refused("only a proxy is upgraded in place");
    cluster.wait_ready("bastion");
    let nobody =
        Run::new(program("postern")).args(["upgrade", "--data-dir", "/nonexistent"]).wait();
    nobody.refused("start one with `postern start`");
}
