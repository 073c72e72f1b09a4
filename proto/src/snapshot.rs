//! The policy snapshot: all that a node or a proxy needs to decide without asking auth.
//! Auth signs and pushes it; its receivers keep it on disk. Taken in only by `net::policy`, which checks the signature.

use serde::{Deserialize, Serialize};

use crate::id::ClusterName;
use crate::resource::{Lock, Role};

/// The format that this build writes and reads; any other is refused.
pub const FORMAT: u32 = 1;

/// What the signature covers besides the payload, so that it can't be taken for another signature.
pub const SIGNATURE_CONTEXT: &[u8] = b"postern-snapshot-v1\0";

/// Roles, locks and authorities at one revision of auth's store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    pub format: u32,
    pub cluster: ClusterName,
    /// Grows with every change; a receiver never goes back.
    pub revision: u64,
    /// Unix seconds.
    pub issued_at: i64,
    pub authorities: Authorities,
    pub roles: Vec<Role>,
    pub locks: Vec<Lock>,
}

/// Public halves of the cluster's authorities.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorities {
    /// PEM certificates.
    pub host_tls: Vec<String>,
    pub user_tls: Vec<String>,
    /// OpenSSH one-line public keys.
    pub host_ssh: Vec<String>,
    pub user_ssh: Vec<String>,
}
