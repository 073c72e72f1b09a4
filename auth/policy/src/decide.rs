//! The decision. The node asks it before it makes a session, the proxy before it relays, auth before it administers.
//! Nothing is fetched and nothing is waited for: policy, identity and time are arguments. Denials are audited by who asked.

use pki::UserIdentity;
use proto::capture_rules::CaptureRules;
use proto::id::{HostId, Login, NodeName, RoleName, UserName};
use proto::resource::Labels;

use crate::compile::{CompiledConditions, CompiledRole, Policy};
pub use crate::grant::{CertificateGrant, certificate_grant};
pub use crate::options::SessionOptions;

/// What somebody asks for.
#[derive(Debug, Clone, Copy)]
pub enum Request<'a> {
    /// Verb (`list create read update delete`) on a resource kind; auth's services ask this.
    Administer { resource: &'a str, verb: &'a str },
    /// To reach a node at all, with any login: the proxy asks this before it relays, and `tsh ls`.
    ReachNode { host_id: &'a HostId, labels: &'a Labels },
    /// A session as `login` on a node; the node asks this.
    SshSession { login: &'a Login, host_id: &'a HostId, labels: &'a Labels },
}

/// Yes with conditions, or no with a reason.
#[derive(Debug)]
pub enum Decision {
    Denial(Denial),
    Permit(Permit),
}

/// Only [`decide`] makes one. Taken by value by what it allows.
#[derive(Debug)]
pub struct Permit {
    user: UserName,
    roles: Vec<RoleName>,
    login: Option<Login>,
    logins: Vec<Login>,
    options: SessionOptions,
    expires: i64,
}

impl Permit {
    pub fn user(&self) -> &UserName {
        &self.user
    }
    pub fn roles(&self) -> &[RoleName] {
        &self.roles
    }
    /// The login that was asked for, if the request named one.
    pub fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }
    /// All logins that the identity may use there ([`Request::ReachNode`]).
    pub fn logins(&self) -> &[Login] {
        &self.logins
    }
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }
    /// End of the identity's certificate, Unix seconds.
    pub fn expires(&self) -> i64 {
        self.expires
    }
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Denial {
    pub reason: Reason,
}

/// For the operator and the audit log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("the identity belongs to cluster {0}")]
    Cluster(String),
    #[error("role {0} denies it")]
    DeniedByRole(RoleName),
    #[error("the certificate has expired")]
    Expired,
    #[error("locked: {0}")]
    Locked(String),
    #[error("no role allows login {0} on this node")]
    NoLogin(Login),
    #[error("no role allows this node")]
    NoNode,
    #[error("no role allows to {verb} {resource}")]
    NoRule { resource: String, verb: String },
    #[error("role {0} is unknown or uses options that this version does not understand")]
    UnusableRole(RoleName),
}

impl Denial {
    /// What the user reads: the same for missing and forbidden.
    pub fn client_message(&self) -> &'static str {
        "access denied: your roles do not allow this here (see `tsh status` for your roles and logins)"
    }
    /// For metrics.
    pub fn kind(&self) -> &'static str {
        match self.reason {
            Reason::Cluster(_) => "cluster",
            Reason::DeniedByRole(_) => "denied_by_role",
            Reason::Expired => "expired",
            Reason::Locked(_) => "locked",
            Reason::NoLogin(_) => "no_login",
            Reason::NoNode => "no_node",
            Reason::NoRule { .. } => "no_rule",
            Reason::UnusableRole(_) => "unusable_role",
        }
    }
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self { reason }
    }
}

/// May `identity` do `request` under `policy` at `now` (Unix seconds)?
///
/// In this order, and the first no is the answer: cluster, expiry, locks, every role known and usable, every role's
/// denials, then what the roles allow.
pub fn decide(
    policy: &Policy,
    identity: &UserIdentity,
    request: &Request<'_>,
    now: i64,
) -> Decision {
    match permit(policy, identity, request, now) {
        Ok(permit) => Decision::Permit(permit),
        Err(denial) => Decision::Denial(denial),
    }
}

/// Whether `identity` may ask for anything at all: the first steps of [`decide`]. For what needs no role, such as one's
/// own recordings.
///
/// # Errors
/// It is of another cluster, has expired, or is locked.
pub fn standing(policy: &Policy, identity: &UserIdentity, now: i64) -> Result<(), Denial> {
    if identity.cluster() != &policy.snapshot().cluster {
        return Err(Reason::Cluster(identity.cluster().to_string()).into());
    }
    if identity.valid_until() <= now {
        return Err(Reason::Expired.into());
    }
    locked_user(policy, identity.user(), identity.roles(), now)
}

/// What sessions of a holder of these roles must not do, for sessions that run already.
///
/// # Errors
/// A role is unknown or cannot be used: nothing is to be concluded from the others.
pub fn capture_rules(
    policy: &Policy,
    roles: &[RoleName],
    now: i64,
) -> Result<CaptureRules, Denial> {
    let roles = usable_roles(policy, roles, now)?;
    Ok(crate::options::rules(roles.iter().map(|role| &role.options)))
}

fn permit(
    policy: &Policy,
    identity: &UserIdentity,
    request: &Request<'_>,
    now: i64,
) -> Result<Permit, Denial> {
    standing(policy, identity, now)?;
    locked_target(policy, request, now)?;
    let roles = usable_roles(policy, identity.roles(), now)?;
    let holder = Holder { policy, identity, roles: &roles, now };
    let (login, logins) = match *request {
        Request::Administer { resource, verb } => {
            holder.administer(resource, verb)?;
            (None, Vec::new())
        }
        Request::ReachNode { labels, .. } => (None, holder.reach(labels)?),
        Request::SshSession { login, labels, .. } => {
            holder.enter(login, labels)?;
            (Some(login.clone()), vec![login.clone()])
        }
    };
    Ok(Permit {
        user: identity.user().clone(),
        roles: identity.roles().to_vec(),
        login,
        logins,
        options: SessionOptions::over(roles.iter().map(|role| &role.options)),
        expires: identity.valid_until(),
    })
}

/// Who asks, with roles that are all usable.
struct Holder<'a> {
    policy: &'a Policy,
    identity: &'a UserIdentity,
    roles: &'a [&'a CompiledRole],
    now: i64,
}

impl Holder<'_> {
    fn administer(&self, resource: &str, verb: &str) -> Result<(), Denial> {
        self.denied(|role| role.deny.names(resource, verb))?;
        if self.roles.iter().any(|role| role.allow.names(resource, verb)) {
            return Ok(());
        }
        Err(Reason::NoRule { resource: resource.into(), verb: verb.into() }.into())
    }

    /// The logins of the certificate that are good on a node with these labels.
    fn reach(&self, labels: &Labels) -> Result<Vec<Login>, Denial> {
        self.denied(|role| role.deny.node_labels.any_listed_matches(labels))?;
        let granting = self.granting(labels);
        let logins: Vec<_> = self
            .identity
            .logins()
            .iter()
            .filter(|login| !self.policy.locks().login(login, self.now))
            .filter(|login| !self.roles.iter().any(|role| self.lists(&role.deny, login)))
            .filter(|login| granting.iter().any(|role| self.lists(&role.allow, login)))
            .cloned()
            .collect();
        if logins.is_empty() {
            return Err(Reason::NoNode.into());
        }
        Ok(logins)
    }

    fn enter(&self, login: &Login, labels: &Labels) -> Result<(), Denial> {
        self.denied(|role| {
            self.lists(&role.deny, login) || role.deny.node_labels.any_listed_matches(labels)
        })?;
        let granting = self.granting(labels);
        if granting.is_empty() {
            return Err(Reason::NoNode.into());
        }
        let certified = self.identity.logins().contains(login);
        if certified && granting.iter().any(|role| self.lists(&role.allow, login)) {
            return Ok(());
        }
        Err(Reason::NoLogin(login.clone()).into())
    }

    /// The roles that allow a node with these labels. Its login must come from one of the *same* roles.
    fn granting(&self, labels: &Labels) -> Vec<&CompiledRole> {
        let grants = |role: &&&CompiledRole| role.allow.node_labels.every_listed_matches(labels);
        self.roles.iter().filter(grants).copied().collect()
    }

    fn lists(&self, half: &CompiledConditions, login: &Login) -> bool {
        half.logins.iter().any(|pattern| pattern.matches(login, self.identity.traits()))
    }

    fn denied(&self, denies: impl Fn(&CompiledRole) -> bool) -> Result<(), Denial> {
        let named = self.identity.roles().iter().zip(self.roles);
        for (name, role) in named {
            if denies(role) {
                return Err(Reason::DeniedByRole(name.clone()).into());
            }
        }
        Ok(())
    }
}

/// Locks on who asks.
pub(crate) fn locked_user(
    policy: &Policy,
    user: &UserName,
    roles: &[RoleName],
    now: i64,
) -> Result<(), Denial> {
    if policy.locks().user(user, now) {
        return Err(Reason::Locked(format!("user {user}")).into());
    }
    match roles.iter().find(|role| policy.locks().role(role, now)) {
        Some(role) => Err(Reason::Locked(format!("role {role}")).into()),
        None => Ok(()),
    }
}

/// Locks on what is asked for.
fn locked_target(policy: &Policy, request: &Request<'_>, now: i64) -> Result<(), Denial> {
    let (login, node) = match *request {
        Request::Administer { .. } => return Ok(()),
        Request::ReachNode { host_id, .. } => (None, host_id),
        Request::SshSession { login, host_id, .. } => (Some(login), host_id),
    };
    if let Some(login) = login.filter(|login| policy.locks().login(login, now)) {
        return Err(Reason::Locked(format!("login {login}")).into());
    }
    if policy.locks().node(node, now) {
        return Err(Reason::Locked(format!("node {node}")).into());
    }
    Ok(())
}

/// All the roles, in order: one that is unknown might deny what is asked for.
pub(crate) fn usable_roles<'a>(
    policy: &'a Policy,
    names: &[RoleName],
    now: i64,
) -> Result<Vec<&'a CompiledRole>, Denial> {
    names
        .iter()
        .map(|name| policy.role(name, now).ok_or_else(|| Reason::UnusableRole(name.clone()).into()))
        .collect()
}

/// Where a node decides about itself.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    pub host_id: HostId,
    pub nodename: NodeName,
    pub labels: Labels,
}
