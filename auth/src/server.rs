//! Connections: TCP with TLS, and the local socket. A handshake runs in its own task, with a deadline and a bound on how
//! many there are. Who is at the other end is settled here, once per connection, and travels beside each request as
//! [`Peer`]; a certificate that does not verify ends the connection instead of making it anonymous. A connection lives no
//! longer than its certificate, and without one only a few minutes. Next: `service`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use net::shutdown::Shutdown;
use pki::Identity;
use proto::id::{HostId, UserName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::clock::Clock;
use crate::service::caller::{Peer, Proof};
use crate::strangers::{PER_ADDRESS_MAX, StrangerPlace, Strangers};

/// An established connection.
#[derive(Debug)]
pub(crate) struct Connection {
    transport: Transport,
    peer: Peer,
    /// When it ends whatever happens.
    end: Option<End>,
    _place: Place,
}

/// Resolves when a connection has to end.
struct End(Pin<Box<dyn Future<Output = ()> + Send>>);

impl std::fmt::Debug for End {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("End")
    }
}

#[derive(Debug)]
enum Transport {
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// A connection's share of the limits, given back when dropped.
#[derive(Debug)]
struct Place {
    _permits: Option<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>)>,
    _holder: Option<HolderPlace>,
}

/// Whose share of the limits it is.
#[derive(Debug)]
enum HolderPlace {
    Certificate(#[expect(dead_code, reason = "held for its end")] SourcePlace),
    Stranger(#[expect(dead_code, reason = "held for its end")] StrangerPlace),
}

/// What the accept loops need.
#[derive(Debug, Clone)]
pub(crate) struct Acceptor {
    clock: Clock,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    ready: mpsc::Sender<Connection>,
    sources: Sources,
    /// Those who have not shown a certificate, all together.
    strangers: Arc<Semaphore>,
    strangers_by_address: Strangers,
    tls: Arc<rustls::ServerConfig>,
    verifier: Arc<pki::Verifier>,
}

impl Acceptor {
    /// Gives the acceptor and what it accepts.
    pub(crate) fn new(
        clock: Clock,
        tls: Arc<rustls::ServerConfig>,
        verifier: Arc<pki::Verifier>,
    ) -> (Self, mpsc::Receiver<Connection>) {
        let (ready, accepted) = mpsc::channel(READY_AHEAD);
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let connections = connections_max(files);
        if connections < CONNECTIONS_MAX / 16 {
            warn!(
                connections,
                "this process may open few files: raise LimitNOFILE for more machines"
            );
        }
        let acceptor = Self {
            clock,
            connections: Arc::new(Semaphore::new(connections)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            ready,
            sources: Sources::default(),
            strangers: Arc::new(Semaphore::new(connections / 2)),
            strangers_by_address: Strangers::default(),
            tls,
            verifier,
        };
        (acceptor, accepted)
    }

    /// Accepts TCP until `shutdown` stops. Nothing is awaited here but the next connection: over a limit it is closed.
    pub(crate) async fn accept_tls(self, listener: TcpListener, shutdown: Shutdown) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.stopped() => return,
            };
            let (socket, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(AFTER_ACCEPT_ERROR).await;
                    continue;
                }
            };
            let Ok(permit) = self.connections.clone().try_acquire_owned() else {
                debug!(%from, "closed: too many connections");
                continue;
            };
            let Ok(stranger) = self.strangers.clone().try_acquire_owned() else {
                debug!(%from, "closed: too many connections without a certificate");
                continue;
            };
            let Ok(handshake) = self.handshakes.clone().try_acquire_owned() else {
                debug!(%from, "closed: too many handshakes");
                continue;
            };
            let Some(attempt) = self.sources.enter(Source::Handshake(from.ip())) else {
                debug!(%from, "closed: too many handshakes from this address");
                continue;
            };
            let acceptor = self.clone();
            tokio::spawn(async move {
                let done = acceptor.handshake(socket, from);
                match tokio::time::timeout(HANDSHAKE_WITHIN, done).await {
                    Ok(Some((transport, proof))) => {
                        drop((handshake, attempt));
                        let stranger = matches!(proof, Proof::Anonymous).then_some(stranger);
                        let permits = (permit, stranger);
                        acceptor.hand_over(transport, proof, from, permits).await;
                    }
                    Ok(None) => {}
                    Err(_) => debug!(%from, "the handshake took too long"),
                }
            });
        }
    }

    async fn handshake(&self, socket: TcpStream, from: SocketAddr) -> Option<(Transport, Proof)> {
        if let Err(error) = socket.set_nodelay(true) {
            debug!(%from, %error, "cannot set up a connection");
            return None;
        }
        let tls = match TlsAcceptor::from(self.tls.clone()).accept(socket).await {
            Ok(tls) => tls,
            Err(error) => {
                debug!(%from, %error, "a handshake failed");
                return None;
            }
        };
        let proof = match tls.get_ref().1.peer_certificates() {
            None | Some([]) => Proof::Anonymous,
            Some(chain) => match self.verifier.tls_peer(chain, self.clock.now()) {
                Ok(identity) => Proof::Certificate(Arc::new(identity)),
                Err(error) => {
                    warn!(%from, %error, "a certificate was refused");
                    return None;
                }
            },
        };
        Some((Transport::Tls(Box::new(tls)), proof))
    }

    async fn hand_over(
        &self,
        transport: Transport,
        proof: Proof,
        from: SocketAddr,
        permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    ) {
        let life = tokio::time::sleep(self.life(&proof));
        // The bound per address is for those whom nobody knows: all nodes may come through one proxy.
        let (place, end) = match holder(&proof) {
            None => {
                let (place, crowded_out) = self.strangers_by_address.enter(from.ip());
                let end = async {
                    tokio::select! {
                        () = life => {}
                        _ = crowded_out => {}
                    }
                };
                (HolderPlace::Stranger(place), End(Box::pin(end)))
            }
            Some(holder) => match self.sources.enter(holder) {
                Some(place) => (HolderPlace::Certificate(place), End(Box::pin(life))),
                None => {
                    warn!(%from, "closed: too many connections with this certificate's name");
                    return;
                }
            },
        };
        let connection = Connection {
            transport,
            peer: Peer { from: Some(from), proof },
            end: Some(end),
            _place: Place { _permits: Some(permits), _holder: Some(place) },
        };
        // Fails only when the server has ended.
        self.ready.send(connection).await.ok();
    }

    fn life(&self, proof: &Proof) -> Duration {
        let valid_until = match proof {
            Proof::Anonymous | Proof::LocalAdmin => return ANONYMOUS_LIFE,
            Proof::Certificate(identity) => match &**identity {
                Identity::Host(host) => host.valid_until(),
                Identity::User(user) => user.valid_until(),
            },
        };
        let left = valid_until.saturating_sub(self.clock.now());
        Duration::from_secs(u64::try_from(left).unwrap_or(0)).min(LIFE_MAX)
    }

    /// Accepts on the local socket until `shutdown` stops. The kernel says who is at the other end.
    pub(crate) async fn accept_local(self, listener: UnixListener, shutdown: Shutdown) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.stopped() => return,
            };
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    warn!(%error, "a local connection could not be accepted");
                    tokio::time::sleep(AFTER_ACCEPT_ERROR).await;
                    continue;
                }
            };
            if !is_administrator(&socket) {
                continue;
            }
            let connection = Connection {
                transport: Transport::Unix(socket),
                peer: Peer { from: None, proof: Proof::LocalAdmin },
                end: None,
                _place: Place { _permits: None, _holder: None },
            };
            if self.ready.send(connection).await.is_err() {
                return;
            }
        }
    }
}

/// Connections that leave descriptors for the log, the store, the local socket, and for a proxy in the same process.
fn connections_max(files: Option<u64>) -> usize {
    let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    CONNECTIONS_MAX.min(files / 4)
}

/// Root, or the user that auth runs as.
fn is_administrator(socket: &UnixStream) -> bool {
    match socket.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw() => true,
        Ok(peer) => {
            warn!(uid = peer.uid(), "refused on the local socket");
            false
        }
        Err(error) => {
            warn!(%error, "refused on the local socket");
            false
        }
    }
}

/// Whom a certificate names.
fn holder(proof: &Proof) -> Option<Source> {
    match proof {
        Proof::Anonymous | Proof::LocalAdmin => None,
        Proof::Certificate(identity) => Some(match &**identity {
            Identity::Host(host) => Source::Host(host.host_id().clone()),
            Identity::User(user) => Source::User(user.user().clone()),
        }),
    }
}

/// Handshakes by address, connections by whom their certificate names.
#[derive(Debug, Clone, Default)]
struct Sources(Arc<Mutex<HashMap<Source, usize>>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    Handshake(IpAddr),
    Host(HostId),
    User(UserName),
}

#[derive(Debug)]
struct SourcePlace {
    sources: Sources,
    from: Source,
}

impl Sources {
    fn enter(&self, from: Source) -> Option<SourcePlace> {
        let mut counts = self.0.lock().ok()?;
        let most = match from {
            Source::Handshake(_) => HANDSHAKES_PER_SOURCE_MAX,
            Source::Host(_) | Source::User(_) => PER_HOLDER_MAX,
        };
        let count = counts.entry(from.clone()).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(SourcePlace { sources: self.clone(), from })
    }
}

impl Drop for SourcePlace {
    fn drop(&mut self) {
        if let Ok(mut counts) = self.sources.0.lock()
            && let Some(count) = counts.get_mut(&self.from)
        {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.from);
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if let Some(end) = &mut self.end
            && end.0.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        match &mut self.transport {
            Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_read(context, buffer),
            Transport::Unix(socket) => Pin::new(socket).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match &mut self.transport {
            Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_write(context, bytes),
            Transport::Unix(socket) => Pin::new(socket).poll_write(context, bytes),
        }
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        match &mut self.transport {
            Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(context),
            Transport::Unix(socket) => Pin::new(socket).poll_flush(context),
        }
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        match &mut self.transport {
            Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(context),
            Transport::Unix(socket) => Pin::new(socket).poll_shutdown(context),
        }
    }
}

/// All of TLS' round trips on a bad line.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Handshakes cost a signature each; beyond this the rest waits outside.
const HANDSHAKES_MAX: usize = 256;
/// Who begins handshakes and does not go on leaves half of them to other addresses. Enough for a proxy: they take a round
/// trip.
const HANDSHAKES_PER_SOURCE_MAX: usize = HANDSHAKES_MAX / 2;
/// Some 50 KiB each. Fewer where the process may open fewer files, and half of them for those without a certificate.
const CONNECTIONS_MAX: usize = 20_000;
const _: () =
    assert!(HANDSHAKES_PER_SOURCE_MAX < PER_ADDRESS_MAX && PER_ADDRESS_MAX < CONNECTIONS_MAX);
/// Connections with certificates of one machine or person, who needs a handful, a busy script some dozens. One that is
/// stolen must not take all places.
const PER_HOLDER_MAX: usize = 256;
const _: () = assert!(PER_HOLDER_MAX < CONNECTIONS_MAX / 16);
/// A sign-in or a join takes seconds; who stays longer dials again.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(120);
/// Longer than any certificate of a machine; timers don't take more.
const LIFE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// Connections accepted and not yet served.
const READY_AHEAD: usize = 64;
/// When descriptors run out, others must end first.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_left() {
        assert_eq!(connections_max(None), CONNECTIONS_MAX);
        assert_eq!(connections_max(Some(u64::MAX)), CONNECTIONS_MAX);
        assert_eq!(connections_max(Some(1024)), 256);
    }

    #[test]
    fn places_are_bounded_by_source_and_given_back() {
        let sources = Sources::default();
        let check = |source: Source, most: usize| {
            let mut places: Vec<_> = (0..most).map(|_| sources.enter(source.clone())).collect();
            assert!(places.iter().all(Option::is_some));
            assert!(sources.enter(source.clone()).is_none());
            places.pop();
            assert!(sources.enter(source).is_some());
        };
        check(Source::Handshake([10, 0, 0, 1].into()), HANDSHAKES_PER_SOURCE_MAX);
        check(Source::Host(HostId::from_random([1; 16])), PER_HOLDER_MAX);
        check(Source::User(UserName::parse("alice").unwrap()), PER_HOLDER_MAX);
        assert!(sources.0.lock().unwrap().is_empty());
    }
}
