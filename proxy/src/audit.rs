//! Refusals as audit events. Only who has shown a certificate of this cluster makes one; strangers are counted and, now
//! and then, logged, so that nobody fills the spool without a name. Permits are the node's to tell.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::counter;
use net::host::Host;
use net::spool::{Spool, SpoolError};
use proto::event::{Auth, Body, Outcome, SessionRejected};
use proto::id::{HostId, NodeName};
use tracing::{info, warn};

use crate::quota::{Pass, Rates};
use crate::register::Facts;

/// Where refusals go.
#[derive(Debug)]
pub(crate) struct Audit {
    /// None once another process has it.
    spool: Mutex<Option<Spool>>,
    host: Host,
    users: Rates<String>,
    strangers: Rates<&'static str>,
}

impl Audit {
    pub(crate) fn new(spool: Spool, host: Host) -> Self {
        // There from the beginning: what is missing cannot be told from what has not happened.
        counter!("postern_proxy_events_lost_total").increment(0);
        counter!("postern_proxy_refusals_joined_total").increment(0);
        Self {
            spool: Mutex::new(Some(spool)),
            host,
            users: Rates::new(EVENT_EVERY, EVENTS_BURST),
            strangers: Rates::new(STRANGER_LINE_EVERY, 1),
        }
    }

    /// Lets go of the spool: another process writes from now on.
    pub(crate) fn close(&self) {
        drop(self.spool().take());
    }

    fn spool(&self) -> MutexGuard<'_, Option<Spool>> {
        // One value is put or taken: a panic elsewhere leaves it whole.
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A user was refused a target. `node` is the one that was meant, if there is one.
    pub(crate) async fn rejected(
        &self,
        user: &str,
        from: SocketAddr,
        node: Option<&Facts>,
        reason: String,
    ) {
        let Some(reason) = self.paced(user, reason) else { return };
        let (server_id, server_hostname) = self.server(node);
        let event = SessionRejected {
            user: user.to_owned(),
            login: String::new(),
            server_id,
            server_hostname,
            addr_remote: from.to_string(),
            reason,
        };
        self.record(event).await;
    }

    /// A certificate that this cluster signed was not good enough at the jump listener.
    pub(crate) async fn authentication_failed(
        &self,
        user: &str,
        login: &str,
        from: SocketAddr,
        reason: String,
    ) {
        let Some(reason) = self.paced(user, reason) else { return };
        let event = Auth {
            user: user.to_owned(),
            login: login.chars().take(LOGIN_CHARS_MAX).collect(),
            server_id: self.server(None).0,
            addr_remote: from.to_string(),
            outcome: Outcome::failed(reason),
        };
        self.record(event).await;
    }

    /// Somebody unknown was refused.
    pub(crate) fn stranger(
        &self,
        from: SocketAddr,
        kind: &'static str,
        error: &dyn std::error::Error,
    ) {
        counter!("postern_proxy_connections_refused_total", "why" => kind).increment(1);
        match self.strangers.pass(&kind, Instant::now()) {
            Pass::Yes { refused_before } => {
                let error = chain(error);
                info!(%from, kind, error, also = refused_before, "a connection was refused");
            }
            Pass::No => {}
        }
    }

    /// The reason, with the number of refusals that were too many to be told one by one; None for one of those.
    fn paced(&self, user: &str, reason: String) -> Option<String> {
        match self.users.pass(&user.to_owned(), Instant::now()) {
            Pass::Yes { refused_before: 0 } => Some(reason),
            Pass::Yes { refused_before } => {
                let refusals = if refused_before == 1 { "refusal" } else { "refusals" };
                Some(format!("{reason} (and {refused_before} more {refusals} before)"))
            }
            Pass::No => {
                counter!("postern_proxy_refusals_joined_total").increment(1);
                None
            }
        }
    }

    fn server(&self, node: Option<&Facts>) -> (HostId, NodeName) {
        match node {
            Some(facts) => (facts.host_id.clone(), facts.nodename.clone()),
            None => {
                let own = self.host.credentials();
                (own.host_id.clone(), own.nodename.clone())
            }
        }
    }

    async fn record(&self, event: impl Into<Body>) {
        let event = event.into();
        let name = event.name();
        // A refusal stands also when it cannot be recorded.
        let spool = self.spool().clone();
        let recorded = match spool {
            Some(spool) => spool.record(event, 0).await.map(|_| ()),
            None => Err(SpoolError::Stopped),
        };
        if let Err(error) = recorded {
            counter!("postern_proxy_events_lost_total").increment(1);
            warn!(event = name, error = chain(&error), "an audit event could not be recorded");
        }
    }
}

/// An error with what lies behind it, for a log line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// One user's refusals after the burst: a script that goes wrong is told as a count.
const EVENT_EVERY: Duration = Duration::from_secs(2);
const EVENTS_BURST: u32 = 20;
/// Per kind of failure: a scan of the port does not flood the log.
const STRANGER_LINE_EVERY: Duration = Duration::from_secs(10);
/// As long as a login may be.
const LOGIN_CHARS_MAX: usize = 64;
