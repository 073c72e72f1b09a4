//! Data connections of a tunnel: dialed ahead, idle until the proxy asks for a stream, then handed over and replaced.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pki::{HostIdentity, Identity};
use proto::preamble::{ALPN_STREAM, Open, Refusal, Reply, VERSION};
use proto::resource::HostRole;
use rustls::ClientConfig;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::{FRAME_WITHIN, Incoming, REDIAL_WAIT_FIRST, REDIAL_WAIT_MAX, TunnelError};
use crate::backoff::Backoff;
use crate::host::{Host, HostCredentials};
use crate::stream::{Stream, Tls};
use crate::tls::{Trust, client_config};
use crate::{dial, frame};

/// Dials the proxy with the newest certificate, and checks that it is one.
pub(super) struct Dialer {
    proxy: String,
    host: Host,
    /// Kept while the certificate is the same, so that data connections resume the TLS session.
    stream_config: Mutex<Option<(Arc<HostCredentials>, Arc<ClientConfig>)>>,
}

impl Dialer {
    pub(super) fn new(proxy: String, host: Host) -> Self {
        Self { proxy, host, stream_config: Mutex::new(None) }
    }

    pub(super) fn proxy(&self) -> &str {
        &self.proxy
    }

    pub(super) fn credentials(&self) -> Arc<HostCredentials> {
        self.host.credentials()
    }

    /// A connection to a proxy of this cluster.
    pub(super) async fn dial(&self, alpn: &[u8]) -> Result<(Tls, HostIdentity), TunnelError> {
        let credentials = self.credentials();
        let config = match alpn == ALPN_STREAM {
            true => self.stream_config(&credentials).await?,
            false => config(&credentials, alpn)?,
        };
        let name = dial::proxy_name(&credentials.cluster);
        let tls = dial::tls(&self.proxy, &name, config).await?;
        keep_alive(&tls)
            .map_err(|source| dial::DialError::Connect { address: self.proxy.clone(), source })?;
        if tls.get_ref().1.alpn_protocol() != Some(alpn) {
            return Err(TunnelError::Protocol("it does not speak this tunnel's protocol"));
        }
        let proxy = identity(&tls, &credentials)?;
        Ok((tls, proxy))
    }

    async fn stream_config(
        &self,
        credentials: &Arc<HostCredentials>,
    ) -> Result<Arc<ClientConfig>, TunnelError> {
        let mut kept = self.stream_config.lock().await;
        if let Some((made_for, config)) = &*kept
            && Arc::ptr_eq(made_for, credentials)
        {
            return Ok(config.clone());
        }
        let config = config(credentials, ALPN_STREAM)?;
        *kept = Some((credentials.clone(), config.clone()));
        Ok(config)
    }
}

fn config(credentials: &HostCredentials, alpn: &[u8]) -> Result<Arc<ClientConfig>, TunnelError> {
    let bad = |error: &dyn std::fmt::Display| TunnelError::Credentials(error.to_string());
    let verifier = credentials.verifier().map_err(|error| bad(&error))?;
    let trust = Trust::HostAuthority(Arc::new(verifier.host_roots()));
    client_config(&trust, Some(credentials.tls.clone()), &[alpn]).map_err(|error| bad(&error))
}

/// Who answered. Any machine of the cluster has a certificate of the host authority; only a proxy may send streams.
fn identity(tls: &Tls, credentials: &HostCredentials) -> Result<HostIdentity, TunnelError> {
    let bad = |error: &dyn std::fmt::Display| TunnelError::Identity(error.to_string());
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let verifier = credentials.verifier().map_err(|error| bad(&error))?;
    match verifier.tls_peer(chain, crate::unix_now()).map_err(|error| bad(&error))? {
        Identity::Host(host) if host.has_role(HostRole::Proxy) => Ok(host),
        Identity::Host(host) => Err(bad(&format!("{} has not the role", host.nodename()))),
        Identity::User(_) => Err(bad(&"a person's certificate")),
    }
}

/// An idle connection must neither be forgotten by address translators nor outlive its peer.
fn keep_alive(tls: &Tls) -> std::io::Result<()> {
    use rustix::net::sockopt;
    let socket = tls.get_ref().0.get_ref().get_ref();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(socket, KEEP_ALIVE_AGAIN)?;
    sockopt::set_tcp_keepcnt(socket, KEEP_ALIVE_TRIES)?;
    Ok(())
}

/// The idle connections of one control stream. Dropping it closes them.
pub(super) struct Pool {
    dialer: Arc<Dialer>,
    sink: mpsc::Sender<Incoming>,
    /// Being dialed or idle.
    waiting: JoinSet<Waited>,
    /// How many the proxy wants to find idle at any time, and how many more it asked for just now.
    idle: usize,
    extra: usize,
    dials: Arc<Semaphore>,
    handing_over: Arc<Semaphore>,
    backoff: Backoff,
    dial_not_before: Instant,
    closed: bool,
}

/// What became of a data connection.
struct Waited {
    idle_for: Duration,
    outcome: Result<Box<(Tls, Open, HostIdentity)>, TunnelError>,
}

impl Pool {
    pub(super) fn new(dialer: Arc<Dialer>, sink: mpsc::Sender<Incoming>, idle: u32) -> Self {
        Self {
            dialer,
            sink,
            waiting: JoinSet::new(),
            idle: usize::try_from(idle).unwrap_or(usize::MAX).min(IDLE_MAX),
            extra: 0,
            dials: Arc::new(Semaphore::new(DIALS_MAX)),
            handing_over: Arc::new(Semaphore::new(HANDING_OVER_MAX)),
            backoff: Backoff::new(REDIAL_WAIT_FIRST, REDIAL_WAIT_MAX),
            dial_not_before: Instant::now(),
            closed: false,
        }
    }

    /// The proxy has streams waiting.
    pub(super) fn need(&mut self, count: u32) {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.extra = self.extra.saturating_add(count).min(IDLE_MAX);
    }

    /// No more streams; those handed over go on.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.waiting.abort_all();
    }

    /// Fills up and waits for one thing to happen. May be dropped at any time.
    pub(super) async fn turn(&mut self) {
        let may_dial = self.fill();
        let handing_over = self.handing_over.clone();
        tokio::select! {
            Some(waited) = self.waiting.join_next() => {
                if let Ok(waited) = waited {
                    self.take(waited);
                }
            }
            () = sleep_until(self.dial_not_before.into()), if !may_dial => {}
            // Streams that the sink delays hold up new ones; one has been taken.
            _ = handing_over.acquire(), if handing_over.available_permits() == 0 => {}
            else => std::future::pending().await,
        }
    }

    /// Dials what is missing. False when that has to wait for `dial_not_before`.
    fn fill(&mut self) -> bool {
        let wanted = self.idle.saturating_add(self.extra);
        if self.closed || self.waiting.len() >= wanted {
            return true;
        }
        if Instant::now() < self.dial_not_before {
            return false;
        }
        if self.handing_over.available_permits() > 0 {
            while self.waiting.len() < wanted {
                self.waiting.spawn(wait_for_open(self.dialer.clone(), self.dials.clone()));
            }
        }
        true
    }

    fn take(&mut self, waited: Waited) {
        self.extra = self.extra.saturating_sub(1);
        match waited.outcome {
            Ok(opened) => {
                self.backoff.reset();
                let (tls, open, proxy) = *opened;
                self.hand_over(tls, open, proxy);
            }
            Err(error) => {
                tracing::debug!(proxy = self.dialer.proxy(), "a data connection ended: {error}");
                if waited.idle_for >= super::PROVEN_AFTER {
                    self.backoff.reset();
                }
                let wait = self.backoff.next(u64::from_ne_bytes(crate::random()));
                self.dial_not_before =
                    Instant::now().checked_add(wait).unwrap_or_else(Instant::now);
            }
        }
    }

    /// In a task of its own: it outlives the control stream.
    fn hand_over(&self, tls: Tls, open: Open, proxy: HostIdentity) {
        // Without a permit the connection is closed, which the proxy sees.
        let Ok(permit) = self.handing_over.clone().try_acquire_owned() else { return };
        let sink = self.sink.clone();
        tokio::spawn(async move {
            let trace = open.trace.clone();
            if let Err(error) = hand_over(tls, open, proxy, sink).await {
                tracing::warn!(trace, "a stream was lost while it was opened: {error}");
            }
            drop(permit);
        });
    }
}

async fn wait_for_open(dialer: Arc<Dialer>, dials: Arc<Semaphore>) -> Waited {
    let dialed = {
        // The semaphore is never closed; if it were, dialing unbounded by it would be no harm.
        let _permit = dials.acquire().await.ok();
        dialer.dial(ALPN_STREAM).await
    };
    let begun = Instant::now();
    let outcome = match dialed {
        Ok((mut tls, proxy)) => frame::read_when_begun(&mut tls, FRAME_WITHIN)
            .await
            .map(|open| Box::new((tls, open, proxy)))
            .map_err(TunnelError::from),
        Err(error) => Err(error),
    };
    Waited { idle_for: begun.elapsed(), outcome }
}

/// A place in the sink first, then the answer: a stream that was accepted is never dropped for want of one.
async fn hand_over(
    mut tls: Tls,
    open: Open,
    proxy: HostIdentity,
    sink: mpsc::Sender<Incoming>,
) -> Result<(), TunnelError> {
    let refusal = |reason, message: &str| Reply::Refused { reason, message: message.into() };
    if open.version != VERSION {
        let reply = refusal(Refusal::Version, "proxy and node speak different versions");
        return Ok(frame::write(&mut tls, &reply, FRAME_WITHIN).await?);
    }
    let Ok(Ok(place)) = timeout(SINK_WITHIN, sink.reserve()).await else {
        let reply = refusal(Refusal::Limit, "the node takes no more streams at the moment");
        return Ok(frame::write(&mut tls, &reply, FRAME_WITHIN).await?);
    };
    frame::write(&mut tls, &Reply::Ok { inner: open.inner }, FRAME_WITHIN).await?;
    let stream = Stream::after_reply(tls, open.inner)
        .map_err(|_| TunnelError::Protocol("bytes behind its request"))?;
    place.send(Incoming { open, stream, proxy });
    Ok(())
}

/// Idle connections, whatever the proxy asks for: memory, and descriptors at both ends.
const IDLE_MAX: usize = 256;
/// Handshakes at once: a proxy that restarts is not met by all of a pool in one moment.
const DIALS_MAX: usize = 16;
/// Streams between the proxy's request and the sink.
const HANDING_OVER_MAX: usize = 64;
/// A stream waits so long for a busy node; the user's client waits longer.
const SINK_WITHIN: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_AGAIN: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TRIES: u32 = 3;
