//! From a target's name to a stream to its node: find, decide, take a data connection, open. What is missing and what is
//! forbidden get the same answer. Called by [`crate::user`] and [`crate::jump`]; next on the path: [`crate::carry`].

use std::net::SocketAddr;
use std::time::Duration;

use metrics::counter;
use net::frame::{self, FrameIoError};
use pki::UserIdentity;
use policy::{Decision, Denial, Policy, Reason, Request, decide};
use proto::id::{HostId, UserName};
use proto::preamble::{Inner, Open, Refusal, Reply, Service, VERSION};
use proto::resource::Labels;
use relay::Leg;
use relay::tls::TlsStream;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{debug, info};

use crate::Core;
use crate::carry::leg;
use crate::quota::Counted;
use crate::register::{Facts, NoConnection};

/// What a user wants.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) identity: &'a UserIdentity,
    pub(crate) target: &'a str,
    pub(crate) from: SocketAddr,
    /// On the node's leg.
    pub(crate) inner: Inner,
    pub(crate) trace: &'a str,
}

/// A stream to a node that has said yes.
#[derive(Debug)]
pub(crate) struct Dialed {
    pub(crate) target: Leg,
    pub(crate) facts: Facts,
    /// The user's place; held while the stream is.
    pub(crate) place: Counted<UserName>,
    pub(crate) counted: TaskTrackerToken,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("several nodes have this name")]
    Ambiguous,
    #[error("the user is refused whatever the target: {0}")]
    Identity(Denial),
    #[error("{0}")]
    Limit(&'static str),
    #[error("no such node")]
    Missing,
    #[error("{}: {denial}", facts.nodename)]
    Forbidden { facts: Box<Facts>, denial: Denial },
    #[error("{}: the node refused", facts.nodename)]
    Node { facts: Box<Facts>, reason: Refusal, message: String },
    #[error("{}: the node is unreachable", facts.nodename)]
    Unreachable {
        facts: Box<Facts>,
        #[source]
        source: Unreachable,
    },
}

/// Why a node that may be reached was not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    #[error("it is going away")]
    Draining,
    #[error(transparent)]
    NoConnection(#[from] NoConnection),
    #[error(transparent)]
    Frame(#[from] FrameIoError),
    #[error("it speaks protocol version or options that do not fit")]
    Protocol,
}

impl Refused {
    /// For the preamble.
    pub(crate) fn reason(&self) -> Refusal {
        match self {
            Self::Identity(_) => Refusal::Identity,
            Self::Limit(_) => Refusal::Limit,
            Self::Ambiguous | Self::Missing | Self::Forbidden { .. } => Refusal::NoTarget,
            Self::Node { reason, .. } => *reason,
            Self::Unreachable { .. } => Refusal::Unreachable,
        }
    }
    /// For the user; the same sentence for missing and forbidden.
    pub(crate) fn client_message(&self, target: &str) -> String {
        let target = shown(target);
        match self {
            Self::Ambiguous => {
                format!("several nodes are called \"{target}\": use the id that `tsh ls -v` shows")
            }
            Self::Identity(denial) => denial.client_message().to_owned(),
            Self::Limit(message) => (*message).to_owned(),
            Self::Missing | Self::Forbidden { .. } => {
                format!("no node \"{target}\" that you may reach: see `tsh ls`")
            }
            Self::Node { message, .. } => shown(message),
            Self::Unreachable { .. } => {
                format!("node \"{target}\" does not answer now: try again, or look at its agent")
            }
        }
    }
    /// For metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Ambiguous => "ambiguous",
            Self::Identity(denial) | Self::Forbidden { denial, .. } => denial.kind(),
            Self::Limit(_) => "limit",
            Self::Missing => "missing",
            Self::Node { .. } => "node",
            Self::Unreachable { .. } => "unreachable",
        }
    }
    /// What the audit log says, if anything: refusals by policy, not failures.
    fn audited(&self, target: &str) -> Option<(Option<&Facts>, String)> {
        match self {
            Self::Forbidden { facts, denial } => Some((Some(facts), denial.to_string())),
            Self::Identity(denial) => Some((None, denial.to_string())),
            Self::Missing => Some((None, format!("no node \"{}\"", shown(target)))),
            Self::Ambiguous | Self::Limit(_) | Self::Node { .. } | Self::Unreachable { .. } => None,
        }
    }
}

/// A stream to the target, or why not; refusals are counted and audited here.
pub(crate) async fn dial(core: &Core, ask: &Ask<'_>) -> Result<Dialed, Refused> {
    let dialed = reach(core, ask).await;
    if let Err(refused) = &dialed {
        let user = ask.identity.user();
        counter!("postern_proxy_streams_refused_total", "why" => refused.kind()).increment(1);
        let error = crate::audit::chain(refused);
        info!(%user, target = shown(ask.target), trace = ask.trace, error, "a stream was refused");
        if let Some((node, reason)) = refused.audited(ask.target) {
            core.audit.rejected(user.as_str(), ask.from, node, reason).await;
        }
    }
    dialed
}

async fn reach(core: &Core, ask: &Ask<'_>) -> Result<Dialed, Refused> {
    let deadline = Instant::now() + core.config.limits.target_within;
    let candidates = candidates(core, ask.target, deadline).await;
    let current = core.policy.current();
    let facts = choose(&current.policy, ask.identity, candidates, net::unix_now())?;
    let place = core
        .users
        .enter(ask.identity.user(), core.config.limits.streams_per_user_max)
        .ok_or(Refused::Limit("you have too many streams open: close some first"))?;
    let counted = core.streams.token();
    if core.relay.is_full() {
        return Err(Refused::Limit("the proxy carries as many streams as it may: try again later"));
    }
    if facts.draining {
        return Err(unreachable(&facts, Unreachable::Draining));
    }
    let target = open(core, &facts, ask, deadline).await?;
    Ok(Dialed { target, facts, place, counted })
}

/// Nodes of that name. After an upgrade they take a moment to dial the new process: a name that is not there yet is
/// waited for.
async fn candidates(core: &Core, target: &str, deadline: Instant) -> Vec<Facts> {
    if target.len() > TARGET_BYTES_MAX {
        return Vec::new();
    }
    loop {
        let found = core.register.find(target, &core.cluster);
        let until = core.tunnels_return_until.min(deadline);
        if !found.is_empty() || Instant::now() >= until {
            return found;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The one node that is meant and permitted. Pure.
fn choose(
    policy: &Policy,
    identity: &UserIdentity,
    candidates: Vec<Facts>,
    now: i64,
) -> Result<Facts, Refused> {
    if let Some(denial) = denied_everywhere(policy, identity, now) {
        return Err(Refused::Identity(denial));
    }
    let mut forbidden = None;
    let mut permitted = Vec::new();
    for facts in candidates {
        let request = Request::ReachNode { host_id: &facts.host_id, labels: &facts.labels };
        match decide(policy, identity, &request, now) {
            Decision::Permit(_) => permitted.push(facts),
            Decision::Denial(denial) => {
                forbidden = Some(Refused::Forbidden { facts: Box::new(facts), denial });
            }
        }
    }
    match (permitted.pop(), permitted.is_empty()) {
        (Some(facts), true) => Ok(facts),
        (Some(_), false) => Err(Refused::Ambiguous),
        (None, _) => Err(forbidden.unwrap_or(Refused::Missing)),
    }
}

/// What is wrong with the user rather than with the target, so that telling it gives no target away.
pub(crate) fn denied_everywhere(
    policy: &Policy,
    identity: &UserIdentity,
    now: i64,
) -> Option<Denial> {
    let host_id = HostId::from_random([0; 16]);
    let request = Request::ReachNode { host_id: &host_id, labels: &Labels::new() };
    match decide(policy, identity, &request, now) {
        Decision::Permit(_) => None,
        Decision::Denial(denial) => match denial.reason {
            Reason::Cluster(_) | Reason::Expired | Reason::Locked(_) | Reason::UnusableRole(_) => {
                Some(denial)
            }
            Reason::DeniedByRole(_)
            | Reason::NoLogin(_)
            | Reason::NoNode
            | Reason::NoRule { .. } => None,
        },
    }
}

/// Opens a stream on one of the node's data connections. One that turns out to be dead costs a try: nothing has been
/// opened on it, or what was opened died with it.
async fn open(
    core: &Core,
    facts: &Facts,
    ask: &Ask<'_>,
    deadline: Instant,
) -> Result<Leg, Refused> {
    let request = Open {
        version: VERSION,
        service: Service::Ssh,
        target: ask.target.to_owned(),
        client_addr: ask.from.to_string(),
        inner: ask.inner,
        trace: ask.trace.to_owned(),
    };
    let mut last = Unreachable::NoConnection(NoConnection::TimedOut);
    for _ in 0..OPEN_TRIES {
        let mut tls = match core.register.take(&facts.host_id, deadline).await {
            Ok(idle) => idle.0,
            Err(error) => return Err(unreachable(facts, error.into())),
        };
        match exchange(&mut tls, &request, deadline).await {
            Ok(Reply::Ok { inner: Inner::Plain }) if ask.inner == Inner::Tls => {
                return Err(unreachable(facts, Unreachable::Protocol));
            }
            Ok(Reply::Ok { inner }) => {
                return leg(tls, inner).map_err(|_| unreachable(facts, Unreachable::Protocol));
            }
            Ok(Reply::Refused { reason, message }) => {
                return Err(Refused::Node { facts: Box::new(facts.clone()), reason, message });
            }
            Err(error) => {
                debug!(node = %facts.nodename, %error, "a data connection was of no use");
                last = error.into();
            }
        }
    }
    Err(unreachable(facts, last))
}

async fn exchange(
    tls: &mut TlsStream,
    open: &Open,
    deadline: Instant,
) -> Result<Reply, FrameIoError> {
    let within = || deadline.saturating_duration_since(Instant::now()).min(OPEN_WITHIN);
    frame::write(tls, open, within()).await?;
    frame::read(tls, within()).await
}

fn unreachable(facts: &Facts, source: Unreachable) -> Refused {
    Refused::Unreachable { facts: Box::new(facts.clone()), source }
}

/// Text from outside as it may stand in messages, events and logs.
pub(crate) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect()
}

/// The longest node name with the longest cluster name behind it.
const TARGET_BYTES_MAX: usize = 253 + 1 + 128;
/// A name, or a node's sentence.
const SHOWN_CHARS_MAX: usize = 300;
/// A pooled connection may have died unnoticed; three in a row mean that the node is gone.
const OPEN_TRIES: usize = 3;
/// While nodes come back after an upgrade.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The node answers before it starts anything.
const OPEN_WITHIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::people;

    fn facts(number: u8, env: &str) -> Facts {
        Facts {
            host_id: HostId::from_random([number; 16]),
            nodename: "a".parse().unwrap(),
            labels: Labels::from([("env".to_owned(), env.to_owned())]),
            draining: false,
        }
    }

    #[test]
    fn what_is_forbidden_reads_like_what_is_missing() {
        let people = people();
        let now = net::unix_now();
        let choose = |candidates| choose(&people.policy, &people.alice, candidates, now);
        let forbidden = choose(vec![facts(1, "prod")]).unwrap_err();
        let missing = choose(vec![]).unwrap_err();
        assert!(matches!(forbidden, Refused::Forbidden { .. }), "{forbidden:?}");
        assert!(matches!(missing, Refused::Missing), "{missing:?}");
        assert_eq!(forbidden.client_message("a"), missing.client_message("a"));
        assert_eq!(forbidden.reason(), missing.reason());
        assert_eq!(missing.client_message("a"), "no node \"a\" that you may reach: see `tsh ls`");
    }

    #[test]
    fn a_name_is_ambiguous_only_among_permitted_nodes() {
        let people = people();
        let now = net::unix_now();
        let choose = |candidates| choose(&people.policy, &people.alice, candidates, now);
        assert_eq!(choose(vec![facts(1, "prod"), facts(2, "dev")]).unwrap(), facts(2, "dev"));
        let twice = choose(vec![facts(1, "dev"), facts(2, "dev")]).unwrap_err();
        assert!(matches!(twice, Refused::Ambiguous), "{twice:?}");
    }

    #[test]
    fn a_locked_user_is_told_the_same_whatever_the_target() {
        let people = people();
        let now = net::unix_now();
        for candidates in [vec![], vec![facts(1, "dev")], vec![facts(1, "prod")]] {
            let refused = choose(&people.policy, &people.mallory, candidates, now).unwrap_err();
            assert!(matches!(refused, Refused::Identity(_)), "{refused:?}");
        }
        let later = people.alice.valid_until();
        let expired = choose(&people.policy, &people.alice, vec![], later).unwrap_err();
        assert_eq!(expired.reason(), Refusal::Identity);
    }

    #[test]
    fn messages_carry_no_control_characters() {
        let message = Refused::Missing.client_message("x\x1b]0;evil\x07\r\n");
        assert!(message.chars().all(|c| !c.is_control()), "{message:?}");
        assert!(Refused::Missing.client_message(&"x".repeat(9999)).len() < 400);
    }
}
