//! The only room of this crate with `unsafe`: libc calls that no safe crate of ours offers.
//! Each block says why it is needed and why it is sound. Meaning (who may, what next) is elsewhere.
//!
//! - [`account`]: the user and group databases
//! - [`child`]: what happens between fork and exec
//! - [`poll`]: descriptors in the runtime's poller

pub(crate) mod account;
pub(crate) mod child;
pub(crate) mod poll;
