//! A connection inside TLS or outside it.

use std::pin::Pin;
use std::task::{Context, Poll};

use proto::preamble::Inner;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::exact::ExactRecords;

#[cfg(test)]
mod tests;

/// TLS over record-exact reads, either role. The `Prefixed` reader gives back a ClientHello read while sniffing.
pub type Tls = tokio_rustls::TlsStream<ExactRecords<Prefixed>>;

/// A TCP stream with bytes that were read ahead (and are part of TLS, so never outlive it).
#[derive(Debug)]
pub struct Prefixed {
    prefix: bytes::Bytes,
    inner: TcpStream,
}

impl Prefixed {
    pub fn new(prefix: bytes::Bytes, inner: TcpStream) -> Self {
        Self { prefix, inner }
    }
    pub fn get_ref(&self) -> &TcpStream {
        &self.inner
    }
}

/// What carries the inner protocol.
#[derive(Debug)]
pub enum Stream {
    /// TLS was left: a bare socket, to be spliced.
    Plain(TcpStream),
    /// TLS stays.
    Tls(Box<Tls>),
}

/// TLS could not be left: bytes were buffered that nobody may lose.
#[derive(Debug, thiserror::Error)]
#[error("TLS cannot be left in the middle of a record")]
pub struct NotAtBoundary;

impl Stream {
    /// What remains after the reply: the same stream, or its bare socket when `inner` is [`Inner::Plain`].
    ///
    /// # Errors
    /// Bytes are buffered above the socket.
    pub fn after_reply(mut tls: Tls, inner: Inner) -> Result<Self, NotAtBoundary> {
        match inner {
            Inner::Plain => leave(tls).map(Self::Plain),
            Inner::Tls => {
                tls.get_mut().0.release();
                Ok(Self::Tls(Box::new(tls)))
            }
        }
    }
}

/// The bare socket, when TLS holds nothing back in either direction.
fn leave(tls: Tls) -> Result<TcpStream, NotAtBoundary> {
    let (exact, mut connection) = match tls {
        Tls::Client(stream) => {
            let (exact, connection) = stream.into_inner();
            (exact, rustls::Connection::Client(connection))
        }
        Tls::Server(stream) => {
            let (exact, connection) = stream.into_inner();
            (exact, rustls::Connection::Server(connection))
        }
    };
    let state = connection.process_new_packets().map_err(|_| NotAtBoundary)?;
    let holds = connection.is_handshaking()
        || connection.wants_write()
        || state.plaintext_bytes_to_read() > 0
        || state.peer_has_closed();
    if holds || !exact.at_boundary() {
        return Err(NotAtBoundary);
    }
    let Prefixed { prefix, inner } = exact.into_inner();
    if prefix.is_empty() { Ok(inner) } else { Err(NotAtBoundary) }
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(context, buffer);
        }
        let count = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(&self.prefix.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }
    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(context, buffer),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_write(context, bytes),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(context),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(context),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(context),
        }
    }
}
