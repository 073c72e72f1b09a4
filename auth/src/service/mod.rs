//! The gRPC surface: one file per service. Each method first asks [`caller::Gate`] who calls and whether they may, and
//! goes on with the answer; then it calls one domain function. Nothing is decided here otherwise.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

pub(crate) mod admin;
pub(crate) mod audit;
pub(crate) mod caller;
pub(crate) mod inventory;
pub(crate) mod join;
pub(crate) mod policy;
pub(crate) mod sign_in;

/// A streamed answer.
pub(crate) type Answers<T> = ReceiverStream<Result<T, Status>>;
/// The sending side of [`Answers`].
type Sender<T> = mpsc::Sender<Result<T, Status>>;

/// A streamed answer; a slow reader makes the sender wait.
fn answers<T>() -> (Sender<T>, Answers<T>) {
    let (sender, receiver) = mpsc::channel(ANSWERS_AHEAD);
    (sender, ReceiverStream::new(receiver))
}

/// Messages ahead of a reader: enough to keep the connection busy.
const ANSWERS_AHEAD: usize = 4;
/// A client that sends nothing for so long in the middle of a stream has gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
