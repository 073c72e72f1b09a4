//! The roles that every new cluster has: `access` to use it, `editor` to administer it, `auditor` to look at what
//! happened. Made once, at first start; afterwards they are roles like any other.

use std::collections::BTreeMap;

use proto::resource::{
    Conditions, KIND_ROLE, Metadata, OneOrMany, ROLE_VERSION, Role, RoleSpec, Rule,
};

use crate::fault::Fault;
use crate::snapshot::ROLE_PREFIX;
use crate::store::{Expect, Store, StoreError, to_json};

/// Makes the preset roles. An existing role of the same name stays.
pub(crate) async fn create(store: &dyn Store) -> Result<(), Fault> {
    for role in [access(), editor(), auditor()] {
        let key = format!("{ROLE_PREFIX}{}", role.metadata.name);
        match store.put_if(&key, to_json(&role)?, Expect::Absent, None).await {
            Ok(_) | Err(StoreError::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn access() -> Role {
    let every_node = BTreeMap::from([("*".to_owned(), OneOrMany::One("*".to_owned()))]);
    let allow = Conditions {
        logins: vec!["{{internal.logins}}".into()],
        node_labels: every_node,
        rules: Vec::new(),
    };
    role("access", "Sessions on every node, with the logins of the user's own trait", allow)
}

fn editor() -> Role {
    let rules = vec![rule(&["user", "role", "token", "lock", "node"], &["*"])];
    let allow = Conditions { rules, ..Conditions::default() };
    role("editor", "Administration of users, roles, tokens, locks and nodes", allow)
}

fn auditor() -> Role {
    let rules = vec![rule(&["event", "session"], &["list", "read"])];
    let allow = Conditions { rules, ..Conditions::default() };
    role("auditor", "Events and recordings of everybody", allow)
}

fn role(name: &str, description: &str, allow: Conditions) -> Role {
    Role {
        kind: KIND_ROLE.into(),
        version: ROLE_VERSION.into(),
        metadata: Metadata {
            name: name.into(),
            description: description.into(),
            ..Metadata::default()
        },
        spec: RoleSpec { allow, ..RoleSpec::default() },
    }
}

fn rule(resources: &[&str], verbs: &[&str]) -> Rule {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Rule { resources: owned(resources), verbs: owned(verbs) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_usable() {
        for role in [access(), editor(), auditor()] {
            policy::compile::check_role(&role).unwrap();
        }
    }
}
