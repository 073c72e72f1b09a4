//! A session on a tokio socket, for the few frames that are spoken before bytes are relayed. It opens one record at a time
//! and only when asked for more, so that whatever stands behind the last frame's record is given on untouched: to the
//! relay as TLS, or, when both ends leave TLS there, as the first bytes of what follows.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::handshake::{Established, Handshake, HandshakeFault};
use super::session::{Outgoing, RECORD_BYTES_MAX, Session, record_length};
use crate::ktls::Features;
use crate::port::Port;

/// TLS on a socket of tokio's.
#[derive(Debug)]
pub struct TlsStream {
    socket: TcpStream,
    session: Session,
    certificates: Vec<CertificateDer<'static>>,
    alpn: Option<Vec<u8>>,
    /// Sealed, not opened yet.
    incoming: Vec<u8>,
    /// Opened, not read yet: of one record.
    opened: Bytes,
    outgoing: Outgoing,
    ended: bool,
}

/// Why a handshake gave no stream.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error(transparent)]
    Handshake(#[from] HandshakeFault),
    #[error("the connection was lost")]
    Io(#[from] io::Error),
}

impl TlsStream {
    /// The server's handshake. `opening` is what was read from the client already. Must be bounded in time by the caller.
    ///
    /// # Errors
    /// The handshake fails, after the alert that says so has been sent, or the connection breaks.
    pub async fn accept(
        mut socket: TcpStream,
        opening: Bytes,
        config: Arc<ServerConfig>,
        keep_keys: bool,
    ) -> Result<Self, AcceptError> {
        let mut handshake = Handshake::new(config, keep_keys)?;
        let mut buffer = vec![0; READ_BYTES];
        let mut fed = handshake.feed(&opening);
        loop {
            let sent = send_all(&mut socket, &mut handshake.outgoing).await;
            if fed? {
                sent?;
                break;
            }
            sent?;
            let count = socket.read(&mut buffer).await?;
            if count == 0 {
                return Err(AcceptError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            fed = handshake.feed(buffer.get(..count).unwrap_or_default());
        }
        let mut established = handshake.finish()?;
        send_all(&mut socket, &mut established.outgoing).await?;
        Ok(Self::new(socket, established))
    }

    /// A session that was established elsewhere.
    pub fn new(socket: TcpStream, established: Established) -> Self {
        let Established { session, certificates, alpn, incoming, outgoing } = established;
        let (opened, ended) = (Bytes::new(), false);
        Self { socket, session, certificates, alpn, incoming, opened, outgoing, ended }
    }

    /// The client's chain; empty when it showed none.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }
    /// What was agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.alpn.as_deref()
    }
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Whether the peer has sent something that nobody has asked for.
    pub fn has_read_ahead(&self) -> bool {
        !self.opened.is_empty() || !self.incoming.is_empty()
    }

    /// Leaves TLS: the bare socket, and what was read of it beyond the last record that was opened.
    ///
    /// # Errors
    /// Bytes that were opened or sealed are still here, so that this is not between two records.
    pub fn leave(self) -> Result<(TcpStream, Bytes), NotAtBoundary> {
        if !self.opened.is_empty() || !self.outgoing.is_empty() || self.session.peer_closed() {
            return Err(NotAtBoundary);
        }
        Ok((self.socket, Bytes::from(self.incoming)))
    }

    /// For the relay.
    pub(crate) fn into_port(self, features: Option<Features>) -> io::Result<Port> {
        let socket = self.socket.into_std()?.into();
        let port = Port::tls(socket, self.session, self.incoming, self.outgoing, features);
        Ok(port.with_pending(self.opened))
    }

    fn poll_flush_records(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let socket = Pin::new(&mut self.socket);
            let count = ready!(socket.poll_write(context, self.outgoing.bytes()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.wrote(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Opens the next record, if it is whole.
    fn open_one(&mut self) -> io::Result<()> {
        let mut pieces = Vec::new();
        let consumed =
            self.session.open(&mut self.incoming, &mut pieces, 1, &mut self.outgoing)?.consumed;
        if let Some(piece) = pieces.pop() {
            self.opened = Bytes::copy_from_slice(self.incoming.get(piece).unwrap_or_default());
        }
        self.incoming.drain(..consumed.min(self.incoming.len()));
        Ok(())
    }
}

/// TLS could not be left: bytes were on their way that nobody may lose.
#[derive(Debug, thiserror::Error)]
#[error("TLS cannot be left in the middle of a record")]
pub struct NotAtBoundary;

async fn send_all(socket: &mut TcpStream, out: &mut Outgoing) -> io::Result<()> {
    socket.write_all(out.bytes()).await?;
    *out = Outgoing::default();
    Ok(())
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Answers to key updates leave with the next occasion.
        if let Poll::Ready(Err(error)) = this.poll_flush_records(context) {
            return Poll::Ready(Err(error));
        }
        loop {
            if !this.opened.is_empty() {
                let count = this.opened.len().min(buffer.remaining());
                buffer.put_slice(&this.opened.split_to(count));
                return Poll::Ready(Ok(()));
            }
            if this.session.peer_closed() {
                return Poll::Ready(Ok(()));
            }
            if record_length(&this.incoming)?.is_some() {
                this.open_one()?;
                continue;
            }
            let mut room = [std::mem::MaybeUninit::uninit(); READ_BYTES];
            let mut room = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut this.socket).poll_read(context, &mut room))?;
            if room.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            this.incoming.extend_from_slice(room.filled());
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_flush_records(context))?;
        let part = bytes.get(..bytes.len().min(RECORD_BYTES_MAX)).unwrap_or_default();
        if part.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.session.seal(std::iter::once(part), &mut this.outgoing)?;
        // Accepted: what does not leave now leaves with the next call.
        match this.poll_flush_records(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(part.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_flush_records(context))?;
        Pin::new(&mut this.socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ended {
            this.session.close(&mut this.outgoing)?;
            this.ended = true;
        }
        ready!(this.poll_flush_records(context))?;
        Pin::new(&mut this.socket).poll_shutdown(context)
    }
}

/// What is read ahead of need at most: some frames.
const READ_BYTES: usize = 4096;

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
