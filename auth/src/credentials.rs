//! What proves who a user is: password hash, second factor, and the invite by which both are set. One record per user,
//! so that each change of it is one atomic `put_if`. Never leaves this crate, and is not part of the user resource.

use std::sync::Arc;

use proto::id::UserName;
use serde::{Deserialize, Serialize};
use totp_rs::{Algorithm, Builder, Secret, Totp};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::fault::Fault;
use crate::store::{Expect, Store, StoreError, from_json, to_json};

/// The record. All absent: nobody can sign in as this user.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub(crate) struct Credential {
    pub(crate) password_hash: Option<String>,
    pub(crate) second_factor: Option<SecondFactor>,
    pub(crate) invite: Option<Invite>,
}

/// An enrolled authenticator.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecondFactor {
    /// Base32 without padding.
    pub(crate) secret: String,
    /// The newest time step whose code was used; that one and older ones are refused.
    pub(crate) last_step: u64,
}

/// An open invite.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub(crate) struct Invite {
    /// SHA-256 of the token, hexadecimal.
    pub(crate) token_digest: String,
    /// Unix seconds.
    pub(crate) expires: i64,
    /// Made when the invite is first opened, then kept, so that opening it again shows the same.
    pub(crate) secret: Option<String>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Credential(..)")
    }
}

/// The records.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    store: Arc<dyn Store>,
}

impl Credentials {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The record and its revision.
    pub(crate) async fn load(&self, user: &UserName) -> Result<Option<(Credential, u64)>, Fault> {
        match self.store.get(&key(user)).await? {
            Some(item) => Ok(Some((from_json(&item)?, item.revision))),
            None => Ok(None),
        }
    }

    pub(crate) async fn save(
        &self,
        user: &UserName,
        credential: &Credential,
        expect: Expect,
    ) -> Result<(), StoreError> {
        self.store.put_if(&key(user), to_json(credential)?, expect, None).await.map(drop)
    }

    pub(crate) async fn delete(&self, user: &UserName) -> Result<(), StoreError> {
        self.store.delete_if(&key(user), Expect::Any).await.map(drop)
    }
}

fn key(user: &UserName) -> String {
    format!("credential/{user}")
}

/// A new second factor's secret, base32: 160 bits as RFC 4226, section 4, asks for.
pub(crate) fn new_secret() -> String {
    Secret::new_stack(net::random()).to_base32()
}

/// The time step whose code `code` is, within one step of now (RFC 6238, section 5.2).
pub(crate) fn check_code(secret: &str, code: &str, now: i64) -> Result<Option<u64>, Fault> {
    if code.len() != CODE_DIGITS || !code.bytes().all(|digit| digit.is_ascii_digit()) {
        return Ok(None);
    }
    Ok(totp(secret)?.check(code, u64::try_from(now).unwrap_or(0)))
}

/// Six digits, 30 seconds, SHA-1: what every authenticator app takes.
pub(crate) fn totp(secret: &str) -> Result<Totp, Fault> {
    let secret = Secret::try_from_base32(secret)
        .map_err(|_| Fault::Internal("a second factor cannot be read".into()))?;
    Builder::new()
        .with_algorithm(Algorithm::SHA1)
        .with_digits(6)
        .with_skew(1)
        .with_step_duration(30)
        .with_secret(secret)
        .build()
        .map_err(|error| Fault::Internal(error.to_string()))
}

const CODE_DIGITS: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_good_for_one_step_around_now() {
        let secret = new_secret();
        assert_eq!(secret.len(), 32);
        let now = 1_800_000_015;
        let step = 60_000_000;
        let code = totp(&secret).unwrap().generate(now).to_string();
        let check = |at: u64| check_code(&secret, &code, i64::try_from(at).unwrap()).unwrap();
        assert_eq!(check(now), Some(step));
        assert_eq!(check(now + 30), Some(step));
        assert_eq!(check(now - 30), Some(step));
        assert_eq!(check(now + 60), None);
        assert_eq!(check(now - 60), None);
        for bad in ["", "12345", "1234567", "12345x", " 12345", "12 456", "１２３４５６"] {
            assert_eq!(check_code(&secret, bad, 1_800_000_015).unwrap(), None, "{bad:?}");
        }
    }
}
