//! Password and one-time code in, short-lived certificates out. The path: wait for a turn, count the attempt, verify
//! both factors, use up the code, ask the policy, sign, write the events, answer. Each refusal reads the same and takes as long; the reason
//! stands in the event. Called by `service::sign_in`; `tctl auth sign` comes in by [`SignIn::certify`].

use std::sync::Arc;

use pki::authority::Validity;
use pki::claims::UserClaims;
use policy::decide::certificate_grant;
use proto::event::{Body, CertCreate, Outcome, UserLogin};
use proto::id::{ClusterName, UserName};
use proto::resource::User;
use proto::rpc::{LoginRequest, LoginResponse, TraitValues};
use time::OffsetDateTime;
use tracing::info;
use zeroize::Zeroizing;

use crate::attempts::{Admission, Attempts};
use crate::ca::Ca;
use crate::clock::Clock;
use crate::credentials::{Credential, Credentials, check_code};
use crate::fault::Fault;
use crate::log::Log;
use crate::passwords::Hasher;
use crate::snapshot::Snapshots;
use crate::store::{Expect, StoreError};
use crate::users::Users;

/// What a sign-in needs.
#[derive(Debug)]
pub(crate) struct SignIn {
    pub(crate) attempts: Attempts,
    pub(crate) ca: Arc<Ca>,
    pub(crate) clock: Clock,
    pub(crate) cluster: ClusterName,
    pub(crate) credentials: Credentials,
    pub(crate) hasher: Hasher,
    pub(crate) log: Log,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) users: Arc<Users>,
}

/// Public keys to be certified and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) ssh: &'a str,
    pub(crate) tls: &'a [u8],
    /// Zero: as long as the roles allow.
    pub(crate) ttl_seconds: u64,
}

/// Why not, for the event.
enum Refusal {
    Reason(&'static str),
    Fault(Fault),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl SignIn {
    /// `from` is the address that the connection came from: a proxy's, when one relays.
    ///
    /// # Errors
    /// [`Fault::Unproven`] with one text for all that is wrong with name, password or code.
    pub(crate) async fn login(
        &self,
        request: LoginRequest,
        from: &str,
    ) -> Result<LoginResponse, Fault> {
        let password = Zeroizing::new(request.password);
        if password.len() > PASSWORD_BYTES_MAX || request.user.len() > USER_BYTES_MAX {
            return Err(Fault::Unproven(REFUSED));
        }
        let user = match self.prove(&request.user, password, &request.otp).await {
            Ok(user) => user,
            Err(Refusal::Fault(fault)) => return Err(fault),
            Err(Refusal::Reason(reason)) => {
                self.log
                    .record([login_event(&request.user, from, Outcome::failed(reason))])
                    .await?;
                info!(from, reason, "a sign-in was refused");
                return Err(Fault::Unproven(REFUSED));
            }
        };
        let keys = Keys {
            ssh: &request.ssh_public_key,
            tls: &request.tls_public_key,
            ttl_seconds: request.ttl_seconds,
        };
        match self.certify(&user, keys) {
            Ok((answer, issued)) => {
                let login = login_event(&answer.user, from, Outcome::ok());
                self.log.record([login, issued.into()]).await?;
                Ok(answer)
            }
            Err(fault) => {
                let outcome = Outcome::failed(fault.to_string());
                self.log.record([login_event(&request.user, from, outcome)]).await?;
                Err(fault)
            }
        }
    }

    /// Who has shown both factors.
    async fn prove(
        &self,
        name: &str,
        password: Zeroizing<String>,
        code: &str,
    ) -> Result<User, Refusal> {
        // First, because whoever is sent away for want of room has not guessed.
        let turn = self.hasher.turn().await?;
        let admission = self.attempts.begin(name).await?;
        let known = match UserName::parse(name) {
            Ok(user) => self.credentials.load(&user).await?.map(|found| (user, found)),
            Err(_) => None,
        };
        let hash = known.as_ref().and_then(|(_, (credential, _))| credential.password_hash.clone());
        // The same work for every name and every state.
        let password_good = self.hasher.verify(turn, password, hash).await?;
        let factor = known.as_ref().and_then(|(_, (c, _))| c.second_factor.as_ref());
        let secret = factor.map_or(NOBODYS_SECRET, |factor| &factor.secret);
        let step = check_code(secret, code, self.clock.now())?;
        if admission == Admission::LockedOut {
            return Err(Refusal::Reason("locked out after too many failures"));
        }
        let (Some((user, (mut credential, revision))), true) = (known, password_good) else {
            return Err(Refusal::Reason("unknown user or wrong password"));
        };
        let Some(resource) = self.users.find(&user).await? else {
            return Err(Refusal::Reason("unknown user or wrong password"));
        };
        let step = match (step, credential.second_factor.as_ref()) {
            (Some(step), Some(factor)) if step > factor.last_step => step,
            (Some(_), Some(_)) => return Err(Refusal::Reason("the one-time code was used before")),
            _ => return Err(Refusal::Reason("wrong one-time code")),
        };
        self.use_up(&user, &mut credential, revision, step).await?;
        self.attempts.succeeded(name).await?;
        Ok(resource)
    }

    /// The code is good once: of two who bring it at the same moment, one finds the record changed.
    async fn use_up(
        &self,
        user: &UserName,
        credential: &mut Credential,
        revision: u64,
        step: u64,
    ) -> Result<(), Refusal> {
        if let Some(factor) = &mut credential.second_factor {
            factor.last_step = step;
        }
        match self.credentials.save(user, credential, Expect::Revision(revision)).await {
            Ok(()) => Ok(()),
            Err(StoreError::Conflict) => Err(Refusal::Reason("the one-time code was used before")),
            Err(error) => Err(Refusal::Fault(error.into())),
        }
    }

    /// Certificates for a user, and the event that must be written before they are given out.
    pub(crate) fn certify(
        &self,
        user: &User,
        keys: Keys<'_>,
    ) -> Result<(LoginResponse, CertCreate), Fault> {
        let now = self.clock.now();
        let name = UserName::parse(&*user.metadata.name)
            .map_err(|error| Fault::Internal(error.to_string()))?;
        let current = self.snapshots.current();
        let (roles, traits) = (&user.spec.roles, &user.spec.traits);
        let grant =
            certificate_grant(&current.policy, &name, roles, traits, now).map_err(|denial| {
                info!(user = %name, reason = %denial, "no certificate is given");
                Fault::Denied(NOT_NOW.into())
            })?;
        let wanted = match keys.ttl_seconds {
            0 => grant.max_ttl.as_secs(),
            seconds => seconds.max(TTL_SECONDS_MIN).min(grant.max_ttl.as_secs()),
        };
        let not_after = now.saturating_add(i64::try_from(wanted).unwrap_or(i64::MAX));
        let validity = Validity { not_before: now, not_after };
        let claims = UserClaims {
            cluster: self.cluster.clone(),
            user: name.clone(),
            roles: roles.clone(),
            traits: traits.clone(),
            logins: grant.logins,
        };
        let (ssh, tls) = self.ca.issue_user(&claims, keys.ssh, keys.tls, validity)?;
        let expires = OffsetDateTime::from_unix_timestamp(not_after)
            .map_err(|error| Fault::Internal(error.to_string()))?;
        let event = CertCreate { cert_type: "user".into(), user: name.to_string(), expires };
        let answer = LoginResponse {
            user: name.to_string(),
            cluster: self.cluster.to_string(),
            roles: roles.iter().map(ToString::to_string).collect(),
            logins: claims.logins.iter().map(ToString::to_string).collect(),
            ssh_certificate: ssh,
            tls_certificate_pem: tls,
            trust: Some(self.ca.trust()),
            valid_until: not_after,
            traits: traits
                .iter()
                .map(|(name, values)| (name.clone(), TraitValues { values: values.clone() }))
                .collect(),
        };
        Ok((answer, event))
    }
}

fn login_event(user: &str, from: &str, outcome: Outcome) -> Body {
    UserLogin {
        user: user.to_owned(),
        method: "local".into(),
        addr_remote: from.to_owned(),
        outcome,
    }
    .into()
}

/// What everybody reads who is not let in.
pub(crate) const REFUSED: &str = "invalid user, password or one-time code";
/// After both factors were good.
const NOT_NOW: &str = "this user may not sign in now: it is locked, or one of its roles cannot be used; ask an administrator";
/// A code is checked against something when there is no second factor.
const NOBODYS_SECRET: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
/// Longer passwords only cost time.
pub(crate) const PASSWORD_BYTES_MAX: usize = 1024;
/// What is typed goes into the event; names have 128 bytes at most.
const USER_BYTES_MAX: usize = 256;
/// A certificate shorter than this is over before it is used.
const TTL_SECONDS_MIN: u64 = 60;
