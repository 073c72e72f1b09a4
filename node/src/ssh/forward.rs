//! `-L` and `-D`: a TCP connection from this node for the client. Allowed by the roles' `port_forwarding`; recorded when
//! it opens, fails and closes. `-R`, Unix sockets and X11 are refused by russh's defaults.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use proto::capture_rules::CaptureRules;
use proto::event::{self, Outcome, PortPhase};
use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::admit;
use crate::ssh::connection::{Admitted, Connection};

/// Answers a request for a connection. Waiting for its turn, the decision and the dialing are a task: the client's other
/// channels go on meanwhile.
pub(crate) async fn open(
    connection: &Arc<Connection>,
    channel: Channel<Msg>,
    host: &str,
    port: u32,
    reply: ChannelOpenHandle,
) {
    let Some(admitted) = connection.admitted() else { return };
    let host: String = host.chars().filter(|c| !c.is_control()).take(HOST_CHARS_MAX).collect();
    let address =
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let Some(slot) = connection.take_forward() else {
        // Here and not in a task, of which there would be no end: who asks for so many at once waits with all channels.
        if !turn(connection).await {
            return;
        }
        let reason = "too many forwarded connections";
        record(admitted, &address, PortPhase::Start, Outcome::failed(reason)).await;
        reply.reject(ChannelOpenFailure::ResourceShortage).await;
        return;
    };
    let of_task = connection.clone();
    connection.tasks.spawn(async move {
        let _slot = slot;
        // A node that drains waits for forwards as for sessions.
        let _counted = of_task.node.count_session();
        if turn(&of_task).await {
            decide(&of_task, channel, (&host, port), &address, reply).await;
        }
    });
}

/// Waits for it; false when the connection is over before.
async fn turn(connection: &Connection) -> bool {
    tokio::select! {
        () = connection.pace_forward() => true,
        () = connection.over() => false,
    }
}

async fn decide(
    connection: &Connection,
    channel: Channel<Msg>,
    (host, port): (&str, u32),
    address: &str,
    reply: ChannelOpenHandle,
) {
    let Some(admitted) = connection.admitted() else { return };
    let allowed = admit::may_forward(&connection.node, &admitted.identity, &admitted.login);
    let refused = match (allowed, u16::try_from(port)) {
        (Ok(rules), Ok(port)) if !host.is_empty() => {
            let to = To { host, port, rules: &rules, address };
            forward(connection, channel, to, reply).await;
            return;
        }
        (Ok(_), _) => ("no such address".to_owned(), ChannelOpenFailure::ConnectFailed),
        (Err(reason), _) => (reason, ChannelOpenFailure::AdministrativelyProhibited),
    };
    let (reason, failure) = refused;
    record(admitted, address, PortPhase::Start, Outcome::failed(reason)).await;
    reply.reject(failure).await;
}

/// Where to.
struct To<'a> {
    host: &'a str,
    port: u16,
    /// The node dials, and not the session: the kernel would not keep them here.
    rules: &'a CaptureRules,
    /// As events have it.
    address: &'a str,
}

/// To any of the host's addresses that no rule denies.
async fn dial(to: &To<'_>) -> io::Result<TcpStream> {
    let mut denied = None;
    let mut allowed = Vec::new();
    for address in lookup_host((to.host, to.port)).await? {
        match to.rules.denies(address.ip(), address.port()) {
            Some(rule) => denied = Some(rule),
            None => allowed.push(address),
        }
    }
    if let (Some(rule), true) = (denied, allowed.is_empty()) {
        return Err(io::Error::other(format!("a role's capture_rules deny {rule}")));
    }
    TcpStream::connect(allowed.as_slice()).await
}

async fn forward(
    connection: &Connection,
    channel: Channel<Msg>,
    to: To<'_>,
    reply: ChannelOpenHandle,
) {
    let Some(admitted) = connection.admitted() else { return };
    let address = to.address;
    let dialing = timeout(DIAL_MAX, dial(&to));
    let dialed = tokio::select! {
        dialed = dialing => match dialed {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", DIAL_MAX.as_secs())),
        },
        () = connection.over() => return,
    };
    let stream = match dialed {
        Ok(stream) => stream,
        Err(error) => {
            record(admitted, address, PortPhase::Start, Outcome::failed(error)).await;
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return;
        }
    };
    if !record(admitted, address, PortPhase::Start, Outcome::ok()).await {
        reply.reject(ChannelOpenFailure::ResourceShortage).await;
        return;
    }
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    reply.accept().await;
    tokio::select! {
        () = relay(connection, channel, stream) => {}
        () = connection.over() => {}
    }
    record(admitted, address, PortPhase::Stop, Outcome::ok()).await;
}

/// Each direction ends by itself; a closed channel or a reset ends both.
async fn relay(connection: &Connection, channel: Channel<Msg>, stream: TcpStream) {
    let (mut reader, writer) = channel.split();
    let (from, to) = stream.into_split();
    let up = send(connection, &mut reader, to);
    let down = receive(connection, from, &writer);
    tokio::pin!(up, down);
    tokio::select! {
        closed = &mut up => if !closed { down.await },
        () = &mut down => {
            // The target has said all; the client may still be sending.
            up.await;
        }
    }
    // Fails only when the connection is gone.
    drop(writer.close().await);
}

/// To the target. True when the channel was closed, false at the end of the client's data.
async fn send(
    connection: &Connection,
    reader: &mut ChannelReadHalf,
    mut to: OwnedWriteHalf,
) -> bool {
    loop {
        match reader.wait().await {
            None | Some(ChannelMsg::Close) => return true,
            Some(ChannelMsg::Data { data }) => {
                connection.touch();
                if to.write_all(&data).await.is_err() {
                    return true;
                }
            }
            Some(ChannelMsg::Eof) => {
                // A target that has gone sees nothing of this.
                drop(to.shutdown().await);
                return false;
            }
            Some(_) => {}
        }
    }
}

/// To the client, until the target's data ends.
async fn receive(connection: &Connection, mut from: OwnedReadHalf, writer: &ChannelWriteHalf<Msg>) {
    loop {
        if from.readable().await.is_err() {
            break;
        }
        let mut buffer = bytes::BytesMut::with_capacity(READ_BYTES);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {
                connection.touch();
                if writer.data_bytes(buffer.freeze()).await.is_err() {
                    return;
                }
            }
        }
    }
    // Fails only when the connection is gone.
    drop(writer.eof().await);
}

async fn record(admitted: &Admitted, address: &str, phase: PortPhase, outcome: Outcome) -> bool {
    let session = admitted.session.facts();
    let event = event::Port { session, addr: address.to_owned(), phase, outcome };
    admitted.session.record_outcome(event).await.is_ok()
}

/// A target that answers later is not there.
const DIAL_MAX: Duration = Duration::from_secs(10);
/// A channel packet.
const READ_BYTES: usize = 32 * 1024;
/// DNS allows 253.
const HOST_CHARS_MAX: usize = 255;
