//! How much of everything one proxy gives, to one source and in all. Each default says why.

use std::time::Duration;

/// Bounds of one proxy.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of one address (IPv6: of one /64) that have not shown a certificate yet.
    pub unauthenticated_per_source_max: usize,
    /// The same over all sources.
    pub unauthenticated_max: usize,
    /// New connections of one source per second, after the burst.
    pub connections_per_source_per_second: u32,
    /// New connections of one source at once.
    pub connections_per_source_burst: u32,
    /// From accept to a client's whole request: TLS handshake and preamble.
    pub request_within: Duration,
    /// From accept to an SSH client's successful authentication.
    pub jump_login_within: Duration,
    /// Relayed streams at once.
    pub streams_max: usize,
    /// Relayed streams and jump connections of one user at once.
    pub streams_per_user_max: usize,
    /// Relayed connections to auth from one source at once.
    pub auth_streams_per_source_max: usize,
    /// The same over all sources.
    pub auth_streams_max: usize,
    /// A relayed stream ends after so long without a byte in either direction.
    pub stream_idle: Duration,
    /// Nodes with a tunnel.
    pub tunnels_max: usize,
    /// Idle data connections that a node is asked to keep ready.
    pub pool_wanted: u32,
    /// Idle data connections taken from one node.
    pub pool_max: usize,
    /// Streams that wait for a data connection of one node.
    pub waiting_per_node_max: usize,
    /// A target must have answered after so long.
    pub target_within: Duration,
    /// Authenticated jump connections.
    pub jump_connections_max: usize,
    /// Channels of one jump connection.
    pub jump_channels_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unauthenticated_per_source_max: UNAUTHENTICATED_PER_SOURCE_MAX,
            unauthenticated_max: UNAUTHENTICATED_MAX,
            connections_per_source_per_second: CONNECTIONS_PER_SOURCE_PER_SECOND,
            connections_per_source_burst: CONNECTIONS_PER_SOURCE_BURST,
            request_within: REQUEST_WITHIN,
            jump_login_within: JUMP_LOGIN_WITHIN,
            streams_max: STREAMS_MAX,
            streams_per_user_max: STREAMS_PER_USER_MAX,
            auth_streams_per_source_max: AUTH_STREAMS_PER_SOURCE_MAX,
            auth_streams_max: AUTH_STREAMS_MAX,
            stream_idle: STREAM_IDLE,
            tunnels_max: TUNNELS_MAX,
            pool_wanted: POOL_WANTED,
            pool_max: POOL_MAX,
            waiting_per_node_max: WAITING_PER_NODE_MAX,
            target_within: TARGET_WITHIN,
            jump_connections_max: JUMP_CONNECTIONS_MAX,
            jump_channels_max: JUMP_CHANNELS_MAX,
        }
    }
}

/// An office or a site behind one address starts this many at once without noticing; a handshake takes milliseconds.
const UNAUTHENTICATED_PER_SOURCE_MAX: usize = 128;
/// A handshake holds some 50 KiB: 100 MB at worst.
const UNAUTHENTICATED_MAX: usize = 2048;
/// A tenth of a core's handshakes: one source alone cannot keep the proxy busy.
const CONNECTIONS_PER_SOURCE_PER_SECOND: u32 = 100;
/// A site's nodes coming back after a restart, or `xargs -P` over a fleet.
const CONNECTIONS_PER_SOURCE_BURST: u32 = 400;
/// Several round trips of a bad satellite link.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// A person may have to touch a security key, or confirm in an agent.
const JUMP_LOGIN_WITHIN: Duration = Duration::from_secs(30);
/// Two sockets each: below the usual limit of 65536 open files with room for tunnels.
const STREAMS_MAX: usize = 16 * 1024;
/// Automation that goes to a whole fleet at once as one user, without taking every place.
const STREAMS_PER_USER_MAX: usize = 4096;
/// A site's nodes behind one address, one connection each.
const AUTH_STREAMS_PER_SOURCE_MAX: usize = 2048;
/// As many as there may be tunnels, and people who log in; below the relay's bound, so that sessions keep places.
const AUTH_STREAMS_MAX: usize = 8 * 1024;
/// A session left open over a long weekend goes on; TCP keep-alive finds dead peers much sooner.
const STREAM_IDLE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The largest clusters known have some ten thousand nodes per proxy.
const TUNNELS_MAX: usize = 10_000;
/// A person opens one or two sessions at a time; [`POOL_MAX`] follows demand.
const POOL_WANTED: u32 = 2;
/// One idle connection costs the proxy some 20 KiB of TLS state.
const POOL_MAX: usize = 64;
/// Each waits at most [`TARGET_WITHIN`]; more than this at once is no use that a node could serve.
const WAITING_PER_NODE_MAX: usize = 256;
/// Below the client's own patience, so that it hears the reason from us.
const TARGET_WITHIN: Duration = Duration::from_secs(10);
/// An SSH connection with its buffers costs some 100 KiB.
const JUMP_CONNECTIONS_MAX: usize = 4096;
/// `ssh -J` opens one; a shared connection (ControlMaster) some more.
const JUMP_CHANNELS_MAX: usize = 32;

// A single source or user never gets every place.
const _: () = assert!(UNAUTHENTICATED_PER_SOURCE_MAX < UNAUTHENTICATED_MAX);
const _: () = assert!(AUTH_STREAMS_PER_SOURCE_MAX < AUTH_STREAMS_MAX);
const _: () = assert!(AUTH_STREAMS_MAX < STREAMS_MAX && STREAMS_PER_USER_MAX < STREAMS_MAX);
// A client that waits as long as `net::dial` does hears the proxy's reason, not its own timeout.
const _: () =
    assert!(REQUEST_WITHIN.as_secs() + TARGET_WITHIN.as_secs() <= net::dial::DIAL_WITHIN.as_secs());
