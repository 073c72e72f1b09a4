//! Both directions of one stream, until its end. Each direction reads into a pooled buffer and writes it out before it
//! reads again: that is the whole backpressure. End of file on one side is passed on as end of file to the other, while
//! the opposite direction goes on. [`crate::Relay::run`] calls it and reports what it says.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use metrics::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use crate::leg::Leg;
use crate::pool::Pool;
use crate::stream::patience;
use crate::{End, Limits, Meters, Outcome};

/// A stream on its way.
pub(crate) struct Transfer<'a> {
    client: Leg,
    target: Leg,
    from_client: Direction<'a>,
    from_target: Direction<'a>,
    limits: Limits,
    /// When a byte last moved, or a direction last ended.
    moved_at: Instant,
}

impl<'a> Transfer<'a> {
    pub(crate) fn new(
        client: Leg,
        target: Leg,
        pool: &'a Pool,
        meters: &'a Meters,
        limits: Limits,
    ) -> Self {
        Self {
            client,
            target,
            from_client: Direction::new(pool, &meters.from_client),
            from_target: Direction::new(pool, &meters.from_target),
            limits,
            moved_at: Instant::now(),
        }
    }

    /// Moves bytes until the end.
    pub(crate) async fn run(mut self, cut: &CancellationToken) -> Outcome {
        let end = self.drive(cut).await;
        self.part(&end);
        Outcome {
            bytes_from_client: self.from_client.bytes,
            bytes_from_target: self.from_target.bytes,
            end,
        }
    }

    async fn drive(&mut self, cut: &CancellationToken) -> End {
        let mut cancelled = pin!(cut.cancelled());
        let mut timer: Pin<&mut Option<Sleep>> = pin!(None);
        std::future::poll_fn(|context| {
            if cancelled.as_mut().poll(context).is_ready() {
                return Poll::Ready(End::Cut);
            }
            if let Poll::Ready(end) = self.poll(context) {
                return Poll::Ready(end);
            }
            self.poll_timer(timer.as_mut(), context)
        })
        .await
    }

    /// Drives both directions as far as they go.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        let before = (self.from_client.progress(), self.from_target.progress());
        // A read that fails ends the stream: what came before it has been written already.
        if let Poll::Ready(Err(error)) =
            self.from_client.poll(context, &mut self.client, &mut self.target)
        {
            return Poll::Ready(End::Failed(error));
        }
        self.from_target.reader_broken = self.from_client.broken_writer();
        if let Poll::Ready(Err(error)) =
            self.from_target.poll(context, &mut self.target, &mut self.client)
        {
            return Poll::Ready(End::Failed(error));
        }
        self.from_client.reader_broken = self.from_target.broken_writer();
        if before != (self.from_client.progress(), self.from_target.progress()) {
            self.moved_at = Instant::now();
        }
        if !(self.from_client.is_over() && self.from_target.is_over()) {
            return Poll::Pending;
        }
        Poll::Ready(
            self.from_client
                .refused()
                .or(self.from_target.refused())
                .map_or(End::Closed, End::Failed),
        )
    }

    /// Ready when nothing has moved for too long.
    fn poll_timer(
        &self,
        mut timer: Pin<&mut Option<Sleep>>,
        context: &mut Context<'_>,
    ) -> Poll<End> {
        let Some(patience) = self.patience() else { return Poll::Pending };
        let deadline = self.moved_at + patience;
        match timer.as_mut().as_pin_mut() {
            // Later deadlines are looked at when the earlier one has passed: no timer is moved per read.
            Some(sleep) if sleep.deadline() <= deadline => {}
            Some(_) | None => timer.set(Some(tokio::time::sleep_until(deadline))),
        }
        while let Some(mut sleep) = timer.as_mut().as_pin_mut() {
            ready!(sleep.as_mut().poll(context));
            if deadline <= Instant::now() {
                break;
            }
            sleep.reset(deadline);
        }
        Poll::Ready(match self.refused() {
            Some(error) => End::Failed(error),
            None => End::Idle,
        })
    }

    /// How long nothing may move.
    fn patience(&self) -> Option<Duration> {
        let refused = self.from_client.is_refused() || self.from_target.is_refused();
        let half_closed = self.from_client.is_over() || self.from_target.is_over();
        patience(self.limits, refused, half_closed)
    }

    fn refused(&self) -> Option<io::Error> {
        self.from_client.refused().or(self.from_target.refused())
    }

    /// After an end that is not in order, each side learns of it by a reset, unless everything meant for it has been
    /// delivered: a reset would throw away what it has not read yet.
    fn part(&self, end: &End) {
        if matches!(end, End::Closed) {
            return;
        }
        if !self.from_target.is_delivered() {
            self.client.abort();
        }
        if !self.from_client.is_delivered() {
            self.target.abort();
        }
    }
}

/// One direction.
struct Direction<'a> {
    pool: &'a Pool,
    meter: &'a Counter,
    state: State,
    bytes: u64,
    flush: bool,
    /// A write to the reader failed, and with that its error is told: a read would be told of an end that is none.
    reader_broken: Option<io::ErrorKind>,
}

enum State {
    /// The reader said end of file, and the writer has passed it on.
    Delivered,
    /// Waiting for the reader; no buffer is held.
    Reading,
    /// The writer takes no more. What the reader still sends is of no use.
    Refused(io::ErrorKind),
    /// The reader said end of file.
    Shutting,
    /// Bytes `done..end` are to be written.
    Writing { buffer: Box<[u8]>, done: usize, end: usize },
}

impl<'a> Direction<'a> {
    fn new(pool: &'a Pool, meter: &'a Counter) -> Self {
        Self { pool, meter, state: State::Reading, bytes: 0, flush: false, reader_broken: None }
    }

    /// Goes on until it must wait or is over. An error is the reader's.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut Leg,
        writer: &mut Leg,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Delivered | State::Refused(_) => return Poll::Ready(Ok(())),
                State::Reading => match self.poll_fill(context, reader)? {
                    Poll::Ready(()) => {}
                    Poll::Pending => {
                        self.poll_flush(context, writer);
                        return Poll::Pending;
                    }
                },
                State::Shutting => {
                    let closed = ready!(Pin::new(&mut *writer).poll_shutdown(context));
                    self.state = closed.map_or_else(refusal, |()| State::Delivered);
                }
                State::Writing { buffer, done, end } => {
                    let rest = buffer.get(*done..*end).unwrap_or_default();
                    let wrote = ready!(Pin::new(&mut *writer).poll_write(context, rest));
                    self.wrote(wrote);
                }
            }
        }
    }

    /// One read. The buffer goes back to the pool when there is nothing to read.
    fn poll_fill(&mut self, context: &mut Context<'_>, reader: &mut Leg) -> Poll<io::Result<()>> {
        let mut buffer = self.pool.take();
        let mut room = ReadBuf::new(&mut buffer);
        let mut read = Pin::new(&mut *reader).poll_read(context, &mut room);
        let end = room.filled().len();
        match read {
            Poll::Ready(Ok(())) if end > 0 => {
                self.state = State::Writing { buffer, done: 0, end };
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Ok(())) => match self.reader_broken {
                Some(kind) if !reader.has_a_word_for_the_end() => {
                    read = Poll::Ready(Err(kind.into()));
                }
                Some(_) | None => self.state = State::Shutting,
            },
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        self.pool.give(buffer);
        read
    }

    fn wrote(&mut self, wrote: io::Result<usize>) {
        let State::Writing { done, end, .. } = &mut self.state else { return };
        let over = match wrote {
            Ok(0) => refusal(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                *done = done.saturating_add(count);
                self.flush = true;
                let moved = u64::try_from(count).unwrap_or(u64::MAX);
                self.bytes = self.bytes.saturating_add(moved);
                self.meter.increment(moved);
                if done < end {
                    return;
                }
                State::Reading
            }
            Err(error) => refusal(error),
        };
        if let State::Writing { buffer, .. } = std::mem::replace(&mut self.state, over) {
            self.pool.give(buffer);
        }
    }

    /// TLS and SSH may hold written bytes back until they are told that no more come now.
    fn poll_flush(&mut self, context: &mut Context<'_>, writer: &mut Leg) {
        if !self.flush {
            return;
        }
        match Pin::new(writer).poll_flush(context) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.flush = false,
            Poll::Ready(Err(error)) => self.state = refusal(error),
        }
    }

    /// Changes whenever the direction does.
    fn progress(&self) -> (u64, u8) {
        let state = match self.state {
            State::Reading => 0,
            State::Writing { .. } => 1,
            State::Shutting => 2,
            State::Delivered => 3,
            State::Refused(_) => 4,
        };
        (self.bytes, state)
    }
    fn is_over(&self) -> bool {
        self.is_delivered() || self.is_refused()
    }
    fn is_delivered(&self) -> bool {
        matches!(self.state, State::Delivered)
    }
    fn is_refused(&self) -> bool {
        matches!(self.state, State::Refused(_))
    }
    /// The error that a write has taken away from the next read. A pipe that is broken, or a socket that is not connected
    /// any more, tells nothing: the first is also what a write meets after an orderly end and a reset behind it (Linux
    /// `tcp_reset`), which a read would tell apart.
    fn broken_writer(&self) -> Option<io::ErrorKind> {
        use io::ErrorKind::{BrokenPipe, NotConnected, WriteZero};
        match self.state {
            State::Refused(BrokenPipe | NotConnected | WriteZero) => None,
            State::Refused(kind) => Some(kind),
            State::Delivered | State::Reading | State::Shutting | State::Writing { .. } => None,
        }
    }
    fn refused(&self) -> Option<io::Error> {
        match self.state {
            State::Refused(kind) => Some(kind.into()),
            State::Delivered | State::Reading | State::Shutting | State::Writing { .. } => None,
        }
    }
}

fn refusal(error: io::Error) -> State {
    State::Refused(error.kind())
}
