//! `Policy`: the snapshot, pushed to machines. A reader that is slow gets the newest next, not each.

use std::sync::Arc;

use net::shutdown::Shutdown;
use proto::rpc::policy_server::Policy;
use proto::rpc::{SignedSnapshot, WatchRequest};
use tonic::{Request, Response, Status};
use tracing::warn;

use super::caller::Gate;
use super::{Answers, answers};
use crate::snapshot::Snapshots;

#[derive(Debug)]
pub(crate) struct PolicyService {
    pub(crate) gate: Arc<Gate>,
    pub(crate) shutdown: Shutdown,
    pub(crate) snapshots: Arc<Snapshots>,
}

#[tonic::async_trait]
impl Policy for PolicyService {
    type WatchStream = Answers<SignedSnapshot>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let host = self.gate.host(&request)?;
        let (known, ours) = (request.get_ref().known_revision, self.snapshots.current().revision());
        if known > ours {
            warn!(
                host = %host.host_id(), known, ours,
                "a machine has a newer policy than auth, and takes no other until auth's is newer: was auth restored from an older backup?"
            );
        }
        let mut newest = self.snapshots.watch();
        let shutdown = self.shutdown.clone();
        let (sender, receiver) = answers();
        // The connection ends with the certificate, and this task with the connection.
        tokio::spawn(async move {
            loop {
                let signed = newest.borrow_and_update().signed.clone();
                if sender.send(Ok(signed)).await.is_err() {
                    return;
                }
                tokio::select! {
                    changed = newest.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                    () = shutdown.stopped() => return,
                }
            }
        });
        Ok(Response::new(receiver))
    }
}
