//! Two hosts: the node sits behind address translation in a network namespace of its own. Nothing can dial it; the proxy
//! has no route to it but the tunnel that the node dialed.

use std::fs;

use crate::cluster::{CLUSTER, Cluster};
use crate::run::{Run, until};

/// Namespaces `<prefix>-edge` (node), `-nat` (router), `-pub` (auth and proxy); removed when dropped.
struct Net {
    prefix: String,
}

fn sh(script: &str) {
    Run::new("sh").args(["-ec", script]).wait().good();
}

impl Net {
    fn new() -> Self {
        let prefix = format!("pst{}", std::process::id());
        let net = Self { prefix };
        let p = &net.prefix;
        sh(&format!(
            "for n in edge nat pub; do ip netns add {p}-$n; ip -n {p}-$n link set lo up; done
             ip link add {p}a netns {p}-edge type veth peer name {p}b netns {p}-nat
             ip link add {p}c netns {p}-pub type veth peer name {p}d netns {p}-nat
             ip -n {p}-edge addr add 10.91.2.2/24 dev {p}a; ip -n {p}-edge link set {p}a up
             ip -n {p}-nat addr add 10.91.2.1/24 dev {p}b; ip -n {p}-nat link set {p}b up
             ip -n {p}-nat addr add 10.91.1.1/24 dev {p}d; ip -n {p}-nat link set {p}d up
             ip -n {p}-pub addr add 10.91.1.2/24 dev {p}c; ip -n {p}-pub link set {p}c up
             ip -n {p}-edge route add default via 10.91.2.1
             ip netns exec {p}-nat sysctl -qw net.ipv4.ip_forward=1
             ip netns exec {p}-nat nft add table ip n
             ip netns exec {p}-nat nft 'add chain ip n post {{ type nat hook postrouting priority 100; }}'
             ip netns exec {p}-nat nft add rule ip n post oifname {p}d masquerade"
        ));
        net
    }
    fn inside(&self, which: &str) -> [String; 4] {
        ["ip".into(), "netns".into(), "exec".into(), format!("{}-{which}", self.prefix)]
    }
    fn link(&self, state: &str) {
        sh(&format!("ip -n {p}-nat link set {p}d {state}", p = self.prefix));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for which in ["edge", "nat", "pub"] {
            let _gone =
                Run::new("ip").args(["netns", "del", &format!("{}-{which}", self.prefix)]).wait();
        }
    }
}

// tidy: long-function: one story, told in order
#[test]
fn a_node_that_nothing_can_dial() {
    let net = Net::new();
    let cluster = Cluster::empty();
    let dir = cluster.path().display().to_string();
    let config = cluster.path().join("bastion.yaml");
    fs::write(&config, format!(
        "postern:\n  nodename: bastion\n  data_dir: {dir}/bastion\n  auth_service:\n    cluster_name: {CLUSTER}\n    listen_addr: 10.91.1.2:3025\n  proxy_service:\n    web_listen_addr: 10.91.1.2:3080\n    public_addr: 10.91.1.2:3080\n  ssh_service:\n    enabled: no\n"
    )).unwrap();
    let public = net.inside("pub");
    let edge = net.inside("edge");
    let (public, edge): (Vec<&str>, Vec<&str>) =
        (public.iter().map(String::as_str).collect(), edge.iter().map(String::as_str).collect());
    cluster.spawn("bastion", &public, &["start", "-c", config.to_str().unwrap()]);
    cluster.wait_ready("bastion");
    let pin =
        cluster.json(&["status", "--format", "json"])["ca_pins"][0].as_str().unwrap().to_owned();
    let token = cluster.json(&["tokens", "add", "--type=node", "--format", "json"])["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let token_file = cluster.path().join("edge.token");
    fs::write(&token_file, token).unwrap();
    let node_dir = format!("{dir}/edge-1");
    cluster.spawn(
        "edge-1",
        &edge,
        &[
            "start",
            "--roles=node",
            "--token",
            token_file.to_str().unwrap(),
            "--proxy",
            "10.91.1.2:3080",
            "--ca-pin",
            &pin,
            "--nodename",
            "edge-1",
            "--data-dir",
            &node_dir,
        ],
    );
    cluster.wait_ready("edge-1");
    // Truly unreachable: no route, no answer.
    Run::new(public[0])
        .args(&public[1..])
        .args(["ping", "-c1", "-W1", "10.91.2.2"])
        .wait()
        .refused("");

    cluster.access_all();
    let user = cluster.user_in(&public, "10.91.1.2:3080", &pin, "remote", "access-all", "root");
    let run = || {
        Run::new(public[0])
            .args(&public[1..])
            .env("TELEPORT_HOME", &user.home)
            .arg(crate::run::program("tsh"))
            .args(["ssh", "root@edge-1", "ip -4 -o addr show"])
            .wait()
    };
    assert!(run().good().text().contains("10.91.2.2"));
    let start = cluster.event("session.start", |e| e["user"] == "remote");
    assert!(start["addr.remote"].as_str().unwrap().starts_with("10.91.1.2"), "{start}");

    // The network drops: the tunnel comes back by itself.
    net.link("down");
    assert_ne!(run().code, 0);
    net.link("up");
    until("the tunnel to return", || (run().code == 0).then_some(()));
}
