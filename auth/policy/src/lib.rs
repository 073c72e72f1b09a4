//! `decide`: may this identity do this, now? A pure function over a snapshot. Deny first; what is not understood denies.
//!
//! - [`compile`]: a [`Snapshot`] checked and made quick to ask ([`Policy`])
//! - [`decide`]: requests, permits, denials
//! - [`matching`]: labels, logins, templates
#![forbid(unsafe_code)]

pub mod compile;
pub mod decide;
pub mod matching;

pub use compile::Policy;
pub use decide::{Decision, Denial, Permit, Reason, Request, SessionOptions, decide};
