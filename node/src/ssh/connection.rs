//! What the parts of one connection share, and when it must end: lock or role change, expiry, idleness, shutdown.
//! Decides nothing itself: `admit` does. Nothing here moves bytes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pki::UserIdentity;
use proto::event;
use proto::id::Login;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::account::Account;
use crate::admit;
use crate::context::{Client, NodeContext};
use crate::session::Session;

/// One client's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) node: Arc<NodeContext>,
    pub(crate) client: Client,
    /// Cancelled when everything on this connection is ended from this side.
    pub(crate) cut: CancellationToken,
    /// Cancelled when the client has ended the connection.
    pub(crate) left: CancellationToken,
    /// Sessions and forwards.
    pub(crate) tasks: TaskTracker,
    pub(crate) failures: Failures,
    admitted: OnceLock<Admitted>,
    signed_in: watch::Sender<bool>,
    began: Instant,
    active_ms: AtomicU64,
    sessions: AtomicU32,
    forwards: AtomicU32,
    running: Mutex<Sessions>,
    forward_pace: Mutex<Option<Instant>>,
}

/// The sessions that run, to be told of a cut.
#[derive(Debug, Default)]
struct Sessions {
    running: Vec<Arc<Session>>,
    /// Why the connection is cut: also for a session that begins at this moment.
    cut: Option<String>,
}

/// Who signed in, as whom.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) identity: UserIdentity,
    pub(crate) login: Login,
    pub(crate) account: Account,
    /// The connection's own, for what belongs to no shell or command: forwards, its end.
    pub(crate) session: Session,
}

/// What is known of sign-ins that failed.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// An event tells of a failure already.
    pub(crate) told: AtomicBool,
    login: Mutex<String>,
}

impl Failures {
    /// Remembers the login that was asked for, as the client wrote it, cut to a sane length.
    pub(crate) fn set_login(&self, login: &str) {
        let cut: String = login.chars().filter(|c| !c.is_control()).take(LOGIN_CHARS_MAX).collect();
        *self.login.lock().unwrap_or_else(PoisonError::into_inner) = cut;
    }
    pub(crate) fn login(&self) -> String {
        self.login.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why a connection is ended from this side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The policy does not allow it any more; the operator's reason.
    Denied(String),
    Expired,
    Idle(Duration),
    /// Nobody signed in in time.
    Silent,
    Stopping,
}

impl Cut {
    /// For the audit log.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Denied(reason) => reason.clone(),
            Self::Expired => "the certificate has expired".into(),
            Self::Idle(limit) => format!("idle for {} s", limit.as_secs()),
            Self::Silent => "no sign-in in time".into(),
            Self::Stopping => "the node is stopping".into(),
        }
    }
    /// For the user.
    pub(crate) fn client_message(&self) -> &'static str {
        match self {
            Self::Denied(_) => "access denied: your access to this node has ended",
            Self::Expired => "your certificate has expired: run `tsh login` again",
            Self::Idle(_) => "ended after too long without activity",
            Self::Silent => "no sign-in in time",
            Self::Stopping => "the node is stopping",
        }
    }
}

impl Connection {
    pub(crate) fn new(node: Arc<NodeContext>, client: Client) -> Self {
        Self {
            node,
            client,
            cut: CancellationToken::new(),
            left: CancellationToken::new(),
            tasks: TaskTracker::new(),
            failures: Failures::default(),
            admitted: OnceLock::new(),
            signed_in: watch::Sender::new(false),
            began: Instant::now(),
            active_ms: AtomicU64::new(0),
            sessions: AtomicU32::new(0),
            forwards: AtomicU32::new(0),
            running: Mutex::default(),
            forward_pace: Mutex::default(),
        }
    }

    /// Sets who signed in; false when somebody has already.
    pub(crate) fn admit(&self, admitted: Admitted) -> bool {
        let first = self.admitted.set(admitted).is_ok();
        if first {
            self.signed_in.send_replace(true);
        }
        first
    }
    pub(crate) fn admitted(&self) -> Option<&Admitted> {
        self.admitted.get()
    }

    /// Waits until the connection is over, from whichever side.
    pub(crate) async fn over(&self) {
        tokio::select! {
            () = self.cut.cancelled() => {}
            () = self.left.cancelled() => {}
        }
    }

    /// Bytes moved: not idle.
    pub(crate) fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.active_ms.store(now, Ordering::Relaxed);
    }

    /// A place among the sessions that may run at once, if there is one.
    pub(crate) fn take_session(self: &Arc<Self>) -> Option<Slot> {
        let asked = self.admitted()?.session.options().max_sessions.unwrap_or(SESSIONS_MAX);
        self.take(asked.min(SESSIONS_MAX), |connection| &connection.sessions)
    }
    /// Waits for this forward's turn: each is an audit event or two, and one client must not fill the node's spool. In
    /// the order of asking.
    pub(crate) async fn pace_forward(&self) {
        let turn = {
            let now = Instant::now();
            let mut next = self.forward_pace.lock().unwrap_or_else(PoisonError::into_inner);
            // A turn is kept as if the whole burst came first; time that has passed unused is lost beyond it.
            let unspent = now.checked_sub(FORWARD_INTERVAL * FORWARDS_BURST);
            let turn = next.max(unspent).unwrap_or(now) + FORWARD_INTERVAL;
            *next = Some(turn);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
    /// A place among the forwarded connections, if there is one.
    pub(crate) fn take_forward(self: &Arc<Self>) -> Option<Slot> {
        self.take(FORWARDS_MAX, |connection| &connection.forwards)
    }
    fn take(self: &Arc<Self>, max: u32, counter: fn(&Self) -> &AtomicU32) -> Option<Slot> {
        let taken = counter(self).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < max).then_some(count + 1)
        });
        taken.ok().map(|_| Slot { connection: self.clone(), counter })
    }

    /// Waits until this connection must end.
    pub(crate) async fn until_cut(&self, grace_end: Instant) -> Cut {
        let mut signed_in = self.signed_in.subscribe();
        let stopped = self.node.shutdown.stopped();
        tokio::pin!(stopped);
        tokio::select! {
            _ = signed_in.wait_for(|yes| *yes) => {}
            () = tokio::time::sleep_until(grace_end) => return Cut::Silent,
            () = &mut stopped => return Cut::Stopping,
        }
        let Some(admitted) = self.admitted() else { return Cut::Silent };
        tokio::select! {
            cut = self.until_denied(admitted) => cut,
            cut = until_expired(admitted) => cut,
            cut = self.until_idle(admitted) => cut,
            () = stopped => Cut::Stopping,
        }
    }

    async fn until_denied(&self, admitted: &Admitted) -> Cut {
        let mut policy = self.node.policy.clone();
        loop {
            // Marked as seen first: a change after the check wakes us again.
            policy.borrow_and_update();
            if let Err(denial) = admit::recheck(&self.node, &admitted.identity, &admitted.login) {
                return Cut::Denied(denial.to_string());
            }
            if policy.changed().await.is_err() {
                // Nobody changes the policy any more: the node stops, which is seen elsewhere.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn until_idle(&self, admitted: &Admitted) -> Cut {
        let Some(limit) = admitted.session.options().client_idle_timeout else {
            return std::future::pending().await;
        };
        loop {
            let active = Duration::from_millis(self.active_ms.load(Ordering::Relaxed));
            let end = self.began + active + limit;
            if Instant::now() >= end {
                return Cut::Idle(limit);
            }
            tokio::time::sleep_until(end).await;
        }
    }

    /// Makes the events of a cut, once somebody had signed in: one in each session that runs; where none does, one with
    /// the connection's own id.
    pub(crate) async fn record_cut(&self, cut: &Cut) {
        let reason = cut.reason();
        tracing::info!(trace = %self.client.trace, %reason, "connection ended");
        let Some(admitted) = self.admitted() else { return };
        let running = {
            let mut sessions = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.cut = Some(reason.clone());
            sessions.running.clone()
        };
        if running.is_empty() {
            record_disconnect(&admitted.session, reason).await;
            return;
        }
        // Together: they share one sync of the spool.
        let told = running.iter().map(|session| record_disconnect(session, reason.clone()));
        futures::future::join_all(told).await;
    }

    /// Counts a session that has begun among those that are told of a cut, until the guard is dropped.
    pub(crate) async fn enlist(self: &Arc<Self>, session: &Arc<Session>) -> Enlisted {
        let cut = {
            let mut sessions = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.running.push(session.clone());
            sessions.cut.clone()
        };
        if let Some(reason) = cut {
            record_disconnect(session, reason).await;
        }
        Enlisted { connection: self.clone(), session: session.clone() }
    }
}

/// Why a session is ended from this side.
pub(crate) async fn record_disconnect(session: &Session, reason: String) {
    let event = event::ClientDisconnect { session: session.facts(), reason };
    // Logged inside; it ends either way.
    drop(session.record_outcome(event).await);
}

async fn until_expired(admitted: &Admitted) -> Cut {
    if !admitted.session.options().disconnect_expired_cert {
        return std::future::pending().await;
    }
    loop {
        let left = admitted.session.expires().saturating_sub(net::unix_now());
        let Ok(left @ 1..) = u64::try_from(left) else { return Cut::Expired };
        // In steps: the clock may be set meanwhile.
        tokio::time::sleep(Duration::from_secs(left.min(CLOCK_STEP_SECONDS))).await;
    }
}

/// See [`Connection::enlist`].
#[derive(Debug)]
pub(crate) struct Enlisted {
    connection: Arc<Connection>,
    session: Arc<Session>,
}

impl Drop for Enlisted {
    fn drop(&mut self) {
        let mut sessions = self.connection.running.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.running.retain(|other| !Arc::ptr_eq(other, &self.session));
    }
}

/// A place taken until dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    connection: Arc<Connection>,
    counter: fn(&Connection) -> &AtomicU32,
}

impl Drop for Slot {
    fn drop(&mut self) {
        (self.counter)(&self.connection).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sessions of one connection where no role says less: OpenSSH's default is 10; editors open dozens.
const SESSIONS_MAX: u32 = 64;
/// Forwarded connections at once: a browser behind `-D` opens a hundred.
const FORWARDS_MAX: u32 = 256;
/// New forwards that are let through at once: a browser's start behind `-D`.
const FORWARDS_BURST: u32 = 200;
/// Each further one waits for this long after the one before: 20 in a second.
const FORWARD_INTERVAL: Duration = Duration::from_millis(50);
/// How long a changed clock may go unnoticed.
const CLOCK_STEP_SECONDS: u64 = 60;
/// Longer than any login.
const LOGIN_CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::tests::fixture::Cluster;

    #[tokio::test(start_paused = true)]
    async fn forwards_beyond_a_burst_wait_their_turn() {
        let node = Cluster::new("{}").node;
        let connection = Connection::new(node, Client::new("192.0.2.7:4711", "trace"));
        let began = Instant::now();
        let burst = async || {
            for _ in 0..FORWARDS_BURST {
                connection.pace_forward().await;
            }
        };
        burst().await;
        assert!(began.elapsed() < FORWARD_INTERVAL, "{:?}", began.elapsed());
        let waiting = (0..20).map(|_| connection.pace_forward());
        futures::future::join_all(waiting).await;
        let waited = began.elapsed();
        assert!(waited.abs_diff(Duration::from_secs(1)) < FORWARD_INTERVAL, "{waited:?}");
        // An hour of rest gives one burst, not more.
        tokio::time::advance(Duration::from_secs(3600)).await;
        let rested = Instant::now();
        burst().await;
        assert!(rested.elapsed() < FORWARD_INTERVAL);
        connection.pace_forward().await;
        assert!(rested.elapsed() >= FORWARD_INTERVAL);
    }
}
