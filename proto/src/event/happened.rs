//! What happened, before it has its place in the log.

use time::OffsetDateTime;

use super::Body;

/// What happened, and when: an event before it has its place among others.
#[derive(Debug, Clone, PartialEq)]
pub struct Happened {
    pub time: OffsetDateTime,
    pub body: Body,
}

impl Happened {
    /// Just now.
    pub fn now(body: impl Into<Body>) -> Self {
        Self { time: OffsetDateTime::now_utc(), body: body.into() }
    }
}
