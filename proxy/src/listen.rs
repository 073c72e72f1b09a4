//! Accepts connections and hands each to a task of its own, after the bounds per source and in all have let it pass.
//! Nothing is read here and no cryptography runs here. Next on the path: [`crate::serve`], for the jump listener
//! [`crate::jump`].

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::counter;
use net::shutdown::Shutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

use crate::limits::Limits;
use crate::quota::{Counted, Counts, Rates};

/// Whoever may be one client: an IPv4 address, or an IPv6 /64, which one customer is given as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Source(IpAddr);

impl Source {
    pub(crate) fn of(address: SocketAddr) -> Self {
        Self(match address.ip().to_canonical() {
            IpAddr::V4(v4) => IpAddr::V4(v4),
            IpAddr::V6(v6) => {
                let network = v6.to_bits() & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from_bits(network))
            }
        })
    }
}

/// Lets connections in that have shown no certificate yet. Shared by all listeners.
#[derive(Debug)]
pub(crate) struct Gate {
    per_source_max: usize,
    sources: Counts<Source>,
    rates: Rates<Source>,
    all: Arc<Semaphore>,
}

/// A place among the unauthenticated. Dropped as soon as the client is known.
#[derive(Debug)]
pub(crate) struct Admission {
    _source: Counted<Source>,
    _all: OwnedSemaphorePermit,
}

impl Gate {
    pub(crate) fn new(limits: &Limits) -> Self {
        let per_second = limits.connections_per_source_per_second.max(1);
        Self {
            per_source_max: limits.unauthenticated_per_source_max,
            sources: Counts::new(),
            rates: Rates::new(
                Duration::from_secs(1) / per_second,
                limits.connections_per_source_burst,
            ),
            all: Arc::new(Semaphore::new(limits.unauthenticated_max)),
        }
    }

    /// A place, or the bound that refuses it.
    pub(crate) fn admit(&self, from: SocketAddr, now: Instant) -> Result<Admission, &'static str> {
        let source = Source::of(from);
        if !self.rates.allow(&source, now) {
            return Err("source_rate");
        }
        let counted = self.sources.enter(&source, self.per_source_max).ok_or("source_count")?;
        let all = Arc::clone(&self.all).try_acquire_owned().map_err(|_| "all_count")?;
        Ok(Admission { _source: counted, _all: all })
    }
}

/// Accepts until the proxy drains. `serve` must not wait: it starts a task.
pub(crate) async fn accept(
    listener: TcpListener,
    gate: &Gate,
    shutdown: &Shutdown,
    mut serve: impl FnMut(TcpStream, SocketAddr, Admission),
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.draining() => return,
        };
        match accepted {
            Ok((socket, from)) => match gate.admit(from, Instant::now()) {
                Ok(admission) => {
                    if let Err(error) = relay::prepare(&socket) {
                        tracing::debug!(%error, "a socket's options could not be set");
                    }
                    serve(socket, from, admission);
                }
                Err(bound) => {
                    counter!("postern_proxy_connections_refused_total", "why" => bound)
                        .increment(1);
                }
            },
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                // Out of descriptors or memory: connections that end give them back.
                warn!(%error, "connections cannot be accepted for a moment");
                tokio::select! {
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    () = shutdown.draining() => return,
                }
            }
        }
    }
}

/// The connection was gone before it was accepted (accept(2), "Error handling").
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}

/// Long enough not to spin, short enough not to be felt.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(limits: Limits) -> Gate {
        Gate::new(&limits)
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_is_an_address_or_a_network() {
        fn check(a: &str, b: &str, same: bool) {
            assert_eq!(Source::of(address(a)) == Source::of(address(b)), same, "{a} {b}");
        }
        check("192.0.2.1:1", "192.0.2.1:2", true);
        check("192.0.2.1:1", "192.0.2.2:1", false);
        check("192.0.2.1:1", "[::ffff:192.0.2.1]:1", true);
        check("[2001:db8::1]:1", "[2001:db8::ffff:1]:1", true);
        check("[2001:db8::1]:1", "[2001:db8:0:1::1]:1", false);
    }

    #[test]
    fn places_are_bounded_per_source_and_in_all() {
        let gate = gate(Limits {
            unauthenticated_per_source_max: 2,
            unauthenticated_max: 3,
            ..Limits::default()
        });
        let now = Instant::now();
        let a = address("192.0.2.1:1");
        let first = gate.admit(a, now).unwrap();
        let _second = gate.admit(a, now).unwrap();
        assert_eq!(gate.admit(a, now).unwrap_err(), "source_count");
        let _other = gate.admit(address("192.0.2.2:1"), now).unwrap();
        assert_eq!(gate.admit(address("192.0.2.3:1"), now).unwrap_err(), "all_count");
        drop(first);
        assert!(gate.admit(a, now).is_ok());
    }

    #[test]
    fn a_source_is_paced_although_its_connections_end_quickly() {
        let gate = gate(Limits {
            connections_per_source_per_second: 10,
            connections_per_source_burst: 5,
            ..Limits::default()
        });
        let now = Instant::now();
        let a = address("192.0.2.1:1");
        for _ in 0..5 {
            assert!(gate.admit(a, now).is_ok());
        }
        assert_eq!(gate.admit(a, now).unwrap_err(), "source_rate");
        assert!(gate.admit(a, now + Duration::from_millis(100)).is_ok());
    }
}
