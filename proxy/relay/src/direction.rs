//! One direction of a stream as a state machine: small copies, then splices through a lent pipe once it proves to be bulk,
//! and back. It asks its two ends to read and write and knows no socket, so that a simulated kernel can drive it through
//! every short read, EAGAIN and reset (tests below). Backpressure is that nothing is read while the writer holds bytes.
//! Owned by [`crate::stream`].

use std::io;

use crate::chunk::{CHUNK_BYTES, Chunk};
use crate::pipes::PIPE_BYTES;

/// One side of a stream, as a direction sees it. Every call returns at once; `WouldBlock` means that the worker will be
/// told when to try again.
pub(crate) trait Side {
    /// What bytes are spliced through.
    type Pipe;

    /// Whether a read is worth trying.
    fn is_readable(&self) -> bool;
    /// Whether a write is worth trying, and nothing accepted earlier waits to leave.
    fn is_writable(&self) -> bool;
    /// Reads at most about `max` bytes; 0 is an orderly end.
    fn read(&mut self, chunk: &mut Chunk, max: usize) -> io::Result<usize>;
    /// Whether the connection is known to be gone: closed both ways, or broken.
    fn is_gone(&self) -> bool;
    /// Takes a prefix of the bytes and says how long it is.
    fn write(&mut self, chunk: &mut Chunk) -> io::Result<usize>;
    fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Sends what was accepted and has not left.
    fn flush(&mut self) -> io::Result<()>;
    /// How many bytes that is.
    fn backlog(&self) -> usize {
        0
    }
    /// Says that no more bytes come.
    fn close_write(&mut self) -> io::Result<()>;
    /// Whether a read of 0 would be the peer's word that it sends no more, and not what is left of a connection that broke
    /// and has told so already.
    fn end_is_certain(&self) -> bool;
    /// Whether the kernel can move bytes from here now without us; may arrange that it can.
    fn prepare_splice_in(&mut self) -> bool;
    /// The same for bytes to here.
    fn prepare_splice_out(&mut self) -> bool;
    /// 0 and `InvalidInput`: what is there has to be read.
    fn splice_in(&mut self, pipe: &Self::Pipe, max: usize) -> io::Result<usize>;
    fn splice_out(&mut self, pipe: &Self::Pipe, len: usize) -> io::Result<usize>;
}

/// Lends pipes.
pub(crate) trait Lender<Pipe> {
    fn lend(&mut self) -> Option<Pipe>;
    fn give_back(&mut self, pipe: Pipe);
    fn destroy(&mut self, pipe: Pipe);
    /// Counts a pipe that was not lent here, and is given back here.
    fn adopt(&mut self);
    /// Counts a pipe that was lent here, and is given back elsewhere.
    fn forget(&mut self);
}

/// What a worker's directions share.
#[derive(Debug)]
pub(crate) struct Kit<Pipes> {
    pub(crate) chunk: Chunk,
    pub(crate) pipes: Pipes,
    /// Bytes copied, and not taken by their writers or sealed and not gone, over all streams of the worker.
    pub(crate) held: usize,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Direction<Pipe> {
    state: State<Pipe>,
    /// Bytes given to the writer.
    moved: u64,
    /// Bytes that came in large reads, one after the other.
    run: usize,
    /// A write to the reader's socket failed. The error of a reset goes to whoever asks first (tcp(7), SO_ERROR), and a
    /// splice that has moved a part drops it (Linux `splice_to_socket`): a read is then told of an end that is none.
    reader_broken: Option<io::ErrorKind>,
}

/// What it waits for.
#[derive(Debug)]
enum State<Pipe> {
    /// The reader is at its end; the writer is to be told.
    Closing,
    /// The writer has been told.
    Delivered,
    /// Copied bytes that the writer has not taken.
    Holding { bytes: Vec<u8>, done: usize },
    /// Bytes in a pipe.
    Piped { pipe: Pipe, held: usize },
    /// Nothing is held.
    Reading,
    /// The writer takes no more. What the reader still sends is of no use.
    Refused(io::ErrorKind),
}

/// Why a direction stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It could go on at once, but others have waited.
    Budget,
    /// It waits for one of its ends.
    Waits,
    /// It is over.
    Over,
}

impl<Pipe> Direction<Pipe> {
    pub(crate) fn new() -> Self {
        Self { state: State::Reading, moved: 0, run: 0, reader_broken: None }
    }

    /// Goes on where another process stopped.
    pub(crate) fn resume(moved: u64, held: Held<Pipe>, over: bool) -> Self {
        let state = match held {
            Held::Bytes(bytes) => State::Holding { bytes, done: 0 },
            Held::Nothing if over => State::Delivered,
            Held::Nothing => State::Reading,
            Held::Pipe { pipe, held } => State::Piped { pipe, held },
        };
        Self { state, moved, run: 0, reader_broken: None }
    }

    /// Moves bytes until it must wait, is over, or has used `budget` up. An error is the reader's; what came before it has
    /// been written.
    pub(crate) fn drive<S: Side<Pipe = Pipe>>(
        &mut self,
        reader: &mut S,
        writer: &mut S,
        kit: &mut Kit<impl Lender<Pipe>>,
        mut budget: usize,
    ) -> io::Result<Stop> {
        loop {
            if self.is_over() {
                return Ok(Stop::Over);
            }
            if let Err(error) = writer.flush() {
                if !self.writer_failed(&error, kit) {
                    return Ok(Stop::Waits);
                }
                continue;
            }
            match &mut self.state {
                State::Delivered | State::Refused(_) => {}
                State::Closing => match writer.close_write() {
                    Ok(()) => self.state = State::Delivered,
                    Err(error) if !self.writer_failed(&error, kit) => return Ok(Stop::Waits),
                    Err(_) => {}
                },
                State::Holding { bytes, done } => {
                    let wrote = writer.write_bytes(bytes.get(*done..).unwrap_or_default());
                    let Ok(count) = wrote.or_else(|error| self.after_failed_write(&error, kit))
                    else {
                        return Ok(Stop::Waits);
                    };
                    self.took(count, kit);
                }
                State::Piped { pipe, held } => {
                    let spliced = writer.splice_out(pipe, *held);
                    let Ok(count) = spliced.or_else(|error| self.after_failed_write(&error, kit))
                    else {
                        return Ok(Stop::Waits);
                    };
                    self.took(count, kit);
                }
                State::Reading => {
                    if !writer.is_writable() || !reader.is_readable() {
                        return Ok(Stop::Waits);
                    }
                    if budget == 0 {
                        return Ok(Stop::Budget);
                    }
                    match self.read(reader, writer, kit) {
                        Ok(count) => budget = budget.saturating_sub(count.max(1)),
                        Err(error) if is_wait(&error) => return Ok(Stop::Waits),
                        Err(error) if is_interruption(&error) => budget = budget.saturating_sub(1),
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    /// One read, by whichever way is cheaper now, and the first try to write it.
    fn read<S: Side<Pipe = Pipe>>(
        &mut self,
        reader: &mut S,
        writer: &mut S,
        kit: &mut Kit<impl Lender<Pipe>>,
    ) -> io::Result<usize> {
        if self.run >= BULK_AFTER
            && writer.prepare_splice_out()
            && reader.prepare_splice_in()
            && let Some(pipe) = kit.pipes.lend()
        {
            return self.splice(reader, pipe, kit);
        }
        let max =
            if self.run >= BULK_AFTER && kit.held < HELD_MAX { READ_BULK } else { READ_SMALL };
        let count = reader.read(&mut kit.chunk, max)?;
        self.note(count);
        if count == 0 {
            return self.reader_ended(reader);
        }
        match writer.write(&mut kit.chunk) {
            Ok(took) => {
                self.moved = self.moved.saturating_add(took as u64);
                if took < count {
                    self.hold(kit, took);
                }
            }
            Err(error) if is_wait(&error) || is_interruption(&error) => self.hold(kit, 0),
            Err(error) => self.state = State::Refused(error.kind()),
        }
        Ok(count)
    }

    fn splice<S: Side<Pipe = Pipe>>(
        &mut self,
        reader: &mut S,
        pipe: Pipe,
        kit: &mut Kit<impl Lender<Pipe>>,
    ) -> io::Result<usize> {
        match reader.splice_in(&pipe, PIPE_BYTES) {
            Ok(held) if held > 0 => {
                self.note(held);
                self.state = State::Piped { pipe, held };
                Ok(held)
            }
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => {
                kit.pipes.give_back(pipe);
                Err(error)
            }
            // Something that is not for a pipe: an end, the mark of urgent data, an empty or a control record of kernel TLS.
            // The read that comes next tells them apart.
            Ok(_) | Err(_) => {
                kit.pipes.give_back(pipe);
                self.run = 0;
                Err(io::ErrorKind::Interrupted.into())
            }
        }
    }

    fn reader_ended(&mut self, reader: &impl Side) -> io::Result<usize> {
        if let Some(kind) = self.reader_broken
            && !reader.end_is_certain()
        {
            return Err(kind.into());
        }
        self.state = State::Closing;
        Ok(0)
    }

    fn hold(&mut self, kit: &mut Kit<impl Lender<Pipe>>, took: usize) {
        let bytes = kit.chunk.rest(took);
        kit.held = kit.held.saturating_add(bytes.len());
        self.state = State::Holding { bytes, done: 0 };
    }

    /// The writer took so many of the bytes that are held.
    fn took(&mut self, count: usize, kit: &mut Kit<impl Lender<Pipe>>) {
        self.moved = self.moved.saturating_add(count as u64);
        match &mut self.state {
            State::Holding { bytes, done } => {
                *done = done.saturating_add(count);
                if *done >= bytes.len() {
                    kit.held = kit.held.saturating_sub(bytes.len());
                    self.state = State::Reading;
                }
            }
            State::Piped { held, .. } => {
                *held = held.saturating_sub(count);
                if *held == 0
                    && let State::Piped { pipe, .. } =
                        std::mem::replace(&mut self.state, State::Reading)
                {
                    kit.pipes.give_back(pipe);
                }
            }
            State::Closing | State::Delivered | State::Reading | State::Refused(_) => {}
        }
    }

    /// Large reads one after the other make bulk; a small one ends it.
    fn note(&mut self, count: usize) {
        if count >= LARGE_READ {
            self.run = self.run.saturating_add(count);
        } else if count < SMALL_READ {
            self.run = 0;
        }
    }

    /// `Ok(0)` when the failure has ended the direction or a signal came between, an error when it must wait.
    fn after_failed_write(
        &mut self,
        error: &io::Error,
        kit: &mut Kit<impl Lender<Pipe>>,
    ) -> Result<usize, ()> {
        if self.writer_failed(error, kit) { Ok(0) } else { Err(()) }
    }

    /// False when the writer only has to be waited for; true when there is more to do, if only to try again.
    fn writer_failed(&mut self, error: &io::Error, kit: &mut Kit<impl Lender<Pipe>>) -> bool {
        if is_wait(error) {
            return false;
        }
        if is_interruption(error) {
            return true;
        }
        self.release(kit);
        self.state = State::Refused(error.kind());
        true
    }

    /// The writer is gone, which no write has found out yet.
    pub(crate) fn refuse(&mut self, kit: &mut Kit<impl Lender<Pipe>>) {
        self.release(kit);
        self.state = State::Refused(io::ErrorKind::ConnectionReset);
    }

    /// The opposite direction could not write to our reader.
    pub(crate) fn reader_refused(&mut self, kind: io::ErrorKind) {
        self.reader_broken = Some(kind);
    }

    /// Gives up what is held.
    pub(crate) fn release(&mut self, kit: &mut Kit<impl Lender<Pipe>>) {
        match std::mem::replace(&mut self.state, State::Refused(io::ErrorKind::ConnectionAborted)) {
            State::Holding { bytes, .. } => kit.held = kit.held.saturating_sub(bytes.len()),
            State::Piped { pipe, .. } => kit.pipes.destroy(pipe),
            state @ (State::Closing | State::Delivered | State::Reading | State::Refused(_)) => {
                self.state = state;
            }
        }
    }

    /// Bytes given to the writer so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }
    /// Changes whenever the direction does.
    pub(crate) fn progress(&self) -> (u64, bool) {
        (self.moved, self.is_over())
    }
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Delivered | State::Refused(_))
    }
    pub(crate) fn is_delivered(&self) -> bool {
        matches!(self.state, State::Delivered)
    }
    pub(crate) fn refused(&self) -> Option<io::ErrorKind> {
        match self.state {
            State::Refused(kind) => Some(kind),
            State::Closing
            | State::Delivered
            | State::Holding { .. }
            | State::Piped { .. }
            | State::Reading => None,
        }
    }

    /// What it holds is another process's from now on.
    pub(crate) fn forget_held(&self, kit: &mut Kit<impl Lender<Pipe>>) {
        match &self.state {
            State::Holding { bytes, .. } => kit.held = kit.held.saturating_sub(bytes.len()),
            State::Piped { .. } => kit.pipes.forget(),
            State::Closing | State::Delivered | State::Reading | State::Refused(_) => {}
        }
    }

    /// What it holds came from another process.
    pub(crate) fn count_held(&self, kit: &mut Kit<impl Lender<Pipe>>) {
        match &self.state {
            State::Holding { bytes, .. } => kit.held = kit.held.saturating_add(bytes.len()),
            State::Piped { .. } => kit.pipes.adopt(),
            State::Closing | State::Delivered | State::Reading | State::Refused(_) => {}
        }
    }

    /// Whether [`Direction::into_parts`] gives something.
    pub(crate) fn is_movable(&self) -> bool {
        !matches!(self.state, State::Closing | State::Refused(_))
    }

    /// Takes it apart for another process: bytes moved, bytes held, and whether it is over. `None` while it ends, which
    /// takes no longer than a moment, and when it was refused.
    pub(crate) fn into_parts(self) -> Result<(u64, Held<Pipe>, bool), Self> {
        let held = match self.state {
            State::Delivered => return Ok((self.moved, Held::Nothing, true)),
            State::Reading => Held::Nothing,
            State::Holding { mut bytes, done } => Held::Bytes(bytes.split_off(done)),
            State::Piped { pipe, held } => Held::Pipe { pipe, held },
            State::Closing | State::Refused(_) => return Err(self),
        };
        Ok((self.moved, held, false))
    }
}

/// What a direction holds between two turns.
#[derive(Debug)]
pub(crate) enum Held<Pipe> {
    Bytes(Vec<u8>),
    Nothing,
    Pipe { pipe: Pipe, held: usize },
}

fn is_wait(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

fn is_interruption(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

/// A direction is bulk after so much in large reads. 128 KiB cost nothing against splicing from the start.
const BULK_AFTER: usize = 128 * 1024;
/// A read that counts towards bulk.
const LARGE_READ: usize = 8 * 1024;
/// A read that shows that it is not bulk, or no longer.
const SMALL_READ: usize = 4 * 1024;
/// One read of a direction that is not bulk, and the most that it holds when its writer stalls.
const READ_SMALL: usize = 64 * 1024;
/// One read of a bulk direction that cannot be spliced.
const READ_BULK: usize = CHUNK_BYTES;
/// While a worker's streams hold more than this, reads stay small: 10,000 stalled readers cost no more than 640 MB more,
/// and only if each was sent as much.
const HELD_MAX: usize = 64 * 1024 * 1024;

const _: () = assert!(SMALL_READ < LARGE_READ && LARGE_READ < READ_SMALL);
const _: () = assert!(READ_SMALL <= READ_BULK);

#[cfg(test)]
#[path = "direction_tests.rs"]
mod tests;
