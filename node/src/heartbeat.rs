//! Tells auth that this node is there: name, labels, version, policy revision, and what its kernel tells of sessions. For
//! `tsh ls` and `tctl capture status`; nothing waits for it.
//!
//! - `kernel`: what the kernel tells

pub(crate) mod kernel;

use std::sync::Arc;
use std::time::Duration;

use net::shutdown::Shutdown;
use proto::rpc::HeartbeatRequest;
use proto::rpc::inventory_client::InventoryClient;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};
use tonic::transport::Channel;

use crate::context::NodeContext;

/// Runs until the node stops. Auth that comes back (`auth_reached`) is told at once: some of what it shows is in its memory only.
pub(crate) async fn run(
    node: Arc<NodeContext>,
    auth: Channel,
    mut auth_reached: watch::Receiver<()>,
    shutdown: Shutdown,
) {
    let mut client = InventoryClient::new(auth);
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reached = true;
    let mut kernel = kernel::Teller::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = auth_reached.changed() => ticks.reset(),
            () = shutdown.stopped() => return,
        }
        let request = HeartbeatRequest {
            role: "node".into(),
            nodename: node.facts.nodename.to_string(),
            labels: node.facts.labels.clone().into_iter().collect(),
            version: proto::VERSION.into(),
            policy_revision: node.policy.borrow().revision,
            address: String::new(),
            capture: Some(kernel.status(&node.capture)),
        };
        let now = match timeout(ANSWER_MAX, client.heartbeat(request)).await {
            Ok(Ok(_)) => true,
            Ok(Err(status)) => {
                tracing::debug!(%status, "auth did not take a heartbeat");
                false
            }
            Err(_) => false,
        };
        if now != reached {
            // Once per change, not twice a minute.
            tracing::info!(
                reached = now,
                "auth's reachability changed; sessions do not depend on it"
            );
            reached = now;
        }
    }
}

/// Auth shows nodes as gone after a few missed ones.
const INTERVAL: Duration = Duration::from_secs(30);
const ANSWER_MAX: Duration = Duration::from_secs(10);
