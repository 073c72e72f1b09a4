//! End to end within one process: russh's client, certificates from `pki`, a node without a cluster.
//! Run as root, as CI does, they enter root and nobody; else only their own account.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "tests look at few of many messages and events"
)]

mod files;
pub(crate) mod fixture;
mod refused;
mod running;
