//! Who may not, does not: each refusal has a message that helps and an event that tells.

use std::fs;

use crate::cluster::{CLUSTER, NODE, at, shared};
use crate::run::Run;

#[test]
fn a_login_that_no_role_grants() {
    let cluster = shared();
    let user = cluster.user("nologin", "access-all", "nobody");
    cluster.openssh("ssh", &user).args([&at("root"), "id"]).wait().refused("ermission denied");
    let tsh = cluster.tsh(&user).args(["ssh", &format!("root@{NODE}"), "id"]).wait();
    assert_eq!(tsh.code, 255);
    tsh.refused("denied");
    cluster.event("auth", |e| e["user"] == "nologin" && e["code"] == "T3007W");
}

#[test]
fn a_node_whose_label_is_denied_looks_like_none() {
    let cluster = shared();
    cluster.role(
        "not-prod",
        r#"{"logins": ["root"], "node_labels": {"*": "*"}}"#,
        r#"{"node_labels": {"env": "prod"}}"#,
    );
    let user = cluster.user("labels", "not-prod", "root");
    let forbidden = cluster.tsh(&user).args(["ssh", &format!("root@{NODE}"), "id"]).wait();
    let missing = cluster.tsh(&user).args(["ssh", "root@no-such-node", "id"]).wait();
    assert_eq!(forbidden.code, 255);
    assert_eq!(forbidden.stderr.replace(NODE, "X"), missing.stderr.replace("no-such-node", "X"));
    assert!(!cluster.tsh(&user).arg("ls").wait().good().text().contains(NODE));
    cluster.event("session.rejected", |e| e["user"] == "labels" && e["code"] == "T1006W");
}

#[test]
fn a_role_that_is_gone_denies() {
    let cluster = shared();
    cluster.role("short-lived", r#"{"logins": ["root"], "node_labels": {"*": "*"}}"#, "{}");
    let user = cluster.user("gone", "access-all,short-lived", "root");
    cluster.openssh("ssh", &user).args([&at("root"), "true"]).wait().good();
    cluster.tctl().args(["users", "update", "gone", "--set-roles", "access-all"]).wait().good();
    cluster.tctl().args(["rm", "role/short-lived"]).wait().good();
    crate::run::until("the node to learn that the role is gone", || {
        (cluster.openssh("ssh", &user).args([&at("root"), "true"]).wait().code != 0).then_some(())
    });
    cluster.event("session.rejected", |e| {
        e["user"] == "gone" && e["reason"].as_str().unwrap().contains("short-lived")
    });
}

#[test]
fn a_lock_of_nobody_is_made_with_a_warning() {
    let cluster = shared();
    let made = cluster.tctl().args(["lock", "--user", "nobody-yet"]).wait().good();
    assert!(made.stderr.contains("there is no user \"nobody-yet\""), "{}", made.stderr);
    let text = made.text();
    let (_, lock) = text.trim().rsplit_once("tctl rm ").unwrap();
    cluster.tctl().args(["rm", lock.trim_end_matches('`')]).wait().good();
}

#[test]
fn logins_are_changed_beside_roles() {
    let cluster = shared();
    let user = cluster.user("relogged", "access-all", "root");
    cluster.tctl().args(["users", "update", &user.name]).wait().refused("--set-roles");
    cluster.tctl().args(["users", "update", &user.name, "--set-logins=www,db"]).wait().good();
    let user = cluster.json(&["get", "user/relogged", "--format", "json"]);
    let spec = &user[0]["spec"];
    assert_eq!(spec["traits"]["logins"], serde_json::json!(["www", "db"]));
    assert_eq!(spec["roles"], serde_json::json!(["access-all"]));
}

#[test]
fn a_lock_ends_sessions_and_keeps_out() {
    let cluster = shared();
    let user = cluster.user("locked", "access-all", "root");
    let mut ssh = cluster.openssh("ssh", &user).args([&at("root"), "echo in; sleep 600"]).spawn();
    ssh.hear("in");
    cluster.tctl().args(["lock", "--user", "locked", "--message", "on leave"]).wait().good();
    assert_ne!(ssh.finish(), 0);
    cluster.openssh("ssh", &user).args([&at("root"), "true"]).wait().refused("");
    cluster.event("lock.created", |e| e["target"].as_str().unwrap().contains("locked"));
}

#[test]
fn an_expired_certificate() {
    let cluster = shared();
    let user = cluster.user("expired", "access-all", "root");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("id");
    cluster
        .tctl()
        .args(["auth", "sign", "--user", "expired", "--ttl", "1s", "--format", "openssh", "-o"])
        .arg(&out)
        .wait()
        .good();
    let config = cluster.ssh_config(&user);
    let ssh = || {
        Run::new("ssh")
            .arg("-F")
            .arg(&config)
            .env("TELEPORT_HOME", &user.home)
            .arg("-o")
            .arg(format!("IdentityFile={}", out.display()))
            .arg("-o")
            .arg(format!("CertificateFile={}-cert.pub", out.display()))
            .args(["-o", "IdentitiesOnly=yes", &at("root"), "true"])
    };
    // The config's own identity would be offered too: leave only the expired one.
    let text = fs::read_to_string(&config).unwrap();
    let kept: Vec<_> = text
        .lines()
        .filter(|l| !l.contains("IdentityFile") && !l.contains("CertificateFile"))
        .collect();
    fs::write(&config, kept.join("\n")).unwrap();
    // None is shorter than a minute.
    std::thread::sleep(std::time::Duration::from_secs(59));
    crate::run::until("the certificate to expire", || (ssh().wait().code != 0).then_some(()));
    ssh().wait().refused("ermission denied");
    cluster.event("auth", |e| {
        e["login"] == "root" && e["error"].as_str().unwrap().contains("expired")
    });
}

#[test]
fn a_certificate_of_another_authority() {
    let cluster = shared();
    let user = cluster.user("foreign", "access-all", "root");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for key in ["ca", "id"] {
        Run::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f", &path(key)])
            .wait()
            .good();
    }
    Run::new("ssh-keygen")
        .args([
            "-q",
            "-s",
            &path("ca"),
            "-I",
            "foreign",
            "-n",
            "root",
            "-V",
            "+1h",
            &path("id.pub"),
        ])
        .wait()
        .good();
    let config = cluster.ssh_config(&user);
    let text = fs::read_to_string(&config).unwrap();
    let kept: Vec<_> = text
        .lines()
        .filter(|l| !l.contains("IdentityFile") && !l.contains("CertificateFile"))
        .collect();
    fs::write(&config, kept.join("\n")).unwrap();
    for with in [vec![], vec!["-o".to_owned(), format!("CertificateFile={}", path("id-cert.pub"))]]
    {
        Run::new("ssh")
            .arg("-F")
            .arg(&config)
            .env("TELEPORT_HOME", &user.home)
            .args(["-i", &path("id"), "-o", "IdentitiesOnly=yes"])
            .args(with)
            .args([&at("root"), "true"])
            .wait()
            .refused("ermission denied");
    }
    cluster
        .event("auth", |e| e["error"].as_str().unwrap().contains("no authority of this cluster"));
}

#[test]
fn a_host_key_of_another_authority() {
    let cluster = shared();
    let user = cluster.user("hostkey", "access-all", "root");
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    Run::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&ca).wait().good();
    let known = dir.path().join("known_hosts");
    let key = fs::read_to_string(ca.with_extension("pub")).unwrap();
    fs::write(&known, format!("@cert-authority *.{CLUSTER} {key}")).unwrap();
    cluster
        .openssh("ssh", &user)
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known.display()))
        .args(["-o", "StrictHostKeyChecking=yes", &at("root"), "true"])
        .wait()
        .refused("Host key verification failed");
    // tsh trusts only what it got at login: with another authority there, it refuses as well.
    let other = dir.path().join("home");
    Run::new("cp").arg("-r").arg(&user.home).arg(&other).wait().good();
    fs::write(other.join("known_hosts"), format!("@cert-authority *.{CLUSTER} {key}")).unwrap();
    let tsh = cluster
        .tsh(&user)
        .env("TELEPORT_HOME", &other)
        .args(["ssh", &format!("root@{NODE}"), "true"])
        .wait();
    assert_eq!(tsh.code, 255, "{tsh:?}");
}

#[test]
fn file_copy_and_forwarding_that_the_role_forbids() {
    let cluster = shared();
    cluster.role_with(
        "narrow",
        r#"{"logins": ["root"], "node_labels": {"*": "*"}}"#,
        "{}",
        r#"{"ssh_file_copy": false, "port_forwarding": false}"#,
    );
    let user = cluster.user("narrow", "narrow", "root");
    cluster.openssh("ssh", &user).args([&at("root"), "true"]).wait().good();
    cluster.openssh("sftp", &user).args(["-b", "-", &at("root")]).input("ls\n").wait().refused("");
    cluster.event("sftp", |e| e["user"] == "narrow" && e["code"] == "TS020E");
    let ssh = cluster.openssh("ssh", &user).args(["-W", "127.0.0.1:1", &at("root")]).wait();
    ssh.refused("");
    cluster.event("port", |e| e["user"] == "narrow" && e["code"] == "T3003E");
}
