//! The map of the public port's main path behind the door: handshake done > who > user, tunnel or web. One task per
//! connection, one deadline from accept to the client's whole request. Called for each connection that
//! [`crate::door`] gives away.

use std::net::SocketAddr;

use relay::Given;
use relay::tls::TlsStream;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::Core;
use crate::handshake::{HandshakeError, Peer, peer};
use crate::listen::Admission;
use crate::sniff::{SniffError, look};
use crate::stray;
use crate::tunnel::{self, TunnelError};
use crate::user::{self, UserError};
use crate::web::{self, WebError};

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("the address of auth is not known (yet)")]
    AuthUnknown,
    #[error("the handshake failed")]
    Handshake(#[from] HandshakeError),
    #[error("the connection was lost")]
    Io(#[from] std::io::Error),
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
            Self::AuthUnknown => "auth",
            Self::Handshake(HandshakeError::Identity(error)) => error.kind(),
            Self::Handshake(_) => "handshake",
            Self::Io(_) | Self::Sniff(_) => "sniff",
            Self::Limit(_) => "limit",
            Self::Protocol => "protocol",
            Self::TimedOut => "timed_out",
            Self::Tunnel(_) => "tunnel",
            Self::User(_) => "user",
            Self::Web(_) => "web",
        }
    }
}

/// Serves one connection until its end.
pub(crate) async fn serve(core: &Core, given: Given) -> Result<(), ServeError> {
    let Given { socket, from, opening, established, place, deadline } = given;
    let socket = TcpStream::from_std(socket.into())?;
    let deadline = Instant::from_std(deadline);
    let Some(established) = established else {
        return Err(turn_away(core, socket, &opening).await);
    };
    let tls = TlsStream::new(socket, established);
    if !tls.peer_certificates().is_empty() {
        return serve_peer(core, tls, from, deadline, place.downcast().map(|a| *a).ok()).await;
    }
    // Held until the answer is out: browsers show no certificate.
    let served = timeout_at(deadline, web::serve(core, tls, deadline)).await;
    drop(place);
    Ok(served.map_err(|_| ServeError::TimedOut)??)
}

async fn serve_peer(
    core: &Core,
    tls: TlsStream,
    from: SocketAddr,
    deadline: Instant,
    admission: Option<Admission>,
) -> Result<(), ServeError> {
    let who = peer(&tls, &core.policy.current())?;
    match who {
        Peer::NodeControl(node) => tunnel::control(core, tls, node, deadline, admission).await?,
        Peer::NodeData(node) => tunnel::data(core, tls, &node),
        Peer::User(identity) => {
            user::serve(core, tls, identity, from, deadline, admission).await?;
        }
    }
    Ok(())
}

/// Tells a stray where it is.
async fn turn_away(core: &Core, socket: TcpStream, opening: &[u8]) -> ServeError {
    match look(opening) {
        Ok(_) => {
            stray::tls(socket).await;
            ServeError::Protocol
        }
        Err(error) => {
            match error {
                SniffError::Http => stray::http(socket, &core.config.public_addr).await,
                SniffError::Ssh => {
                    let jump =
                        core.config.ssh_jump_listen.map(|_| core.config.ssh_public_addr.as_str());
                    stray::ssh(socket, jump.unwrap_or_default()).await;
                }
                SniffError::Malformed | SniffError::Unknown => {}
            }
            error.into()
        }
    }
}
