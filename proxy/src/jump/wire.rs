//! The connection's socket as russh sees it. It reads ahead, since russh asks for four bytes and then for the rest of each
//! packet; it starts with what [`super::greeting`] has read; it swallows the version line that has been sent already; and
//! it fails from the moment that the connection is to end, so that a session task that waits for anything ends.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::greeting::VERSION;

/// A socket between version exchange and end.
pub(super) struct Wire<S> {
    socket: S,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Read and not yet asked for. Holds no memory when there is nothing.
    ahead: BytesMut,
    /// Of what russh writes next, what the client has already.
    swallow: usize,
}

impl<S> Wire<S> {
    /// After our version line was sent, and this much was read.
    pub(super) fn after_greeting(socket: S, ahead: BytesMut, end: CancellationToken) -> Self {
        Self { socket, end: Box::pin(end.cancelled_owned()), ahead, swallow: VERSION.len() }
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.poll_end(context)?;
        if this.ahead.is_empty() {
            if buffer.remaining() >= AHEAD_BYTES {
                return Pin::new(&mut this.socket).poll_read(context, buffer);
            }
            let mut room = [0; AHEAD_BYTES];
            let mut room = ReadBuf::new(&mut room);
            ready!(Pin::new(&mut this.socket).poll_read(context, &mut room))?;
            let (now, later) = room.filled().split_at(room.filled().len().min(buffer.remaining()));
            buffer.put_slice(now);
            this.ahead.extend_from_slice(later);
            return Poll::Ready(Ok(()));
        }
        let count = this.ahead.len().min(buffer.remaining());
        buffer.put_slice(this.ahead.get(..count).unwrap_or_default());
        this.ahead.advance(count);
        if this.ahead.is_empty() {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.poll_end(context)?;
        if this.swallow > 0 {
            let count = this.swallow.min(bytes.len());
            this.swallow = this.swallow.saturating_sub(count);
            return Poll::Ready(Ok(count));
        }
        Pin::new(&mut this.socket).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// Packets with window adjustments and the like fit dozens of times; of one with 32 KiB of data, little is copied twice.
const AHEAD_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn wire(ahead: &[u8]) -> (DuplexStream, Wire<DuplexStream>, CancellationToken) {
        let (client, server) = duplex(1024 * 1024);
        let end = CancellationToken::new();
        (client, Wire::after_greeting(server, ahead.into(), end.clone()), end)
    }

    #[tokio::test]
    async fn what_was_read_comes_first_and_in_pieces_as_asked_for() {
        let (mut client, mut wire, _end) = wire(b"0123456");
        client.write_all(&[7; 3 * AHEAD_BYTES]).await.unwrap();
        client.shutdown().await.unwrap();
        let mut four = [0; 4];
        wire.read_exact(&mut four).await.unwrap();
        assert_eq!(&four, b"0123");
        let mut rest = Vec::new();
        for size in [1, 4, AHEAD_BYTES - 1, AHEAD_BYTES].into_iter().cycle() {
            let mut piece = vec![0; size];
            let count = wire.read(&mut piece).await.unwrap();
            if count == 0 {
                break;
            }
            rest.extend_from_slice(&piece[..count]);
        }
        assert_eq!(rest, [b"456".to_vec(), vec![7; 3 * AHEAD_BYTES]].concat());
    }

    #[tokio::test]
    async fn nothing_is_held_while_nothing_comes() {
        let (mut client, mut wire, _end) = wire(b"01");
        let mut two = [0; 2];
        for _ in 0..3 {
            wire.read_exact(&mut two).await.unwrap();
            assert_eq!(wire.ahead.capacity(), 0);
            client.write_all(b"23").await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_version_line_is_not_sent_twice() {
        let (mut client, mut wire, _end) = wire(b"");
        let (first, second) = VERSION.as_bytes().split_at(5);
        wire.write_all(first).await.unwrap();
        wire.write_all(&[second, b"KEXINIT"].concat()).await.unwrap();
        wire.write_all(b" and so on").await.unwrap();
        drop(wire);
        let mut sent = Vec::new();
        client.read_to_end(&mut sent).await.unwrap();
        assert_eq!(sent, b"KEXINIT and so on");
    }

    #[tokio::test]
    async fn the_end_wakes_who_waits() {
        let (_client, mut wire, end) = wire(b"");
        let reading = tokio::spawn(async move { wire.read_u8().await });
        tokio::task::yield_now().await;
        end.cancel();
        let error = reading.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
