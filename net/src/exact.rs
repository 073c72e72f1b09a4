//! Reading TLS record by record. [`ExactRecords`] never takes a byte from the socket beyond the record that its reader
//! is in, so that after the last TLS record the socket stands exactly at the inner protocol's first byte.
//! Costs one more read per record, so only streams that will leave TLS use it, and only until then.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A byte stream that gives out at most the rest of one TLS record per read.
#[derive(Debug)]
pub struct ExactRecords<S> {
    inner: S,
}

impl<S> ExactRecords<S> {
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
    /// True when the next byte of the socket begins a record (or is no longer TLS).
    pub fn at_boundary(&self) -> bool {
        todo!()
    }
    /// The socket below.
    pub fn into_inner(self) -> S {
        self.inner
    }
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ExactRecords<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        _buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        todo!()
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ExactRecords<S> {
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
