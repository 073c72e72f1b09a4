//! Preamble frames on a stream. Each read has a deadline; one frame is written in one TLS record.

use std::time::Duration;

use proto::preamble::FrameError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

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
    Io(#[from] std::io::Error),
}

/// Reads one frame.
///
/// # Errors
/// See [`FrameIoError`].
pub async fn read<M: DeserializeOwned>(
    _from: &mut (impl AsyncRead + Unpin),
    _within: Duration,
) -> Result<M, FrameIoError> {
    todo!()
}

/// Writes and flushes one frame.
///
/// # Errors
/// See [`FrameIoError`].
pub async fn write<M: Serialize>(
    _to: &mut (impl AsyncWrite + Unpin),
    _message: &M,
    _within: Duration,
) -> Result<(), FrameIoError> {
    todo!()
}
