//! A client's connection, plain or TLS. TLS is rustls' interface without buffers of its own: records are decrypted where
//! they were read, so that the load costs its core little more than the cipher.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::ClientConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};

use crate::certificate::SERVER_NAME;

/// A peer that does not answer for so long is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Where to connect to, and how.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) addr: SocketAddr,
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// Bytes that a connection reads at once.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Buffer {
    Large,
    /// One TLS record and a bit.
    Small,
}

impl Buffer {
    fn bytes(self) -> usize {
        match self {
            Self::Large => 256 << 10,
            Self::Small => 20 << 10,
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: TcpStream,
    tls: Option<Box<Session>>,
    buffer: Vec<u8>,
}

struct Session {
    connection: UnbufferedClientConnection,
    /// What was read and not yet processed stands in the buffer from `start` to `end`.
    start: usize,
    end: usize,
    outgoing: Vec<u8>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Session")
            .field("unread", &(self.end - self.start))
            .finish_non_exhaustive()
    }
}

/// What processing what was read led to.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Again,
    Blocked,
    Closed,
    Data(usize),
    Idle,
}

impl Stream {
    /// Connects, TLS handshake included.
    pub(crate) fn open(target: &Target, buffer: Buffer) -> Result<Self> {
        let socket = TcpStream::connect(target.addr)
            .with_context(|| format!("cannot connect to {}", target.addr))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let tls = match &target.tls {
            None => None,
            Some(config) => {
                let name = ServerName::try_from(SERVER_NAME)?;
                let connection = UnbufferedClientConnection::new(Arc::clone(config), name)?;
                Some(Box::new(Session { connection, start: 0, end: 0, outgoing: Vec::new() }))
            }
        };
        let mut stream = Self { socket, tls, buffer: vec![0; buffer.bytes()] };
        stream.handshake().context("TLS handshake")?;
        Ok(stream)
    }

    fn handshake(&mut self) -> Result<()> {
        let Some(session) = &mut self.tls else { return Ok(()) };
        loop {
            match session.step(&mut self.socket, &mut self.buffer)? {
                Step::Again => {}
                Step::Idle => return Ok(()),
                Step::Blocked => {
                    let count = session.fill(&mut self.socket, &mut self.buffer)?;
                    ensure!(count > 0, "the peer closed the connection");
                }
                Step::Closed => bail!("the peer ended the session"),
                Step::Data(_) => bail!("data before the end of the handshake"),
            }
        }
    }

    /// Sends all of it.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.tls {
            None => self.socket.write_all(bytes).context("sending"),
            Some(session) => session.send(&mut self.socket, &mut self.buffer, bytes),
        }
    }

    /// Takes what comes next and forgets it; how many bytes it was, 0 at the end.
    pub(crate) fn take(&mut self) -> Result<usize> {
        let Some(session) = &mut self.tls else {
            return self.socket.read(&mut self.buffer).context("receiving");
        };
        loop {
            match session.step(&mut self.socket, &mut self.buffer)? {
                Step::Again | Step::Data(0) => {}
                Step::Data(count) => return Ok(count),
                Step::Closed => return Ok(0),
                Step::Idle | Step::Blocked => {
                    // Some peers close without saying so in TLS first.
                    if session.fill(&mut self.socket, &mut self.buffer)? == 0 {
                        return Ok(0);
                    }
                }
            }
        }
    }

    /// Takes so many bytes, no more, no fewer.
    pub(crate) fn take_exactly(&mut self, wanted: usize) -> Result<()> {
        let mut left = wanted;
        while left > 0 {
            let count = self.take()?;
            ensure!(count > 0, "the connection ended {left} bytes early");
            left = left.checked_sub(count).context("more bytes than were asked for")?;
        }
        Ok(())
    }

    /// Takes everything to the end; how many bytes it was.
    pub(crate) fn take_all(&mut self) -> Result<u64> {
        let mut all = 0;
        loop {
            match self.take()? {
                0 => return Ok(all),
                count => all += count as u64,
            }
        }
    }
}

impl Session {
    /// Reads more; how much, 0 at the end.
    fn fill(&mut self, socket: &mut TcpStream, buffer: &mut [u8]) -> Result<usize> {
        if self.start > 0 {
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = buffer.get_mut(self.end..).unwrap_or_default();
        ensure!(!room.is_empty(), "a TLS record larger than any may be");
        let count = socket.read(room).context("receiving")?;
        self.end += count;
        Ok(count)
    }

    fn step(&mut self, socket: &mut TcpStream, buffer: &mut [u8]) -> Result<Step> {
        let unread = buffer.get_mut(self.start..self.end).unwrap_or_default();
        let UnbufferedStatus { mut discard, state } = self.connection.process_tls_records(unread);
        let step = match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                let mut count = 0;
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    count += record.payload.len();
                }
                Step::Data(count)
            }
            ConnectionState::EncodeTlsData(mut data) => {
                let mut encoded = [0; HANDSHAKE_BYTES_MAX];
                let count = data.encode(&mut encoded)?;
                self.outgoing.extend_from_slice(encoded.get(..count).unwrap_or_default());
                Step::Again
            }
            ConnectionState::TransmitTlsData(data) => {
                socket.write_all(&self.outgoing).context("sending")?;
                self.outgoing.clear();
                data.done();
                Step::Again
            }
            ConnectionState::BlockedHandshake => Step::Blocked,
            ConnectionState::WriteTraffic(_) => Step::Idle,
            ConnectionState::PeerClosed | ConnectionState::Closed => Step::Closed,
            ConnectionState::ReadEarlyData(_) => bail!("early data, which nobody offered"),
            _ => bail!("a state of rustls that is new"),
        };
        self.start += discard;
        Ok(step)
    }

    fn send(&mut self, socket: &mut TcpStream, buffer: &mut [u8], bytes: &[u8]) -> Result<()> {
        let unread = buffer.get_mut(self.start..self.end).unwrap_or_default();
        let UnbufferedStatus { discard, state } = self.connection.process_tls_records(unread);
        let ConnectionState::WriteTraffic(mut traffic) = state? else {
            bail!("the session is not ready to send")
        };
        self.outgoing
            .resize(bytes.len() + RECORD_OVERHEAD_BYTES * (1 + bytes.len() / RECORD_BYTES), 0);
        let count = traffic.encrypt(bytes, &mut self.outgoing)?;
        let sent = socket.write_all(self.outgoing.get(..count).unwrap_or_default());
        self.outgoing.clear();
        self.start += discard;
        sent.context("sending")
    }
}

/// One flight of a client: a certificate of P-256 with its signature is about 1 KiB.
const HANDSHAKE_BYTES_MAX: usize = 8 << 10;
/// RFC 8446, section 5.1.
const RECORD_BYTES: usize = 16 << 10;
/// Header, type and tag of a record; more than TLS 1.3 with AES-GCM needs.
const RECORD_OVERHEAD_BYTES: usize = 64;
