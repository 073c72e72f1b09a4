//! `decide`: may this identity do this, now? A pure function over a snapshot. Deny first; what is not understood denies.
//!
//! - [`compile`]: a [`proto::snapshot::Snapshot`] checked and made quick to ask ([`Policy`])
//! - [`matching`]: labels, logins, templates
//! - [`decide`]: requests, permits, denials
//! - [`options`]: what the roles together say about a session
//! - [`grant`]: logins and life of a certificate, at signing time
#![forbid(unsafe_code)]

pub mod compile;
pub mod decide;
pub mod grant;
pub mod matching;
pub mod options;

pub use compile::Policy;
pub use decide::{
    Decision, Denial, Permit, Reason, Request, SessionOptions, capture_rules, decide,
};

#[cfg(test)]
mod tests;
