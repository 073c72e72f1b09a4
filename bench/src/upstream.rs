//! What stands behind every peer: one process, one thread, one epoll, on the core of the load. Each connection begins
//! with a header that says what it wants; the bytes of the header are the first of a request.
//!
//! | first byte | then |
//! |---|---|
//! | `E` | whatever follows the header comes back |
//! | `H` | as many bytes as the header says are written from one buffer, then the connection is closed |
//! | `S` | the same, sent from a large file in memory, as a file server does |
//! | `X` | the header comes back, then the connection is closed |
//!
//! `S` and `H` differ in what a peer that copies finds: data that no cache holds, or data that the sender has just
//! touched. What a network card has written lies in between.
//!
//! A process of its own, so that it has its own limit on open files, and its CPU time is never mistaken for the peer's.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::program::{Core, Program, command};

/// What a client sends first. The rest of a header is zeros.
pub(crate) const HEADER_BYTES: usize = 64;
const ECHO: u8 = b'E';
const EXCHANGE: u8 = b'X';
const HOT_SOURCE: u8 = b'H';
const SOURCE: u8 = b'S';

/// The header for whatever follows to come back.
pub(crate) fn echo() -> [u8; HEADER_BYTES] {
    header(ECHO, 0)
}

/// The header that comes back before the connection is closed.
pub(crate) fn exchange() -> [u8; HEADER_BYTES] {
    header(EXCHANGE, 0)
}

/// The header for so many bytes from a file.
pub(crate) fn source(bytes: u64) -> [u8; HEADER_BYTES] {
    header(SOURCE, bytes)
}

/// The header for so many bytes from one buffer.
pub(crate) fn hot_source(bytes: u64) -> [u8; HEADER_BYTES] {
    header(HOT_SOURCE, bytes)
}

fn header(kind: u8, count: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let fields = [kind].into_iter().chain(count.to_be_bytes());
    header.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    header
}

/// The running upstream, as the bench sees it.
#[derive(Debug)]
pub(crate) struct Upstream {
    addr: SocketAddr,
    program: Program,
}

impl Upstream {
    pub(crate) fn start(dir: &std::path::Path, core: Core) -> Result<Self> {
        let addr = crate::program::free_address()?;
        let ourselves = std::env::current_exe().context("where are we?")?;
        let words = ["upstream".to_owned(), addr.to_string()];
        let command = command(ourselves, words);
        let mut program =
            Program::start("upstream", core, &command, dir.join(format!("upstream-{core:?}.log")))?;
        program.wait_listening(addr)?;
        Ok(Self { addr, program })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Only to be kept running.
    pub(crate) fn into_program(self) -> Program {
        self.program
    }
}

/// Bytes read or written at once.
const CHUNK_BYTES: usize = 256 << 10;
/// More than the caches of most machines hold.
const FILE_BYTES: u64 = 256 << 20;
/// A quarter and a bit: no two of the connections that run together send the same bytes at the same time.
const STARTS_APART: u64 = (64 << 20) + (1 << 20);
/// Sent at once, so that one connection does not keep the others waiting.
const SENDFILE_BYTES_MAX: u64 = 1 << 20;
/// Events per turn.
const EVENTS_MAX: usize = 256;
/// The token of the listener.
const LISTENER: u64 = u64::MAX;

#[derive(Debug)]
struct Connection {
    socket: TcpStream,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The header, as far as it has come.
    Header(Vec<u8>),
    /// Bytes that have not gone back yet. While there are some, nothing is read.
    Echo(Vec<u8>),
    /// Bytes still to send; where in the file they are, if they come from there.
    Source { left: u64, at: Option<u64> },
    /// Everything was sent; waits for the other side to close.
    Done,
}

enum Next {
    Keep,
    Close,
}

/// The upstream itself; runs until it is killed.
pub(crate) fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("cannot listen")?;
    // std asks for a short queue; asking again makes it long.
    rustix::net::listen(&listener, 4096)?;
    listener.set_nonblocking(true)?;
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&poll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut server =
        Server { poll, connections: Vec::new(), free: Vec::new(), supply: Supply::new()? };
    let mut events = Vec::with_capacity(EVENTS_MAX);
    loop {
        events.clear();
        match epoll::wait(&server.poll, rustix::buffer::spare_capacity(&mut events), None) {
            Err(rustix::io::Errno::INTR) => continue,
            done => drop(done?),
        }
        for event in &events {
            match event.data.u64() {
                LISTENER => server.accept(&listener)?,
                token => server.turn(token),
            }
        }
    }
}

#[derive(Debug)]
struct Server {
    poll: OwnedFd,
    connections: Vec<Option<Connection>>,
    /// Places in `connections` that hold none.
    free: Vec<usize>,
    supply: Supply,
}

/// What bytes come from and go to, one for all connections.
#[derive(Debug)]
struct Supply {
    chunk: Vec<u8>,
    file: OwnedFd,
    /// Where in the file the next connection begins.
    next_start: u64,
}

impl Supply {
    fn new() -> Result<Self> {
        let file = rustix::fs::memfd_create("upstream", rustix::fs::MemfdFlags::CLOEXEC)?;
        let chunk = vec![7; CHUNK_BYTES];
        let mut written = 0;
        while written < FILE_BYTES {
            written += rustix::io::write(&file, &chunk)? as u64;
        }
        Ok(Self { chunk, file, next_start: 0 })
    }

    fn start(&mut self) -> u64 {
        let start = self.next_start;
        self.next_start = (start + STARTS_APART) % FILE_BYTES;
        start
    }
}

impl Server {
    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        loop {
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("cannot accept"),
            };
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            let place = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let token = EventData::new_u64(u64::try_from(place)?);
            epoll::add(&self.poll, &socket, token, EventFlags::IN)?;
            let state = State::Header(Vec::new());
            let taken = self.connections.get_mut(place);
            *taken.context("a place that was just found")? = Some(Connection { socket, state });
        }
    }

    fn turn(&mut self, token: u64) {
        let Ok(at) = usize::try_from(token) else { return };
        let Some(place) = self.connections.get_mut(at) else { return };
        let Some(connection) = place else { return };
        let waits_before = connection.waits_for();
        // A connection that fails is closed; the client sees it.
        let next = connection.turn(&mut self.supply).unwrap_or(Next::Close);
        let waits_now = connection.waits_for();
        let changed = waits_before == waits_now
            || epoll::modify(&self.poll, &connection.socket, EventData::new_u64(token), waits_now)
                .is_ok();
        if matches!(next, Next::Close) || !changed {
            *place = None;
            self.free.push(at);
        }
    }
}

impl Connection {
    fn waits_for(&self) -> EventFlags {
        match &self.state {
            State::Echo(left) if !left.is_empty() => EventFlags::OUT,
            State::Source { .. } => EventFlags::OUT,
            State::Header(_) | State::Echo(_) | State::Done => EventFlags::IN,
        }
    }

    fn turn(&mut self, supply: &mut Supply) -> io::Result<Next> {
        let chunk = supply.chunk.as_mut_slice();
        match &mut self.state {
            State::Header(header) => {
                let left = HEADER_BYTES.saturating_sub(header.len());
                let count = read(&mut self.socket, chunk.get_mut(..left).unwrap_or_default())?;
                let Some(count) = count else { return Ok(Next::Keep) };
                if count == 0 {
                    return Ok(Next::Close);
                }
                header.extend_from_slice(chunk.get(..count).unwrap_or_default());
                if header.len() < HEADER_BYTES {
                    return Ok(Next::Keep);
                }
                let header = std::mem::take(header);
                self.begin(&header, supply)
            }
            State::Echo(left) if left.is_empty() => {
                let Some(count) = read(&mut self.socket, chunk)? else { return Ok(Next::Keep) };
                if count == 0 {
                    return Ok(Next::Close);
                }
                let bytes = chunk.get(..count).unwrap_or_default();
                let written = write(&mut self.socket, bytes)?;
                left.extend_from_slice(bytes.get(written..).unwrap_or_default());
                Ok(Next::Keep)
            }
            State::Echo(left) => {
                let written = write(&mut self.socket, left)?;
                left.drain(..written);
                Ok(Next::Keep)
            }
            State::Source { .. } => self.send(supply),
            State::Done => match read(&mut self.socket, chunk)? {
                Some(0) => Ok(Next::Close),
                _ => Ok(Next::Keep),
            },
        }
    }

    fn begin(&mut self, header: &[u8], supply: &mut Supply) -> io::Result<Next> {
        match header.first() {
            Some(&ECHO) => {
                self.state = State::Echo(Vec::new());
                Ok(Next::Keep)
            }
            Some(&EXCHANGE) => {
                // Fits into an empty socket buffer.
                write(&mut self.socket, header)?;
                Ok(Next::Close)
            }
            Some(kind @ (&SOURCE | &HOT_SOURCE)) => {
                let count = header.iter().skip(1).take(size_of::<u64>());
                let count = count.fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
                self.state =
                    State::Source { left: count, at: (*kind == SOURCE).then(|| supply.start()) };
                self.send(supply)
            }
            _ => Ok(Next::Close),
        }
    }

    fn send(&mut self, supply: &Supply) -> io::Result<Next> {
        let State::Source { left, at } = &mut self.state else { return Ok(Next::Keep) };
        let sent = match at {
            None => {
                let bytes = usize::try_from(*left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
                write(&mut self.socket, supply.chunk.get(..bytes).unwrap_or_default())?
            }
            Some(at) => {
                let bytes = u64::min(*left, FILE_BYTES - *at).min(SENDFILE_BYTES_MAX);
                let bytes = usize::try_from(bytes).unwrap_or(CHUNK_BYTES);
                let sent = rustix::fs::sendfile(&self.socket, &supply.file, Some(at), bytes);
                *at %= FILE_BYTES;
                match sent {
                    Err(rustix::io::Errno::AGAIN) => 0,
                    done => done?,
                }
            }
        };
        *left = left.saturating_sub(sent as u64);
        if *left == 0 {
            self.socket.shutdown(std::net::Shutdown::Write)?;
            self.state = State::Done;
        }
        Ok(Next::Keep)
    }
}

/// None where nothing is there yet.
fn read(socket: &mut TcpStream, into: &mut [u8]) -> io::Result<Option<usize>> {
    match socket.read(into) {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// How many bytes went out, which may be none.
fn write(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match socket.write(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        done => done,
    }
}

/// A connection to the upstream itself, past every peer, works.
pub(crate) fn check(addr: SocketAddr) -> Result<()> {
    let mut socket = TcpStream::connect(addr).context("cannot reach our own upstream")?;
    socket.write_all(&exchange())?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    ensure!(answer == exchange(), "our own upstream answered {} bytes", answer.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> SocketAddr {
        let addr = crate::program::free_address().unwrap();
        std::thread::spawn(move || serve(addr.port()));
        let connected = || TcpStream::connect(addr).is_ok();
        while !connected() {
            std::thread::yield_now();
        }
        addr
    }

    #[test]
    fn it_does_what_the_header_says() {
        let addr = running();
        check(addr).unwrap();

        let mut socket = TcpStream::connect(addr).unwrap();
        socket.write_all(&source(1_000_001)).unwrap();
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 1_000_001);

        let mut socket = TcpStream::connect(addr).unwrap();
        // A header in two pieces.
        let (one, two) = (echo(), vec![7; 300_000]);
        socket.write_all(&one[..5]).unwrap();
        socket.write_all(&one[5..]).unwrap();
        let mut writer = socket.try_clone().unwrap();
        let sent = two.clone();
        let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        let mut back = vec![0; two.len()];
        socket.read_exact(&mut back).unwrap();
        writing.join().unwrap();
        assert_eq!(back, two);
    }
}
