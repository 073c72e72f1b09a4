//! End to end within one process: russh's client, certificates from `pki`, a node without a cluster.
//! Run as root, as CI does, they enter root and nobody; else only their own account.

pub(crate) mod fixture;
mod files;
mod refused;
mod running;
