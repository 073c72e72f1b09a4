//! Sockets as the relay wants them: listeners that share a port, small writes that leave at once, peers that have
//! vanished found out.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// A listener that shares its port with others of ours, so that each worker has its own queue of connections. What it
/// accepts inherits its options (tcp(7)).
///
/// # Errors
/// The address is taken by another program, or not ours.
pub(crate) fn listener(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    prepare(&socket)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Small writes leave at once, and a peer that has vanished is found out.
///
/// # Errors
/// It is no TCP socket, or one that is gone.
pub fn prepare(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_COUNT)?;
    Ok(())
}

/// Connections that wait to be accepted; the kernel takes the lesser of it and net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Below the five minutes after which common NAT gateways forget a connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// With [`KEEPALIVE_COUNT`]: a dead peer is known after another minute.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_COUNT: u32 = 4;
