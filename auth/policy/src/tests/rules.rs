//! Each step of the decision.

use std::time::Duration;

use proto::id::Login;
use proto::resource::{Role, Traits};
use proto::snapshot::Snapshot;
use serde_json::{Value, json};

use super::{
    HOUR, NOW, administer, alice, host_id, identity, labels, lock, policy, reach, resource, role,
    ssh, traits, word,
};
use crate::compile::{Policy, RoleError, check_role};
use crate::decide::{Decision, Denial, Reason, Request, certificate_grant, decide};

fn all() -> Role {
    let allow = json!({
        "logins": ["root", "alice", "ops"],
        "node_labels": {"*": "*"},
        "rules": [{"resources": ["*"], "verbs": ["*"]}],
    });
    role("all", json!({ "allow": allow }))
}

fn denial(decision: Decision) -> Denial {
    match decision {
        Decision::Denial(denial) => denial,
        Decision::Permit(permit) => panic!("{permit:?}"),
    }
}

#[test]
fn another_cluster_is_refused() {
    let mut snapshot: Snapshot = policy(vec![all()], vec![]).snapshot().clone();
    snapshot.cluster = "example.org".parse().unwrap();
    let other = Policy::new(snapshot).unwrap();
    let denial = denial(ssh(&other, &alice(&["all"]), "root", &labels(&[])));
    assert_eq!(denial.reason, Reason::Cluster("example.com".into()));
}

#[test]
fn an_expired_certificate_is_refused() {
    let policy = policy(vec![all()], vec![]);
    let at = |now| {
        let request = Request::Administer { resource: "user", verb: "list" };
        word(&decide(&policy, &alice(&["all"]), &request, now))
    };
    assert_eq!(at(NOW + HOUR - 1), "permit");
    assert_eq!(at(NOW + HOUR), "expired");
    assert_eq!(at(i64::MAX), "expired");
}

#[test]
fn an_unknown_snapshot_format_is_refused() {
    let mut snapshot = policy(vec![], vec![]).snapshot().clone();
    snapshot.format += 1;
    assert!(Policy::new(snapshot).is_err());
}

#[test]
fn locks_keep_their_target_out() {
    /// What root's session, alice's session, reaching and administering become.
    fn check(target: Value, expect: [&str; 4]) {
        let policy = policy(vec![all()], vec![lock(target.clone())]);
        let (alice, none) = (alice(&["all"]), labels(&[]));
        let got = [
            word(&ssh(&policy, &alice, "root", &none)),
            word(&ssh(&policy, &alice, "alice", &none)),
            word(&reach(&policy, &alice, &none)),
            word(&administer(&policy, &alice, "user", "list")),
        ];
        assert_eq!(got, expect, "{target}");
    }
    check(json!({"user": "alice"}), ["locked"; 4]);
    check(json!({"user": "bob"}), ["permit"; 4]);
    check(json!({"role": "all"}), ["locked"; 4]);
    check(json!({"role": "other"}), ["permit"; 4]);
    check(json!({"login": "root"}), ["locked", "permit", "permit", "permit"]);
    check(json!({"node": host_id()}), ["locked", "locked", "locked", "permit"]);
    check(json!({"node": "00000000-0000-4000-8000-000000000000"}), ["permit"; 4]);
}

#[test]
fn a_locked_login_is_not_offered() {
    let policy = policy(vec![all()], vec![lock(json!({"login": "root"}))]);
    let Decision::Permit(permit) = reach(&policy, &alice(&["all"]), &labels(&[])) else {
        panic!("denied");
    };
    assert_eq!(permit.logins().iter().map(Login::as_str).collect::<Vec<_>>(), ["alice", "ops"]);
}

#[test]
fn locks_end_and_the_latest_end_counts() {
    fn check(ends: &[Option<i64>], expect: &str) {
        let locks = ends.iter().map(|end| {
            let mut lock = lock(json!({"user": "alice"}));
            let time = |t| time::OffsetDateTime::from_unix_timestamp(t).unwrap();
            lock.metadata.expires = end.map(time);
            lock
        });
        let policy = policy(vec![all()], locks.collect());
        let got = word(&ssh(&policy, &alice(&["all"]), "root", &labels(&[])));
        assert_eq!(got, expect, "{ends:?}");
    }
    check(&[Some(NOW)], "permit");
    check(&[Some(NOW + 1)], "locked");
    check(&[Some(NOW + 1), Some(NOW - 1)], "locked");
    check(&[Some(NOW - 1), Some(NOW + 1)], "locked");
    check(&[None, Some(NOW - 1)], "locked");
    check(&[Some(NOW - 1), None], "locked");
}

#[test]
fn roles_end() {
    let mut ending = all();
    let at = |t| Some(time::OffsetDateTime::from_unix_timestamp(t).unwrap());
    for (end, expect) in [(NOW + 1, "permit"), (NOW, "unusable_role")] {
        ending.metadata.expires = at(end);
        let policy = policy(vec![ending.clone()], vec![]);
        assert_eq!(word(&ssh(&policy, &alice(&["all"]), "root", &labels(&[]))), expect);
    }
}

#[test]
fn two_roles_of_one_name_are_none() {
    let once = policy(vec![all()], vec![]);
    let twice = policy(vec![all(), all()], vec![]);
    let thrice = policy(vec![all(), all(), all()], vec![]);
    let word_of = |policy| word(&ssh(policy, &alice(&["all"]), "root", &labels(&[])));
    assert_eq!(word_of(&once), "permit");
    assert_eq!(word_of(&twice), "unusable_role");
    assert_eq!(word_of(&thrice), "unusable_role");
}

#[test]
fn a_login_must_be_in_the_certificate() {
    let policy = policy(vec![all()], vec![]);
    let holder = identity(&["all"], &["alice"]);
    let denied = denial(ssh(&policy, &holder, "root", &labels(&[])));
    assert_eq!(denied.reason, Reason::NoLogin("root".parse().unwrap()));
    assert_eq!(word(&ssh(&policy, &holder, "alice", &labels(&[]))), "permit");
    let nobody = identity(&["all"], &[]);
    assert_eq!(word(&reach(&policy, &nobody, &labels(&[]))), "no_node");
    assert_eq!(word(&administer(&policy, &nobody, "user", "list")), "permit");
}

#[test]
fn a_permit_says_what_was_permitted() {
    let mut strict = role("strict", json!({"options": {"max_sessions": 3}}));
    strict.spec.options.ssh_file_copy = Some(false);
    let policy = policy(vec![all(), strict], vec![]);
    let holder = alice(&["all", "strict"]);
    let Decision::Permit(permit) = ssh(&policy, &holder, "root", &labels(&[])) else {
        panic!("denied");
    };
    assert_eq!(permit.user().as_str(), "alice");
    assert_eq!(permit.roles(), holder.roles());
    assert_eq!(permit.login().map(Login::as_str), Some("root"));
    assert_eq!(permit.expires(), NOW + HOUR);
    assert_eq!(permit.options().max_sessions, Some(3));
    assert!(!permit.options().file_copy);
    let Decision::Permit(permit) = reach(&policy, &holder, &labels(&[])) else {
        panic!("denied");
    };
    assert_eq!(permit.login(), None);
    assert_eq!(permit.logins(), holder.logins());
}

#[test]
fn users_read_the_same_for_every_reason() {
    let policy = policy(vec![all()], vec![lock(json!({"login": "root"}))]);
    let locked = denial(ssh(&policy, &alice(&["all"]), "root", &labels(&[])));
    let unknown = denial(ssh(&policy, &alice(&["ghost"]), "alice", &labels(&[])));
    assert_ne!(locked.to_string(), unknown.to_string());
    assert_eq!(locked.client_message(), unknown.client_message());
    assert!(!locked.client_message().contains("root"));
}

#[test]
fn roles_are_checked_for_their_writer() {
    fn check(role: &Role, expect: Option<RoleError>) {
        assert_eq!(check_role(role).err(), expect);
    }
    check(&all(), None);
    let change = |change: fn(&mut Role)| {
        let mut role = all();
        change(&mut role);
        role
    };
    let kind = change(|r| r.kind = "user".into());
    check(&kind, Some(RoleError::Kind("user".into())));
    let version = change(|r| r.version = "v8".into());
    check(&version, Some(RoleError::Version("v8".into())));
    let name = change(|r| r.metadata.name = "a b".into());
    check(&name, Some(RoleError::Name("a b".into())));
    let zero = change(|r| r.spec.options.max_sessions = Some(0));
    check(&zero, Some(RoleError::ZeroOption("max_sessions")));
    let verb = role("r", json!({"deny": {"rules": [{"resources": ["user"], "verbs": ["write"]}]}}));
    check(&verb, Some(RoleError::Verb("write".into())));
    for spec in [
        json!({"options": {"client_idle_timeout": "0s"}}),
        json!({"options": {"max_session_ttl": "0h"}}),
        json!({"allow": {"logins": ["*"]}}),
        json!({"allow": {"logins": ["{{email.local(external.email)}}"]}}),
        json!({"deny": {"logins": ["^root$"]}}),
        json!({"allow": {"node_labels": {"env": "prod-*"}}}),
        json!({"deny": {"node_labels": {"env": "^prod"}}}),
        json!({"deny": {"node_labels": {"*": "prod"}}}),
    ] {
        assert!(check_role(&role("r", spec.clone())).is_err(), "{spec}");
        // Whoever holds such a role is refused everything, others go on.
        let policy = policy(vec![all(), role("r", spec)], vec![]);
        let word_of = |roles| word(&ssh(&policy, &alice(roles), "root", &labels(&[])));
        assert_eq!(word_of(&["all", "r"]), "unusable_role");
        assert_eq!(word_of(&["all"]), "permit");
    }
}

#[test]
fn certificates_get_what_the_roles_grant() {
    let roles = vec![
        role(
            "a",
            json!({
                "allow": {"logins": ["root", "{{internal.logins}}"]},
                "options": {"max_session_ttl": "8h"},
            }),
        ),
        role("b", json!({"allow": {"logins": ["ops", "root", "adm-{{external.logins}}"]}})),
        role("no-root", json!({"deny": {"logins": ["root"]}})),
        role("no-one", json!({"deny": {"logins": ["*"]}})),
        resource(json!({"kind": "role", "version": "v99", "metadata": {"name": "x"}, "spec": {}})),
    ];
    let check =
        |roles_held: &[&str], lock_on: Option<Value>, expect: Result<(&[&str], u64), &str>| {
            let locks = lock_on.map(lock).into_iter().collect();
            let policy = policy(roles.clone(), locks);
            let held: Vec<_> = roles_held.iter().map(|r| r.parse().unwrap()).collect();
            let user = "alice".parse().unwrap();
            let got = certificate_grant(&policy, &user, &held, &traits(), NOW);
            let got = got.as_ref().map(|grant| {
                let logins: Vec<_> = grant.logins.iter().map(Login::as_str).collect();
                (logins, grant.max_ttl)
            });
            let expect = expect.map(|(l, hours)| (l.to_vec(), Duration::from_secs(hours * 3600)));
            assert_eq!(got.map_err(Denial::kind), expect, "{roles_held:?}");
        };
    check(&["a"], None, Ok((&["root", "alice"], 8)));
    check(&["b"], None, Ok((&["ops", "root", "adm-alice"], 12)));
    check(&["a", "b"], None, Ok((&["root", "alice", "ops", "adm-alice"], 8)));
    check(&["a", "no-root"], None, Ok((&["alice"], 8)));
    check(&["no-one", "a"], None, Ok((&[], 8)));
    check(&[], None, Ok((&[], 12)));
    check(&["a", "x"], None, Err("unusable_role"));
    check(&["a", "ghost"], None, Err("unusable_role"));
    check(&["a"], Some(json!({"user": "alice"})), Err("locked"));
    check(&["a"], Some(json!({"role": "a"})), Err("locked"));
    check(&["b"], Some(json!({"role": "a"})), Ok((&["ops", "root", "adm-alice"], 12)));
}

#[test]
fn traits_that_are_no_logins_grant_none() {
    let policy = policy(vec![role("a", json!({"allow": {"logins": ["{{internal.x}}"]}}))], vec![]);
    let traits: Traits = [("x".to_owned(), vec!["-o".into(), "a b".into(), "*".into()])].into();
    let (user, held) = ("alice".parse().unwrap(), ["a".parse().unwrap()]);
    assert!(certificate_grant(&policy, &user, &held, &traits, NOW).unwrap().logins.is_empty());
}
