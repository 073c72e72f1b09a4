//! What a session says, written by a thread of its own: to write can block, and who writes much is not woken for each
//! piece. What waits to be written is bounded, so a slow terminal slows the host down.

use std::io::{self, IoSlice, Write as _};
use std::os::fd::AsFd;

use bytes::{Buf as _, Bytes};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::{mpsc, oneshot};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standard {
    Output,
    Error,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Output {
    queue: mpsc::Sender<(Standard, Bytes)>,
    over: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// # Errors
    /// No thread to be had.
    pub(crate) fn start() -> io::Result<Self> {
        let (queue, pieces) = mpsc::channel(PIECES_MAX);
        let (say, over) = oneshot::channel();
        std::thread::Builder::new().name("output".to_owned()).spawn(move || {
            // Nobody listens any more when the session was left.
            say.send(write_until_end(pieces)).ok();
        })?;
        Ok(Self { queue, over })
    }

    /// Puts a piece where it will be written from; waits while there is much.
    ///
    /// # Errors
    /// An earlier piece could not be written.
    pub(crate) async fn put(&mut self, to: Standard, piece: Bytes) -> io::Result<()> {
        match self.queue.send((to, piece)).await {
            Ok(()) => Ok(()),
            Err(_closed) => outcome(&mut self.over).await,
        }
    }

    /// Waits until all is written.
    ///
    /// # Errors
    /// It could not be.
    pub(crate) async fn finish(self) -> io::Result<()> {
        let Self { queue, mut over } = self;
        drop(queue);
        outcome(&mut over).await
    }
}

async fn outcome(over: &mut oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
    over.await.unwrap_or_else(|_| Err(io::Error::other("the writer has died")))
}

fn write_until_end(mut pieces: mpsc::Receiver<(Standard, Bytes)>) -> io::Result<()> {
    let mut batch = Vec::with_capacity(PIECES_MAX);
    let mut next = None;
    // What others of this process have said comes first.
    io::stdout().flush()?;
    while let Some((to, piece)) = next.take().or_else(|| pieces.blocking_recv()) {
        batch.push(piece);
        while batch.len() < PIECES_MAX
            && let Ok((other, piece)) = pieces.try_recv()
        {
            if other == to {
                batch.push(piece);
            } else {
                next = Some((other, piece));
                break;
            }
        }
        match to {
            Standard::Output => write_all(io::stdout(), &mut batch)?,
            Standard::Error => write_all(io::stderr(), &mut batch)?,
        }
    }
    Ok(())
}

/// Writes all of them and leaves none.
fn write_all(to: impl AsFd, batch: &mut Vec<Bytes>) -> io::Result<()> {
    let mut written = 0;
    while written < batch.len() {
        let rest = batch.get_mut(written..).unwrap_or_default();
        let slices: Vec<IoSlice<'_>> = rest.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut count = match rustix::io::writev(&to, &slices) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => continue,
            // Some other program has made the terminal, which it shares with us, non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                poll(&mut [PollFd::new(&to, PollFlags::OUT)], None).ok();
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for piece in rest {
            let part = count.min(piece.len());
            piece.advance(part);
            count -= part;
            if piece.has_remaining() {
                break;
            }
            written += 1;
        }
    }
    batch.clear();
    Ok(())
}

/// Pieces that wait to be written, of 32 KiB at most each.
const PIECES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn pieces_are_written_whole_and_in_order_however_little_is_taken_at_once() {
        let (mut reader, writer) = io::pipe().unwrap();
        let pieces: Vec<Bytes> =
            (0..200_u8).map(|number| vec![number; usize::from(number) * 40].into()).collect();
        let expected = pieces.concat();
        // A pipe that does not block takes a part, then nothing for a while.
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let writing = std::thread::spawn(move || {
            for group in pieces.chunks(7) {
                write_all(&writer, &mut group.to_vec()).unwrap();
            }
        });
        let mut heard = Vec::new();
        let mut buffer = [0; 1000];
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => break,
                count => heard.extend_from_slice(&buffer[..count]),
            }
        }
        writing.join().unwrap();
        assert!(heard == expected);
    }

    #[test]
    fn a_reader_that_left_is_an_error() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let error = write_all(&writer, &mut vec![Bytes::from_static(b"x")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
