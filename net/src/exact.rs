//! Reading TLS record by record. [`ExactRecords`] never takes a byte from the socket beyond the record that its reader
//! is in, so that after the last TLS record the socket stands exactly at the inner protocol's first byte.
//! Costs one more read per record, so only streams that will leave TLS use it, and only until then.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A byte stream that gives out at most the rest of one TLS record per read.
#[derive(Debug)]
pub struct ExactRecords<S> {
    inner: S,
    position: Position,
}

/// Where in a record the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// `filled` bytes of the header have been given out; 0 is the boundary between records.
    Header { bytes: [u8; HEADER_BYTES], filled: usize },
    /// So many bytes of the body are still to come.
    Body { left: usize },
    /// Records are no longer told apart: TLS stays until the end.
    Released,
}

impl<S> ExactRecords<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, position: BOUNDARY }
    }
    /// True when the next byte of the socket begins a record (or is no longer TLS).
    pub fn at_boundary(&self) -> bool {
        matches!(self.position, Position::Header { filled: 0, .. })
    }
    /// TLS stays: from here on reads may be as long as the reader likes. There is no way back.
    pub fn release(&mut self) {
        self.position = Position::Released;
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
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let wanted = match this.position {
            Position::Header { filled, .. } => HEADER_BYTES.saturating_sub(filled),
            Position::Body { left } => left,
            Position::Released => return Pin::new(&mut this.inner).poll_read(context, buffer),
        };
        let room = wanted.min(buffer.remaining());
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
        ready!(Pin::new(&mut this.inner).poll_read(context, &mut part))?;
        this.position = this.position.after(part.filled())?;
        let read = part.filled().len();
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl Position {
    /// The position after `read` was given out. `read` never reaches beyond the header or the body it is in.
    fn after(self, read: &[u8]) -> io::Result<Self> {
        match self {
            Self::Released => Ok(Self::Released),
            Self::Body { left } => match left.saturating_sub(read.len()) {
                0 => Ok(BOUNDARY),
                left => Ok(Self::Body { left }),
            },
            Self::Header { mut bytes, filled } => {
                for (slot, byte) in bytes.iter_mut().skip(filled).zip(read) {
                    *slot = *byte;
                }
                let filled = filled.saturating_add(read.len());
                if filled < HEADER_BYTES {
                    return Ok(Self::Header { bytes, filled });
                }
                match body_length(bytes)? {
                    0 => Ok(BOUNDARY),
                    left => Ok(Self::Body { left }),
                }
            }
        }
    }
}

/// Length of the body behind a record header (RFC 8446, section 5.1).
fn body_length(header: [u8; HEADER_BYTES]) -> io::Result<usize> {
    let [content_type, _, _, high, low] = header;
    if !CONTENT_TYPES.contains(&content_type) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no TLS record"));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > BODY_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a TLS record is too long"));
    }
    Ok(length)
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ExactRecords<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// Content type, legacy version, length.
const HEADER_BYTES: usize = 5;
/// Change cipher spec, alert, handshake, application data.
const CONTENT_TYPES: std::ops::RangeInclusive<u8> = 20..=23;
/// RFC 8446, section 5.2: the plaintext's 2^14 and at most 256 more.
const BODY_BYTES_MAX: usize = 16384 + 256;
const BOUNDARY: Position = Position::Header { bytes: [0; HEADER_BYTES], filled: 0 };

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn record(content_type: u8, body: usize) -> Vec<u8> {
        let mut record = vec![content_type, 3, 3];
        record.extend_from_slice(&u16::try_from(body).unwrap().to_be_bytes());
        record.extend(std::iter::repeat_n(content_type, body));
        record
    }

    /// Reads `wire` with a reader's buffer of `room` until the boundary behind the `records`th record.
    async fn read_records(wire: &[u8], cut: usize, room: usize, records: usize) -> Vec<u8> {
        let (mut near, far) = tokio::io::duplex(cut);
        let wire = wire.to_vec();
        let writer = tokio::spawn(async move {
            near.write_all(&wire).await.unwrap();
            near
        });
        let mut exact = ExactRecords::new(far);
        let mut seen = Vec::new();
        let mut boundaries = 0;
        while boundaries < records {
            let mut buffer = vec![0; room];
            let read = exact.read(&mut buffer).await.unwrap();
            assert!(read > 0);
            seen.extend_from_slice(&buffer[..read]);
            boundaries += usize::from(exact.at_boundary());
        }
        let mut rest = vec![0; 5];
        exact.into_inner().read_exact(&mut rest).await.unwrap();
        assert_eq!(rest, b"SSH-2", "the socket stands at the inner protocol");
        drop(writer.await.unwrap());
        seen
    }

    #[tokio::test]
    async fn never_reads_beyond_a_record() {
        let mut records = record(22, 300);
        records.extend(record(20, 1));
        records.extend(record(23, 16384 + 256));
        let mut wire = records.clone();
        wire.extend_from_slice(b"SSH-2");
        for cut in [1, 2, 3, 5, 7, 64, 4096, 65536] {
            for room in [1, 4, 5, 6, 1000, 65536] {
                let seen = read_records(&wire, cut, room, 3).await;
                assert_eq!(seen, records, "cut {cut} room {room}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_record_is_an_error() {
        for header in [b"GET / HTTP", b"SSH-2.0-x\n", b"\x17\x03\x03\x41\x01xxxxx"] {
            let (mut near, far) = tokio::io::duplex(64);
            near.write_all(header).await.unwrap();
            let mut exact = ExactRecords::new(far);
            let error = exact.read(&mut [0; 64]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[tokio::test]
    async fn released_reads_are_whole() {
        let (mut near, far) = tokio::io::duplex(64);
        near.write_all(&record(23, 20)).await.unwrap();
        let mut exact = ExactRecords::new(far);
        exact.release();
        assert_eq!(exact.read(&mut [0; 64]).await.unwrap(), 25);
        assert!(!exact.at_boundary());
    }
}
