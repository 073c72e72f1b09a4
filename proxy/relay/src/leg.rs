//! One side of a relayed stream. Reads give out what was read ahead first. Ends by itself in order (FIN, close_notify,
//! SSH EOF) or, told to [`Leg::abort`], by RST, so that the other side sees that something broke.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::ktls::Features;
use crate::port::Port;
use crate::tls::TlsStream;

/// A byte stream that is no bare socket: TLS in user space, an SSH channel.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// One side of a relayed stream.
pub enum Leg {
    /// A bare socket with bytes already read from it: what can be spliced.
    Socket { socket: TcpStream, pending: Bytes },
    /// Anything else.
    Stream(Box<dyn Io>),
    /// TLS that ends here.
    Tls(Box<TlsStream>),
}

impl std::fmt::Debug for Leg {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Socket { .. } => "Leg::Socket",
            Self::Stream(_) => "Leg::Stream",
            Self::Tls(_) => "Leg::Tls",
        })
    }
}

impl Leg {
    /// Whether a worker can move it; tokio must move anything else.
    pub(crate) fn is_on_socket(&self) -> bool {
        match self {
            Self::Socket { .. } | Self::Tls(_) => true,
            Self::Stream(_) => false,
        }
    }

    /// For a worker.
    pub(crate) fn into_port(self, features: Option<Features>) -> io::Result<Port> {
        match self {
            Self::Socket { socket, pending } => Ok(Port::plain(socket.into_std()?.into(), pending)),
            Self::Tls(stream) => stream.into_port(features),
            Self::Stream(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Whether a read that tells of an end was told so by the peer, whatever became of the socket.
    pub(crate) fn has_a_word_for_the_end(&self) -> bool {
        match self {
            Self::Socket { .. } | Self::Stream(_) => false,
            Self::Tls(_) => true,
        }
    }

    /// Makes the coming drop a reset instead of an orderly end. Best effort: only a bare socket can say it.
    pub(crate) fn abort(&self) {
        let socket = match self {
            Self::Socket { socket, .. } => socket,
            Self::Tls(stream) => stream.socket(),
            Self::Stream(_) => return,
        };
        if let Err(error) = socket.set_zero_linger() {
            tracing::debug!(%error, "a socket could not be set to end by reset");
        }
    }
}

impl AsyncRead for Leg {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket { socket, pending } if pending.is_empty() => {
                Pin::new(socket).poll_read(context, buffer)
            }
            Self::Socket { pending, .. } => {
                let count = pending.len().min(buffer.remaining());
                buffer.put_slice(&pending.split_to(count));
                Poll::Ready(Ok(()))
            }
            Self::Stream(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Leg {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Socket { socket, .. } => Pin::new(socket).poll_write(context, bytes),
            Self::Stream(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket { socket, .. } => Pin::new(socket).poll_flush(context),
            Self::Stream(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket { socket, .. } => Pin::new(socket).poll_shutdown(context),
            Self::Stream(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
