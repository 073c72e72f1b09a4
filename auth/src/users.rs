//! Users as resources: name, roles, traits. What proves who they are is in [`crate::credentials`].

use std::sync::Arc;

use proto::id::{RoleName, UserName};
use proto::resource::{KIND_USER, USER_VERSION, User, UserStatus};

use crate::attempts::Attempts;
use crate::credentials::Credentials;
use crate::fault::Fault;
use crate::snapshot::ROLE_PREFIX;
use crate::store::{Expect, Item, Span, Store, from_json, to_json};

/// The users.
#[derive(Debug)]
pub(crate) struct Users {
    pub(crate) attempts: Attempts,
    pub(crate) credentials: Credentials,
    pub(crate) store: Arc<dyn Store>,
}

impl Users {
    /// A user without its status.
    pub(crate) async fn find(&self, name: &UserName) -> Result<Option<User>, Fault> {
        match self.store.get(&key(name.as_str())).await? {
            Some(item) => Ok(Some(from_item(&item)?)),
            None => Ok(None),
        }
    }

    /// A user with its status.
    pub(crate) async fn show(&self, mut user: User) -> Result<User, Fault> {
        let name = UserName::parse(&*user.metadata.name)
            .map_err(|error| Fault::Internal(error.to_string()))?;
        let credential = self.credentials.load(&name).await?;
        let enrolled = credential.is_some_and(|(found, _)| found.password_hash.is_some());
        let locked_until = self.attempts.locked_until(name.as_str()).await?;
        user.spec.status = UserStatus { enrolled, locked_until };
        Ok(user)
    }

    /// All users, without their status.
    pub(crate) async fn all(&self) -> Result<Vec<User>, Fault> {
        let range = self.store.range(Span::prefix(PREFIX), USERS_MAX).await?;
        if range.more {
            return Err(Fault::Internal(format!("more than {USERS_MAX} users")));
        }
        range.items.iter().map(from_item).collect()
    }

    /// Whether this resource can be stored: its name, its version, its roles.
    pub(crate) async fn check(&self, user: &User) -> Result<UserName, Fault> {
        if user.kind != KIND_USER || user.version != USER_VERSION {
            return Err(Fault::Invalid(format!(
                "a user has kind {KIND_USER:?} and version {USER_VERSION:?}"
            )));
        }
        if user.metadata.expires.is_some() {
            return Err(Fault::Invalid(
                "a user cannot expire: remove it, or lock it with a lock that expires".into(),
            ));
        }
        for role in &user.spec.roles {
            self.check_role_exists(role).await?;
        }
        UserName::parse(&*user.metadata.name).map_err(|error| Fault::Invalid(error.to_string()))
    }

    async fn check_role_exists(&self, role: &RoleName) -> Result<(), Fault> {
        match self.store.get(&format!("{ROLE_PREFIX}{role}")).await? {
            Some(_) => Ok(()),
            None => Err(Fault::Invalid(format!(
                "there is no role {role}: see `tctl get roles` for those that there are"
            ))),
        }
    }

    /// Writes a checked user.
    pub(crate) async fn save(&self, mut user: User, expect: Expect) -> Result<(), Fault> {
        user.metadata.revision = None;
        user.spec.status = UserStatus::default();
        let key = key(&user.metadata.name);
        self.store.put_if(&key, to_json(&user)?, expect, None).await?;
        Ok(())
    }

    /// Removes a user. The credential goes first: there is no moment at which a namesake could inherit it.
    pub(crate) async fn delete(&self, name: &UserName) -> Result<bool, Fault> {
        self.credentials.delete(name).await?;
        Ok(self.store.delete_if(&key(name.as_str()), Expect::Any).await?)
    }
}

pub(crate) fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn from_item(item: &Item) -> Result<User, Fault> {
    let mut user: User = from_json(item)?;
    user.metadata.revision = Some(item.revision);
    Ok(user)
}

const PREFIX: &str = "user/";
/// Beyond this, people come from an identity provider.
const USERS_MAX: usize = 20_000;
