//! A permitted session: whose it is, under which conditions, and its numbered events. Made from a permit, taken by value,
//! by [`crate::admit`] alone. What the session does is the engines' business.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use net::spool::SpoolError;
use policy::{Permit, SessionOptions};
use proto::event::{self, Body, Happened};
use proto::id::{RoleName, SessionId, UserName};
use proto::resource::RecordMode;
use time::OffsetDateTime;

use crate::audit::Audit;

/// See the module.
#[derive(Debug)]
pub(crate) struct Session {
    permit: Permit,
    facts: event::Session,
    started: OffsetDateTime,
    audit: Arc<dyn Audit>,
    next_ei: AtomicU64,
}

impl Session {
    /// Only [`crate::admit`] calls this.
    pub(crate) fn from_permit(
        permit: Permit,
        facts: event::Session,
        started: OffsetDateTime,
        audit: Arc<dyn Audit>,
    ) -> Self {
        Self { permit, facts, started, audit, next_ei: AtomicU64::new(0) }
    }
    pub(crate) fn id(&self) -> &SessionId {
        &self.facts.sid
    }
    pub(crate) fn user(&self) -> &UserName {
        &self.facts.user
    }
    pub(crate) fn roles(&self) -> Vec<String> {
        self.permit.roles().iter().map(ToString::to_string).collect()
    }
    pub(crate) fn role_names(&self) -> &[RoleName] {
        self.permit.roles()
    }
    pub(crate) fn options(&self) -> &SessionOptions {
        self.permit.options()
    }
    /// End of the certificate, Unix seconds.
    pub(crate) fn expires(&self) -> i64 {
        self.permit.expires()
    }
    pub(crate) fn started(&self) -> OffsetDateTime {
        self.started
    }
    /// The fields that every event of this session has.
    pub(crate) fn facts(&self) -> event::Session {
        self.facts.clone()
    }
    /// A lost record or recording ends this session.
    pub(crate) fn is_strict(&self) -> bool {
        self.options().record == RecordMode::Strict
    }
    /// Makes the next event of this session durable.
    ///
    /// # Errors
    /// The sink cannot take it in time. Before access is given the caller must refuse.
    pub(crate) async fn record(&self, body: impl Into<Body>) -> Result<(), SpoolError> {
        let ei = self.next_ei.fetch_add(1, Ordering::Relaxed);
        match tokio::time::timeout(RECORD_WAIT_MAX, self.audit.record(body.into(), ei)).await {
            Ok(result) => result,
            Err(_) => Err(SpoolError::Stopped),
        }
    }

    /// As [`Self::record`], for what has happened already: a failure is logged, and ends strict sessions by its answer.
    pub(crate) async fn record_outcome(&self, body: impl Into<Body>) -> Result<(), SpoolError> {
        let body = body.into();
        let name = body.name();
        let result = self.record(body).await;
        if let Err(error) = &result {
            tracing::error!(session = %self.id(), event = name, %error, "an audit event was lost");
        }
        result
    }
}

impl capture::Sink for Session {
    fn facts(&self) -> event::Session {
        self.facts()
    }

    fn roles(&self) -> &[RoleName] {
        self.role_names()
    }

    fn record(&self, happened: Vec<Happened>) -> BoxFuture<'_, bool> {
        record_all(&self.facts.sid, self.audit.as_ref(), &self.next_ei, happened)
    }
}

/// Numbers are given now, and not when it is waited for: in the order of the calls.
fn record_all<'a>(
    sid: &'a SessionId,
    audit: &'a dyn Audit,
    next_ei: &AtomicU64,
    happened: Vec<Happened>,
) -> BoxFuture<'a, bool> {
    let count = happened.len();
    let first = next_ei.fetch_add(u64::try_from(count).unwrap_or_default(), Ordering::Relaxed);
    let recorded = audit.record_all(happened.into_iter().zip(first..).collect());
    Box::pin(async move {
        let result = recorded.await;
        if let Err(error) = &result {
            tracing::error!(session = %sid, count, %error, "audit events were lost");
        }
        result.is_ok()
    })
}

/// A session that goes on although its connection ended with a node before us: its processes live.
#[derive(Debug)]
pub(crate) struct Restored {
    facts: event::Session,
    audit: Arc<dyn Audit>,
    next_ei: AtomicU64,
}

impl Restored {
    pub(crate) fn new(facts: event::Session, audit: Arc<dyn Audit>) -> Self {
        // Beyond all that were given before: nobody records an event in each microsecond.
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000;
        Self { facts, audit, next_ei: AtomicU64::new(u64::try_from(now).unwrap_or_default()) }
    }
}

impl capture::Sink for Restored {
    fn facts(&self) -> event::Session {
        self.facts.clone()
    }

    fn record(&self, happened: Vec<Happened>) -> BoxFuture<'_, bool> {
        record_all(&self.facts.sid, self.audit.as_ref(), &self.next_ei, happened)
    }
}

/// A disk that takes longer to sync one line counts as failed.
const RECORD_WAIT_MAX: Duration = Duration::from_secs(10);
