//! tctl and the daemon's own commands.

use std::fs;
use std::process::Command;

use crate::cluster::{free_port, shared};
use crate::run::{Run, program, until};

#[test]
fn resources_round_trip_as_yaml() {
    let cluster = shared();
    cluster.role("round", r#"{"logins": ["root"], "node_labels": {"env": ["a", "b"]}}"#, "{}");
    let yaml = cluster.tctl().args(["get", "role/round", "--format", "yaml"]).wait().good().text();
    assert!(yaml.contains("kind: role") && yaml.contains("env"), "{yaml}");
    cluster.tctl().args(["create", "-"]).input(yaml.clone()).wait().refused("exists");
    cluster.tctl().args(["create", "-f", "-"]).input(yaml).wait().good();
    cluster.tctl().args(["rm", "role/round"]).wait().good();
    cluster.tctl().args(["get", "role/round"]).wait().refused("not");
    for name in ["role.created", "role.updated", "role.deleted"] {
        cluster.event(name, |e| e["name"] == "round");
    }
}

#[test]
fn unknown_role_options_are_refused_with_their_name() {
    let yaml = "kind: role\nversion: v7\nmetadata:\n  name: odd\nspec:\n  options: {pin_source_ip: true}\n";
    shared().tctl().args(["create", "-f", "-"]).input(yaml).wait().refused("pin_source_ip");
}

#[test]
fn lists_in_every_format() {
    let cluster = shared();
    cluster.user("lists", "access-all", "root");
    for command in [["users", "ls"], ["tokens", "ls"], ["nodes", "ls"]] {
        for format in ["text", "json", "yaml"] {
            let text = cluster.tctl().args(command).args(["--format", format]).wait().good().text();
            if format == "json" {
                serde_json::from_str::<serde_json::Value>(&text).unwrap();
            }
        }
    }
    assert!(cluster.tctl().args(["users", "ls"]).wait().good().text().contains("lists"));
    assert!(cluster.tctl().arg("status").wait().good().text().contains(&cluster.pin));
}

#[test]
fn signed_and_exported_certificates_are_what_openssh_reads() {
    let cluster = shared();
    cluster.user("signed", "access-all", "root");
    let dir = tempfile::tempdir().unwrap();
    let id = dir.path().join("id");
    cluster
        .tctl()
        .args(["auth", "sign", "--user", "signed", "--ttl", "1h", "--format", "openssh", "-o"])
        .arg(&id)
        .wait()
        .good();
    let cert = dir.path().join("id-cert.pub");
    let shown = Run::new("ssh-keygen").arg("-L").arg("-f").arg(&cert).wait().good().text();
    assert!(
        shown.contains("user certificate")
            && shown.contains("root")
            && shown.contains("permit-pty"),
        "{shown}"
    );
    let mode = fs::metadata(&id).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    let host = cluster.tctl().args(["auth", "export", "--type", "host"]).wait().good().text();
    assert!(host.contains("ssh-ed25519"), "{host}");
}

#[test]
fn a_token_that_was_removed_joins_nobody() {
    let cluster = shared();
    let token = cluster.json(&["tokens", "add", "--type=node", "--format", "json"])["token"]
        .as_str()
        .unwrap()
        .to_owned();
    cluster.tctl().args(["tokens", "rm", &token]).wait().good();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    fs::write(&file, &token).unwrap();
    Run::new(program("postern"))
        .args([
            "start",
            "--roles=node",
            "--proxy",
            &cluster.proxy(),
            "--ca-pin",
            &cluster.pin,
            "--nodename",
            "late",
        ])
        .arg("--token")
        .arg(&file)
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .wait()
        .refused("token");
    cluster.event("instance.join", |e| e["node_name"] == "late" && e["success"] == false);
}

#[test]
fn events_can_be_followed() {
    let cluster = shared();
    let mut tail = cluster
        .tctl()
        .args(["events", "tail", "--type", "role.created", "--format", "json"])
        .spawn();
    // The tail is attached once an event arrives: make some until one does.
    let maker = std::thread::spawn(|| {
        for n in 0..20 {
            shared().role(&format!("tail-{n}"), "{}", "{}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    tail.hear("role.created");
    maker.join().unwrap();
}

#[test]
fn all_mistakes_of_a_configuration_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("postern.yaml");
    fs::write(&file, "postern:\n  nodenam: a\n  proxy_service:\n    public_adr: x\n").unwrap();
    let out = Run::new(program("postern")).args(["start", "-c"]).arg(&file).wait();
    assert_eq!(out.code, 2);
    assert!(
        out.stderr.contains("line 2, column 3") && out.stderr.contains("line 4, column 5"),
        "{}",
        out.stderr
    );
}

#[test]
fn with_no_file_it_is_a_cluster_on_loopback_and_tells_its_health() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.yaml");
    // Everything as by default but the ports, which other tests may hold.
    let (web, auth, jump, diag) = (free_port(), free_port(), free_port(), free_port());
    fs::write(&file, format!(
        "postern:\n  nodename: solo\n  auth_service: {{listen_addr: '127.0.0.1:{auth}'}}\n  proxy_service: {{web_listen_addr: '127.0.0.1:{web}', listen_addr: '127.0.0.1:{jump}'}}\n"
    )).unwrap();
    let daemon = Run::new(program("postern"))
        .args(["start", "-c"])
        .arg(&file)
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .args(["--diag-addr", &format!("127.0.0.1:{diag}")])
        .spawn();
    let get = |path: &str| {
        Run::new("curl")
            .args([
                "-s",
                "-o",
                "-",
                "-w",
                "%{http_code}",
                &format!("http://127.0.0.1:{diag}{path}"),
            ])
            .wait()
            .text()
    };
    until("readiness", || get("/readyz").ends_with("200").then_some(()));
    assert!(get("/healthz").ends_with("200"));
    let metrics = get("/metrics");
    for series in [
        "postern_relay_streams ",
        "postern_relay_bytes_total{from=\"client\"} ",
        "postern_relay_ktls_total{direction=\"receive\"} 0",
        "postern_relay_accept_pauses_total 0",
        "postern_proxy_tunnels ",
        "postern_proxy_refusals_joined_total 0",
        "postern_proxy_events_lost_total 0",
    ] {
        assert!(metrics.contains(series), "{series:?} is not in {metrics}");
    }
    assert!(get("/nothing").ends_with("404"));
    // Nobody reads: no complaint, as with other tools.
    for words in [&["status"][..], &["version"], &["configure"], &["completion", "bash"]] {
        let (nobody, pipe) = std::io::pipe().unwrap();
        drop(nobody);
        let mut command = Command::new(program("postern"));
        command.args(words).env("POSTERN_DATA_DIR", dir.path().join("data")).stdout(pipe);
        let output = command.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
    }
    let status = Run::new(program("postern"))
        .args(["status", "--data-dir"])
        .arg(dir.path().join("data"))
        .wait()
        .good()
        .text();
    for word in ["auth", "proxy", "node", "ready"] {
        assert!(status.contains(word), "{status}");
    }
    let ping = Run::new("curl")
        .args(["-sk", &format!("https://localhost:{web}/webapi/ping")])
        .wait()
        .good()
        .text();
    assert!(ping.contains("cluster_name"), "{ping}");
    drop(daemon);
}

/// `postern start` of a node that is to join, ready for more arguments.
fn joining(name: &str, dir: &std::path::Path) -> Run {
    Run::new(program("postern"))
        .args(["start", "--roles=node", "--proxy", &shared().proxy(), "--nodename", name])
        .arg("--data-dir")
        .arg(dir)
}

#[test]
fn joining_with_what_cannot_work_ends_at_once_and_says_why() {
    let cluster = shared();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let pin = format!("sha256:{}", "0".repeat(64));
    joining("astray", &data)
        .args(["--token", "0123456789abcdef", "--ca-pin", &pin])
        .wait()
        .refused("not the one with this CA pin");
    joining("astray", &data)
        .args(["--token", "/no/such/token", "--ca-pin", &cluster.pin])
        .wait()
        .refused("/no/such/token cannot be read");
}

#[test]
fn a_second_daemon_leaves_the_first_one_alone() {
    let cluster = shared();
    let data = cluster.path().join("bastion");
    let status = || Run::new(program("postern")).arg("status").arg("--data-dir").arg(&data).wait();
    status().good();
    joining("second", &data)
        .args(["--token", "0123456789abcdef", "--ca-pin", &cluster.pin])
        .wait()
        .refused("another postern uses");
    status().good();
    cluster.tctl().arg("status").wait().good();
}
