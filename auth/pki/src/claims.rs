//! What a certificate says about its holder, before anybody has checked it. The same claims go, as one JSON text, into
//! the TLS certificate (one non-critical extension: webpki refuses critical ones that it does not know) and into the SSH
//! certificate (extension `claims@postern`). [`crate::authority`] writes them; [`crate::verify`] reads them.

use proto::id::{ClusterName, HostId, Login, NodeName, RoleName, UserName};
use proto::resource::{HostRole, Traits};
use serde::de::DeserializeOwned;
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

/// Longest claims. Many roles and traits fit; a TLS certificate flight stays well below rustls' 64 KiB message limit, and
/// nobody makes a verifier parse more.
pub(crate) const CLAIMS_BYTES_MAX: usize = 16 * 1024;
/// X.509 extension with a person's claims, in the UUID arc that needs no registration (ITU-T X.667).
pub(crate) const USER_CLAIMS_OID: &[u64] = &[2, 25, 5_211_107_008_082_740_934];
/// X.509 extension with a machine's claims.
pub(crate) const HOST_CLAIMS_OID: &[u64] = &[2, 25, 6_857_554_684_391_375_713];
/// SSH certificate extension with the claims of either.
pub(crate) const SSH_CLAIMS: &str = "claims@postern";

/// JSON text of claims, within the limit.
pub(crate) fn encode<C: Serialize>(claims: &C) -> Result<String, &'static str> {
    let text = serde_json::to_string(claims).map_err(|_| "claims that are no JSON")?;
    if text.len() > CLAIMS_BYTES_MAX {
        return Err("roles and traits together are too long for a certificate");
    }
    Ok(text)
}

/// Claims from JSON text, within the limit. Unknown fields are refused: they might restrict.
pub(crate) fn decode<C: DeserializeOwned>(text: &[u8]) -> Result<C, &'static str> {
    if text.len() > CLAIMS_BYTES_MAX {
        return Err("its claims are too long");
    }
    serde_json::from_slice(text).map_err(|_| "its claims are not readable")
}
