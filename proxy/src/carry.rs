//! A dialed stream on its way through the relay, cut as soon as its user is locked out. The end of the path.

use std::sync::Arc;
use std::time::Duration;

use net::policy_feed::Current;
use pki::UserIdentity;
use policy::{Decision, Policy, Reason, Request, decide};
use proto::preamble::Inner;
use relay::tls::{NotAtBoundary, TlsStream};
use relay::{Leg, Outcome, StreamId};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tracing::{debug, info};

use crate::Core;
use crate::dial::Dialed;
use crate::moved::Tag;
use crate::register::Facts;

/// What carries the inner protocol after the reply: the same stream, or its bare socket with what the other side has sent
/// of it already when `inner` is [`Inner::Plain`].
pub(crate) fn leg(tls: TlsStream, inner: Inner) -> Result<Leg, NotAtBoundary> {
    match inner {
        Inner::Plain => {
            let (socket, pending) = tls.leave()?;
            Ok(Leg::Socket { socket, pending })
        }
        Inner::Tls => Ok(Leg::Tls(Box::new(tls))),
    }
}

/// Relays until the end. `chain` is what the user showed, for a process that takes the stream over.
pub(crate) async fn carry(
    core: &Core,
    identity: &UserIdentity,
    chain: &[CertificateDer<'_>],
    client: Leg,
    dialed: Dialed,
) {
    let Dialed { target, facts, place, counted } = dialed;
    let id = core.relay.next_id();
    let limits = relay::Limits { idle_timeout: Some(core.config.limits.stream_idle) };
    let tag = Tag::of_user(chain, &facts).to_bytes();
    let run = core.relay.run(id, (client, target), limits, tag);
    until_locked(core, identity, &facts, id, run).await;
    drop((place, counted));
}

/// Waits for the end of a stream, and brings it about when a lock says so.
pub(crate) async fn until_locked(
    core: &Core,
    identity: &UserIdentity,
    facts: &Facts,
    id: StreamId,
    run: impl Future<Output = Outcome>,
) {
    tokio::pin!(run);
    let outcome = tokio::select! {
        outcome = &mut run => outcome,
        lock = locked(core.policy.watch(), identity, facts) => {
            info!(user = %identity.user(), node = %facts.nodename, lock, "a stream is cut");
            // The node cuts by itself, and its words reach the client only through us.
            match tokio::time::timeout(NODE_CUTS_WITHIN, &mut run).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    core.relay.cut(id);
                    run.await
                }
            }
        }
    };
    report(identity, facts, &outcome);
}

fn report(identity: &UserIdentity, facts: &Facts, outcome: &Outcome) {
    let (user, node) = (identity.user(), &facts.nodename);
    let (sent, received) = (outcome.bytes_from_client, outcome.bytes_from_target);
    debug!(%user, %node, end = ?outcome.end, sent, received, "a stream ended");
}

/// Waits until a lock keeps the user or the node out, and says which. Nothing else ends a running stream from here:
/// what an expired certificate or a changed role means for a session is the node's decision.
async fn locked(
    mut policy: watch::Receiver<Arc<Current<Policy>>>,
    identity: &UserIdentity,
    facts: &Facts,
) -> String {
    loop {
        let current = policy.borrow_and_update().clone();
        if let Some(lock) = lock_on(&current.policy, identity, facts) {
            return lock;
        }
        drop(current);
        if policy.changed().await.is_err() {
            // The feed has stopped: so will everything else, soon.
            return std::future::pending().await;
        }
    }
}

fn lock_on(policy: &Policy, identity: &UserIdentity, facts: &Facts) -> Option<String> {
    let request = Request::ReachNode { host_id: &facts.host_id, labels: &facts.labels };
    // Expiry is looked at before locks, and a lock must count for an expired certificate too.
    let now = net::unix_now().min(identity.valid_until().saturating_sub(1));
    match decide(policy, identity, &request, now) {
        Decision::Permit(_) => None,
        Decision::Denial(denial) => match denial.reason {
            Reason::Locked(lock) => Some(lock),
            Reason::Cluster(_)
            | Reason::DeniedByRole(_)
            | Reason::Expired
            | Reason::NoLogin(_)
            | Reason::NoNode
            | Reason::NoRule { .. }
            | Reason::UnusableRole(_) => None,
        },
    }
}

/// For a node to learn of the lock, record it and say so; whoever is behind a node that does not is cut then.
const NODE_CUTS_WITHIN: Duration = Duration::from_secs(1);
