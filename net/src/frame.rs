//! Preamble frames on a stream. Each read has a deadline; one frame is written in one TLS record.

use std::io;
use std::time::Duration;

use proto::preamble::{self, FRAME_HEADER_BYTES, FrameError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// What goes wrong on the way.
#[derive(Debug, thiserror::Error)]
pub enum FrameIoError {
    #[error("the other side closed the stream")]
    Closed,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the stream failed")]
    Io(#[from] io::Error),
}

/// Reads one frame.
///
/// # Errors
/// See [`FrameIoError`].
pub async fn read<M: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    within: Duration,
) -> Result<M, FrameIoError> {
    timeout(within, read_behind(from, [])).await.map_err(|_| FrameIoError::TimedOut(within))?
}

/// Reads one frame that may begin whenever the other side likes, and must be whole `within` its first byte.
/// Not to be dropped half-way and called again: the bytes read so far would be lost.
pub(crate) async fn read_when_begun<M: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    within: Duration,
) -> Result<M, FrameIoError> {
    let mut first = [0; 1];
    from.read_exact(&mut first).await.map_err(closed_or_failed)?;
    timeout(within, read_behind(from, first)).await.map_err(|_| FrameIoError::TimedOut(within))?
}

/// Reads the rest of a frame whose first bytes are `begun`.
async fn read_behind<M: DeserializeOwned, const N: usize>(
    from: &mut (impl AsyncRead + Unpin),
    begun: [u8; N],
) -> Result<M, FrameIoError> {
    let mut header = [0; FRAME_HEADER_BYTES];
    let mut unread = header.as_mut_slice();
    bytes::BufMut::put_slice(&mut unread, &begun);
    from.read_exact(unread).await.map_err(closed_or_failed)?;
    let mut body = vec![0; preamble::body_length(header)?];
    from.read_exact(&mut body).await?;
    Ok(preamble::decode(&body)?)
}

fn closed_or_failed(error: io::Error) -> FrameIoError {
    match error.kind() == io::ErrorKind::UnexpectedEof {
        true => FrameIoError::Closed,
        false => FrameIoError::Io(error),
    }
}

/// Writes and flushes one frame.
///
/// # Errors
/// See [`FrameIoError`].
pub async fn write<M: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    message: &M,
    within: Duration,
) -> Result<(), FrameIoError> {
    let frame = preamble::encode(message)?;
    let written = async {
        to.write_all(&frame).await?;
        to.flush().await
    };
    timeout(within, written).await.map_err(|_| FrameIoError::TimedOut(within))??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proto::preamble::{FRAME_BYTES_MAX, Inner, Reply};

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn frames_cross() {
        let (mut near, mut far) = tokio::io::duplex(3);
        let message = Reply::Ok { inner: Inner::Plain };
        let (wrote, read) =
            tokio::join!(write(&mut near, &message, SOON), read::<Reply>(&mut far, SOON));
        wrote.unwrap();
        assert_eq!(read.unwrap(), message);
    }

    #[tokio::test]
    async fn bad_ends_are_told_apart() {
        async fn check(bytes: &[u8], close: bool, expect: &str) {
            let (mut near, mut far) = tokio::io::duplex(64);
            near.write_all(bytes).await.unwrap();
            let kept = (!close).then_some(near);
            let error = read::<Reply>(&mut far, SOON).await.unwrap_err();
            assert!(format!("{error:?}").starts_with(expect), "{error:?}");
            drop(kept);
        }
        let too_long = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_be_bytes();
        tokio::time::pause();
        check(b"", true, "Closed").await;
        check(&[0, 0], true, "Closed").await;
        check(&[0, 0, 0, 9, b'{'], true, "Io").await;
        check(&[0, 0, 0, 2, b'{', b'}'], false, "Frame").await;
        check(&too_long, false, "Frame(TooLong").await;
        check(&[0, 0, 0, 9, b'{'], false, "TimedOut").await;
    }
}
