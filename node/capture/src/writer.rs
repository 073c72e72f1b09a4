//! A session's records on their way to the disk: to events, in order, many at a time, each session for itself. Until it is
//! their turn they wait as the kernel wrote them, so that what waits is no larger than the budget that the kernel keeps.

use std::sync::{Arc, Weak};
use std::time::Duration;

use ebpf_abi::Credit;
use futures::{StreamExt as _, stream};
use proto::event::{self, Happened};
use proto::id::SessionId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::clock::Started;
use crate::live::{Live, class_of};
use crate::loss::{Lost, loss};
use crate::record::{Body, Record};
use crate::translate::{Context, Translator};
use crate::{Sink, hash};

/// What a session's writer is given.
#[derive(Debug)]
pub(crate) enum Item {
    /// Of no record of the session's own.
    Event(Box<Happened>),
    Records(Records),
    /// Everything before is durable.
    Settled(oneshot::Sender<()>),
}

/// Records one behind the other, and what was known beside them when they came.
#[derive(Debug, Default)]
pub(crate) struct Records {
    bytes: Vec<u8>,
    /// The other session, of each that is about two.
    others: Vec<Option<SessionId>>,
    /// The rule, of each that is about one.
    rules: Vec<String>,
}

impl Records {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn about_two(&mut self, other: Option<SessionId>) {
        self.others.push(other);
    }

    pub(crate) fn about_rule(&mut self, rule: String) {
        self.rules.push(rule);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= RECORDS_BYTES
    }

    fn translate(self, session: &event::Session, translator: &mut Translator) -> Piece {
        let mut piece = Piece::default();
        let (mut others, mut rules) = (self.others.into_iter(), self.rules.into_iter());
        let mut rest = self.bytes.as_slice();
        let started = Started::look();
        // Each was read once before.
        while let Some((record, behind)) = Record::read_first(rest) {
            let length = rest.len() - behind.len();
            rest = behind;
            let is_trace = matches!(record.body, Body::Trace { .. });
            let other = if is_trace { others.next().flatten() } else { None };
            let is_denial = matches!(record.body, Body::Denial { .. });
            let rule = if is_denial { rules.next().unwrap_or_default() } else { String::new() };
            let context = Context { session, other: other.as_ref(), rule: &rule };
            let (class, bytes) = (class_of(record.header.kind), to_u64(length));
            add(&mut piece.done, class, bytes, record.header.sequence + 1);
            let (when, time) = (record.header.boot_ns, started.time(record.header.boot_ns));
            for body in translator.translate(&context, record) {
                if matches!(body, event::Body::SessionCommand(_)) {
                    piece.executed.push((piece.events.len(), when));
                }
                piece.events.push(Happened { time, body });
            }
        }
        piece
    }
}

/// Events to be written together, and what is to be said when they are durable.
#[derive(Debug, Default)]
struct Piece {
    events: Vec<Happened>,
    /// Which of them are programs, and when each was executed, by the kernel's clock.
    executed: Vec<(usize, u64)>,
    /// What of the kernel's is done with then: bytes of these records, the number behind the last.
    done: Credit,
    settled: Option<oneshot::Sender<()>>,
}

impl Piece {
    async fn hashed(mut self) -> Self {
        hash::fill(&mut self.events, &self.executed).await;
        self
    }
}

/// Writes until the session is forgotten; `base` is what was done with before.
pub(crate) async fn write(
    live: Weak<Live>,
    number: u64,
    (sink, mut translator): (Arc<dyn Sink>, Translator),
    items: mpsc::UnboundedReceiver<Vec<Item>>,
    base: Credit,
) {
    let _vital = crate::Vital;
    let facts = sink.facts();
    let items = UnboundedReceiverStream::new(items).flat_map(stream::iter);
    let pieces = items.map(|item| match item {
        Item::Event(event) => Piece { events: vec![*event], ..Piece::default() },
        Item::Records(records) => records.translate(&facts, &mut translator),
        Item::Settled(say) => Piece { settled: Some(say), ..Piece::default() },
    });
    // In order: events get their numbers as they are recorded.
    let recorded = pieces.map(Piece::hashed).buffered(PIECES_HASHED).map(|piece| {
        let count = piece.events.len();
        let durable = (count > 0).then(|| sink.record(piece.events));
        async move {
            let is_durable = match durable {
                Some(durable) => durable.await,
                None => true,
            };
            (if is_durable { 0 } else { count }, piece.done, piece.settled)
        }
    });
    let mut recorded = std::pin::pin!(recorded.buffered(PIECES_AT_ONCE));
    let mut ticks = interval(TELL_WITHIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut done, mut told, mut lost) = (base, base, 0);
    loop {
        let behind = done != told;
        let is_time = tokio::select! {
            written = recorded.next() => match written {
                Some((0, of, settled)) => {
                    add_all(&mut done, &of);
                    if let Some(say) = settled {
                        // Nobody waits any more after a while.
                        say.send(()).ok();
                    }
                    false
                }
                // Its bytes stay owed to the kernel: a strict session must not go on as if nothing were.
                Some((count, ..)) => {
                    lost += to_u64(count);
                    false
                }
                None => break,
            },
            _ = ticks.tick(), if behind || lost > 0 => true,
        };
        if lost > 0 && is_time && sink.record(vec![not_written(&facts, lost)]).await {
            lost = 0;
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

/// Events that the sink did not take.
fn not_written(session: &event::Session, count: u64) -> Happened {
    Happened::now(loss(session, "", "spool", Lost::of(count)))
}

/// So many bytes of a class are done with, and all records before `next`.
fn add(done: &mut Credit, class: usize, bytes: u64, next: u64) {
    if let Some(of_class) = done.bytes.get_mut(class) {
        *of_class += bytes;
    }
    if let Some(so_far) = done.records.get_mut(class) {
        *so_far = next.max(*so_far);
    }
}

fn add_all(done: &mut Credit, more: &Credit) {
    for (class, (bytes, next)) in more.bytes.into_iter().zip(more.records).enumerate() {
        add(done, class, bytes, next);
    }
}

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn total(done: &Credit) -> u64 {
    done.bytes.iter().sum()
}

/// Records that are written together: some hundreds.
const RECORDS_BYTES: usize = 48 << 10;
/// How many pieces are under way to the disk together.
const PIECES_AT_ONCE: usize = 8;
/// Of how many the programs' files are read together.
const PIECES_HASHED: usize = 2;
/// The kernel is told of what is done in pieces of this.
const DONE_BYTES_MIN: u64 = 32 << 10;
/// And no later than this, so that a node after us knows where to go on.
const TELL_WITHIN: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::future::BoxFuture;

    use super::*;
    use crate::loss::tests::facts;

    /// Takes nothing at first.
    #[derive(Debug, Default)]
    struct Stubborn(Mutex<(bool, Vec<event::Body>)>);

    impl Sink for Stubborn {
        fn facts(&self) -> event::Session {
            facts()
        }

        fn record(&self, happened: Vec<Happened>) -> BoxFuture<'_, bool> {
            let mut state = crate::lock(&self.0);
            let takes = std::mem::replace(&mut state.0, true);
            if takes {
                state.1.extend(happened.into_iter().map(|happened| happened.body));
            }
            Box::pin(std::future::ready(takes))
        }
    }

    fn detached(tasks: u64) -> Item {
        Item::Event(Box::new(Happened::now(event::SessionDetached { session: facts(), tasks })))
    }

    #[tokio::test]
    async fn what_the_sink_does_not_take_is_told_as_lost() {
        let sink = Arc::new(Stubborn::default());
        let (items, received) = mpsc::unbounded_channel();
        let to = (Arc::clone(&sink) as Arc<dyn Sink>, Translator::new(u32::MAX));
        let writer = tokio::spawn(write(Weak::new(), 1, to, received, Credit::default()));
        let (say, settled) = oneshot::channel();
        items.send(vec![detached(1), detached(2), Item::Settled(say)]).unwrap();
        settled.await.unwrap();
        tokio::time::sleep(2 * TELL_WITHIN).await;
        drop(items);
        writer.await.unwrap();
        let state = sink.0.lock().unwrap();
        let expected: [event::Body; 2] = [
            event::SessionDetached { session: facts(), tasks: 2 }.into(),
            not_written(&facts(), 1).body,
        ];
        assert_eq!(state.1, expected);
    }
}
