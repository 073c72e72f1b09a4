//! The map of the public port's main path: sniff > route > handshake > user, tunnel or web. One task per connection,
//! one deadline from accept to the client's whole request. Called for each connection that [`crate::listen`] lets in.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use relay::Leg;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::Core;
use crate::handshake::{HandshakeError, Peer};
use crate::listen::{Admission, Source, prepare};
use crate::route::{Route, route};
use crate::sniff::{Hello, SniffError, sniff};
use crate::tunnel::{self, TunnelError};
use crate::user::{self, UserError};
use crate::web::{self, WebError};
use crate::{handshake, stray};

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("auth cannot be reached")]
    Auth(#[source] io::Error),
    #[error("the handshake failed")]
    Handshake(#[from] HandshakeError),
    #[error("{0}")]
    Limit(&'static str),
    #[error("nothing here speaks what the connection asks for")]
    Protocol,
    #[error("the connection does not begin as one of ours")]
    Sniff(#[from] SniffError),
    #[error("the request was not made in time")]
    TimedOut,
    #[error("the tunnel ended")]
    Tunnel(#[from] TunnelError),
    #[error("the stream ended before it began")]
    User(#[from] UserError),
    #[error("the web request failed")]
    Web(#[from] WebError),
}

impl ServeError {
    /// For metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Auth(_) => "auth",
            Self::Handshake(HandshakeError::Identity(error)) => error.kind(),
            Self::Handshake(_) => "handshake",
            Self::Limit(_) => "limit",
            Self::Protocol => "protocol",
            Self::Sniff(_) => "sniff",
            Self::TimedOut => "timed_out",
            Self::Tunnel(_) => "tunnel",
            Self::User(_) => "user",
            Self::Web(_) => "web",
        }
    }
}

/// Serves one connection until its end.
pub(crate) async fn serve(
    core: &Core,
    mut socket: TcpStream,
    from: SocketAddr,
    admission: Admission,
) -> Result<(), ServeError> {
    let deadline = Instant::now() + core.config.limits.request_within;
    let sniffed = timeout_at(deadline, sniff(&mut socket)).await;
    let (hello, bytes) = match sniffed.map_err(|_| ServeError::TimedOut)? {
        Ok(sniffed) => sniffed,
        Err(error) => return Err(turn_away(core, socket, error).await),
    };
    match route(&hello, &core.cluster) {
        Route::Auth => to_auth(core, socket, bytes, from, admission).await,
        Route::Peer => {
            let current = core.policy.current();
            let handshake = core.tls.peer(socket, bytes, &current);
            let (tls, peer) = in_time(deadline, handshake).await?;
            drop(current);
            match peer {
                Peer::NodeControl(node) => {
                    tunnel::control(core, tls, node, deadline, admission).await?;
                }
                Peer::NodeData(node) => tunnel::data(core, tls, &node),
                Peer::User(identity) => {
                    user::serve(core, tls, identity, from, deadline, admission).await?;
                }
            }
            Ok(())
        }
        Route::Refused => refuse(socket, &hello).await,
        Route::Web => {
            let tls = in_time(deadline, core.tls.web(socket, bytes)).await?;
            Ok(web::serve(core, tls, deadline).await?)
        }
    }
}

async fn in_time<T>(
    deadline: Instant,
    handshake: impl Future<Output = Result<T, handshake::HandshakeError>>,
) -> Result<T, ServeError> {
    Ok(timeout_at(deadline, handshake).await.map_err(|_| ServeError::TimedOut)??)
}

async fn turn_away(core: &Core, socket: TcpStream, error: SniffError) -> ServeError {
    match error {
        SniffError::Http => stray::http(socket, &core.config.public_addr).await,
        SniffError::Ssh => {
            let jump = core.config.ssh_jump_listen.map(|_| core.config.ssh_public_addr.as_str());
            stray::ssh(socket, jump.unwrap_or_default()).await;
        }
        SniffError::Io(_) | SniffError::Malformed | SniffError::Unknown => {}
    }
    error.into()
}

async fn refuse(socket: TcpStream, hello: &Hello) -> Result<(), ServeError> {
    tracing::trace!(?hello, "nothing here speaks this");
    stray::tls(socket).await;
    Err(ServeError::Protocol)
}

/// Relays to auth what has been read and all that follows: TLS ends there, and so does every question of identity.
async fn to_auth(
    core: &Core,
    client: TcpStream,
    hello: Bytes,
    from: SocketAddr,
    admission: Admission,
) -> Result<(), ServeError> {
    let limits = &core.config.limits;
    let _of_source = core
        .auth_sources
        .enter(&Source::of(from), limits.auth_streams_per_source_max)
        .ok_or(ServeError::Limit("one source has too many connections to auth"))?;
    let _of_all = core
        .auth_streams
        .try_acquire()
        .map_err(|_| ServeError::Limit("there are too many connections to auth"))?;
    let target = timeout(AUTH_WITHIN, TcpStream::connect(&core.config.auth_address))
        .await
        .unwrap_or_else(|elapsed| Err(elapsed.into()))
        .and_then(|socket| prepare(&socket).map(|()| socket))
        .map_err(ServeError::Auth)?;
    drop(admission);
    let client = Leg::Socket { socket: client, pending: hello };
    let target = Leg::Socket { socket: target, pending: Bytes::new() };
    let idle = relay::Limits { idle_timeout: Some(limits.stream_idle) };
    let outcome = core.relay.run(core.relay.next_id(), client, target, idle).await;
    tracing::debug!(%from, end = ?outcome.end, "a connection to auth ended");
    Ok(())
}

/// Auth is near the proxy.
const AUTH_WITHIN: Duration = Duration::from_secs(5);
