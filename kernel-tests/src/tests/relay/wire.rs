//! The two ends of a relayed stream, and a conversation between them: each says its part and checks what it hears, at once
//! and byte by byte.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::{ConnectionTrafficSecrets, ContentType, ProtocolVersion};

use super::super::segments::Stream;
use crate::pair::Far;
use crate::random::Random;
use crate::waiting::{WAIT, write_all};

/// An end. Nothing here waits: `WouldBlock` means to wait for the socket.
pub(super) trait Wire {
    fn socket(&self) -> &TcpStream;
    /// Takes a prefix of the bytes.
    fn try_send(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Sends what was taken and has not left.
    fn try_flush(&mut self) -> io::Result<()>;
    /// 0 at an end in order.
    fn try_receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Says that nothing more comes.
    fn close(&mut self);
}

impl Wire for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
    fn try_send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }
    fn try_flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn try_receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read(buffer)
    }
    fn close(&mut self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

impl Wire for Far {
    fn socket(&self) -> &TcpStream {
        &self.socket
    }
    fn try_send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.try_flush()?;
        self.tls.writer().write_all(bytes)?;
        match self.try_flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(bytes.len()),
        }
    }
    fn try_flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut &self.socket)?;
        }
        Ok(())
    }
    fn try_receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            self.tls.read_tls(&mut &self.socket)?;
            self.tls.process_new_packets().map_err(io::Error::other)?;
        }
    }
    fn close(&mut self) {
        self.tls.send_close_notify();
        self.send_pending();
        self.socket.shutdown(Shutdown::Write).unwrap();
    }
}

/// TLS records cut into segments that have nothing to do with them.
pub(super) struct Segmented {
    pub(super) far: Far,
    sealed: Vec<u8>,
    random: Random,
}

impl Segmented {
    pub(super) fn new(far: Far, random: Random) -> Self {
        Self { far, sealed: Vec::new(), random }
    }
}

impl Wire for Segmented {
    fn socket(&self) -> &TcpStream {
        &self.far.socket
    }
    fn try_send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.try_flush()?;
        let sealed = self.far.seal(bytes);
        self.sealed.extend(sealed);
        match self.try_flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(bytes.len()),
        }
    }
    fn try_flush(&mut self) -> io::Result<()> {
        while !self.sealed.is_empty() {
            let length = self.random.length().min(self.sealed.len());
            let count = (&self.far.socket).write(&self.sealed[..length])?;
            self.sealed.drain(..count);
        }
        Ok(())
    }
    fn try_receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.far.try_receive(buffer)
    }
    fn close(&mut self) {
        write_all(&self.far.socket, &std::mem::take(&mut self.sealed)).unwrap();
        self.far.close();
    }
}

/// A client that seals what no library would: records of any type, and empty ones. It opens nothing.
pub(super) struct Sealer {
    pub(super) socket: TcpStream,
    cipher: Box<dyn MessageEncrypter>,
    sequence: u64,
}

impl Sealer {
    pub(super) fn new(far: Far) -> Self {
        let suite = far.tls.negotiated_cipher_suite().unwrap().tls13().unwrap();
        let (sequence, secrets) = far.tls.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } = secrets else {
            panic!("the other ciphers want to have sealed what was before");
        };
        Self { socket: far.socket, cipher: suite.aead_alg.encrypter(key, iv), sequence }
    }

    pub(super) fn send(&mut self, kind: u8, payload: &[u8]) {
        let plain = OutboundPlainMessage {
            typ: ContentType::from(kind),
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(payload),
        };
        let sealed = self.cipher.encrypt(plain, self.sequence).unwrap().encode();
        self.sequence += 1;
        write_all(&self.socket, &sealed).unwrap();
    }
}

/// A part of a conversation: stretches of streams, one to be said, one to be heard.
#[derive(Clone)]
pub(super) struct Part<'a> {
    pub(super) say: (&'a Stream, Range<usize>),
    pub(super) hear: (&'a Stream, Range<usize>),
}

/// How many bytes at once.
pub(super) const PIECE: usize = 64 << 10;

/// Holds a part of a conversation; each piece is as long as `length` says.
pub(super) fn talk(
    wire: &mut impl Wire,
    part: Part<'_>,
    mut length: impl FnMut() -> usize,
) -> io::Result<()> {
    let Part { say: (ours, mut say), hear: (theirs, mut hear) } = part;
    let mut buffer = vec![0; PIECE];
    let mut piece = Vec::new();
    loop {
        let mut moved = false;
        if piece.is_empty() && !say.is_empty() {
            piece = ours.at(say.start, length().min(say.len()));
        }
        let said =
            if piece.is_empty() { wire.try_flush().map(|()| 0) } else { wire.try_send(&piece) };
        let unsaid = match said {
            Ok(count) => {
                piece.drain(..count);
                say.start += count;
                moved |= count > 0;
                !say.is_empty()
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            Err(error) => return Err(error),
        };
        if !hear.is_empty() {
            let most = buffer.len().min(hear.len());
            match wire.try_receive(&mut buffer[..most]) {
                Ok(0) => return Err(io::Error::other(format!("an end before {}", hear.start))),
                Ok(count) => {
                    let place = hear.start;
                    assert!(buffer[..count] == theirs.at(place, count), "wrong after {place}");
                    hear.start += count;
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if !unsaid && hear.is_empty() {
            return Ok(());
        }
        if !moved {
            wait(wire.socket(), !hear.is_empty(), unsaid);
        }
    }
}

#[track_caller]
fn wait(socket: &TcpStream, to_read: bool, to_write: bool) {
    let mut events = PollFlags::empty();
    events.set(PollFlags::IN, to_read);
    events.set(PollFlags::OUT, to_write);
    let mut files = [PollFd::new(socket, events)];
    let ready = poll(&mut files, Some(&Timespec::try_from(WAIT).unwrap())).unwrap();
    assert!(ready == 1, "nothing moves for {WAIT:?} (to read {to_read}, to write {to_write})");
}

/// Receives until the stream's end, however it ends, and checks that nothing wrong came. The end of the count, and how.
pub(super) fn hear_out(
    wire: &mut impl Wire,
    stream: &Stream,
    mut place: usize,
) -> (usize, io::Result<()>) {
    let mut buffer = vec![0; PIECE];
    loop {
        match wire.try_receive(&mut buffer) {
            Ok(0) => return (place, Ok(())),
            Ok(count) => {
                assert!(buffer[..count] == stream.at(place, count), "wrong after {place}");
                place += count;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(wire.socket(), true, false),
            Err(error) => return (place, Err(error)),
        }
    }
}

/// Says a stretch; what is heard meanwhile is nothing.
pub(super) fn say(wire: &mut impl Wire, stream: &Stream, range: Range<usize>) -> io::Result<()> {
    talk(wire, Part { say: (stream, range), hear: (stream, 0..0) }, || PIECE)
}

/// Hears a stretch.
pub(super) fn hear(wire: &mut impl Wire, stream: &Stream, range: Range<usize>) {
    talk(wire, Part { say: (stream, 0..0), hear: (stream, range) }, || PIECE).unwrap();
}

/// The alert that a client was told, if that is how it ended.
pub(super) fn alert(error: &io::Error) -> Option<rustls::AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(description) => Some(*description),
        _ => None,
    }
}
