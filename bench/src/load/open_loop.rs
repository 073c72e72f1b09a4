//! Messages of 64 bytes at a fixed rate, whatever becomes of those before them. Each carries the time when it was due,
//! and its latency counts from then: a peer that stalls is charged for every message that it kept from being sent in
//! time, too. One thread; between messages it sleeps, so that others on its core can run.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::program::{Core, pin};
use crate::upstream;

/// Connections that the messages go round on.
const CONNECTIONS: usize = 16;
/// Messages per second.
pub(crate) const RATE: u32 = 10_000;
const MESSAGE_BYTES: usize = 64;
/// After the last was due, the rest has so long to come back.
const LAST_LIMIT: Duration = Duration::from_secs(5);

/// Latencies in nanoseconds.
#[derive(Debug)]
pub(crate) struct Latency(Histogram<u64>);

impl Latency {
    /// In microseconds.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        crate::measure::as_f64(self.0.value_at_quantile(quantile)) / 1000.0
    }
}

/// A connection, and the part of a message that has come back.
struct Line {
    socket: TcpStream,
    part: Vec<u8>,
}

/// Sends for so long, from a thread on the given core.
pub(crate) fn run(addr: SocketAddr, core: Core, length: Duration) -> Result<Latency> {
    let thread = std::thread::spawn(move || {
        pin(core)?;
        run_here(addr, length)
    });
    thread.join().map_err(|_| anyhow!("the load generator failed badly"))?
}

fn run_here(addr: SocketAddr, length: Duration) -> Result<Latency> {
    // By default the kernel may wake a sleeper 50 us late.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let lines: Result<Vec<Line>> = (0..CONNECTIONS).map(|_| Line::open(addr)).collect();
    let mut lines = lines?;
    // Three digits, up to a minute.
    let mut latencies = Histogram::new_with_max(60_000_000_000, 3)?;
    let interval = Duration::from_secs(1) / RATE;
    let count = u32::try_from(length.as_nanos() / interval.as_nanos())?;
    let started = Instant::now();
    let (mut sent, mut back) = (0, 0);
    while back < count {
        let due = |number: u32| interval * number;
        while sent < count && due(sent) <= started.elapsed() {
            let at = usize::try_from(sent)? % lines.len();
            lines.get_mut(at).context("a line of those there are")?.send(due(sent))?;
            sent += 1;
        }
        let now = started.elapsed();
        let wait = if sent < count {
            due(sent).saturating_sub(now)
        } else {
            (due(count) + LAST_LIMIT).saturating_sub(now)
        };
        if wait.is_zero() && sent == count {
            bail!("{} of {count} messages did not come back", count - back);
        }
        for at in readable(&lines, wait)? {
            let line = lines.get_mut(at).context("a line of those there are")?;
            back += line.take(|due| {
                let latency = started.elapsed().saturating_sub(due);
                Ok(latencies.record(u64::try_from(latency.as_nanos())?)?)
            })?;
        }
    }
    Ok(Latency(latencies))
}

/// Which lines have something to read, within so long.
fn readable(lines: &[Line], wait: Duration) -> Result<Vec<usize>> {
    let mut polled: Vec<PollFd<'_>> =
        lines.iter().map(|line| PollFd::new(&line.socket, PollFlags::IN)).collect();
    let wait = Timespec {
        tv_sec: i64::try_from(wait.as_secs())?,
        tv_nsec: i64::from(wait.subsec_nanos()),
    };
    match poll(&mut polled, Some(&wait)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error).context("poll"),
    }
    let ready = polled.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty());
    Ok(ready.map(|(at, _)| at).collect())
}

impl Line {
    fn open(addr: SocketAddr) -> Result<Self> {
        let mut socket = TcpStream::connect(addr).context("cannot connect")?;
        socket.set_nodelay(true)?;
        socket.write_all(&upstream::echo())?;
        // One message there and back: whatever is set up late is there.
        socket.write_all(&[0; MESSAGE_BYTES])?;
        socket.set_read_timeout(Some(LAST_LIMIT))?;
        socket.read_exact(&mut [0; MESSAGE_BYTES]).context("the first message")?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, part: Vec::with_capacity(MESSAGE_BYTES) })
    }

    fn send(&mut self, due: Duration) -> Result<()> {
        let mut message = [0; MESSAGE_BYTES];
        let nanoseconds = u64::try_from(due.as_nanos())?.to_be_bytes();
        message.iter_mut().zip(nanoseconds).for_each(|(to, from)| *to = from);
        // So little always fits, unless nothing was taken for thousands of messages.
        let count = self.socket.write(&message).context("the peer takes no more messages")?;
        ensure!(count == MESSAGE_BYTES, "the peer takes no more messages");
        Ok(())
    }

    /// Takes what is there; gives each whole message's due time to `came`, and how many there were.
    fn take(&mut self, mut came: impl FnMut(Duration) -> Result<()>) -> Result<u32> {
        let mut buffer = [0; 64 * MESSAGE_BYTES];
        let mut messages = 0;
        let count = match self.socket.read(&mut buffer) {
            Ok(0) => bail!("the peer closed a connection"),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error).context("receiving"),
        };
        for byte in buffer.iter().take(count) {
            self.part.push(*byte);
            if self.part.len() == MESSAGE_BYTES {
                let due = self.part.iter().take(size_of::<u64>());
                let due = due.fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
                came(Duration::from_nanos(due))?;
                self.part.clear();
                messages += 1;
            }
        }
        Ok(messages)
    }
}
