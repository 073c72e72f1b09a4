//! End to end within one process: russh's client, certificates from `pki`, a node without a cluster.

pub(crate) mod fixture;
