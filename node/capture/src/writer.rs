//! A session's events on their way to the disk: in order, many at a time, each session for itself.

use std::sync::{Arc, Weak};
use std::time::Duration;

use ebpf_abi::Credit;
use futures::future::join_all;
use futures::{StreamExt as _, stream};
use proto::event;
use tokio::sync::{mpsc, oneshot};
use tokio::time::interval;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::live::Live;
use crate::{Sink, hash};

/// What a session's writer is given.
#[derive(Debug)]
pub(crate) enum Item {
    /// Of no record of the session's own.
    Event(Box<event::Body>),
    /// A record, and the events that it makes: none, one, seldom more.
    Record { events: Vec<event::Body>, done: Done },
    /// Everything before is durable.
    Settled(oneshot::Sender<()>),
}

/// What of the kernel's is done with when its events are durable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) class: usize,
    pub(crate) bytes: usize,
    pub(crate) sequence: u64,
}

/// What a future of [`write`] has left to be done, in order.
enum Written {
    Done(Done),
    Nothing,
    Settled(oneshot::Sender<()>),
}

/// Writes until the session is forgotten; `base` is what was done with before.
pub(crate) async fn write(
    live: Weak<Live>,
    number: u64,
    sink: Arc<dyn Sink>,
    items: mpsc::UnboundedReceiver<Vec<Item>>,
    base: Credit,
) {
    let items = UnboundedReceiverStream::new(items).flat_map(stream::iter);
    let hashed = items.map(|mut item| async {
        if let Item::Record { events, .. } = &mut item {
            for event in events {
                if let event::Body::SessionCommand(command) = event
                    && command.return_code == 0
                {
                    hash::fill(command).await;
                }
            }
        }
        item
    });
    // In order: events get their numbers as they are recorded.
    let recorded = hashed.buffered(HASHES_AT_ONCE).map(|item| {
        let (events, written) = match item {
            Item::Event(event) => (vec![*event], Written::Nothing),
            Item::Record { events, done } => (events, Written::Done(done)),
            Item::Settled(say) => (Vec::new(), Written::Settled(say)),
        };
        let recorded = join_all(events.into_iter().map(|event| sink.record(event)));
        async move {
            recorded.await;
            written
        }
    });
    let mut recorded = std::pin::pin!(recorded.buffered(EVENTS_AT_ONCE));
    let mut ticks = interval(TELL_WITHIN);
    let (mut done, mut told) = (base, base);
    loop {
        let behind = done != told;
        let (written, is_time) = tokio::select! {
            written = recorded.next() => match written {
                Some(written) => (written, false),
                None => break,
            },
            _ = ticks.tick(), if behind => (Written::Nothing, true),
        };
        match written {
            Written::Settled(say) => {
                // Nobody waits any more after a while.
                say.send(()).ok();
            }
            Written::Done(of) => add(&mut done, of),
            Written::Nothing => {}
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

fn add(done: &mut Credit, Done { class, bytes, sequence }: Done) {
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
