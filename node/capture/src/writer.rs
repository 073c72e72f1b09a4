//! A session's events on their way to the disk: in order, many at a time, each session for itself.

use std::sync::{Arc, Weak};
use std::time::Duration;

use ebpf_abi::Credit;
use futures::StreamExt as _;
use proto::event;
use tokio::sync::{mpsc, oneshot};
use tokio::time::interval;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::live::Live;
use crate::{Sink, hash};

/// What a session's writer is given.
#[derive(Debug)]
pub(crate) enum Item {
    Event(Box<event::Body>),
    /// A record is done with.
    Done {
        class: usize,
        bytes: usize,
        sequence: u64,
    },
    /// Everything before is durable.
    Settled(oneshot::Sender<()>),
}

/// Writes until the session is forgotten; `base` is what was done with before.
pub(crate) async fn write(
    live: Weak<Live>,
    number: u64,
    sink: Arc<dyn Sink>,
    items: mpsc::UnboundedReceiver<Item>,
    base: Credit,
) {
    let hashed = UnboundedReceiverStream::new(items).map(|mut item| async {
        if let Item::Event(body) = &mut item
            && let event::Body::SessionCommand(command) = &mut **body
            && command.return_code == 0
        {
            hash::fill(command).await;
        }
        item
    });
    // In order: events get their numbers as they are recorded.
    let recorded = hashed.buffered(HASHES_AT_ONCE).map(|item| {
        let (recorded, other) = match item {
            Item::Event(body) => (Some(sink.record(*body)), None),
            other @ (Item::Done { .. } | Item::Settled(_)) => (None, Some(other)),
        };
        async move {
            if let Some(recorded) = recorded {
                recorded.await;
            }
            other
        }
    });
    let mut recorded = std::pin::pin!(recorded.buffered(EVENTS_AT_ONCE));
    let mut ticks = interval(TELL_WITHIN);
    let (mut done, mut told) = (base, base);
    loop {
        let behind = done != told;
        let (other, is_time) = tokio::select! {
            other = recorded.next() => match other {
                Some(other) => (other, false),
                None => break,
            },
            _ = ticks.tick(), if behind => (None, true),
        };
        match other {
            Some(Item::Settled(say)) => {
                // Nobody waits any more after a while.
                say.send(()).ok();
            }
            Some(Item::Done { class, bytes, sequence }) => add(&mut done, class, bytes, sequence),
            // Durable by now; or it is time.
            Some(Item::Event(_)) | None => {}
        }
        if done != told
            && (total(&done) >= total(&told) + DONE_BYTES_MIN || is_time)
            && let Some(live) = live.upgrade()
        {
            live.done(number, done);
            told = done;
        }
    }
}

fn add(done: &mut Credit, class: usize, bytes: usize, sequence: u64) {
    if let Some(of_class) = done.bytes.get_mut(class) {
        *of_class += u64::try_from(bytes).unwrap_or(u64::MAX);
    }
    if let Some(next) = done.records.get_mut(class) {
        *next = (*next).max(sequence + 1);
    }
}

fn total(done: &Credit) -> u64 {
    done.bytes.iter().sum()
}

/// How many are under way to the disk together.
const EVENTS_AT_ONCE: usize = 2048;
/// Programs whose files are read together.
const HASHES_AT_ONCE: usize = 64;
/// The kernel is told of what is done in pieces of this.
const DONE_BYTES_MIN: u64 = 32 << 10;
/// And no later than this, so that a node after us knows where to go on.
const TELL_WITHIN: Duration = Duration::from_millis(50);
