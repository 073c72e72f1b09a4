//! The tokio plumbing that roles and clients share: dialing, TLS settings, preamble frames, the way to auth, what every
//! joined machine keeps. Portable. Decisions are not made here (crate `policy`), bytes are not relayed (crate `relay`).
//!
//! - [`shutdown`]: drain, then stop
//! - [`backoff`]: jittered waits between tries
//! - [`file`]: private files, written whole
//! - [`tls`]: rustls settings, trust
//! - `trust`: the server checks behind it
//! - [`exact`]: reading TLS record by record, so that it can be left
//! - [`stream`]: a connection inside TLS or outside it
//! - [`frame`]: preamble frames on a stream
//! - [`dial`]: a client's stream to a target through a proxy
//! - [`ping`]: what a proxy says of its cluster before sign-in
//! - [`auth_client`]: gRPC to auth, directly, through a proxy, or over the local socket
//! - [`host`]: a machine's identity: join, keep, renew
//! - [`policy_feed`]: the policy snapshot, pushed and kept on disk
//! - [`spool`]: audit events, durable before they are acknowledged
//! - [`tunnel`]: a node's tunnel to a proxy
#![forbid(unsafe_code)]

pub mod auth_client;
pub mod backoff;
pub mod dial;
pub mod exact;
pub mod file;
pub mod frame;
pub mod host;
pub mod ping;
pub mod policy_feed;
pub mod shutdown;
pub mod spool;
pub mod stream;
#[cfg(test)]
mod testing;
pub mod tls;
mod trust;
pub mod tunnel;

/// Now, Unix seconds.
pub fn unix_now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

/// Sixteen bytes from the operating system's randomness, for ids.
pub fn random16() -> [u8; 16] {
    random()
}

/// Bytes from the operating system's randomness.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(clippy::expect_used, reason = "without randomness nothing here is safe to go on")]
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives randomness");
    bytes
}
