//! Verified holders of certificates. Fields are private and there is no public constructor:
//! who has one of these got it from [`crate::Verifier`].

use proto::id::{ClusterName, HostId, Login, NodeName, RoleName, UserName};
use proto::resource::{HostRole, Traits};

use crate::claims::{HostClaims, UserClaims};

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    Host(HostIdentity),
    User(UserIdentity),
}

/// A person, as a certificate of the user authority says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserIdentity {
    claims: UserClaims,
    valid_until: i64,
}

/// A machine, as a certificate of the host authority says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIdentity {
    claims: HostClaims,
    valid_until: i64,
}

impl UserIdentity {
    pub(crate) fn new(claims: UserClaims, valid_until: i64) -> Self {
        Self { claims, valid_until }
    }
    pub fn cluster(&self) -> &ClusterName {
        &self.claims.cluster
    }
    pub fn user(&self) -> &UserName {
        &self.claims.user
    }
    pub fn roles(&self) -> &[RoleName] {
        &self.claims.roles
    }
    pub fn traits(&self) -> &Traits {
        &self.claims.traits
    }
    pub fn logins(&self) -> &[Login] {
        &self.claims.logins
    }
    /// Unix seconds.
    pub fn valid_until(&self) -> i64 {
        self.valid_until
    }
}

impl HostIdentity {
    pub(crate) fn new(claims: HostClaims, valid_until: i64) -> Self {
        Self { claims, valid_until }
    }
    pub fn cluster(&self) -> &ClusterName {
        &self.claims.cluster
    }
    pub fn host_id(&self) -> &HostId {
        &self.claims.host_id
    }
    pub fn nodename(&self) -> &NodeName {
        &self.claims.nodename
    }
    pub fn roles(&self) -> &[HostRole] {
        &self.claims.roles
    }
    pub fn has_role(&self, role: HostRole) -> bool {
        self.claims.roles.contains(&role)
    }
    /// Unix seconds.
    pub fn valid_until(&self) -> i64 {
        self.valid_until
    }
}
