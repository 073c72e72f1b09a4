//! A session's events on their way to the disk: in order, many at a time, each session for itself.

use std::sync::{Arc, Weak};

use futures::StreamExt as _;
use proto::event;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::live::Live;
use crate::{Sink, hash};

/// What a session's writer is given.
#[derive(Debug)]
pub(crate) enum Item {
    Event(Box<event::Body>),
    /// A record of a class and so many bytes is done with.
    Done(usize, usize),
    /// Everything before is durable.
    Settled(oneshot::Sender<()>),
}

/// Writes until the session is forgotten.
pub(crate) async fn write(
    live: Weak<Live>,
    number: u64,
    sink: Arc<dyn Sink>,
    items: mpsc::UnboundedReceiver<Item>,
) {
    let recorded = UnboundedReceiverStream::new(items).map(|item| async {
        match item {
            Item::Event(mut body) => {
                if let event::Body::SessionCommand(command) = &mut *body
                    && command.return_code == 0
                {
                    hash::fill(command).await;
                }
                sink.record(*body).await;
                None
            }
            other @ (Item::Done(..) | Item::Settled(_)) => Some(other),
        }
    });
    let mut recorded = std::pin::pin!(recorded.buffered(EVENTS_AT_ONCE));
    let (mut done, mut told) = ([0; 3], 0);
    while let Some(other) = recorded.next().await {
        match other {
            Some(Item::Settled(say)) => {
                // Nobody waits any more after a while.
                say.send(()).ok();
            }
            Some(Item::Done(class, bytes)) => {
                let Some(of_class) = done.get_mut(class) else { continue };
                *of_class += u64::try_from(bytes).unwrap_or(u64::MAX);
                if done.iter().sum::<u64>() >= told + DONE_BYTES_MIN
                    && let Some(live) = live.upgrade()
                {
                    live.done(number, done);
                    told = done.iter().sum();
                }
            }
            Some(Item::Event(_)) | None => {}
        }
    }
}

/// How many are under way to the disk together.
const EVENTS_AT_ONCE: usize = 512;
/// The kernel is told of what is done in pieces of this.
const DONE_BYTES_MIN: u64 = 32 << 10;
