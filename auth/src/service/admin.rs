//! `Admin`: administrators. `SignUser` and `SignHost` give certificates without any second factor or token, so they are
//! for the auth host's administrator only, who could read the keys as well: no role reaches them.

use std::collections::HashMap;
use std::sync::Arc;

use net::auth_client::MESSAGE_BYTES_MAX;
use proto::event::{Actor, UserCreate};
use proto::id::{ClusterName, RoleName, UserName};
use proto::resource::{KIND_USER, Metadata, Traits, USER_VERSION, User, UserSpec};
use proto::rpc::admin_server::Admin;
use proto::rpc::{
    CreateTokenRequest, CreateTokenResponse, CreateUserRequest, DeleteResourceRequest,
    DeleteResourceResponse, GetResourcesRequest, HostCertificates, InviteResponse, LoginResponse,
    PutResourceRequest, PutResourceResponse, ResetUserRequest, ResourcesResponse, SignHostRequest,
    SignUserRequest, StatusRequest, StatusResponse, TraitValues,
};
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::caller::Gate;
use crate::ca::Ca;
use crate::fault::Fault;
use crate::inventory::Inventory;
use crate::invites::{Invites, NewInvite, life};
use crate::join::Joining;
use crate::log::Log;
use crate::resources::{Existing, Kind, Resources};
use crate::sign_in::{Keys, SignIn};
use crate::snapshot::Snapshots;
use crate::store::{Expect, StoreError};
use crate::tokens::{NewToken, Tokens, Uses, roles};
use crate::users::Users;

/// What invites and join commands show.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    pub(crate) auth: String,
    /// Empty when no proxy runs beside auth.
    pub(crate) proxy: String,
}

#[derive(Debug)]
pub(crate) struct AdminService {
    pub(crate) addresses: Addresses,
    pub(crate) ca: Arc<Ca>,
    pub(crate) cluster: ClusterName,
    pub(crate) gate: Arc<Gate>,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) invites: Arc<Invites>,
    pub(crate) joining: Arc<Joining>,
    pub(crate) log: Log,
    pub(crate) resources: Arc<Resources>,
    pub(crate) sign_in: Arc<SignIn>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) users: Arc<Users>,
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_user(
        &self,
        request: Request<CreateUserRequest>,
    ) -> Result<Response<InviteResponse>, Status> {
        let caller = self.gate.administrator(&request, "user", "create")?;
        let request = request.into_inner();
        let user = user_of(&request)?;
        let ttl = request.invite_ttl_seconds;
        // Before anything is made: half a user would be in the way.
        life(ttl)?;
        let name = self.create(user, caller.actor()).await?;
        let invite = self.invites.issue(&name, ttl, caller.actor()).await?;
        Ok(Response::new(self.invite(&name, invite)))
    }

    async fn reset_user(
        &self,
        request: Request<ResetUserRequest>,
    ) -> Result<Response<InviteResponse>, Status> {
        let caller = self.gate.administrator(&request, "user", "update")?;
        let request = request.into_inner();
        let name = self.known_user(&request.user).await?.0;
        let invite = self.invites.issue(&name, request.invite_ttl_seconds, caller.actor()).await?;
        Ok(Response::new(self.invite(&name, invite)))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let caller = self.gate.administrator(&request, "token", "create")?;
        let request = request.into_inner();
        let new = NewToken {
            roles: roles(&request.roles)?,
            ttl_seconds: request.ttl_seconds,
            value: Zeroizing::new(request.value),
            labels: request.labels.into_iter().collect(),
            uses: Uses::Many,
        };
        let (token, expires) = self.tokens.create(new, caller.actor()).await?;
        Ok(Response::new(CreateTokenResponse {
            token: token.to_string(),
            expires,
            ca_pin: self.ca.pin().to_owned(),
            proxy_address: self.proxy_address(),
            auth_address: self.addresses.auth.clone(),
        }))
    }

    async fn get_resources(
        &self,
        request: Request<GetResourcesRequest>,
    ) -> Result<Response<ResourcesResponse>, Status> {
        let kind = Kind::parse(&request.get_ref().kind)?;
        let verb = if request.get_ref().name.is_empty() { "list" } else { "read" };
        self.gate.administrator(&request, kind.as_str(), verb)?;
        let resources = self.resources.list(kind, &request.get_ref().name).await?;
        if resources.iter().map(Vec::len).sum::<usize>() > MESSAGE_BYTES_MAX / 2 {
            return Err(
                Fault::Invalid("too many for one answer: ask for them by name".into()).into()
            );
        }
        Ok(Response::new(ResourcesResponse { resources }))
    }

    async fn put_resource(
        &self,
        request: Request<PutResourceRequest>,
    ) -> Result<Response<PutResourceResponse>, Status> {
        let kind = Kind::of(&request.get_ref().resource)?;
        let caller = self.gate.administrator(&request, kind.as_str(), "create")?;
        let existing = if request.get_ref().overwrite {
            self.gate.check(&caller, kind.as_str(), "update")?;
            Existing::Replace
        } else {
            Existing::Refuse
        };
        let resource = &request.get_ref().resource;
        Ok(Response::new(self.resources.put(kind, resource, existing, caller.actor()).await?))
    }

    async fn delete_resource(
        &self,
        request: Request<DeleteResourceRequest>,
    ) -> Result<Response<DeleteResourceResponse>, Status> {
        let kind = Kind::parse(&request.get_ref().kind)?;
        let caller = self.gate.administrator(&request, kind.as_str(), "delete")?;
        self.resources.delete(kind, &request.get_ref().name, caller.actor()).await?;
        Ok(Response::new(DeleteResourceResponse {}))
    }

    async fn sign_user(
        &self,
        request: Request<SignUserRequest>,
    ) -> Result<Response<LoginResponse>, Status> {
        self.gate.local_admin(&request)?;
        let request = request.into_inner();
        let (_, user) = self.known_user(&request.user).await?;
        let keys = Keys {
            ssh: &request.ssh_public_key,
            tls: &request.tls_public_key,
            ttl_seconds: request.ttl_seconds,
        };
        let (answer, issued) = self.sign_in.certify(&user, keys)?;
        self.log.record([issued.into()]).await.map_err(Fault::from)?;
        Ok(Response::new(answer))
    }

    async fn sign_host(
        &self,
        request: Request<SignHostRequest>,
    ) -> Result<Response<HostCertificates>, Status> {
        self.gate.local_admin(&request)?;
        Ok(Response::new(self.joining.sign(request.get_ref()).await?))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.gate.person(&request)?;
        Ok(Response::new(StatusResponse {
            cluster: self.cluster.to_string(),
            version: proto::VERSION.to_owned(),
            ca_pins: vec![self.ca.pin().to_owned()],
            authorities: self.ca.describe(),
            policy_revision: self.snapshots.current().revision(),
            trust: Some(self.ca.trust()),
            proxy_address: self.proxy_address(),
        }))
    }
}

impl AdminService {
    async fn create(&self, user: User, actor: Actor) -> Result<UserName, Fault> {
        let name = self.users.check(&user).await?;
        let exists = || Fault::Conflict(format!("the user {name} exists already"));
        if self.users.find(&name).await?.is_some() {
            return Err(exists());
        }
        let roles = user.spec.roles.iter().map(ToString::to_string).collect();
        self.log.record([UserCreate { actor, name: name.clone(), roles }.into()]).await?;
        match self.users.save(user, Expect::Absent).await {
            Ok(()) => Ok(name),
            Err(Fault::Store(StoreError::Conflict)) => Err(exists()),
            Err(fault) => Err(fault),
        }
    }

    async fn known_user(&self, name: &str) -> Result<(UserName, User), Fault> {
        let missing = || Fault::Missing(format!("user {name:?}"));
        let name = UserName::parse(name).map_err(|_| missing())?;
        let user = self.users.find(&name).await?.ok_or_else(missing)?;
        Ok((name, user))
    }

    /// As configured where a proxy runs beside auth; otherwise as a proxy elsewhere reports it. Empty when there is none.
    fn proxy_address(&self) -> String {
        if self.addresses.proxy.is_empty() {
            return self.inventory.proxy_address();
        }
        self.addresses.proxy.clone()
    }

    fn invite(&self, user: &UserName, invite: NewInvite) -> InviteResponse {
        InviteResponse {
            user: user.to_string(),
            token: invite.token.to_string(),
            expires: invite.expires,
            proxy_address: self.proxy_address(),
            ca_pin: self.ca.pin().to_owned(),
        }
    }
}

fn user_of(request: &CreateUserRequest) -> Result<User, Fault> {
    let roles: Result<Vec<_>, _> =
        request.roles.iter().map(|role| RoleName::parse(&**role)).collect();
    Ok(User {
        kind: KIND_USER.into(),
        version: USER_VERSION.into(),
        metadata: Metadata { name: request.user.clone(), ..Metadata::default() },
        spec: UserSpec {
            roles: roles.map_err(|error| Fault::Invalid(error.to_string()))?,
            traits: traits_of(&request.traits),
            ..UserSpec::default()
        },
    })
}

fn traits_of(traits: &HashMap<String, TraitValues>) -> Traits {
    traits.iter().map(|(name, values)| (name.clone(), values.values.clone())).collect()
}
