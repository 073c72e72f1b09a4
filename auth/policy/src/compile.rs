//! A snapshot, checked once and made quick to ask: patterns compiled, roles and locks found by name. Whoever receives a
//! snapshot makes a [`Policy`] of it; [`crate::decide`] asks it.

use std::collections::HashMap;
use std::hash::Hash;

use proto::capture_rules::RuleError;
use proto::id::{HostId, Login, RoleName, UserName};
use proto::resource::{
    Conditions, KIND_ROLE, Lock, LockTarget, ROLE_VERSION, Role, RoleOptions, Rule,
};
use proto::snapshot::Snapshot;

use crate::matching::{Half, LabelMatcher, LoginPattern, PatternError};

/// A snapshot whose every role this build understands. A role with an unknown version or a bad pattern is kept as
/// *unusable*: who holds it is refused, others go on.
#[derive(Debug)]
pub struct Policy {
    snapshot: Snapshot,
    /// None: unusable.
    roles: HashMap<RoleName, Option<CompiledRole>>,
    locks: Locks,
}

/// Why a snapshot can't be used at all.
#[derive(Debug, thiserror::Error)]
#[error("policy snapshot format {0} is not understood by this version")]
pub struct UnknownFormat(pub u32);

/// Why a role can't be used. For whoever writes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    #[error("kind {0:?} where {KIND_ROLE:?} is needed")]
    Kind(String),
    #[error("{0:?} is no name for a role")]
    Name(String),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error(transparent)]
    Rules(#[from] RuleError),
    #[error("verb {0:?}: the verbs are list, create, read, update, delete and *")]
    Verb(String),
    #[error("version {0:?} is not understood: write {ROLE_VERSION}")]
    Version(String),
    #[error("option {0} must not be zero: leave it out for no limit")]
    ZeroOption(&'static str),
}

impl Policy {
    /// # Errors
    /// A format of a newer version.
    pub fn new(snapshot: Snapshot) -> Result<Self, UnknownFormat> {
        if snapshot.format != proto::snapshot::FORMAT {
            return Err(UnknownFormat(snapshot.format));
        }
        let mut roles: HashMap<_, Option<CompiledRole>> = HashMap::new();
        for role in &snapshot.roles {
            // A name that is no role name can't be held by anybody.
            let Ok(name) = RoleName::parse(&*role.metadata.name) else { continue };
            let compiled = CompiledRole::new(role).ok();
            // Two roles of one name: which one is meant is not known, so neither is.
            roles.entry(name).and_modify(|known| *known = None).or_insert(compiled);
        }
        let locks = Locks::new(&snapshot.locks);
        Ok(Self { snapshot, roles, locks })
    }
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The role, if it is known, usable and not expired.
    pub(crate) fn role(&self, name: &RoleName, now: i64) -> Option<&CompiledRole> {
        let role = self.roles.get(name)?.as_ref()?;
        role.expires.is_none_or(|expires| expires > now).then_some(role)
    }
    pub(crate) fn locks(&self) -> &Locks {
        &self.locks
    }
}

/// Whether [`Policy`] could use this role; auth asks before it stores one, so that the writer learns why not.
///
/// # Errors
/// See [`RoleError`].
pub fn check_role(role: &Role) -> Result<(), RoleError> {
    RoleName::parse(&*role.metadata.name)
        .map_err(|_| RoleError::Name(role.metadata.name.clone()))?;
    CompiledRole::new(role).map(|_| ())
}

/// A role whose every text is understood.
#[derive(Debug)]
pub(crate) struct CompiledRole {
    pub(crate) allow: CompiledConditions,
    pub(crate) deny: CompiledConditions,
    pub(crate) options: RoleOptions,
    expires: Option<i64>,
}

impl CompiledRole {
    fn new(role: &Role) -> Result<Self, RoleError> {
        if role.kind != KIND_ROLE {
            return Err(RoleError::Kind(role.kind.clone()));
        }
        if role.version != ROLE_VERSION {
            return Err(RoleError::Version(role.version.clone()));
        }
        check_options(&role.spec.options)?;
        Ok(Self {
            allow: CompiledConditions::new(&role.spec.allow, Half::Allow)?,
            deny: CompiledConditions::new(&role.spec.deny, Half::Deny)?,
            options: role.spec.options.clone(),
            expires: role.metadata.expires.map(|time| time.unix_timestamp()),
        })
    }
}

/// Zero means "none" to one reader and "no limit" to another.
fn check_options(options: &RoleOptions) -> Result<(), RoleError> {
    for (name, span) in [
        ("max_session_ttl", options.max_session_ttl),
        ("client_idle_timeout", options.client_idle_timeout),
    ] {
        if span.is_some_and(|span| span.0.is_zero()) {
            return Err(RoleError::ZeroOption(name));
        }
    }
    if options.max_sessions == Some(0) {
        return Err(RoleError::ZeroOption("max_sessions"));
    }
    if let Some(rules) = &options.capture_rules {
        rules.check()?;
    }
    Ok(())
}

/// One half of a role.
#[derive(Debug)]
pub(crate) struct CompiledConditions {
    pub(crate) logins: Vec<LoginPattern>,
    pub(crate) node_labels: LabelMatcher,
    rules: Vec<Rule>,
}

impl CompiledConditions {
    fn new(conditions: &Conditions, half: Half) -> Result<Self, RoleError> {
        let logins: Result<_, _> =
            conditions.logins.iter().map(|text| LoginPattern::compile(text, half)).collect();
        for verb in conditions.rules.iter().flat_map(|rule| &rule.verbs) {
            if !VERBS.contains(&verb.as_str()) {
                return Err(RoleError::Verb(verb.clone()));
            }
        }
        Ok(Self {
            logins: logins?,
            node_labels: LabelMatcher::compile(&conditions.node_labels)?,
            rules: conditions.rules.clone(),
        })
    }

    /// Whether a rule names this verb on this resource.
    pub(crate) fn names(&self, resource: &str, verb: &str) -> bool {
        let lists = |list: &[String], word: &str| list.iter().any(|l| l == "*" || l == word);
        self.rules.iter().any(|rule| lists(&rule.resources, resource) && lists(&rule.verbs, verb))
    }
}

/// Locks by target. A lock is honoured whatever its version: its target is all that it says.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    logins: HashMap<Login, LockEnd>,
    nodes: HashMap<HostId, LockEnd>,
    roles: HashMap<RoleName, LockEnd>,
    users: HashMap<UserName, LockEnd>,
}

/// When the last lock on a target ends, Unix seconds; None: never.
type LockEnd = Option<i64>;

impl Locks {
    fn new(list: &[Lock]) -> Self {
        let mut locks = Self::default();
        for lock in list {
            let end = lock.metadata.expires.map(|time| time.unix_timestamp());
            match &lock.spec.target {
                LockTarget::Login(login) => add(&mut locks.logins, login, end),
                LockTarget::Node(node) => add(&mut locks.nodes, node, end),
                LockTarget::Role(role) => add(&mut locks.roles, role, end),
                LockTarget::User(user) => add(&mut locks.users, user, end),
            }
        }
        locks
    }

    pub(crate) fn login(&self, login: &Login, now: i64) -> bool {
        in_force(&self.logins, login, now)
    }
    pub(crate) fn node(&self, node: &HostId, now: i64) -> bool {
        in_force(&self.nodes, node, now)
    }
    pub(crate) fn role(&self, role: &RoleName, now: i64) -> bool {
        in_force(&self.roles, role, now)
    }
    pub(crate) fn user(&self, user: &UserName, now: i64) -> bool {
        in_force(&self.users, user, now)
    }
}

fn add<T: Clone + Eq + Hash>(map: &mut HashMap<T, LockEnd>, target: &T, end: LockEnd) {
    let later = |a: LockEnd, b: LockEnd| a.zip(b).map(|(a, b)| a.max(b));
    map.entry(target.clone()).and_modify(|known| *known = later(*known, end)).or_insert(end);
}

fn in_force<T: Eq + Hash>(map: &HashMap<T, LockEnd>, target: &T, now: i64) -> bool {
    map.get(target).is_some_and(|end| end.is_none_or(|end| end > now))
}

/// The verbs of rules.
const VERBS: [&str; 6] = ["*", "create", "delete", "list", "read", "update"];
