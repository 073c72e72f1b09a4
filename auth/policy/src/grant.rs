//! What a user's roles give at signing time: the logins and the life of a certificate. Auth asks before it signs;
//! [`crate::decide`] asks again at each session, so that what changed since the signing counts.

use std::time::Duration;

use proto::id::{Login, RoleName, UserName};
use proto::resource::Traits;

use crate::compile::Policy;
use crate::decide::{Denial, locked_user, usable_roles};
use crate::options;

/// See [`certificate_grant`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateGrant {
    pub logins: Vec<Login>,
    pub max_ttl: Duration,
}

/// The logins and the longest certificate life that a user's roles give at `now` (Unix seconds); auth asks this.
/// A user without any login gets a grant with an empty list: a TLS certificate is possible then, an SSH one is not.
///
/// # Errors
/// A role that is unknown or unusable, or the user or a role is locked.
pub fn certificate_grant(
    policy: &Policy,
    user: &UserName,
    roles: &[RoleName],
    traits: &Traits,
    now: i64,
) -> Result<CertificateGrant, Denial> {
    locked_user(policy, user, roles, now)?;
    let roles = usable_roles(policy, roles, now)?;
    let mut logins: Vec<Login> = Vec::new();
    for login in roles.iter().flat_map(|r| &r.allow.logins).flat_map(|l| l.expand(traits)) {
        let denied = |pattern: &crate::matching::LoginPattern| pattern.matches(&login, traits);
        if !logins.contains(&login) && !roles.iter().any(|r| r.deny.logins.iter().any(denied)) {
            logins.push(login);
        }
    }
    let max_ttl = options::certificate_ttl(roles.iter().map(|role| &role.options));
    Ok(CertificateGrant { logins, max_ttl })
}
