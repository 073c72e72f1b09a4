//! The node's SSH server: one connection per proxied stream. [`serve`] is the map; each step is a file.
//!
//! - [`cut`]: a stream that can be cut from outside
//! - [`connection`]: what the parts of one connection share; when it must end
//! - [`auth`]: certificate in, admitted person out, or a refusal with its event
//! - [`handler`]: russh's callbacks
//! - [`session_channel`]: a shell, a command or sftp: decided, recorded, started
//! - [`process`]: the program as the target user
//! - [`pty`], [`fd`]: terminals and pipes
//! - [`relay`]: bytes between channel and program
//! - [`sftp`]: the parent's half of file transfer
//! - [`forward`]: `-L` and `-D`
//!
//! Known limit: russh 0.65 opens a channel's window when data arrives, not when it is used. A program that does not read
//! its input while the client sends stalls its connection (not others) once [`relay`]'s queue is full.

pub(crate) mod auth;
pub(crate) mod connection;
pub(crate) mod cut;
pub(crate) mod fd;
pub(crate) mod forward;
pub(crate) mod handler;
pub(crate) mod process;
pub(crate) mod pty;
pub(crate) mod relay;
pub(crate) mod session_channel;
pub(crate) mod sftp;
#[cfg(test)]
pub(crate) mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use russh::server::{Config, Handle};
use russh::{Disconnect, MethodKind, MethodSet, Preferred, SshId, cipher, compression, keys};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::context::{Client, NodeContext};
use crate::ssh::connection::{Connection, Cut};
use crate::ssh::cut::CutStream;
use crate::ssh::handler::Handler;

/// Serves one connection to its end. russh runs it in a task of its own, so a panic there ends this connection only.
pub(crate) async fn serve<S>(node: Arc<NodeContext>, client: Client, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = match config(&node) {
        Ok(config) => Arc::new(config),
        Err(error) => {
            tracing::error!(%error, "no SSH connection possible: the host key cannot be used");
            return;
        }
    };
    let grace_end = Instant::now() + LOGIN_GRACE;
    let hard_cut = CancellationToken::new();
    let _cut_at_the_end = hard_cut.clone().drop_guard();
    let connection = Arc::new(Connection::new(node, client));
    let handler = Handler::new(connection.clone());
    let stream = CutStream::new(stream, hard_cut.clone());
    let running = timeout_at(grace_end, russh::server::run_stream(config, stream, handler)).await;
    let Ok(Ok(mut running)) = running else { return };
    let handle = running.handle();
    let over = tokio::select! {
        _ = &mut running => true,
        cut = connection.until_cut(grace_end) => {
            say_goodbye(&connection, &handle, cut).await;
            false
        }
    };
    if over {
        connection.left.cancel();
    }
    connection.tasks.close();
    if timeout(TASKS_END_MAX, connection.tasks.wait()).await.is_err() {
        tracing::error!(trace = %connection.client.trace, "a session's task did not end in time");
    }
    if !over {
        // A client that goes by itself saw why; one that does not is cut.
        if timeout(GOODBYE_MAX, &mut running).await.is_err() {
            hard_cut.cancel();
            if timeout(GOODBYE_MAX, running).await.is_err() {
                tracing::warn!(trace = %connection.client.trace, "a cut connection lingers");
            }
        }
    }
    auth::note_silent_failure(&connection).await;
}

/// Records why, ends what runs, and lets the client read why.
async fn say_goodbye(connection: &Connection, handle: &Handle, cut: Cut) {
    connection.record_cut(&cut).await;
    // First: a client that goes once it reads this must not look like one that went by itself.
    connection.cut.cancel();
    let message = cut.client_message().to_owned();
    let sent = handle.disconnect(Disconnect::ByApplication, message, String::new());
    if !matches!(timeout(GOODBYE_MAX, sent).await, Ok(Ok(()))) {
        tracing::debug!(trace = %connection.client.trace, "the client was not told why");
    }
}

fn config(node: &NodeContext) -> Result<Config, String> {
    let host = node.host_key.current()?;
    Ok(Config {
        server_id: SshId::Standard(Cow::Owned(format!("SSH-2.0-Postern_{}", proto::VERSION))),
        // Keyboard-interactive asks nothing: it is how a refused person reads why.
        methods: MethodSet::from(&[MethodKind::PublicKey, MethodKind::KeyboardInteractive][..]),
        // Nothing is guessed here: a certificate either holds or not.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![host.key],
        certificates: vec![host.certificate],
        window_size: WINDOW_BYTES,
        preferred: Preferred {
            key: Cow::Borrowed(&[keys::Algorithm::Ed25519]),
            cipher: Cow::Borrowed(CIPHERS),
            // A compressor per connection costs memory, and the plaintext bound before sign-in.
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        },
        max_auth_attempts: AUTH_ATTEMPTS_MAX,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: KEEPALIVES_MAX,
        ..Config::default()
    })
}

/// GCM first: twice the speed of the rest where the processor has AES.
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];
/// From the first byte to a successful sign-in; nobody types a password here.
const LOGIN_GRACE: Duration = Duration::from_secs(30);
/// An agent's keys, each of which costs one attempt, and the certificate among them.
const AUTH_ATTEMPTS_MAX: usize = 10;
/// 2 MiB in flight: 160 Mbit/s at 100 ms.
const WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// With [`KEEPALIVES_MAX`], a vanished client is noticed after two and a half minutes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVES_MAX: usize = 4;
/// For a client to read a message and go.
const GOODBYE_MAX: Duration = Duration::from_secs(2);
/// Longer than [`process::KILL_AFTER`] and the writing of the last events together.
const TASKS_END_MAX: Duration = Duration::from_secs(60);
