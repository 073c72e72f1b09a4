//! A node's tunnel to a proxy: one control stream and a pool of idle, already authenticated data connections, each of
//! which carries one proxied stream. Redialed with jitter after the proxy dies or the network drops.
//! This file keeps the control stream; how data connections come to be and are handed over is [`pool`]'s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pki::HostIdentity;
use proto::preamble::{ALPN_TUNNEL, FromNode, FromProxy, HEARTBEAT_SECONDS, Open, VERSION};
use proto::resource::Labels;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::backoff::Backoff;
use crate::dial::DialError;
use crate::frame::{self, FrameIoError};
use crate::host::Host;
use crate::shutdown::Shutdown;
use crate::stream::Stream;
use crate::tunnel::pool::{Dialer, Pool};

mod pool;
#[cfg(test)]
mod tests;

/// A proxied stream that arrived; the reply has been sent, TLS has been left if it was to be.
#[derive(Debug)]
pub struct Incoming {
    pub open: Open,
    pub stream: Stream,
    /// The proxy that sent it, by its certificate.
    pub proxy: HostIdentity,
}

/// Whether the tunnel stands, for readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Connected,
    Connecting,
}

/// Keeps the tunnel to `proxy` (`host:port`) until `shutdown` stops; tells the proxy when it drains.
/// A full `sink` delays taking new streams, never loses one silently.
pub async fn run(
    proxy: String,
    host: Host,
    labels: watch::Receiver<Labels>,
    sink: mpsc::Sender<Incoming>,
    state: watch::Sender<State>,
    shutdown: Shutdown,
) {
    let tunnel = Tunnel {
        dialer: Arc::new(Dialer::new(proxy, host)),
        labels,
        sink,
        state,
        shutdown: shutdown.clone(),
    };
    tokio::select! {
        () = shutdown.stopped() => {}
        () = tunnel.keep() => {}
    }
}

/// Why a control stream ended.
#[derive(Debug, thiserror::Error)]
enum TunnelError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the control stream ended")]
    Frame(#[from] FrameIoError),
    #[error("whoever answers is no proxy of this cluster: {0}")]
    Identity(String),
    #[error("the proxy drains")]
    ProxyDrains { retry_after: Duration },
    #[error("the proxy breaks the protocol: {0}")]
    Protocol(&'static str),
    #[error("this machine's credentials cannot be used: {0}")]
    Credentials(String),
}

struct Tunnel {
    dialer: Arc<Dialer>,
    labels: watch::Receiver<Labels>,
    sink: mpsc::Sender<Incoming>,
    state: watch::Sender<State>,
    shutdown: Shutdown,
}

impl Tunnel {
    /// One control stream after the other.
    async fn keep(&self) {
        let mut backoff = Backoff::new(REDIAL_WAIT_FIRST, REDIAL_WAIT_MAX);
        loop {
            self.state.send_replace(State::Connecting);
            if self.shutdown.is_draining() {
                return;
            }
            let begun = Instant::now();
            let Err(error) = self.session().await;
            self.state.send_replace(State::Connecting);
            if begun.elapsed() >= PROVEN_AFTER {
                backoff.reset();
            }
            tracing::warn!(proxy = self.dialer.proxy(), "no tunnel: {}", told(&error));
            if let TunnelError::ProxyDrains { retry_after } = error {
                // It said when to come back, which is no failure: no further wait.
                backoff.reset();
                tokio::select! {
                    () = sleep(retry_after.min(DRAIN_WAIT_MAX)) => {}
                    () = self.shutdown.draining() => {}
                }
                continue;
            }
            tokio::select! {
                () = backoff.wait() => {}
                () = self.shutdown.draining() => {}
            }
        }
    }

    /// From dialing to the end of the control stream, and with it of the idle data connections.
    async fn session(&self) -> Result<std::convert::Infallible, TunnelError> {
        let (mut control, proxy) = self.dialer.dial(ALPN_TUNNEL).await?;
        let hello = FromNode::Hello {
            version: VERSION,
            host_id: self.dialer.credentials().host_id.clone(),
            nodename: self.dialer.credentials().nodename.clone(),
            labels: self.labels.borrow().clone(),
        };
        frame::write(&mut control, &hello, FRAME_WITHIN).await?;
        let idle = match frame::read(&mut control, FRAME_WITHIN).await? {
            FromProxy::Welcome { version: VERSION, pool } => pool,
            FromProxy::Welcome { .. } => return Err(TunnelError::Protocol("its version")),
            FromProxy::Alive | FromProxy::Draining { .. } | FromProxy::Need { .. } => {
                return Err(TunnelError::Protocol("no welcome"));
            }
        };
        tracing::info!(proxy = self.dialer.proxy(), by = %proxy.host_id(), "the tunnel stands");
        self.state.send_replace(State::Connected);
        let pool = Pool::new(self.dialer.clone(), self.sink.clone(), idle);
        let (reader, writer) = tokio::io::split(control);
        // Reading has a task of its own: a frame that was half read must not be dropped.
        let (heard, messages) = mpsc::channel(MESSAGES_MAX);
        tokio::select! {
            Err(error) = listen(reader, heard) => Err(error),
            outcome = self.serve(writer, messages, pool) => outcome,
        }
    }

    /// Answers the proxy's messages and keeps the pool full.
    async fn serve(
        &self,
        mut writer: impl AsyncWrite + Unpin,
        mut messages: mpsc::Receiver<FromProxy>,
        mut pool: Pool,
    ) -> Result<std::convert::Infallible, TunnelError> {
        let mut heartbeat = interval(Duration::from_secs(HEARTBEAT_SECONDS));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining = false;
        loop {
            tokio::select! {
                () = self.shutdown.draining(), if !draining => {
                    draining = true;
                    pool.close();
                    frame::write(&mut writer, &FromNode::Draining, FRAME_WITHIN).await?;
                }
                _ = heartbeat.tick() => {
                    let labels = self.labels.borrow().clone();
                    frame::write(&mut writer, &FromNode::Heartbeat { labels }, FRAME_WITHIN).await?;
                }
                message = messages.recv() => match message {
                    None => return Err(FrameIoError::Closed.into()),
                    Some(FromProxy::Alive) => {}
                    Some(FromProxy::Draining { retry_after_ms }) => {
                        let retry_after = Duration::from_millis(retry_after_ms);
                        return Err(TunnelError::ProxyDrains { retry_after });
                    }
                    Some(FromProxy::Need { count }) => pool.need(count),
                    Some(FromProxy::Welcome { .. }) => {
                        return Err(TunnelError::Protocol("a second welcome"));
                    }
                },
                () = pool.turn() => {}
            }
        }
    }
}

/// Reads messages until the stream ends or has been silent for too long: each heartbeat is answered.
async fn listen(
    mut reader: impl AsyncRead + Unpin,
    heard: mpsc::Sender<FromProxy>,
) -> Result<std::convert::Infallible, TunnelError> {
    loop {
        let message = frame::read(&mut reader, SILENCE_MAX).await?;
        // A proxy that sends faster than this node acts waits here, by TCP.
        timeout(SILENCE_MAX, heard.send(message))
            .await
            .map_err(|_| FrameIoError::TimedOut(SILENCE_MAX))?
            .map_err(|_| FrameIoError::Closed)?;
    }
}

/// With all causes.
fn told(error: &TunnelError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

const REDIAL_WAIT_FIRST: Duration = Duration::from_millis(100);
const REDIAL_WAIT_MAX: Duration = Duration::from_secs(30);
/// A control stream that lived so long was a good one: the next failure is a new one.
const PROVEN_AFTER: Duration = Duration::from_secs(10);
/// For one frame on a stream that stands.
const FRAME_WITHIN: Duration = Duration::from_secs(10);
/// Three heartbeats without an answer.
const SILENCE_MAX: Duration = Duration::from_secs(3 * HEARTBEAT_SECONDS);
/// Whatever a draining proxy says, a node does not stay away longer.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(60);
/// Messages read but not yet acted upon.
const MESSAGES_MAX: usize = 16;
