//! Resources as administrators see them: `kind, version, metadata, spec`. Checks, stores, tells the policy, writes the
//! event before the change. Whether the caller may is asked by `service::admin` before.

use std::sync::Arc;

use proto::event::{
    Actor, Body, LockCreated, LockDeleted, RoleCreated, RoleDeleted, RoleUpdated, UserCreate,
    UserDelete, UserUpdate,
};
use proto::id::{RoleName, UserName};
use proto::resource::{
    KIND_LOCK, KIND_NODE, KIND_ROLE, KIND_TOKEN, KIND_USER, LOCK_VERSION, Lock, LockTarget,
    Metadata, Role, Token, User,
};
use proto::rpc::PutResourceResponse;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::info;

use crate::clock::Clock;
use crate::fault::Fault;
use crate::inventory::Inventory;
use crate::log::Log;
use crate::snapshot::{LOCK_PREFIX, ROLE_PREFIX, Snapshots};
use crate::store::{Expect, Item, Span, Store, StoreError, from_json, to_json};
use crate::tokens::{Tokens, Uses};
use crate::users::Users;

/// What resources need.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) clock: Clock,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) log: Log,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) users: Arc<Users>,
}

/// The kinds that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Lock,
    Node,
    Role,
    Token,
    User,
}

impl Kind {
    /// `role` and `roles` alike.
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let text = text.to_ascii_lowercase();
        Ok(match text.strip_suffix('s').unwrap_or(&text) {
            KIND_LOCK => Self::Lock,
            KIND_NODE => Self::Node,
            KIND_ROLE => Self::Role,
            KIND_TOKEN => Self::Token,
            KIND_USER => Self::User,
            _ => {
                return Err(Fault::Invalid(
                    "the kinds of resources are lock, node, role, token and user".into(),
                ));
            }
        })
    }

    /// The word in rules.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Lock => KIND_LOCK,
            Self::Node => KIND_NODE,
            Self::Role => KIND_ROLE,
            Self::Token => KIND_TOKEN,
            Self::User => KIND_USER,
        }
    }

    /// The kind that a resource says it is.
    pub(crate) fn of(json: &[u8]) -> Result<Self, Fault> {
        let value: serde_json::Value = read(json)?;
        match value.get("kind").and_then(serde_json::Value::as_str) {
            Some(kind) => Self::parse(kind),
            None => Err(Fault::Invalid("a resource needs a kind".into())),
        }
    }
}

/// What happens when the resource is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Refuse,
    Replace,
}

impl Resources {
    /// One resource, or all of the kind when `name` is empty.
    pub(crate) async fn list(&self, kind: Kind, name: &str) -> Result<Vec<Vec<u8>>, Fault> {
        match kind {
            Kind::Lock => self.stored::<Lock>(LOCK_PREFIX, kind, name).await,
            Kind::Role => self.stored::<Role>(ROLE_PREFIX, kind, name).await,
            Kind::Node => {
                let mut nodes = self.inventory.resources();
                nodes.retain(|(id, node)| {
                    name.is_empty() || id.as_str() == name || node.spec.hostname.as_str() == name
                });
                some(kind, name, nodes.into_iter().map(|(_, node)| node).collect())
            }
            Kind::Token if name.is_empty() => some(kind, name, self.tokens.all().await?),
            Kind::Token => some(kind, name, Vec::from_iter(self.tokens.find(name).await?)),
            Kind::User => {
                let found = match name {
                    "" => self.users.all().await?,
                    name => Vec::from_iter(match UserName::parse(name) {
                        Ok(name) => self.users.find(&name).await?,
                        Err(_) => None,
                    }),
                };
                let mut users = Vec::with_capacity(found.len());
                for user in found {
                    users.push(self.users.show(user).await?);
                }
                some(kind, name, users)
            }
        }
    }

    async fn stored<R: DeserializeOwned + Serialize + HasMetadata>(
        &self,
        prefix: &str,
        kind: Kind,
        name: &str,
    ) -> Result<Vec<Vec<u8>>, Fault> {
        let items = if name.is_empty() {
            self.store.range(Span::prefix(prefix), LIST_MAX).await?.items
        } else {
            Vec::from_iter(self.store.get(&format!("{prefix}{name}")).await?)
        };
        let resources: Result<Vec<R>, StoreError> = items.iter().map(with_revision).collect();
        some(kind, name, resources?)
    }

    /// Stores a resource.
    pub(crate) async fn put(
        &self,
        kind: Kind,
        json: &[u8],
        existing: Existing,
        actor: Actor,
    ) -> Result<PutResourceResponse, Fault> {
        let (name, created) = match kind {
            Kind::Lock => self.put_lock(read(json)?, existing, actor).await?,
            Kind::Role => self.put_role(read(json)?, existing, actor).await?,
            Kind::Token => self.put_token(read(json)?, existing, actor).await?,
            Kind::User => self.put_user(read(json)?, existing, actor).await?,
            Kind::Node => {
                return Err(Fault::Invalid(
                    "nodes register themselves: they cannot be made".into(),
                ));
            }
        };
        Ok(PutResourceResponse { kind: kind.as_str().into(), name, created })
    }

    async fn put_role(
        &self,
        role: Role,
        existing: Existing,
        actor: Actor,
    ) -> Result<(String, bool), Fault> {
        policy::compile::check_role(&role).map_err(|error| Fault::Invalid(error.to_string()))?;
        let name = role.metadata.name.clone();
        self.put_policy(ROLE_PREFIX, role, existing, |created| {
            let name = name.clone();
            if created {
                RoleCreated { actor, name }.into()
            } else {
                RoleUpdated { actor, name }.into()
            }
        })
        .await
    }

    async fn put_lock(
        &self,
        lock: Lock,
        existing: Existing,
        actor: Actor,
    ) -> Result<(String, bool), Fault> {
        if lock.kind != KIND_LOCK || lock.version != LOCK_VERSION {
            return Err(Fault::Invalid(format!(
                "a lock has kind {KIND_LOCK:?} and version {LOCK_VERSION:?}"
            )));
        }
        if RoleName::parse(&*lock.metadata.name).is_err() {
            return Err(Fault::Invalid(
                "a lock needs a name of letters, digits and . _ - :".into(),
            ));
        }
        // Not just any hexadecimal digits: a node called `cafe` is not locked by that name.
        if matches!(&lock.spec.target, LockTarget::Node(id) if id.as_str().len() != HOST_ID_BYTES) {
            return Err(Fault::Invalid(
                "a node is locked by its whole id: see `tctl nodes ls`".into(),
            ));
        }
        let (name, target) = (lock.metadata.name.clone(), describe(&lock.spec.target));
        let event = |_| LockCreated { actor, name, target }.into();
        self.put_policy(LOCK_PREFIX, lock, existing, event).await
    }

    /// Roles and locks: what the snapshot is made of.
    async fn put_policy<R: Serialize + HasMetadata>(
        &self,
        prefix: &str,
        mut resource: R,
        existing: Existing,
        event: impl FnOnce(bool) -> Body,
    ) -> Result<(String, bool), Fault> {
        let metadata = resource.metadata_mut();
        let name = metadata.name.clone();
        let expires = metadata.expires.map(|end| end.unix_timestamp());
        let revision = metadata.revision.take();
        if expires.is_some_and(|end| end <= self.clock.now()) {
            return Err(Fault::Invalid("metadata.expires is in the past".into()));
        }
        let key = format!("{prefix}{name}");
        let held = self.store.get(&key).await?;
        let expect = expectation(&name, held.as_ref(), revision, existing)?;
        let value = to_json(&resource)?;
        self.log.record([event(held.is_none())]).await?;
        self.store.put_if(&key, value, expect, expires).await?;
        self.snapshots.refresh().await?;
        Ok((name, held.is_none()))
    }

    async fn put_token(
        &self,
        token: Token,
        existing: Existing,
        actor: Actor,
    ) -> Result<(String, bool), Fault> {
        let name = token.metadata.name.clone();
        let held = self.tokens.find(&name).await?.and_then(|held| held.metadata.revision);
        let expect = match (held, existing) {
            (Some(_), Existing::Refuse) => return Err(already("this token")),
            (Some(revision), Existing::Replace) => Expect::Revision(revision),
            (None, _) => Expect::Absent,
        };
        self.tokens.put(token, Uses::Many, expect, actor).await?;
        Ok((name, held.is_none()))
    }

    async fn put_user(
        &self,
        user: User,
        existing: Existing,
        actor: Actor,
    ) -> Result<(String, bool), Fault> {
        let name = self.users.check(&user).await?;
        let held = self.store.get(&crate::users::key(name.as_str())).await?;
        let expect = expectation(name.as_str(), held.as_ref(), user.metadata.revision, existing)?;
        let roles = user.spec.roles.iter().map(ToString::to_string).collect();
        let event: Body = match held {
            None => UserCreate { actor, name: name.clone(), roles }.into(),
            Some(_) => UserUpdate { actor, name: name.clone(), roles }.into(),
        };
        self.log.record([event]).await?;
        self.users.save(user, expect).await?;
        Ok((name.to_string(), held.is_none()))
    }

    /// Removes a resource.
    pub(crate) async fn delete(&self, kind: Kind, name: &str, actor: Actor) -> Result<(), Fault> {
        let missing = || Fault::Missing(format!("{} {name:?}", kind.as_str()));
        let removed = match kind {
            Kind::Lock => {
                let key = format!("{LOCK_PREFIX}{name}");
                self.store.get(&key).await?.ok_or_else(missing)?;
                let event = LockDeleted { actor, name: name.to_owned() };
                self.delete_policy(&key, event.into()).await?
            }
            Kind::Role => {
                let key = format!("{ROLE_PREFIX}{name}");
                self.store.get(&key).await?.ok_or_else(missing)?;
                self.refuse_role_in_use(name).await?;
                let event = RoleDeleted { actor, name: name.to_owned() };
                self.delete_policy(&key, event.into()).await?
            }
            Kind::Token => self.tokens.delete(name).await?,
            Kind::Node => {
                info!(node = name, by = actor.user, "a node is removed from the inventory");
                self.inventory.remove(name).await?
            }
            Kind::User => {
                let user = UserName::parse(name).map_err(|_| missing())?;
                self.users.find(&user).await?.ok_or_else(missing)?;
                self.log.record([UserDelete { actor, name: user.clone() }.into()]).await?;
                self.users.delete(&user).await?
            }
        };
        if removed { Ok(()) } else { Err(missing()) }
    }

    async fn delete_policy(&self, key: &str, event: Body) -> Result<bool, Fault> {
        self.log.record([event]).await?;
        let removed = self.store.delete_if(key, Expect::Any).await?;
        self.snapshots.refresh().await?;
        Ok(removed)
    }

    /// Users with an unknown role can't sign in any more, so removing a role that is held is refused.
    async fn refuse_role_in_use(&self, name: &str) -> Result<(), Fault> {
        let users = self.users.all().await?;
        let holders: Vec<_> = users
            .iter()
            .filter(|user| user.spec.roles.iter().any(|role| role.as_str() == name))
            .map(|user| user.metadata.name.as_str())
            .collect();
        if holders.is_empty() {
            return Ok(());
        }
        let more = holders.len().saturating_sub(HOLDERS_SHOWN);
        let mut list = holders.into_iter().take(HOLDERS_SHOWN).collect::<Vec<_>>().join(", ");
        if more > 0 {
            list.push_str(&format!(" and {more} more"));
        }
        Err(Fault::Conflict(format!(
            "the role {name:?} is held by {list}: take it from them first"
        )))
    }
}

/// Access to what all resources have.
pub(crate) trait HasMetadata {
    fn metadata_mut(&mut self) -> &mut Metadata;
}

impl<S> HasMetadata for proto::resource::Resource<S> {
    fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }
}

fn with_revision<R: DeserializeOwned + HasMetadata>(item: &Item) -> Result<R, StoreError> {
    let mut resource: R = from_json(item)?;
    resource.metadata_mut().revision = Some(item.revision);
    Ok(resource)
}

/// What must hold when the caller's wishes and what is there are put together.
fn expectation(
    name: &str,
    held: Option<&Item>,
    revision: Option<u64>,
    existing: Existing,
) -> Result<Expect, Fault> {
    match (held, revision, existing) {
        (Some(_), _, Existing::Refuse) => Err(already(&format!("{name:?}"))),
        (Some(item), None, Existing::Replace) => Ok(Expect::Revision(item.revision)),
        (_, Some(revision), Existing::Replace) => Ok(Expect::Revision(revision)),
        (None, _, Existing::Refuse) | (None, None, Existing::Replace) => Ok(Expect::Absent),
    }
}

fn already(what: &str) -> Fault {
    Fault::Conflict(format!("{what} exists already"))
}

fn describe(target: &LockTarget) -> String {
    match target {
        LockTarget::Login(login) => format!("login:{login}"),
        LockTarget::Node(node) => format!("node:{node}"),
        LockTarget::Role(role) => format!("role:{role}"),
        LockTarget::User(user) => format!("user:{user}"),
    }
}

/// The resources as JSON; asking for one that is not there is an error, asking for all is not.
fn some<R: Serialize>(kind: Kind, name: &str, resources: Vec<R>) -> Result<Vec<Vec<u8>>, Fault> {
    if resources.is_empty() && !name.is_empty() {
        return Err(Fault::Missing(format!("{} {name:?}", kind.as_str())));
    }
    Ok(resources.iter().map(to_json).collect::<Result<_, _>>()?)
}

/// A resource from its JSON; the message says what is not understood.
fn read<R: DeserializeOwned>(json: &[u8]) -> Result<R, Fault> {
    serde_json::from_slice(json)
        .map_err(|error| Fault::Invalid(format!("the resource is not understood: {error}")))
}

/// Roles or locks in one answer.
const LIST_MAX: usize = 20_000;
/// Length of UUID text.
const HOST_ID_BYTES: usize = 36;
/// Names in a message.
const HOLDERS_SHOWN: usize = 10;
