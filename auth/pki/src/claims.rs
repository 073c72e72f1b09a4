//! What a certificate says about its holder, before anybody has checked it. The same claims go into the TLS certificate
//! (one non-critical extension, JSON) and the SSH certificate (extensions `*@postern`).

use proto::id::{ClusterName, HostId, Login, NodeName, RoleName, UserName};
use proto::resource::{HostRole, Traits};
use serde::{Deserialize, Serialize};

/// Claims of a person's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserClaims {
    pub cluster: ClusterName,
    pub user: UserName,
    pub roles: Vec<RoleName>,
    pub traits: Traits,
    /// Unix logins that the roles grant at signing time; the SSH certificate's principals.
    pub logins: Vec<Login>,
}

/// Claims of a machine's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostClaims {
    pub cluster: ClusterName,
    pub host_id: HostId,
    pub nodename: NodeName,
    pub roles: Vec<HostRole>,
}
