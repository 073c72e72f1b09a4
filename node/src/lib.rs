//! The agent beside a target: ends the user's protocol (SSH today), decides access with the local policy snapshot,
//! records. Dials out through the tunnel; nothing here listens. Does not sign, does not store for others, and asks no
//! other machine while a session opens.
//!
//! The path of a stream, in order:
//! - [`context`]: what all of it needs to know
//! - [`ssh`]: the server; within it sign-in, channels, programs, forwards
//! - [`admit`]: may this identity, here, now; the only maker of a session
//! - [`session`]: what was permitted, and its numbered events
//! - [`rules`]: what sessions must not do, when roles change
//! - [`audit`]: where events go
//! - [`account`], [`environment`]: the target user
//! - [`recorder`]: asciicast files while they are made
//! - [`upload`]: finished recordings on their way to auth
//! - [`heartbeat`]: tells auth that we are there
//! - [`sftp`]: the file transfer server, a child with the user's rights
//! - [`sys`]: the only `unsafe`
#![deny(unsafe_code)]

mod account;
mod admit;
mod audit;
mod context;
mod environment;
mod heartbeat;
mod recorder;
mod rules;
mod session;
mod sftp;
mod ssh;
mod sys;
mod upload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use capture::Capture;
use net::host::Host;
use net::policy_feed::PolicyFeed;
use net::shutdown::Shutdown;
use net::spool::{Spool, SpoolError};
use net::tunnel::{Incoming, State};
use policy::Policy;
use policy::decide::NodeFacts;
use proto::preamble::Service;
use proto::resource::Labels;
use russh::keys::Certificate;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::account::Serves;
use crate::context::{Client, HostKey, HostKeySource, NodeContext};
use crate::environment::AllowList;
use crate::recorder::Recorder;
use crate::session::Restored;

pub use environment::default_allow as environment_allow_default;
pub use sftp::main as sftp_child_main;

/// What the daemon tells a node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Private folder of this role: `<data_dir>/node`. Recordings wait in `recordings` below it.
    pub data_dir: PathBuf,
    pub labels: Labels,
    /// `host:port` of the proxy to keep a tunnel to.
    pub proxy: String,
    /// Environment variables that clients may send: names, or prefixes that end in `*`.
    pub environment_allow: Vec<String>,
    /// Our own binary, which knows the subcommand `sftp-server`: `/proc/self/exe`, as the child resolves it.
    pub shell_helper: PathBuf,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("cannot use {path}")]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the accounts of this machine cannot be looked up")]
    Accounts(#[source] std::io::Error),
    #[error("the recorder cannot start")]
    Recorder(#[source] std::io::Error),
    #[error("the sessions of the last run cannot be ended in the audit log")]
    Recovery(#[source] std::io::Error),
    #[error("the audit spool cannot be used")]
    Spool(#[from] SpoolError),
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    context: Arc<NodeContext>,
    state: watch::Receiver<State>,
    tasks: TaskTracker,
}

impl Node {
    /// Whether the tunnel stands.
    pub fn tunnel_state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }
    /// Sessions and forwarded connections running now.
    pub fn sessions(&self) -> usize {
        self.context.sessions.load(Ordering::Relaxed)
    }
    /// What the kernel tells of sessions, for people: `tier A`, `tier B`, or why nothing.
    pub fn capture(&self) -> String {
        let capture = &self.context.capture;
        match (capture.tier(), capture.failure()) {
            (Some(tier), _) => format!("tier {}", tier.name()),
            (None, Some(failure)) => format!("nothing: {}", heartbeat::kernel::why(failure)),
            (None, None) => "nothing".to_owned(),
        }
    }
    /// Waits until everything has ended after [`Shutdown::stop`].
    pub async fn finished(self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.context.capture.leave().await;
    }
}

/// Starts a node: ends what a crash left open, dials the proxy, serves what arrives.
///
/// # Errors
/// See [`NodeError`].
pub async fn start(
    config: NodeConfig,
    host: Host,
    policy: PolicyFeed<Policy>,
    spool: Spool,
    shutdown: Shutdown,
) -> Result<Node, NodeError> {
    let recordings = config.data_dir.join("recordings");
    net::file::private_dir(&recordings)
        .map_err(|source| NodeError::Folder { path: recordings.clone(), source })?;
    upload::recover(&recordings, &spool).await.map_err(NodeError::Recovery)?;
    let serves = Serves::probe().map_err(NodeError::Accounts)?;
    if let Serves::OnlyOwnUser(name) = &serves {
        tracing::warn!(user = %name, "without root this node serves only its own user");
    }
    let credentials = host.credentials();
    let audit: Arc<dyn audit::Audit> = Arc::new(spool);
    let capture = capture(&config.data_dir, credentials.host_id.as_str(), &audit);
    let context = Arc::new(NodeContext {
        facts: NodeFacts {
            host_id: credentials.host_id.clone(),
            nodename: credentials.nodename.clone(),
            labels: config.labels.clone(),
        },
        policy: policy.watch(),
        host_key: host_key(host.clone()),
        audit,
        recorder: Recorder::open(recordings.clone()).map_err(NodeError::Recorder)?,
        capture,
        finished_recordings: Arc::new(Notify::new()),
        serves,
        environment_allow: AllowList::new(config.environment_allow),
        helper: config.shell_helper,
        sessions: AtomicUsize::new(0),
        shutdown: shutdown.clone(),
    });
    let tasks = TaskTracker::new();
    let (state_sender, state) = watch::channel(State::Connecting);
    let (sink, incoming) = mpsc::channel(STREAMS_WAITING);
    let (labels_sender, labels) = watch::channel(config.labels);
    let tunnel_host = host.clone();
    let of_tunnel = shutdown.clone();
    tasks.spawn(async move {
        // Labels do not change while a node runs; the sender lives as long as the tunnel.
        let _labels = labels_sender;
        net::tunnel::run(config.proxy, tunnel_host, labels, sink, state_sender, of_tunnel).await;
    });
    tasks.spawn(serve_streams(context.clone(), incoming));
    tasks.spawn(rules::follow(context.clone()));
    tasks.spawn(heartbeat::run(context.clone(), host.auth(), policy.reached(), shutdown.clone()));
    let finished = context.finished_recordings.clone();
    tasks.spawn(upload::run(recordings, host.auth(), finished, shutdown));
    Ok(Node { context, state, tasks })
}

/// What sessions do, from the kernel; those that go on after a node before us, too.
fn capture(data_dir: &Path, host_id: &str, audit: &Arc<dyn audit::Audit>) -> Capture {
    let home = capture::Home {
        name: host_id.to_owned(),
        folder: data_dir.join("capture"),
        programs: capture::PROGRAMS,
    };
    let audit = Arc::clone(audit);
    Capture::start(Some(&home), &move |facts| Arc::new(Restored::new(facts, Arc::clone(&audit))))
}

/// Gives each arriving stream to its engine, in a task of its own.
async fn serve_streams(context: Arc<NodeContext>, mut incoming: mpsc::Receiver<Incoming>) {
    let streams = TaskTracker::new();
    let places = Arc::new(Semaphore::new(STREAMS_MAX));
    loop {
        let arrived = tokio::select! {
            arrived = incoming.recv() => arrived,
            () = context.shutdown.stopped() => None,
        };
        let Some(Incoming { open, stream, proxy }) = arrived else { break };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(limit = STREAMS_MAX, "a stream was refused: too many at once");
            continue;
        };
        tracing::debug!(trace = %open.trace, proxy = %proxy.nodename(), "stream");
        let context = context.clone();
        match open.service {
            Service::Ssh => streams.spawn(async move {
                let _place = place;
                let client = Client::new(&open.client_addr, &open.trace);
                ssh::serve(context, client, stream).await;
            }),
        };
    }
    streams.close();
    streams.wait().await;
}

fn host_key(host: Host) -> HostKeySource {
    HostKeySource::new(move || {
        let credentials = host.credentials();
        let certificate = Certificate::from_openssh(&credentials.ssh_certificate)
            .map_err(|error| error.to_string())?;
        Ok(HostKey { key: credentials.keys.ssh().clone(), certificate })
    })
}

/// Streams at once. Each costs a socket and some 100 KiB; a machine that needs more is a bastion, not a node.
const STREAMS_MAX: usize = 4096;
/// Streams that have arrived and wait for a task: they do not wait long.
const STREAMS_WAITING: usize = 16;
