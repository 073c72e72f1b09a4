//! Signing in: what goes wrong reads the same, what was used once is used up.

use crate::cluster::{CLUSTER, Cluster, shared};
use crate::run::{Run, program};

const WRONG: &str = "invalid user, password or one-time code";

#[test]
fn wrong_answers_read_the_same() {
    let cluster = shared();
    let mut user = cluster.user("wrong", "access-all", "root");
    let mut nobody = user.clone();
    nobody.name = "never-made".into();
    let code = user.code();
    let bad_password =
        cluster.login_with(&user, &["--ttl", "5"], &format!("not the password\n{code}\n"));
    let bad_code =
        cluster.login_with(&user, &["--ttl", "5"], &format!("{}\n000000\n", user.password()));
    let no_user =
        cluster.login_with(&nobody, &["--ttl", "5"], &format!("{}\n{code}\n", user.password()));
    for output in [&bad_password, &bad_code, &no_user] {
        assert_ne!(output.code, 0);
        assert!(output.stderr.contains(WRONG), "{output:?}");
    }
    assert_eq!(bad_password.stderr, no_user.stderr);
    cluster.event("user.login", |e| e["user"] == "wrong" && e["code"] == "T1000W");
    cluster.event("user.login", |e| e["user"] == "never-made" && e["code"] == "T1000W");
    cluster.event("user.login", |e| e["user"] == "wrong" && e["code"] == "T1000I");
}

#[test]
fn a_one_time_code_works_once() {
    let cluster = shared();
    let mut user = cluster.user("replay", "access-all", "root");
    let input = format!("{}\n{}\n", user.password(), user.code());
    cluster.login_with(&user, &["--ttl", "5"], &input).good();
    cluster.login_with(&user, &["--ttl", "6"], &input).refused(WRONG);
}

#[test]
fn too_many_failures_lock_for_a_while() {
    let cluster = shared();
    let mut user = cluster.user("failing", "access-all", "root");
    for _ in 0..5 {
        cluster.login_with(&user, &["--ttl", "5"], "bad password\n000000\n").refused(WRONG);
    }
    let input = format!("{}\n{}\n", user.password(), user.code());
    cluster.login_with(&user, &["--ttl", "5"], &input).refused(WRONG);
    assert!(
        cluster
            .json(&["get", "user/failing", "--format", "json"])
            .to_string()
            .contains("locked_until")
    );
}

#[test]
fn an_invite_works_once() {
    let cluster = shared();
    let invite = cluster.json(&[
        "users",
        "add",
        "invited",
        "--roles",
        "access-all",
        "--logins",
        "root",
        "--format",
        "json",
    ]);
    let token = invite["token"].as_str().unwrap();
    cluster.accept("invited", token);
    Run::new(program("tsh"))
        .env("TELEPORT_HOME", cluster.path().join("again"))
        .args(["invite", "--proxy", &cluster.proxy(), "--ca-pin", &cluster.pin])
        .input(format!("{token}\nanother password 1\n000000\n"))
        .wait()
        .refused("");
    cluster.event("user.create", |e| e["name"] == "invited");
    cluster.event("mfa.add", |e| e["user"] == "invited");
}

#[test]
fn another_pin_is_refused_before_any_secret_is_sent() {
    let cluster = shared();
    let user = cluster.user("pin", "access-all", "root");
    let pin = format!("sha256:{}", "0".repeat(64));
    Run::new(program("tsh"))
        .env("TELEPORT_HOME", cluster.path().join("pin-home"))
        .args(["login", "--proxy", &cluster.proxy(), "--user", &user.name, "--ca-pin", &pin])
        .input("secret\n000000\n")
        .wait()
        .refused("pin");
}

#[test]
fn status_ls_and_formats() {
    let cluster = shared();
    let user = cluster.user("status", "access-all", "root,nobody");
    let status = cluster.tsh(&user).args(["status", "--format", "json"]).wait().good().text();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["active"]["username"], "status");
    assert_eq!(status["active"]["logins"], serde_json::json!(["nobody", "root"]));
    let nodes = cluster.tsh(&user).args(["ls", "--format", "json"]).wait().good().text();
    assert!(nodes.contains(crate::cluster::NODE), "{nodes}");
    assert!(
        cluster
            .tsh(&user)
            .args(["ls", "env=prod"])
            .wait()
            .good()
            .text()
            .contains(crate::cluster::NODE)
    );
    assert!(
        !cluster
            .tsh(&user)
            .args(["ls", "env=dev"])
            .wait()
            .good()
            .text()
            .contains(crate::cluster::NODE)
    );
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            cluster.tsh(&user).args(["completion", shell]).wait().good().text().contains("tsh")
        );
    }
}

/// Opens connections to auth through the proxy, without a certificate, says how many stand, and holds them.
const HOLD: &str = r#"
import socket, ssl, sys, time
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
held = []
for _ in range(2000):
    if len(held) == 600: break
    try:
        raw = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5)
        held.append(context.wrap_socket(raw, server_hostname="auth." + sys.argv[2]))
    except OSError: time.sleep(0.05)  # the proxy paces each address
time.sleep(1)  # what is held is the question, not the pace
print("held", len(held), flush=True)
sys.stdin.read()
"#;

#[test]
fn connections_that_only_wait_keep_nobody_from_signing_in() {
    let cluster = Cluster::start();
    let invite = cluster.json(&[
        "users", "add", "late", "--format", "json", "--roles", "access", "--logins", "root",
    ]);
    let mut user = cluster.accept("late", invite["token"].as_str().unwrap());
    let mut holder =
        Run::new("/usr/bin/python3").args(["-c", HOLD, &cluster.web.to_string(), CLUSTER]).spawn();
    let held = holder.hear("\n");
    let held: u32 = held.trim().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(held > 500, "too few for the test to say anything: {held}");
    cluster.login(&mut user, &[]);
    drop(holder);
}
