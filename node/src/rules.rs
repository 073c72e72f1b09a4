//! What roles keep sessions from, while they run: each change of the policy puts them under what their roles say now, those included
//! that go on without their client. Of a session whose new rules this node cannot keep, [`crate::ssh`] makes an end. Who may have a
//! session at all is asked elsewhere (`admit`, and again in `ssh::connection`).

use std::sync::Arc;

use capture::Watch;
use proto::capture_rules::CaptureRules;
use proto::id::RoleName;

use crate::context::NodeContext;
use crate::session::Session;

/// Follows the policy until the node stops.
pub(crate) async fn follow(node: Arc<NodeContext>) {
    let mut policy = node.policy.clone();
    loop {
        // Marked as seen first: a change meanwhile wakes us again.
        policy.borrow_and_update();
        node.capture.renew_rules(&|roles| of(&node, roles));
        tokio::select! {
            changed = policy.changed() => if changed.is_err() {
                return;
            },
            () = node.shutdown.stopped() => return,
        }
    }
}

/// What roles say now; `None` where one of them is not there any more or cannot be understood.
pub(crate) fn of(node: &NodeContext, roles: &[RoleName]) -> Option<CaptureRules> {
    let current = node.policy.borrow().clone();
    policy::capture_rules(&current.policy, roles, net::unix_now()).ok()
}

/// Waits until a session has rules that cannot be kept, and says why.
pub(crate) async fn until_unkept(
    node: &NodeContext,
    session: &Session,
    watch: Option<&mut Watch>,
) -> String {
    if let Some(watch) = watch {
        return watch.unkept().await;
    }
    let mut policy = node.policy.clone();
    loop {
        policy.borrow_and_update();
        if of(node, session.role_names()).is_some_and(|rules| rules.enforces()) {
            return UNWATCHED.to_owned();
        }
        if policy.changed().await.is_err() {
            // The node stops, which is seen elsewhere.
            std::future::pending::<()>().await;
        }
    }
}

const UNWATCHED: &str = "its roles have capture_rules now, and it began without being watched";
