//! How a person gets a password and a second factor without an administrator knowing either: a one-time token, given
//! out by `tctl users add` or `reset`, opened and accepted in the person's own terminal. Stored as a digest. The invite is
//! part of the user's credential record, so accepting it is one atomic change; `invite/<digest>` only says whose it is.

use std::sync::Arc;

use proto::event::{Actor, MfaAdd, ResetPasswordTokenCreate, UserPasswordChange};
use proto::id::{ClusterName, UserName};
use proto::rpc::{AcceptInviteRequest, OpenInviteResponse};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::attempts::Attempts;
use crate::clock::Clock;
use crate::credentials::{Credential, Credentials, Invite, SecondFactor, check_code, new_secret};
use crate::fault::Fault;
use crate::log::Log;
use crate::passwords::Hasher;
use crate::sign_in::PASSWORD_BYTES_MAX;
use crate::store::{Expect, Store, StoreError};

/// What invites need.
#[derive(Debug)]
pub(crate) struct Invites {
    pub(crate) attempts: Attempts,
    pub(crate) clock: Clock,
    pub(crate) cluster: ClusterName,
    pub(crate) credentials: Credentials,
    pub(crate) hasher: Hasher,
    pub(crate) log: Log,
    pub(crate) store: Arc<dyn Store>,
}

/// A new invite. The token is shown once, and not by `Debug`.
pub(crate) struct NewInvite {
    pub(crate) token: Zeroizing<String>,
    /// Unix seconds.
    pub(crate) expires: i64,
}

impl Invites {
    /// Issues an invite. Password and second factor that were there are void from now on.
    pub(crate) async fn issue(
        &self,
        user: &UserName,
        ttl_seconds: u64,
        actor: Actor,
    ) -> Result<NewInvite, Fault> {
        let ttl = life(ttl_seconds)?;
        let expires = self.clock.now().saturating_add(i64::try_from(ttl).unwrap_or(i64::MAX));
        let token = Zeroizing::new(hex::encode(Zeroizing::new(net::random::<TOKEN_BYTES>())));
        let digest = digest(&token);
        let event = ResetPasswordTokenCreate {
            actor,
            name: user.clone(),
            expires: OffsetDateTime::from_unix_timestamp(expires)
                .map_err(|error| Fault::Internal(error.to_string()))?,
        };
        self.log.record([event.into()]).await?;
        let invite = Invite { token_digest: digest.clone(), expires, secret: None };
        let credential =
            Credential { password_hash: None, second_factor: None, invite: Some(invite) };
        self.credentials.save(user, &credential, Expect::Any).await?;
        self.store
            .put_if(&pointer(&digest), user.as_str().into(), Expect::Any, Some(expires))
            .await?;
        self.attempts.succeeded(user.as_str()).await?;
        Ok(NewInvite { token, expires })
    }

    /// What the person needs to enrol. The same each time, until the invite is accepted.
    pub(crate) async fn open(&self, token: &str) -> Result<OpenInviteResponse, Fault> {
        for _ in 0..TRIES {
            let (user, mut credential, revision) = self.find(token).await?;
            let Some(invite) = &mut credential.invite else { return Err(refused()) };
            if let Some(secret) = &invite.secret {
                return Ok(OpenInviteResponse {
                    otpauth_url: self.otpauth_url(&user, secret),
                    totp_secret: secret.clone(),
                    user: user.to_string(),
                    password_length_min: PASSWORD_CHARS_MIN,
                });
            }
            invite.secret = Some(new_secret());
            match self.credentials.save(&user, &credential, Expect::Revision(revision)).await {
                Ok(()) | Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Fault::Limit("the invite is opened by many at once: try again"))
    }

    /// Sets the password after proof that the second factor works. The token is used up.
    pub(crate) async fn accept(&self, request: AcceptInviteRequest) -> Result<UserName, Fault> {
        let password = Zeroizing::new(request.password);
        let (user, mut credential, revision) = self.find(&request.token).await?;
        let characters = u32::try_from(password.chars().count()).unwrap_or(u32::MAX);
        if characters < PASSWORD_CHARS_MIN {
            return Err(Fault::Invalid(format!(
                "the password needs at least {PASSWORD_CHARS_MIN} characters"
            )));
        }
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(Fault::Invalid(format!(
                "the password is longer than {PASSWORD_BYTES_MAX} bytes"
            )));
        }
        let secret = credential.invite.as_mut().and_then(|invite| invite.secret.take());
        let Some(secret) = secret.map(Zeroizing::new) else {
            return Err(Fault::Invalid("open the invite first".into()));
        };
        let Some(last_step) = check_code(&secret, &request.otp, self.clock.now())? else {
            return Err(Fault::Denied(
                "the one-time code is not right: check that the clock of your device is".into(),
            ));
        };
        let digest = digest(&request.token);
        credential.password_hash = Some(self.hasher.hash(password).await?);
        credential.second_factor = Some(SecondFactor { secret: secret.to_string(), last_step });
        credential.invite = None;
        let enrolled = MfaAdd {
            user: user.clone(),
            mfa_device_name: "otp".into(),
            mfa_device_type: "TOTP".into(),
        };
        let changed = UserPasswordChange { user: user.clone() };
        self.log.record([enrolled.into(), changed.into()]).await?;
        match self.credentials.save(&user, &credential, Expect::Revision(revision)).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => return Err(refused()),
            Err(error) => return Err(error.into()),
        }
        self.store.delete_if(&pointer(&digest), Expect::Any).await?;
        Ok(user)
    }

    /// The record with this open invite.
    async fn find(&self, token: &str) -> Result<(UserName, Credential, u64), Fault> {
        if token.len() != 2 * TOKEN_BYTES {
            return Err(refused());
        }
        let digest = digest(token);
        let Some(item) = self.store.get(&pointer(&digest)).await? else { return Err(refused()) };
        let user = String::from_utf8(item.value).ok().and_then(|name| UserName::parse(name).ok());
        let Some(user) = user else { return Err(refused()) };
        let Some((credential, revision)) = self.credentials.load(&user).await? else {
            return Err(refused());
        };
        let open = credential.invite.as_ref().is_some_and(|invite| {
            let same: bool = invite.token_digest.as_bytes().ct_eq(digest.as_bytes()).into();
            same && invite.expires > self.clock.now()
        });
        if open { Ok((user, credential, revision)) } else { Err(refused()) }
    }

    /// Key Uri Format, as authenticator apps read it.
    fn otpauth_url(&self, user: &UserName, secret: &str) -> String {
        let issuer = encoded(self.cluster.as_str());
        let account = encoded(user.as_str());
        format!(
            "otpauth://totp/{issuer}:{account}?secret={secret}&issuer={issuer}&algorithm=SHA1&digits=6&period=30"
        )
    }
}

/// How long an invite lives that is asked for with so many seconds, zero for the usual.
pub(crate) fn life(ttl_seconds: u64) -> Result<u64, Fault> {
    match ttl_seconds {
        0 => Ok(TTL_SECONDS),
        seconds if seconds > TTL_SECONDS_MAX => {
            Err(Fault::Invalid("an invite lives 48 hours at most".into()))
        }
        seconds => Ok(seconds),
    }
}

fn refused() -> Fault {
    Fault::Unproven(
        "the invite is not valid: it was used, replaced or has expired; ask for a new one",
    )
}

fn digest(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

fn pointer(digest: &str) -> String {
    format!("invite/{digest}")
}

/// Percent-encoding of all but unreserved characters (RFC 3986, section 2.3).
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// 128 bits: beyond guessing.
const TOKEN_BYTES: usize = 16;
const TTL_SECONDS: u64 = 3600;
const TTL_SECONDS_MAX: u64 = 48 * 3600;
/// As people know it.
const PASSWORD_CHARS_MIN: u32 = 12;
/// Rounds against others who open the invite at the same moment.
const TRIES: u32 = 4;
