//! `Inventory`: machines say that they are there; people ask which.

use std::sync::Arc;

use proto::rpc::inventory_server::Inventory;
use proto::rpc::{
    HeartbeatRequest, HeartbeatResponse, ListCaptureRequest, ListCaptureResponse, ListNodesRequest,
    ListNodesResponse,
};
use tonic::{Request, Response, Status};

use super::caller::{Caller, Gate};
use crate::snapshot::Snapshots;

#[derive(Debug)]
pub(crate) struct InventoryService {
    pub(crate) gate: Arc<Gate>,
    pub(crate) inventory: Arc<crate::inventory::Inventory>,
    pub(crate) snapshots: Arc<Snapshots>,
}

#[tonic::async_trait]
impl Inventory for InventoryService {
    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let host = self.gate.host(&request)?;
        let now = self.inventory.heartbeat(&host, request.into_inner()).await?;
        Ok(Response::new(HeartbeatResponse { now }))
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let caller = self.gate.person(&request)?;
        let current = self.snapshots.current();
        let policy = &current.policy;
        let nodes = match &caller {
            Caller::LocalAdmin => self.inventory.all_nodes(None),
            Caller::User { identity, .. } => {
                if self.gate.may(&caller, "node", "list") {
                    self.inventory.all_nodes(Some((policy, identity)))
                } else {
                    self.inventory.reachable_nodes(policy, identity)
                }
            }
        };
        Ok(Response::new(ListNodesResponse { nodes }))
    }

    async fn list_capture(
        &self,
        request: Request<ListCaptureRequest>,
    ) -> Result<Response<ListCaptureResponse>, Status> {
        self.gate.administrator(&request, "node", "list")?;
        let request = request.into_inner();
        let (nodes, more) = self.inventory.captures(&request.node, &request.page);
        let last = nodes.last().filter(|_| more);
        let next = last.map(|node| node.host_id.clone()).unwrap_or_default();
        Ok(Response::new(ListCaptureResponse { nodes, next }))
    }
}
