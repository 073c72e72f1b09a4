//! May this identity have a session as this login here, now? Asks `policy::decide` with the local snapshot, takes its
//! permit by value and makes the [`Session`]: the only place that does. Who the peer is was settled before
//! (`ssh::auth`); what the session does comes after. Nothing here asks another machine.

use pki::UserIdentity;
use policy::decide::{Reason, decide};
use policy::{Decision, Denial, Permit, Request};
use proto::capture_rules::CaptureRules;
use proto::event;
use proto::id::{Login, SessionId};
use time::OffsetDateTime;

use crate::context::{Client, NodeContext};
use crate::session::Session;

/// Decides, and makes the session.
///
/// # Errors
/// The denial, for the audit log and, by its neutral sentence, for the user.
pub(crate) fn admit(
    node: &NodeContext,
    identity: &UserIdentity,
    login: &Login,
    client: &Client,
) -> Result<Session, Denial> {
    let permit = ask(node, identity, login, net::unix_now())?;
    let facts = event::Session {
        sid: SessionId::from_random(net::random16()),
        namespace: NAMESPACE.to_owned(),
        user: permit.user().clone(),
        login: login.clone(),
        server_id: node.facts.host_id.clone(),
        server_hostname: node.facts.nodename.clone(),
        server_labels: node.facts.labels.clone(),
        server_version: proto::VERSION.to_owned(),
        addr_remote: client.text.clone(),
        proto: "ssh".to_owned(),
    };
    Ok(Session::from_permit(permit, facts, OffsetDateTime::now_utc(), node.audit.clone()))
}

/// Whether what runs may go on under the newest policy. The certificate's end is not a reason here: that is
/// `disconnect_expired_cert`'s matter.
///
/// # Errors
/// The denial.
pub(crate) fn recheck(
    node: &NodeContext,
    identity: &UserIdentity,
    login: &Login,
) -> Result<(), Denial> {
    let while_valid = identity.valid_until().saturating_sub(1);
    ask(node, identity, login, net::unix_now().min(while_valid)).map(drop)
}

/// Whether one more forwarded connection may open now, and what rules say of where to, under the newest policy and with a certificate that is still
/// good, as for a new session.
///
/// # Errors
/// Why not, for the audit log.
pub(crate) fn may_forward(
    node: &NodeContext,
    identity: &UserIdentity,
    login: &Login,
) -> Result<CaptureRules, String> {
    match ask(node, identity, login, net::unix_now()) {
        Ok(permit) if permit.options().port_forwarding => Ok(permit.options().rules.clone()),
        Ok(_) => Err("a role forbids port forwarding".to_owned()),
        Err(denial) => Err(denial.to_string()),
    }
}

fn ask(
    node: &NodeContext,
    identity: &UserIdentity,
    login: &Login,
    now: i64,
) -> Result<Permit, Denial> {
    let request =
        Request::SshSession { login, host_id: &node.facts.host_id, labels: &node.facts.labels };
    let current = node.policy.borrow().clone();
    match decide(&current.policy, identity, &request, now) {
        // A permit for something else than was asked would be a fault of ours: refuse.
        Decision::Permit(permit) if permit.login() == Some(login) => Ok(permit),
        Decision::Permit(_) => Err(Denial { reason: Reason::NoLogin(login.clone()) }),
        Decision::Denial(denial) => Err(denial),
    }
}

/// Kept for rules that look for the field.
const NAMESPACE: &str = "default";
