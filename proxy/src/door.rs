//! The public port. The relay accepts, reads and shakes hands; here is decided what becomes of each connection: bounds
//! before anything is read, where the ClientHello leads, and who goes on to the control plane. Called on the relay's
//! threads, so nothing here waits. Next on the path: [`crate::serve`], or the relay to auth at once.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use metrics::counter;
use relay::tls::Established;
use relay::{Given, Next, OpeningFault, Outcome, Place, Service};
use tokio::runtime::Handle;
use tracing::debug;

use crate::Core;
use crate::listen::Source;
use crate::moved::Tag;
use crate::route::{Route, route};
use crate::serve::{self, ServeError};
use crate::sniff::look;

/// Decides about the public port's connections.
pub(crate) struct Door {
    /// Not held: the relay, which holds us, is part of it.
    core: Weak<Core>,
    runtime: Handle,
    within: Duration,
}

impl Door {
    pub(crate) fn new(core: &Arc<Core>) -> Self {
        let within = core.config.limits.request_within;
        Self { core: Arc::downgrade(core), runtime: Handle::current(), within }
    }
}

impl Service for Door {
    fn admit(&self, from: SocketAddr) -> Option<Place> {
        let core = self.core.upgrade()?;
        match core.gate.admit(from, Instant::now()) {
            Ok(admission) => Some(Box::new(admission)),
            Err(bound) => {
                counter!("postern_proxy_connections_refused_total", "why" => bound).increment(1);
                None
            }
        }
    }

    fn route(&self, from: SocketAddr, opening: &[u8]) -> Next {
        let Some(core) = self.core.upgrade() else { return Next::Give };
        match look(opening) {
            Ok(None) => Next::More,
            // Strays are told so, in their own protocol, which takes its time.
            Err(_) => Next::Give,
            Ok(Some(hello)) => match route(&hello, &core.cluster) {
                Route::Auth => to_auth(&core, from),
                Route::Peer => match core.tls.peers_config(&core.policy.current()) {
                    Ok(config) => Next::Terminate(config),
                    Err(error) => {
                        tracing::error!(%error, "TLS cannot be served");
                        Next::Give
                    }
                },
                Route::Refused => Next::Give,
                Route::Web => Next::Terminate(core.tls.web_config()),
            },
        }
    }

    fn established(&self, _from: SocketAddr, _peer: &Established) -> Next {
        Next::Give
    }

    fn give(&self, given: Given) {
        let Some(core) = self.core.upgrade() else { return };
        let from = given.from;
        let _in_runtime = self.runtime.enter();
        crate::spawn(&core, move |core| async move {
            if let Err(error) = serve::serve(&core, given).await {
                core.audit.stranger(from, error.kind(), &error);
            }
        });
    }

    fn failed(&self, from: SocketAddr, fault: &OpeningFault) {
        if let Some(core) = self.core.upgrade() {
            let kind = match fault {
                OpeningFault::Dial(_) => "auth",
                OpeningFault::Full => "limit",
                OpeningFault::Handshake(_) => "handshake",
                OpeningFault::Io(_) | OpeningFault::TooLong => "sniff",
                OpeningFault::TimedOut => "timed_out",
            };
            core.audit.stranger(from, kind, fault);
        }
    }

    fn ended(&self, from: SocketAddr, outcome: &Outcome) {
        debug!(%from, end = ?outcome.end, "a connection to auth ended");
    }

    fn within(&self) -> Duration {
        self.within
    }
}

/// Relays to auth what has been read and all that follows: TLS ends there, and so does every question of identity.
fn to_auth(core: &Core, from: SocketAddr) -> Next {
    let limits = &core.config.limits;
    let place =
        core.auth_sources.enter(&Source::of(from), limits.auth_streams_per_source_max).and_then(
            |source| Some((source, Arc::clone(&core.auth_streams).try_acquire_owned().ok()?)),
        );
    match (place, *core.auth_at.borrow()) {
        (Some(place), Some(to)) => Next::Dial {
            to,
            limits: relay::Limits { idle_timeout: Some(limits.stream_idle) },
            place: Some(Box::new(place)),
            tag: Tag::Auth { from }.to_bytes(),
        },
        (None, _) => {
            let error = ServeError::Limit("there are too many connections to auth");
            core.audit.stranger(from, error.kind(), &error);
            Next::Refuse(bytes::Bytes::new())
        }
        (_, None) => {
            let error = ServeError::AuthUnknown;
            core.audit.stranger(from, error.kind(), &error);
            Next::Refuse(bytes::Bytes::new())
        }
    }
}
