//! `-L` and `-D`: local listeners whose connections go through the host. Each connection is a channel of its own.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use russh::Channel;
use russh::client::{Handle, Msg};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::ssh::link::Client;
use crate::ssh::socks::{self, Destination, Parsed, SocksError};
use cli::failure::{Failure, Fallible as _};

/// A listener to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forward {
    bind: String,
    port: u16,
    to: To,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum To {
    Fixed(Destination),
    Socks,
}

impl Forward {
    /// All `-L` and `-D` of a command line.
    ///
    /// # Errors
    /// One that means nothing.
    pub(crate) fn parse_all(local: &[String], dynamic: &[String]) -> Result<Vec<Self>, Failure> {
        let local = local.iter().map(|text| {
            parse_local(text).ok_or_else(|| {
                Failure::usage(format!("-L {text:?}: write [bind:]port:host:hostport"))
            })
        });
        let dynamic = dynamic.iter().map(|text| {
            parse_dynamic(text)
                .ok_or_else(|| Failure::usage(format!("-D {text:?}: write [bind:]port")))
        });
        local.chain(dynamic).collect()
    }

    /// Listens, and serves in the background until the process ends.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub(crate) async fn start(self, handle: Arc<Handle<Client>>) -> Result<(), Failure> {
        let address = format!("{}:{}", self.bind, self.port);
        let listener = TcpListener::bind((self.bind.as_str(), self.port))
            .await
            .doing(format!("cannot listen on {address}"))?;
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        tokio::spawn(async move {
            // A slot is taken before accepting: beyond the limit, connections wait in the kernel's queue.
            while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
                let Ok((socket, _)) = listener.accept().await else {
                    tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                    continue;
                };
                let (to, handle) = (self.to.clone(), Arc::clone(&handle));
                tokio::spawn(async move {
                    let _slot = slot;
                    if let Err(failure) = serve(socket, to, &handle).await {
                        eprintln!("forwarding: {}\r", failure.message());
                    }
                });
            }
        });
        Ok(())
    }
}

async fn serve(mut socket: TcpStream, to: To, handle: &Handle<Client>) -> Result<(), Failure> {
    socket.set_nodelay(true)?;
    let (destination, socks) = match to {
        To::Fixed(destination) => (destination, false),
        To::Socks => {
            let asked = timeout(SOCKS_WITHIN, ask(&mut socket)).await;
            (asked.map_err(|_| Failure::new("SOCKS: no request"))??, true)
        }
    };
    let opened = open(handle, &destination, &socket).await;
    if socks {
        socket.write_all(&socks::reply(Ok(()), opened.is_err())).await?;
    }
    let mut channel = opened?.into_stream();
    // Either end may hang up at any time: that is how forwarded connections end.
    drop(copy_bidirectional_with_sizes(&mut socket, &mut channel, COPY_BYTES, COPY_BYTES).await);
    Ok(())
}

async fn open(
    handle: &Handle<Client>,
    to: &Destination,
    from: &TcpStream,
) -> Result<Channel<Msg>, Failure> {
    let peer = from.peer_addr()?;
    let (host, port) = (to.host.as_str(), u32::from(to.port));
    handle
        .channel_open_direct_tcpip(host, port, peer.ip().to_string(), peer.port().into())
        .await
        .doing(format!("{host}:{port}"))
}

/// The SOCKS exchange up to the request. A client that wants something else is told so.
async fn ask(socket: &mut TcpStream) -> Result<Destination, Failure> {
    let mut bytes = Vec::with_capacity(socks::MESSAGE_BYTES_MAX);
    match read_until(socket, &mut bytes, socks::greeting).await? {
        Ok(()) => socket.write_all(&socks::NO_AUTHENTICATION).await?,
        Err(error) => {
            socket.write_all(&socks::NO_METHOD).await?;
            return Err(error.into());
        }
    }
    match read_until(socket, &mut bytes, socks::request).await? {
        Ok(destination) if bytes.is_empty() => Ok(destination),
        // Data before our answer is against the protocol.
        Ok(_) => Err(Failure::new("SOCKS: data before the answer")),
        Err(error) => {
            socket.write_all(&socks::reply(Err(error), true)).await?;
            Err(error.into())
        }
    }
}

/// Reads until `parse` is content; what it took is removed from `bytes`.
async fn read_until<T>(
    socket: &mut TcpStream,
    bytes: &mut Vec<u8>,
    parse: fn(&[u8]) -> Result<Parsed<T>, SocksError>,
) -> Result<Result<T, SocksError>, Failure> {
    loop {
        match parse(bytes) {
            Ok(Parsed::Done(value, count)) => {
                bytes.drain(..count.min(bytes.len()));
                return Ok(Ok(value));
            }
            Ok(Parsed::More) => {}
            Err(error) => return Ok(Err(error)),
        }
        let mut chunk = [0; socks::MESSAGE_BYTES_MAX];
        let room = chunk.len().saturating_sub(bytes.len());
        let free = chunk.get_mut(..room).unwrap_or_default();
        let count = socket.read(free).await?;
        if count == 0 {
            return Err(Failure::new("SOCKS: the request is incomplete"));
        }
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
}

/// `[bind:]port:host:hostport`, IPv6 addresses in brackets.
fn parse_local(text: &str) -> Option<Forward> {
    let fields = fields(text)?;
    let (bind, port, host, host_port) = match fields.as_slice() {
        [port, host, host_port] => (LOOPBACK, port, host, host_port),
        [bind, port, host, host_port] => (bind_address(bind), port, host, host_port),
        _ => return None,
    };
    if host.is_empty() {
        return None;
    }
    let to = Destination { host: host.clone(), port: parse_port(host_port)? };
    Some(Forward { bind: bind.to_owned(), port: parse_port(port)?, to: To::Fixed(to) })
}

/// `[bind:]port`.
fn parse_dynamic(text: &str) -> Option<Forward> {
    let fields = fields(text)?;
    let (bind, port) = match fields.as_slice() {
        [port] => (LOOPBACK, port),
        [bind, port] => (bind_address(bind), port),
        _ => return None,
    };
    Some(Forward { bind: bind.to_owned(), port: parse_port(port)?, to: To::Socks })
}

/// As ssh has it: `*` and nothing mean every address, when written.
fn bind_address(text: &str) -> &str {
    match text {
        "" | "*" => "::",
        other => other,
    }
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// Fields between colons; a bracketed one is an IPv6 address.
fn fields(text: &str) -> Option<Vec<String>> {
    let mut list = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (address, after) = inner.split_once(']')?;
                (address.parse::<Ipv6Addr>().ok()?.to_string(), after)
            }
            None => {
                let end = rest.find(':').unwrap_or(rest.len());
                let (field, after) = rest.split_at_checked(end)?;
                (field.to_owned(), after)
            }
        };
        list.push(field);
        match after.strip_prefix(':') {
            Some(next) => rest = next,
            None if after.is_empty() => return Some(list),
            None => return None,
        }
    }
}

const LOOPBACK: &str = "127.0.0.1";
/// Forwarded connections per listener at once; a browser keeps some dozens.
const CONNECTIONS_MAX: usize = 256;
/// Accepting fails when descriptors run out; some are given back soon.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// A local program says at once where it wants to go.
const SOCKS_WITHIN: Duration = Duration::from_secs(10);
/// Two SSH packets.
const COPY_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_written_as_for_ssh() {
        fn check(text: &str, expect: Option<(&str, u16, &str, u16)>) {
            let expect = expect.map(|(bind, port, host, host_port)| Forward {
                bind: bind.into(),
                port,
                to: To::Fixed(Destination { host: host.into(), port: host_port }),
            });
            assert_eq!(parse_local(text), expect, "{text}");
        }
        check("8080:web:80", Some(("127.0.0.1", 8080, "web", 80)));
        check("0.0.0.0:8080:web:80", Some(("0.0.0.0", 8080, "web", 80)));
        check("*:8080:web:80", Some(("::", 8080, "web", 80)));
        check("[::1]:8080:[2001:db8::1]:80", Some(("::1", 8080, "2001:db8::1", 80)));
        check("8080:web", None);
        check("8080", None);
        check("0:web:80", None);
        check("8080::80", None);
        check("8080:web:80:90:1", None);
        check("[x]:8080:web:80", None);
        check("[::1]8080:web:80", None);
    }

    #[test]
    fn dynamic_forwards() {
        assert_eq!(parse_dynamic("1080").unwrap().bind, "127.0.0.1");
        assert_eq!(parse_dynamic("localhost:1080").unwrap().port, 1080);
        assert_eq!(parse_dynamic("x"), None);
        assert_eq!(parse_dynamic(""), None);
    }
}
