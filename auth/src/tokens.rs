//! Join tokens: a secret, the roles that it is good for, and an end. Good for many machines until it expires, except the
//! ones that auth makes for roles in its own process. Kept by digest, so that finding one compares no secret byte by byte.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::event::{Actor, JoinTokenCreate};
use proto::resource::{HostRole, KIND_TOKEN, Labels, Metadata, TOKEN_VERSION, Token, TokenSpec};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::fault::Fault;
use crate::log::Log;
use crate::store::{Expect, Item, Span, Store, StoreError, from_json, to_json};

/// The tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) clock: Clock,
    pub(crate) log: Log,
    pub(crate) store: Arc<dyn Store>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    token: Token,
    one_use: bool,
}

/// How often a token is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uses {
    Many,
    One,
}

/// A token to be made. Its text is a secret: no `Debug`.
pub(crate) struct NewToken {
    pub(crate) roles: Vec<HostRole>,
    /// Zero: one hour.
    pub(crate) ttl_seconds: u64,
    /// Empty: random.
    pub(crate) value: Zeroizing<String>,
    pub(crate) labels: Labels,
    pub(crate) uses: Uses,
}

/// A token that was good for what was asked; to be used up before anything is granted.
#[derive(Debug)]
pub(crate) struct Accepted {
    key: String,
    revision: u64,
    uses: Uses,
}

impl Tokens {
    /// Makes a token; gives its text and when it ends (Unix seconds).
    pub(crate) async fn create(
        &self,
        new: NewToken,
        actor: Actor,
    ) -> Result<(Zeroizing<String>, i64), Fault> {
        let ttl = match new.ttl_seconds {
            0 => TTL_SECONDS,
            seconds if seconds > TTL_SECONDS_MAX => {
                return Err(Fault::Invalid("a join token lives 30 days at most".into()));
            }
            seconds => seconds,
        };
        let value = if new.value.is_empty() {
            Zeroizing::new(hex::encode(Zeroizing::new(net::random::<TOKEN_BYTES>())))
        } else {
            new.value
        };
        let expires = self.clock.now().saturating_add(i64::try_from(ttl).unwrap_or(i64::MAX));
        let end = OffsetDateTime::from_unix_timestamp(expires)
            .map_err(|error| Fault::Internal(error.to_string()))?;
        let token = Token {
            kind: KIND_TOKEN.into(),
            version: TOKEN_VERSION.into(),
            metadata: Metadata {
                name: value.to_string(),
                labels: new.labels,
                expires: Some(end),
                ..Metadata::default()
            },
            spec: TokenSpec { roles: new.roles, join_method: JOIN_METHOD.into() },
        };
        self.put(token, new.uses, Expect::Absent, actor).await?;
        Ok((value, expires))
    }

    /// Writes a token as a resource says.
    pub(crate) async fn put(
        &self,
        mut token: Token,
        uses: Uses,
        expect: Expect,
        actor: Actor,
    ) -> Result<(), Fault> {
        let end = check(&token, self.clock.now())?;
        token.metadata.revision = None;
        let event = JoinTokenCreate {
            actor,
            name: short_digest(&token.metadata.name),
            roles: token.spec.roles.iter().map(|role| role.as_str().to_owned()).collect(),
            expires: end,
        };
        let key = key(&token.metadata.name);
        let stored = to_json(&Stored { token, one_use: uses == Uses::One })?;
        self.log.record([event.into()]).await?;
        match self.store.put_if(&key, stored, expect, Some(end.unix_timestamp())).await {
            Ok(_) => Ok(()),
            Err(StoreError::Conflict) if expect == Expect::Absent => {
                Err(Fault::Conflict("there is such a token already".into()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether this text lets a machine join as `role`.
    pub(crate) async fn accept(&self, value: &str, role: HostRole) -> Result<Accepted, Fault> {
        let found = self.store.get(&key(value)).await?;
        let Some(item) = found else { return Err(Fault::Unproven(REFUSED)) };
        let stored: Stored = from_json(&item)?;
        let same: bool = stored.token.metadata.name.as_bytes().ct_eq(value.as_bytes()).into();
        if !same || !stored.token.spec.roles.contains(&role) {
            return Err(Fault::Unproven(REFUSED));
        }
        let uses = if stored.one_use { Uses::One } else { Uses::Many };
        Ok(Accepted { key: item.key, revision: item.revision, uses })
    }

    /// Takes a one-use token away; of two who bring it at the same moment one is refused.
    pub(crate) async fn use_up(&self, accepted: Accepted) -> Result<(), Fault> {
        if accepted.uses == Uses::Many {
            return Ok(());
        }
        match self.store.delete_if(&accepted.key, Expect::Revision(accepted.revision)).await {
            Ok(_) => Ok(()),
            Err(StoreError::Conflict) => Err(Fault::Unproven(REFUSED)),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) async fn find(&self, value: &str) -> Result<Option<Token>, Fault> {
        let item = self.store.get(&key(value)).await?;
        item.as_ref().map(from_item).transpose()
    }

    pub(crate) async fn all(&self) -> Result<Vec<Token>, Fault> {
        let range = self.store.range(Span::prefix(PREFIX), TOKENS_MAX).await?;
        range.items.iter().map(from_item).collect()
    }

    pub(crate) async fn delete(&self, value: &str) -> Result<bool, Fault> {
        Ok(self.store.delete_if(&key(value), Expect::Any).await?)
    }
}

/// Parses the role words of a token.
pub(crate) fn roles(words: &[String]) -> Result<Vec<HostRole>, Fault> {
    let mut roles = Vec::new();
    for word in words {
        let role = match word.to_ascii_lowercase().as_str() {
            "node" => HostRole::Node,
            "proxy" => HostRole::Proxy,
            _ => return Err(Fault::Invalid("the roles of a token are node and proxy".into())),
        };
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    Ok(roles)
}

/// The end of a token that can be stored.
fn check(token: &Token, now: i64) -> Result<OffsetDateTime, Fault> {
    if token.kind != KIND_TOKEN || token.version != TOKEN_VERSION {
        return Err(Fault::Invalid(format!(
            "a token has kind {KIND_TOKEN:?} and version {TOKEN_VERSION:?}"
        )));
    }
    if token.spec.join_method != JOIN_METHOD {
        return Err(Fault::Invalid(format!("the join method of a token is {JOIN_METHOD:?}")));
    }
    let name = &token.metadata.name;
    if !(VALUE_BYTES_MIN..=VALUE_BYTES_MAX).contains(&name.len())
        || !name.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(Fault::Invalid(format!(
            "a token's text has {VALUE_BYTES_MIN} to {VALUE_BYTES_MAX} printable ASCII characters"
        )));
    }
    if token.spec.roles.is_empty() || token.spec.roles.contains(&HostRole::Auth) {
        return Err(Fault::Invalid("a token needs roles: node, proxy or both".into()));
    }
    let latest = now.saturating_add(i64::try_from(TTL_SECONDS_MAX).unwrap_or(i64::MAX));
    match token.metadata.expires {
        Some(end) if end.unix_timestamp() <= now => {
            Err(Fault::Invalid("the token has expired already".into()))
        }
        Some(end) if end.unix_timestamp() <= latest => Ok(end),
        Some(_) | None => {
            Err(Fault::Invalid("a token needs metadata.expires, at most 30 days from now".into()))
        }
    }
}

fn from_item(item: &Item) -> Result<Token, Fault> {
    let mut stored: Stored = from_json(item)?;
    stored.token.metadata.revision = Some(item.revision);
    Ok(stored.token)
}

fn key(value: &str) -> String {
    format!("{PREFIX}{}", hex::encode(Sha256::digest(value.as_bytes())))
}

/// Tells tokens apart in events without giving them away.
pub(crate) fn short_digest(value: &str) -> String {
    hex::encode(Sha256::digest(value.as_bytes())).chars().take(8).collect()
}

/// No labels.
pub(crate) fn no_labels() -> Labels {
    BTreeMap::new()
}

const PREFIX: &str = "token/";
const JOIN_METHOD: &str = "token";
const REFUSED: &str =
    "the join token is not valid for this: it is unknown, has expired or is for another role";
/// 128 bits: beyond guessing.
const TOKEN_BYTES: usize = 16;
/// As people know it.
const TTL_SECONDS: u64 = 3600;
/// A token that lives on is a password that nobody changes.
const TTL_SECONDS_MAX: u64 = 30 * 24 * 3600;
/// A chosen token must not be guessed within its life at the rate that the limits allow.
const VALUE_BYTES_MIN: usize = 16;
const VALUE_BYTES_MAX: usize = 256;
/// Far more than anybody hands out.
const TOKENS_MAX: usize = 10_000;
