//! A proxy is replaced under running sessions: shells go on, a large transfer arrives whole, new sessions open, and
//! locks still reach what was handed over; and a thousand connections in full motion do not notice ten upgrades.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::cluster::{Cluster, at};
use crate::crowd::Crowd;
use crate::run::{Run, program, until};

/// The proxy's log says so much of an upgrade: the new process, and the streams that went there.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    pid: u64,
    moved: u64,
}

impl Told {
    /// Of the upgrades so far, oldest first.
    fn all(cluster: &Cluster) -> Vec<Self> {
        let log = fs::read_to_string(cluster.log_path("proxy")).unwrap();
        let told = log.lines().filter_map(|line| {
            let (_, said) = line.split_once("a new process has taken over ")?;
            let number = |key: &str| {
                let word = said.split(' ').find_map(|word| word.strip_prefix(key))?;
                word.strip_prefix('=')?.parse().ok()
            };
            Some(Self { pid: number("pid")?, moved: number("moved")? })
        });
        told.collect()
    }
}

fn upgrade(cluster: &Cluster) -> Told {
    let data = cluster.path().join("proxy");
    let said = Run::new(program("postern"))
        .args(["upgrade", "--format=json", "--data-dir"])
        .arg(&data)
        .wait()
        .good()
        .text();
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let number = |key: &str| report[key].as_u64().unwrap();
    Told { pid: number("pid"), moved: number("moved") }
}

/// As [`upgrade`], by a signal that nobody answers.
fn upgrade_by_signal(cluster: &Cluster) -> Told {
    let before = Told::all(cluster).len();
    let pid = proxy_pid(cluster).to_string();
    Run::new("kill").args(["-USR2", &pid]).wait().good();
    until("the new process to take over", || Told::all(cluster).into_iter().nth(before))
}

fn status(cluster: &Cluster) -> serde_json::Value {
    let data = cluster.path().join("proxy");
    let said = Run::new(program("postern"))
        .args(["status", "--format=json", "--data-dir"])
        .arg(&data)
        .wait()
        .text();
    serde_json::from_str(&said).unwrap()
}

fn proxy_pid(cluster: &Cluster) -> u64 {
    status(cluster)["pid"].as_u64().unwrap()
}

/// Whether a process has ended; one of our own children stays listed until we ask how.
fn has_ended(pid: u64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[test]
fn sessions_do_not_notice_that_the_proxy_is_replaced() {
    let cluster = Cluster::start_apart();
    cluster.access_all();
    let user = cluster.user("upgrade", "access-all", "root");
    let mut shell = cluster.openssh("ssh", &user).args([&at("root"), "cat"]).spawn();
    shell.say("before\n");
    shell.hear("before");
    // One that cannot be handed over.
    let mut jumped = Run::new("ssh").arg("-F").arg(cluster.jump_config(&user));
    jumped = jumped.args(["-J", &format!("root@localhost:{}", cluster.jump), &at("root"), "cat"]);
    let mut jumped = jumped.spawn();
    jumped.say("before\n");
    jumped.hear("before");
    let first = proxy_pid(&cluster);
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
    for round in 0..3 {
        let Told { pid, moved } = upgrade(&cluster);
        assert!(moved >= 2, "round {round}: {moved} streams moved");
        shell.say(&format!("after {round}\n"));
        shell.hear(&format!("after {round}"));
        assert_eq!(proxy_pid(&cluster), pid);
        // Whatever it starts finds no old process there.
        assert_eq!(fs::read_link(format!("/proc/{pid}/fd/0")).unwrap().to_str(), Some("/dev/null"));
    }
    until("the first process to be shown with what it has left", || {
        let status = status(&cluster);
        let mut lingering = status["lingering"].as_array()?.iter();
        lingering.any(|process| process["pid"] == first && process["streams"] == 1).then_some(())
    });
    jumped.say("still\n");
    jumped.hear("still");
    assert_eq!(download.join().unwrap().good().text(), expected);
    // The node is on its way to the new process: a session that opens now waits for it.
    let ssh = cluster.openssh("ssh", &user).args([&at("root"), "echo new"]).wait().good();
    assert_eq!(ssh.text(), "new\n");
    a_changed_address_is_told(&cluster);
    // A lock reaches what another process had before.
    cluster.tctl().args(["lock", "--user=upgrade"]).wait().good();
    until("the proxy to cut the stream", || {
        let log = fs::read_to_string(cluster.log_path("proxy")).unwrap();
        log.lines().any(|line| line.contains("a stream is cut")).then_some(())
    });
    assert_ne!(shell.finish(), 0);
}

/// What an upgrade cannot change is not passed over in silence.
fn a_changed_address_is_told(cluster: &Cluster) {
    let config = cluster.path().join("proxy.yaml");
    let text = fs::read_to_string(&config).unwrap();
    let listen = format!("listen_addr: 127.0.0.1:{}", cluster.jump);
    assert!(text.contains(&listen));
    fs::write(&config, text.replace(&listen, "listen_addr: 127.0.0.1:1")).unwrap();
    let data = cluster.path().join("proxy");
    let told =
        Run::new(program("postern")).args(["upgrade", "--data-dir"]).arg(&data).wait().good();
    let warning =
        "proxy_service.listen_addr is 127.0.0.1:1 now, but an upgrade keeps its listeners";
    assert!(told.text().contains(warning), "{}", told.text());
    assert!(fs::read_to_string(cluster.log_path("proxy")).unwrap().contains(warning));
}

/// With programs for everything but the crowd's two ends: the proxy's daemon alone, a node of the cluster with SSH
/// sessions, and ten upgrades, by command and by signal in turn.
#[test]
fn a_thousand_connections_do_not_notice_ten_upgrades() {
    const CONNECTIONS: usize = 1000;
    const SESSIONS: usize = 4;
    const UPGRADES: usize = 10;
    // Two sockets here for each connection.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let cluster = Cluster::start_apart();
    cluster.access_all();
    let user = cluster.user("crowd", "access-all", "root");
    let session = |_| cluster.openssh("ssh", &user).args([&at("root"), "cat"]).spawn();
    let mut sessions: Vec<_> = (0..SESSIONS).map(session).collect();
    let mut crowd = Crowd::open(&cluster, &user, CONNECTIONS);
    // What is still being opened is not moved.
    for session in &mut sessions {
        session.say("open\n");
        session.hear("open");
    }
    let mut replaced = Vec::new();
    for round in 0..UPGRADES {
        crowd.goes_on();
        replaced.push(proxy_pid(&cluster));
        let by_command = round.is_multiple_of(2);
        let told = if by_command { upgrade(&cluster) } else { upgrade_by_signal(&cluster) };
        assert_eq!(proxy_pid(&cluster), told.pid, "round {round}");
        let least = u64::try_from(CONNECTIONS + SESSIONS).unwrap();
        assert!(told.moved >= least, "round {round}: {told:?}");
        for session in &mut sessions {
            session.say(&format!("round {round}\n"));
            session.hear(&format!("round {round}"));
        }
    }
    crowd.goes_on();
    let bytes = crowd.finish();
    println!("{bytes} bytes through {CONNECTIONS} connections and {UPGRADES} upgrades");
    assert!(bytes > 100_000_000, "only {bytes} bytes have passed");
    for session in sessions {
        assert_eq!(session.finish(), 0);
    }
    until("the old processes to end", || replaced.iter().all(|pid| has_ended(*pid)).then_some(()));
}

/// A new process that says what it is told to, and no more.
const IMPOSTOR: &str = r#"#!/usr/bin/python3
import json, socket, struct
old = socket.socket(fileno=0)
def say(message):
    text = json.dumps(message).encode()
    old.sendall(struct.pack(">I", len(text)) + text)
def hear():
    socket.recv_fds(old, 4 + 1000, 16)
say({"Hello": {"version": "0"}})
"#;

#[test]
fn an_upgrade_that_fails_changes_nothing() {
    let cluster = Cluster::start_apart();
    cluster.access_all();
    let user = cluster.user("fails", "access-all", "root");
    let mut shell = cluster.openssh("ssh", &user).args([&at("root"), "cat"]).spawn();
    let mut goes_on = |round: &str| {
        shell.say(&format!("{round}\n"));
        shell.hear(round);
        cluster.openssh("ssh", &user).args([&at("root"), "true"]).wait().good();
    };
    let first = proxy_pid(&cluster);
    let data = cluster.path().join("proxy");
    let upgrade = || Run::new(program("postern")).args(["upgrade", "--data-dir"]).arg(&data).wait();
    let config = cluster.path().join("proxy.yaml");
    let good = fs::read_to_string(&config).unwrap();
    let other = cluster.path().join("other");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let edits = [
        (
            "other roles",
            good.replacen("auth_service:\n    enabled: no", "auth_service:\n    enabled: yes", 1),
        ),
        ("another folder", good.replace(data.to_str().unwrap(), other.to_str().unwrap())),
        ("unknown key", format!("{good}  no_such_service: {{}}\n")),
    ];
    for (what, edited) in edits {
        assert_ne!(edited, good, "{what}");
        fs::write(&config, edited).unwrap();
        upgrade().refused("Nothing has changed");
        assert_eq!(proxy_pid(&cluster), first, "{what}");
        goes_on(what);
    }
    fs::write(&config, &good).unwrap();
    assert!(!cluster.path().join("proxy/auth").exists(), "another cluster was founded");
    // Processes that are ready, and then are not.
    let place = cluster.program_of("proxy");
    let (dies, takes_nothing) = (String::new(), "hear()\n");
    for (what, rest) in [("dies", dies.as_str()), ("takes nothing", takes_nothing)] {
        fs::remove_file(&place).unwrap();
        fs::write(&place, format!("{IMPOSTOR}{rest}")).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        upgrade().refused("Nothing has changed");
        assert_eq!(proxy_pid(&cluster), first, "{what}");
        goes_on(what);
    }
    fs::remove_file(&place).unwrap();
    std::os::unix::fs::symlink(program("postern"), &place).unwrap();
    // What is not worth a session is left out, and said.
    let diag = taken.local_addr().unwrap();
    fs::write(
        &config,
        good.replacen("  data_dir:", &format!("  diag_addr: {diag}\n  data_dir:"), 1),
    )
    .unwrap();
    let said = upgrade().good().text();
    assert!(said.contains("no diagnostics over TCP until the daemon is restarted"), "{said}");
    assert_ne!(proxy_pid(&cluster), first);
    goes_on("upgraded");
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
