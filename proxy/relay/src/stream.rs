//! A relayed stream: two sides, two directions, and when it ends. Driven by a worker ([`crate::reactor`]); what it
//! moved and why it ended goes to whoever asked for it.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::direction::{Direction, Kit, Lender, Side, Stop};
use crate::port::Port;
use crate::upgrade::Moved;
use crate::{End, Limits, Outcome};

/// A stream on its way.
#[derive(Debug)]
pub(crate) struct Stream<S: Side> {
    pub(crate) client: S,
    pub(crate) target: S,
    from_client: Direction<S::Pipe>,
    from_target: Direction<S::Pipe>,
    limits: Limits,
    /// When a byte last moved, or a direction last ended.
    moved_at: Instant,
    /// What the sides had accepted and not sent after the last turn; counted in [`Kit::held`].
    backlog: usize,
}

/// What a turn came to.
#[derive(Debug)]
pub(crate) enum Turn {
    /// More can be done at once, but it is others' turn.
    Again,
    Ended(End),
    Waits,
}

impl<S: Side> Stream<S> {
    pub(crate) fn new(client: S, target: S, limits: Limits, now: Instant) -> Self {
        let (from_client, from_target) = (Direction::new(), Direction::new());
        Self { client, target, from_client, from_target, limits, moved_at: now, backlog: 0 }
    }

    /// Goes on where another process stopped.
    pub(crate) fn resume(
        sides: (S, S),
        directions: (Direction<S::Pipe>, Direction<S::Pipe>),
        limits: Limits,
        now: Instant,
    ) -> Self {
        let (client, target) = sides;
        let (from_client, from_target) = directions;
        Self { client, target, from_client, from_target, limits, moved_at: now, backlog: 0 }
    }

    /// Drives both directions as far as they go.
    pub(crate) fn turn(&mut self, kit: &mut Kit<impl Lender<S::Pipe>>, now: Instant) -> Turn {
        let turn = self.drive(kit, now);
        kit.held = kit.held.saturating_sub(self.backlog);
        self.backlog = self.client.backlog().saturating_add(self.target.backlog());
        kit.held = kit.held.saturating_add(self.backlog);
        turn
    }

    fn drive(&mut self, kit: &mut Kit<impl Lender<S::Pipe>>, now: Instant) -> Turn {
        let before = self.progress();
        // A read that fails ends the stream: what came before it has been written already.
        let up = self.from_client.drive(&mut self.client, &mut self.target, kit, TURN_BYTES);
        let up = match up {
            Ok(stop) => stop,
            Err(error) => return Turn::Ended(End::Failed(error)),
        };
        if let Some(kind) = self.from_client.refused() {
            self.from_target.reader_refused(kind);
        }
        let down = self.from_target.drive(&mut self.target, &mut self.client, kit, TURN_BYTES);
        let down = match down {
            Ok(stop) => stop,
            Err(error) => return Turn::Ended(End::Failed(error)),
        };
        if let Some(kind) = self.from_target.refused() {
            self.from_client.reader_refused(kind);
        }
        // Reading from the target may have called for an answer to it (a TLS key update), after its writer had its turn.
        let unsent = up != Stop::Over
            && self.target.flush().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock);
        let (up, down) = self.refuse_the_gone(up, down, kit);
        if before != self.progress() {
            self.moved_at = now;
        }
        match (up, down) {
            (Stop::Over, Stop::Over) => Turn::Ended(match self.refused() {
                Some(kind) => End::Failed(kind.into()),
                None => End::Closed,
            }),
            (Stop::Budget, _) | (_, Stop::Budget) => Turn::Again,
            // The writer's next turn finds out what is wrong.
            _ if unsent => Turn::Again,
            (Stop::Over | Stop::Waits, Stop::Over | Stop::Waits) => Turn::Waits,
        }
    }

    /// A side that has closed its half and is then gone takes nothing more: that was a reset, and nobody else would notice
    /// it before the other side has something to say.
    fn refuse_the_gone(
        &mut self,
        mut up: Stop,
        mut down: Stop,
        kit: &mut Kit<impl Lender<S::Pipe>>,
    ) -> (Stop, Stop) {
        if self.client.is_gone() && up == Stop::Over && down != Stop::Over {
            self.from_target.refuse(kit);
            down = Stop::Over;
        }
        if self.target.is_gone() && down == Stop::Over && up != Stop::Over {
            self.from_client.refuse(kit);
            up = Stop::Over;
        }
        (up, down)
    }

    /// When it has been quiet for too long, if nothing moves until then.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        Some(self.moved_at + self.patience()?)
    }

    /// What being quiet for too long means.
    pub(crate) fn timed_out(&self) -> End {
        match self.refused() {
            Some(kind) => End::Failed(kind.into()),
            None => End::Idle,
        }
    }

    /// How long nothing may move.
    fn patience(&self) -> Option<Duration> {
        let half_closed = self.from_client.is_over() || self.from_target.is_over();
        patience(self.limits, self.refused().is_some(), half_closed)
    }

    fn refused(&self) -> Option<io::ErrorKind> {
        self.from_client.refused().or(self.from_target.refused())
    }

    fn progress(&self) -> ((u64, bool), (u64, bool)) {
        (self.from_client.progress(), self.from_target.progress())
    }

    /// Bytes moved from the client and from the target.
    pub(crate) fn moved(&self) -> (u64, u64) {
        (self.from_client.moved(), self.from_target.moved())
    }

    /// Enters what directions from another process hold into a worker's accounts.
    pub(crate) fn count_held(&self, kit: &mut Kit<impl Lender<S::Pipe>>) {
        self.from_client.count_held(kit);
        self.from_target.count_held(kit);
    }

    /// Gives up what its directions hold.
    pub(crate) fn release(&mut self, kit: &mut Kit<impl Lender<S::Pipe>>) {
        self.from_client.release(kit);
        self.from_target.release(kit);
        kit.held = kit.held.saturating_sub(std::mem::take(&mut self.backlog));
    }
}

impl Stream<Port> {
    /// Ends it. After an end that is not in order, each side learns of it by a reset, unless everything meant for it has
    /// been delivered: a reset would throw away what it has not read yet.
    pub(crate) fn part(
        mut self,
        end: End,
        kit: &mut Kit<impl Lender<crate::pipes::Pipe>>,
    ) -> (Outcome, [Port; 2]) {
        if !matches!(end, End::Closed) {
            if !self.from_target.is_delivered() {
                self.client.abort();
            }
            if !self.from_client.is_delivered() {
                self.target.abort();
            }
        }
        self.release(kit);
        let (bytes_from_client, bytes_from_target) = self.moved();
        (Outcome { bytes_from_client, bytes_from_target, end }, [self.client, self.target])
    }

    /// Whether another process can go on with it.
    pub(crate) fn make_movable(&mut self) -> bool {
        self.from_client.is_movable()
            && self.from_target.is_movable()
            && self.client.make_movable()
            && self.target.make_movable()
    }

    /// Takes it apart for another process. The worker's accounts of what it held are put right.
    pub(crate) fn into_moved(
        self,
        tag: Bytes,
        kit: &mut Kit<impl Lender<crate::pipes::Pipe>>,
    ) -> Moved {
        for direction in [&self.from_client, &self.from_target] {
            direction.forget_held(kit);
        }
        kit.held = kit.held.saturating_sub(self.backlog);
        Moved {
            sides: (self.client, self.target),
            directions: (self.from_client, self.from_target),
            limits: self.limits,
            tag,
        }
    }
}

/// How long nothing may move in a stream, of whose sides one takes nothing more or has closed its half.
pub(crate) fn patience(limits: Limits, refused: bool, half_closed: bool) -> Option<Duration> {
    let idle = limits.idle_timeout;
    let most = |limit: Duration| Some(idle.map_or(limit, |idle| idle.min(limit)));
    if refused {
        most(REFUSED_DRAIN)
    } else if half_closed {
        most(HALF_CLOSED_IDLE)
    } else {
        idle
    }
}

/// A turn's bytes per direction, then the next stream has its turn: a millisecond or less.
pub(crate) const TURN_BYTES: usize = 1024 * 1024;
/// After one side has closed its half and nothing moves any more: a half-closed stream outlives a long answer, but not
/// for ever, also where no idle timeout is set.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(3600);
/// After one side takes no more, for what it still has to say (an error message, an exit status).
const REFUSED_DRAIN: Duration = Duration::from_secs(5);
