//! The decision.

use std::time::Duration;

use pki::UserIdentity;
use proto::id::{HostId, Login, NodeName, RoleName, UserName};
use proto::resource::{Labels, RecordMode};

use crate::compile::Policy;

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

/// What the roles say about a permitted session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    pub client_idle_timeout: Option<Duration>,
    /// End the session at [`Permit::expires`].
    pub disconnect_expired_cert: bool,
    pub file_copy: bool,
    pub forward_agent: bool,
    pub max_sessions: Option<u32>,
    pub port_forwarding: bool,
    pub record: RecordMode,
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
        todo!()
    }
}

/// May `identity` do `request` under `policy` at `now` (Unix seconds)?
pub fn decide(
    _policy: &Policy,
    _identity: &UserIdentity,
    _request: &Request<'_>,
    _now: i64,
) -> Decision {
    todo!()
}

/// The logins and the longest certificate life that a user's roles give at signing time; auth asks this.
///
/// # Errors
/// A role that is unknown or unusable, or the user is locked.
pub fn certificate_grant(
    _policy: &Policy,
    _user: &UserName,
    _roles: &[RoleName],
    _traits: &proto::resource::Traits,
) -> Result<CertificateGrant, Denial> {
    todo!()
}

/// See [`certificate_grant`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateGrant {
    pub logins: Vec<Login>,
    pub max_ttl: Duration,
}

/// Where a node decides about itself.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    pub host_id: HostId,
    pub nodename: NodeName,
    pub labels: Labels,
}
