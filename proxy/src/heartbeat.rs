//! Tells auth that this proxy is there, and where people reach it. Sessions never wait for this.

use std::time::Duration;

use proto::resource::HostRole;
use proto::rpc::HeartbeatRequest;
use proto::rpc::inventory_client::InventoryClient;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use crate::Core;

/// Beats until the proxy stops.
pub(crate) async fn run(core: &Core) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = true;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = core.shutdown.stopped() => return,
        }
        if core.is_replaced() {
            // The new process says it.
            return;
        }
        match (beat(core).await, heard) {
            (Ok(()), false) => info!("auth hears this proxy again"),
            (Err(error), true) => {
                warn!(error, "auth does not hear this proxy; sessions go on without it");
            }
            (Ok(()), true) | (Err(_), false) => continue,
        }
        heard = !heard;
    }
}

async fn beat(core: &Core) -> Result<(), String> {
    let request = HeartbeatRequest {
        role: HostRole::Proxy.as_str().to_owned(),
        nodename: core.host.credentials().nodename.to_string(),
        labels: Default::default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        policy_revision: core.policy.current().revision,
        address: core.config.public_addr.clone(),
        capture: None,
    };
    let mut client = InventoryClient::new(core.host.auth());
    match timeout(ANSWER_WITHIN, client.heartbeat(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(format!("{:?}: {}", status.code(), status.message())),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// What `Inventory.Heartbeat` asks for.
const EVERY: Duration = Duration::from_secs(30);
/// Well before the next one.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
