//! Auth: who may, and what happened. Users, roles, join tokens and locks; the authorities that sign; the audit log and the
//! recordings; a gRPC service over TLS and over a local socket. Proxies and nodes decide by the policy snapshot that auth
//! pushes, so nothing here lies on a session's path.
//!
//! On the way in:
//! - [`server`]: connections, and who is at the other end
//! - [`service`]: one file per gRPC service; each method asks `service::caller` first
//! - [`limits`], [`strangers`], [`fault`]: how often, how many, and why not
//!
//! People:
//! - [`sign_in`]: password and one-time code for certificates; [`passwords`], [`credentials`], [`attempts`] below it
//! - [`invites`]: how a person gets both; [`users`]: who they are
//!
//! Machines:
//! - [`join`]: certificates for machines; [`tokens`]; [`hostnames`]: whose name is whose
//! - [`inventory`]: which are there
//!
//! What all decide by:
//! - [`resources`], [`presets`]: roles, locks, users, tokens, nodes as administrators see them
//! - [`snapshot`]: roles, locks and authorities, signed and pushed
//! - [`ca`], [`own_certificate`]: the authorities and auth's own certificate
//!
//! Memory:
//! - [`store`]: keys and values with revisions; the only SQL
//! - [`log`]: the event log; [`recordings`]
#![forbid(unsafe_code)]

mod attempts;
mod ca;
mod clock;
mod credentials;
mod fault;
mod hostnames;
mod inventory;
mod invites;
mod join;
mod limits;
mod log;
mod own_certificate;
mod passwords;
mod presets;
mod recordings;
mod resources;
mod server;
mod service;
mod sign_in;
mod snapshot;
mod start;
mod store;
mod strangers;
mod tokens;
mod users;

pub use start::{Auth, AuthConfig, AuthError, start};

#[cfg(test)]
mod tests;
