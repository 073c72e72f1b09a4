//! `Join`: machines.

use std::sync::Arc;

use proto::rpc::join_server::Join;
use proto::rpc::{HostCertificates, RegisterRequest, RenewRequest};
use tonic::{Request, Response, Status};

use super::caller::Gate;
use crate::join::Joining;

#[derive(Debug)]
pub(crate) struct JoinService {
    pub(crate) gate: Arc<Gate>,
    pub(crate) joining: Arc<Joining>,
}

#[tonic::async_trait]
impl Join for JoinService {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<HostCertificates>, Status> {
        let from = self.gate.anybody(&request)?;
        Ok(Response::new(self.joining.register(request.into_inner(), &from).await?))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<HostCertificates>, Status> {
        let host = self.gate.host(&request)?;
        Ok(Response::new(self.joining.renew(&host, request.get_ref()).await?))
    }
}
