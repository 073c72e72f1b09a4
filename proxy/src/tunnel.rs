//! A node's side of the register: its control stream, and the data connections it brings. Who the node is, its
//! certificate says; what it says itself is labels only. Called by [`crate::serve`]; fills [`crate::register`].

use std::task::{Context, Waker};
use std::time::Duration;

use net::frame::{self, FrameIoError};
use net::shutdown::Shutdown;
use pki::HostIdentity;
use proto::preamble::{FromNode, FromProxy, HEARTBEAT_SECONDS, VERSION};
use relay::tls::TlsStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::Core;
use crate::listen::Admission;
use crate::register::{Data, Facts, Registration};

/// An authenticated data connection that waits for its stream.
#[derive(Debug)]
pub(crate) struct Idle(pub(crate) TlsStream);

impl Data for Idle {
    /// A node says nothing before it is asked, so anything to read means the end.
    fn is_alive(&self) -> bool {
        if self.0.has_read_ahead() {
            return false;
        }
        let mut byte = [0];
        let socket = self.0.socket();
        let mut context = Context::from_waker(Waker::noop());
        socket.poll_peek(&mut context, &mut ReadBuf::new(&mut byte)).is_pending()
    }
}

/// Why a tunnel ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    #[error("the node's certificate has expired")]
    Expired,
    #[error(transparent)]
    Frame(#[from] FrameIoError),
    #[error("the node speaks protocol version {0}; this build speaks {VERSION}")]
    Version(u32),
    #[error("the node calls itself by another id than its certificate")]
    OtherHost,
    #[error("the node's first message is not its greeting, or a greeting comes again")]
    Greeting,
    #[error("the node takes no messages")]
    Stuck,
    #[error("there are too many tunnels")]
    TooMany,
}

/// Keeps a control stream until its end.
pub(crate) async fn control(
    core: &Core,
    mut tls: TlsStream,
    node: HostIdentity,
    deadline: Instant,
    admission: Option<Admission>,
) -> Result<(), TunnelError> {
    let within = deadline.saturating_duration_since(Instant::now());
    let facts = greeting(frame::read(&mut tls, within).await?, &node)?;
    let (messages, queue) = mpsc::channel(MESSAGES_MAX);
    // Before the welcome: the node may bring data connections as soon as it has read that.
    let registration = core.register.enter(facts, messages.clone()).ok_or(TunnelError::TooMany)?;
    let welcome = FromProxy::Welcome { version: VERSION, pool: core.config.limits.pool_wanted };
    frame::write(&mut tls, &welcome, MESSAGE_WITHIN).await?;
    drop(admission);
    info!(node = %node.nodename(), host_id = %node.host_id(), "a tunnel stands");
    let (reader, writer) = tokio::io::split(tls);
    let end = tokio::select! {
        end = listen(reader, &registration, messages) => end,
        end = speak(writer, queue, &core.shutdown, || core.is_replaced()) => end,
        () = expiry(&node) => Err(TunnelError::Expired),
        () = registration.replaced.cancelled() => Ok(()),
    };
    info!(node = %node.nodename(), host_id = %node.host_id(), ?end, "a tunnel ended");
    match end {
        Err(TunnelError::Frame(FrameIoError::Closed)) => Ok(()),
        end => end,
    }
}

/// Takes a data connection into the register.
pub(crate) fn data(core: &Core, tls: TlsStream, node: &HostIdentity) {
    if !core.register.offer(node.host_id(), Idle(tls)) {
        debug!(node = %node.nodename(), "a data connection has no tunnel, or is one too many");
    }
}

fn greeting(message: FromNode, node: &HostIdentity) -> Result<Facts, TunnelError> {
    match message {
        FromNode::Hello { version, .. } if version != VERSION => Err(TunnelError::Version(version)),
        FromNode::Hello { host_id, .. } if &host_id != node.host_id() => {
            Err(TunnelError::OtherHost)
        }
        FromNode::Hello { labels, .. } => Ok(Facts {
            host_id: node.host_id().clone(),
            nodename: node.nodename().clone(),
            labels,
            draining: false,
        }),
        FromNode::Heartbeat { .. } | FromNode::Draining => Err(TunnelError::Greeting),
    }
}

/// Reads what the node says; silence for three heartbeats is the end.
async fn listen(
    mut reader: impl AsyncRead + Unpin,
    registration: &Registration<Idle>,
    answers: mpsc::Sender<FromProxy>,
) -> Result<(), TunnelError> {
    loop {
        match frame::read(&mut reader, SILENCE_MAX).await? {
            FromNode::Heartbeat { labels } => {
                registration.heartbeat(labels);
                answers.try_send(FromProxy::Alive).map_err(|_| TunnelError::Stuck)?;
            }
            FromNode::Draining => registration.drain(),
            FromNode::Hello { .. } => return Err(TunnelError::Greeting),
        }
    }
}

/// Writes what the node is told, and that the proxy goes away when it does.
async fn speak(
    mut writer: impl AsyncWrite + Unpin,
    mut messages: mpsc::Receiver<FromProxy>,
    shutdown: &Shutdown,
    replaced: impl Fn() -> bool,
) -> Result<(), TunnelError> {
    let mut told = false;
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            () = shutdown.draining(), if !told => {
                told = true;
                Some(FromProxy::Draining { retry_after_ms: retry_after_ms(replaced(), net::random()) })
            }
        };
        let Some(message) = message else { return Ok(()) };
        frame::write(&mut writer, &message, MESSAGE_WITHIN).await?;
    }
}

/// Spreads the nodes' return: over some seconds, or over the second in which a new process waits for them.
fn retry_after_ms(replaced: bool, random: [u8; 8]) -> u64 {
    let (least, spread) = if replaced {
        (0, REPLACED_MS_SPREAD)
    } else {
        (RETRY_AFTER_MS_MIN, RETRY_AFTER_MS_SPREAD)
    };
    least.saturating_add(u64::from_be_bytes(random) % spread)
}

/// Ends with the certificate: a node that is still a member comes back with its next one.
async fn expiry(node: &HostIdentity) {
    let left = node.valid_until().saturating_sub(net::unix_now());
    tokio::time::sleep(Duration::from_secs(u64::try_from(left).unwrap_or(0))).await;
}

/// Three heartbeats.
const SILENCE_MAX: Duration = Duration::from_secs(HEARTBEAT_SECONDS * 3);
/// A message is one record; a node that takes none for so long is stuck.
const MESSAGE_WITHIN: Duration = Duration::from_secs(10);
/// Requests and answers not written yet. More at once say nothing that fewer do not.
const MESSAGES_MAX: usize = 64;
/// A restart takes about this long.
const RETRY_AFTER_MS_MIN: u64 = 500;
/// A new process listens already.
const REPLACED_MS_SPREAD: u64 = 1000;
/// Some thousand nodes come back at a pace that handshakes can keep up with.
const RETRY_AFTER_MS_SPREAD: u64 = 5000;
