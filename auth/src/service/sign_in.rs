//! `SignIn`: callers without a certificate.

use std::sync::Arc;

use proto::rpc::sign_in_server::SignIn;
use proto::rpc::{
    AcceptInviteRequest, AcceptInviteResponse, LoginRequest, LoginResponse, OpenInviteRequest,
    OpenInviteResponse,
};
use tonic::{Request, Response, Status};

use super::caller::Gate;
use crate::invites::Invites;

#[derive(Debug)]
pub(crate) struct SignInService {
    pub(crate) gate: Arc<Gate>,
    pub(crate) invites: Arc<Invites>,
    pub(crate) sign_in: Arc<crate::sign_in::SignIn>,
}

#[tonic::async_trait]
impl SignIn for SignInService {
    async fn login(
        &self,
        request: Request<LoginRequest>,
    ) -> Result<Response<LoginResponse>, Status> {
        let from = self.gate.anybody(&request)?;
        Ok(Response::new(self.sign_in.login(request.into_inner(), &from).await?))
    }

    async fn open_invite(
        &self,
        request: Request<OpenInviteRequest>,
    ) -> Result<Response<OpenInviteResponse>, Status> {
        self.gate.anybody(&request)?;
        Ok(Response::new(self.invites.open(&request.into_inner().token).await?))
    }

    async fn accept_invite(
        &self,
        request: Request<AcceptInviteRequest>,
    ) -> Result<Response<AcceptInviteResponse>, Status> {
        self.gate.anybody(&request)?;
        let user = self.invites.accept(request.into_inner()).await?;
        Ok(Response::new(AcceptInviteResponse { user: user.to_string() }))
    }
}
