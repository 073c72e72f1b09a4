//! What must hold whatever the roles are.

use proptest::prelude::*;
use proto::resource::{Labels, Role};
use serde_json::{Value, json};

use super::{administer, alice, identity, labels, lock, policy, reach, role, ssh, word};
use crate::compile::Policy;
use crate::decide::Decision;

const LOGINS: [&str; 3] = ["root", "alice", "ops"];

fn some(pool: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop::sample::subsequence(pool, 0..=pool.len().min(3))
}

fn conditions(logins: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let values = || some(&["prod", "test", "*", "^(prod|dev)$", "^.*$"]);
    let rule = (some(&["user", "event", "*"]), some(&["list", "create", "*"]));
    (some(logins), values(), values(), any::<bool>(), rule).prop_map(
        |(logins, env, team, every, (resources, verbs))| {
            let mut listed = serde_json::Map::new();
            if !env.is_empty() {
                listed.insert("env".into(), json!(env));
            }
            if !team.is_empty() {
                listed.insert("team".into(), json!(team));
            }
            if every {
                listed.insert("*".into(), json!("*"));
            }
            let rules = [json!({"resources": resources, "verbs": verbs})];
            json!({"logins": logins, "node_labels": listed, "rules": rules})
        },
    )
}

fn allow() -> impl Strategy<Value = Value> {
    conditions(&["root", "alice", "ops", "{{internal.logins}}", "{{external.absent}}"])
}

fn deny() -> impl Strategy<Value = Value> {
    // Mostly nothing, or little would be permitted at all.
    prop_oneof![
        3 => Just(json!({})),
        1 => conditions(&["root", "alice", "{{internal.logins}}", "*"]),
    ]
}

fn roles() -> impl Strategy<Value = Vec<Role>> {
    prop::collection::vec((allow(), deny()), 1..4).prop_map(|list| {
        let spec = |(allow, deny)| json!({"allow": allow, "deny": deny});
        let named = list.into_iter().enumerate();
        named.map(|(index, halves)| role(&format!("r{index}"), spec(halves))).collect()
    })
}

fn node() -> impl Strategy<Value = Labels> {
    let value = || prop::option::of(prop::sample::select(vec!["prod", "test", "dev"]));
    (value(), value()).prop_map(|(env, team)| {
        let pairs = [("env", env), ("team", team)];
        let set: Vec<_> = pairs.iter().filter_map(|(name, v)| v.map(|v| (*name, v))).collect();
        labels(&set)
    })
}

fn names(roles: &[Role]) -> Vec<&str> {
    roles.iter().map(|role| role.metadata.name.as_str()).collect()
}

/// Every question that these tests ask, answered.
fn answers(policy: &Policy, held: &[&str], node: &Labels) -> Vec<Decision> {
    let holder = alice(held);
    let mut answers = vec![reach(policy, &holder, node)];
    answers.extend(LOGINS.iter().map(|login| ssh(policy, &holder, login, node)));
    for resource in ["user", "event", "lock"] {
        for verb in ["list", "create", "delete"] {
            answers.push(administer(policy, &holder, resource, verb));
        }
    }
    answers
}

fn permits(decision: &Decision) -> bool {
    matches!(decision, Decision::Permit(_))
}

proptest! {
    #[test]
    fn denials_never_open_anything(roles in roles(), more in deny(), first: bool, node in node()) {
        let denying = role("denying", json!({"deny": more}));
        let all = if first { [vec![denying], roles.clone()] } else { [roles.clone(), vec![denying]] };
        let all = all.concat();
        let policy = policy(all.clone(), vec![]);
        let before = answers(&policy, &names(&roles), &node);
        let after = answers(&policy, &names(&all), &node);
        for (before, after) in before.iter().zip(&after) {
            prop_assert!(permits(before) || !permits(after), "{} {}", word(before), word(after));
        }
    }

    #[test]
    fn an_unknown_role_denies_everything(roles in roles(), at: prop::sample::Index, node in node()) {
        let policy = policy(roles.clone(), vec![]);
        let mut held = names(&roles);
        held.insert(at.index(held.len() + 1), "ghost");
        for decision in answers(&policy, &held, &node) {
            prop_assert_eq!(word(&decision), "unusable_role");
        }
    }

    #[test]
    fn a_lock_on_a_held_role_denies_everything(roles in roles(), node in node()) {
        let policy = policy(roles.clone(), vec![lock(json!({"role": "r0"}))]);
        for decision in answers(&policy, &names(&roles), &node) {
            prop_assert_eq!(word(&decision), "locked");
        }
    }

    #[test]
    fn what_can_be_reached_can_be_entered_and_the_reverse(roles in roles(), node in node()) {
        let policy = policy(roles.clone(), vec![]);
        let holder = identity(&names(&roles), &LOGINS);
        let offered = match reach(&policy, &holder, &node) {
            Decision::Permit(permit) => {
                prop_assert!(!permit.logins().is_empty());
                permit.logins().to_vec()
            }
            Decision::Denial(_) => Vec::new(),
        };
        for login in holder.logins() {
            let entered = permits(&ssh(&policy, &holder, login.as_str(), &node));
            prop_assert_eq!(entered, offered.contains(login), "{}", login);
        }
        prop_assert!(!permits(&ssh(&policy, &holder, "mallory", &node)));
    }

    #[test]
    fn texts_in_roles_never_panic(text: String, node in node()) {
        let listed = json!({text.clone(): text.clone(), "env": text.clone()});
        let half = json!({"logins": [text], "node_labels": listed});
        for spec in [json!({"allow": half}), json!({"deny": half})] {
            let policy = policy(vec![role("r", spec)], vec![]);
            prop_assert!(!permits(&reach(&policy, &alice(&["r"]), &node)));
        }
    }
}
