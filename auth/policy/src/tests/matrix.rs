//! The decision matrix: role x action x resource. Read the snapshot like a specification; every change of it is a change
//! of who gets in.

use std::fmt::Write;

use proto::id::Login;
use proto::resource::Role;
use serde_json::json;

use super::{administer, alice, labels, policy, reach, resource, role, ssh, word};
use crate::decide::Decision;

fn roles() -> Vec<Role> {
    let every = json!({"*": "*"});
    vec![
        role("all", json!({"allow": {"logins": ["root", "alice"], "node_labels": every}})),
        role("prod-root", json!({"allow": {"logins": ["root"], "node_labels": {"env": "prod"}}})),
        role(
            "test-own",
            json!({"allow": {"logins": ["{{internal.logins}}"], "node_labels": {"env": "test"}}}),
        ),
        role(
            "both-regexp",
            json!({"allow": {"logins": ["alice"], "node_labels": {"env": ["^prod|test$"]}}}),
        ),
        role("no-labels", json!({"allow": {"logins": ["root", "alice"]}})),
        role("no-logins", json!({"allow": {"node_labels": every}})),
        role("not-certified", json!({"allow": {"logins": ["bob"], "node_labels": every}})),
        role("deny-prod", json!({"deny": {"node_labels": {"env": "prod", "team": "db"}}})),
        role("deny-root", json!({"deny": {"logins": ["root"]}})),
        role("deny-own", json!({"deny": {"logins": ["{{internal.logins}}"]}})),
        role("deny-every-login", json!({"deny": {"logins": ["*"]}})),
        role("deny-every-node", json!({"deny": {"node_labels": every}})),
        role("editor", json!({"allow": {"rules": [{"resources": ["*"], "verbs": ["*"]}]}})),
        role(
            "auditor",
            json!({"allow": {"rules": [{"resources": ["event", "session"], "verbs": ["list"]}]}}),
        ),
        role("deny-users", json!({"deny": {"rules": [{"resources": ["user"], "verbs": ["*"]}]}})),
        role("bad-regexp", json!({"allow": {"logins": ["root"], "node_labels": {"a": "^($"}}})),
        role("bad-template", json!({"allow": {"logins": ["{{upper(internal.logins)}}"]}})),
        resource(json!({
            "kind": "role", "version": "v99", "metadata": {"name": "newer"}, "spec": {},
        })),
        resource(json!({
            "kind": "role", "version": "v7", "spec": {},
            "metadata": {"name": "gone", "expires": "2020-01-01T00:00:00Z"},
        })),
    ]
}

const HOLDERS: &[&[&str]] = &[
    &[],
    &["all"],
    &["prod-root"],
    &["test-own"],
    &["prod-root", "test-own"],
    &["both-regexp"],
    &["no-labels"],
    &["no-logins"],
    &["no-labels", "no-logins"],
    &["not-certified"],
    &["deny-prod", "all"],
    &["all", "deny-prod"],
    &["all", "deny-root"],
    &["all", "deny-own"],
    &["all", "deny-every-login"],
    &["all", "deny-every-node"],
    &["editor"],
    &["auditor"],
    &["editor", "deny-users"],
    &["deny-users", "auditor"],
    &["all", "editor", "bad-regexp"],
    &["all", "editor", "bad-template"],
    &["all", "editor", "newer"],
    &["all", "editor", "gone"],
    &["all", "editor", "ghost"],
];

#[test]
fn decision_matrix() {
    let policy = policy(roles(), Vec::new());
    let nodes = [
        ("env=prod", labels(&[("env", "prod")])),
        ("env=test", labels(&[("env", "test")])),
        ("env=test,team=db", labels(&[("env", "test"), ("team", "db")])),
        ("(none)", labels(&[])),
    ];
    let asked = [("event", "list"), ("user", "list"), ("user", "create"), ("role", "update")];
    let mut table = String::new();
    for roles in HOLDERS {
        let holder = alice(roles);
        writeln!(table, "[{}]", roles.join(" + ")).unwrap();
        for (name, labels) in &nodes {
            let reached = match reach(&policy, &holder, labels) {
                Decision::Permit(permit) => {
                    let logins: Vec<_> = permit.logins().iter().map(Login::as_str).collect();
                    format!("permit {}", logins.join(","))
                }
                denied @ Decision::Denial(_) => word(&denied).to_owned(),
            };
            let root = word(&ssh(&policy, &holder, "root", labels));
            let own = word(&ssh(&policy, &holder, "alice", labels));
            let line = format!("  {name:<17} reach {reached:<18} root {root:<14} alice {own}");
            writeln!(table, "{}", line.trim_end()).unwrap();
        }
        let mut line = "  administer       ".to_owned();
        for (resource, verb) in asked {
            let decision = administer(&policy, &holder, resource, verb);
            write!(line, " {resource}:{verb} {:<14}", word(&decision)).unwrap();
        }
        writeln!(table, "{}\n", line.trim_end()).unwrap();
    }
    insta::assert_snapshot!(table);
}
