//! Words that every part of Postern shares. Pure: no I/O, no clock, no randomness of its own.
//!
//! - [`id`]: names and ids, each its own type, checked when parsed
//! - [`resource`]: users, roles, tokens, locks and nodes as data (`kind, version, metadata, spec`)
//! - [`capture_rules`]: what roles say that sessions must not do
//! - [`snapshot`]: what nodes and proxies need to decide without asking
//! - [`preamble`]: the frames that say where a stream wants to go
//! - [`event`]: audit events, their names, codes and fields
//! - [`recording`]: what is known of a session recording
//! - [`rpc`]: generated messages and services of auth
#![forbid(unsafe_code)]

pub mod capture_rules;
pub mod event;
pub mod id;
pub mod preamble;
pub mod recording;
pub mod resource;
pub mod rpc;
pub mod snapshot;

/// Version of the programs built from this workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
