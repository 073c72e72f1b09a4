//! TLS on a port: records in user space, then, where the kernel can and a direction is bulk, keys in the kernel. Sending
//! moves first, receiving only when it will be spliced. The kernel's control records, key changes and limits are worked
//! off here. Part of [`super::Port`].

use std::io;

use crate::chunk::Chunk;
use crate::ktls::{self, Features};
use crate::pipes::Pipe;
use crate::port::socket::Socket;
use crate::tls::session::{
    ALERT, APPLICATION_DATA, Fault, HANDSHAKE, HEADER_BYTES, Outgoing, RECORD_BYTES_MAX, Session,
    record_length,
};

mod offload;

/// See the module.
#[derive(Debug)]
pub(crate) struct TlsPort {
    /// None where the keys have been in the kernel since before this process: nobody can change them then.
    session: Option<Session>,
    /// The beginning of a record that is not whole yet, or whole ones that nobody has asked for.
    incoming: Vec<u8>,
    pub(crate) outgoing: Outgoing,
    /// What the kernel can do for us; nothing on the rungs without kernel TLS.
    features: Option<Features>,
    attached: bool,
    receive: Receive,
    transmit: Transmit,
    /// Our end has been said.
    closed: bool,
    /// Control records that the kernel gave out since the last data.
    silent: u32,
}

/// Who opens records.
#[derive(Debug, PartialEq, Eq)]
enum Receive {
    Here,
    /// Us, and no byte beyond the record that is being read, so that the kernel can begin at the next.
    HereExactly,
    Kernel {
        /// The next record is no data: a splice has said so.
        control: bool,
        /// The peer has said that it sends no more.
        closed: bool,
    },
}

/// Who seals records.
#[derive(Debug, PartialEq, Eq)]
enum Transmit {
    Here,
    Kernel {
        /// No fewer records than were sealed since the kernel was last asked for their number.
        guess: u64,
        /// The key has been announced and is to be changed.
        announced: bool,
    },
}

impl TlsPort {
    pub(crate) fn new(
        session: Session,
        incoming: Vec<u8>,
        outgoing: Outgoing,
        features: Option<Features>,
    ) -> Self {
        Self {
            session: Some(session),
            incoming,
            outgoing,
            features,
            attached: false,
            receive: Receive::Here,
            transmit: Transmit::Here,
            closed: false,
            silent: 0,
        }
    }

    /// One whose keys are in the kernel already.
    pub(crate) fn in_kernel(peer_closed: bool, closed: bool) -> Self {
        Self {
            session: None,
            incoming: Vec::new(),
            outgoing: Outgoing::default(),
            features: None,
            attached: true,
            receive: Receive::Kernel { control: false, closed: peer_closed },
            transmit: Transmit::Kernel { guess: 0, announced: false },
            closed,
            silent: 0,
        }
    }

    /// Whether there is something to give out although the socket has nothing: a record, a fault, the end.
    pub(crate) fn holds(&self) -> bool {
        match self.receive {
            Receive::Kernel { closed, .. } => closed,
            Receive::Here | Receive::HereExactly => {
                self.session.as_ref().is_some_and(Session::peer_closed)
                    || !matches!(record_length(&self.incoming), Ok(None))
            }
        }
    }

    /// Reads, and tells the peer if that cannot be.
    pub(crate) fn read(
        &mut self,
        socket: &mut Socket,
        chunk: &mut Chunk,
        max: usize,
    ) -> io::Result<usize> {
        let read = match self.receive {
            Receive::Here | Receive::HereExactly => self.open_records(socket, chunk, max),
            Receive::Kernel { .. } => self.read_from_kernel(socket, chunk, max),
        };
        read.map_err(|failure| match failure {
            Failure::Io(error) => error,
            Failure::Tls(fault) => {
                if let Some(alert) = fault.alert() {
                    self.fail(socket, alert);
                }
                fault.into()
            }
        })
    }

    fn open_records(
        &mut self,
        socket: &mut Socket,
        chunk: &mut Chunk,
        max: usize,
    ) -> Result<usize, Failure> {
        let session = self.session.as_mut().ok_or(io::ErrorKind::InvalidInput)?;
        loop {
            if session.peer_closed() {
                return Ok(0);
            }
            let (buffer, pieces) = chunk.parts();
            let early = self.incoming.len();
            let room = match self.receive {
                Receive::HereExactly => wanted(&self.incoming),
                Receive::Here | Receive::Kernel { .. } => {
                    max.max(early.saturating_add(RECORD_BYTES_MAX))
                }
            };
            let room = room.min(buffer.len());
            let buffer = buffer.get_mut(..room).unwrap_or_default();
            let mut filled = 0;
            if let Some(front) = buffer.get_mut(..early) {
                front.copy_from_slice(&self.incoming);
                filled = early;
            }
            if record_length(&self.incoming)?.is_none() {
                if !socket.readable {
                    return Err(io::Error::from(io::ErrorKind::WouldBlock).into());
                }
                match socket.receive(buffer.get_mut(filled..).unwrap_or_default())? {
                    // The end without a word: whatever the last bytes were meant to be, somebody may have cut them.
                    0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                    count => filled = filled.saturating_add(count),
                }
            }
            let wire = buffer.get_mut(..filled).unwrap_or_default();
            let opened = session.open(wire, pieces, usize::MAX, &mut self.outgoing)?;
            let left = wire.get(opened.consumed..).unwrap_or_default();
            let left_is_empty = left.is_empty();
            self.incoming = if opened.closed { Vec::new() } else { left.to_vec() };
            let count = chunk.len();
            if count > 0 || opened.closed {
                // Now, not when it is next asked for: reads of one record look small, and small reads end bulk.
                if self.receive == Receive::HereExactly && left_is_empty && !opened.closed {
                    self.offload_receive(socket);
                }
                return Ok(count);
            }
        }
    }

    fn read_from_kernel(
        &mut self,
        socket: &mut Socket,
        chunk: &mut Chunk,
        max: usize,
    ) -> Result<usize, Failure> {
        loop {
            let Receive::Kernel { control, closed } = &mut self.receive else { return Ok(0) };
            if *closed {
                return Ok(0);
            }
            let (buffer, _) = chunk.parts();
            let room = max.max(ktls::RECORD_BYTES_MAX).min(buffer.len());
            let buffer = buffer.get_mut(..room).unwrap_or_default();
            let (kind, count) = match ktls::recv_record(socket.fd(), buffer) {
                Ok(record) => record,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // A splice saw a record that is no data, and now there is none: a broken header.
                    if *control {
                        return Err(Fault::Protocol("a broken record").into());
                    }
                    socket.readable = false;
                    return Err(error.into());
                }
                Err(error) if error.raw_os_error() == Some(libc::EBADMSG) => {
                    return Err(Fault::Tls(rustls::Error::DecryptError).into());
                }
                Err(error) if is_broken(&error) => {
                    return Err(Fault::Protocol("a broken record").into());
                }
                Err(error) => return Err(error.into()),
            };
            *control = false;
            match (kind, count) {
                (APPLICATION_DATA, 0) => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                (APPLICATION_DATA, count) => {
                    self.silent = 0;
                    self.opened_by_kernel(count);
                    chunk.set(count);
                    return Ok(count);
                }
                (kind, count) => {
                    let payload = buffer.get(..count).unwrap_or_default().to_vec();
                    self.silent = self.silent.saturating_add(1);
                    if self.silent > SILENT_RECORDS_MAX {
                        return Err(Fault::Empty.into());
                    }
                    self.control(socket, kind, &payload)?;
                    if !self.holds() {
                        // Counted against the turn like a read of data.
                        return Err(io::Error::from(io::ErrorKind::Interrupted).into());
                    }
                }
            }
        }
    }

    /// Works off a control record that the kernel has given out.
    fn control(&mut self, socket: &mut Socket, kind: u8, payload: &[u8]) -> Result<(), Failure> {
        let Some(session) = &mut self.session else {
            return match (kind, ktls::parse_alert(payload)) {
                (ALERT, Ok(ktls::Alert::CloseNotify)) => {
                    self.receive = Receive::Kernel { control: false, closed: true };
                    Ok(())
                }
                (ALERT, Ok(ktls::Alert::Warning)) => Ok(()),
                (ALERT, Ok(ktls::Alert::Fatal(number))) => Err(Fault::Alert(number).into()),
                // Keys cannot be changed by who has not the secrets any more.
                _ => Err(Fault::Protocol("a record that cannot be answered any more").into()),
            };
        };
        let before = session.rx_updates();
        session.control(kind, payload, &mut self.outgoing)?;
        if session.rx_updates() != before {
            // EBUSY where the kernel cannot change keys, before 6.14: the stream ends, and the peer is told.
            let (keys, sequence) = session.rx_keys().ok_or(Fault::Suite)?;
            ktls::set_rx_keys(socket.fd(), keys, sequence).map_err(|_| Fault::Rekey)?;
        }
        if session.peer_closed() {
            self.receive = Receive::Kernel { control: false, closed: true };
        }
        Ok(())
    }

    /// Seals into the worker's buffer and sends from there, or leaves sealing to the kernel.
    pub(crate) fn write(&mut self, socket: &mut Socket, chunk: &mut Chunk) -> io::Result<usize> {
        if self.in_kernel_for_sending(socket)? {
            let count = socket.send(chunk.slices())?;
            self.sealed(count);
            return Ok(count);
        }
        self.flush(socket)?;
        let count = chunk.len();
        let session = self.session.as_mut().ok_or(io::ErrorKind::InvalidInput)?;
        let (slices, wire) = chunk.for_sealing();
        session.seal(slices, wire)?;
        let mut sent = 0_usize;
        while let Some(rest @ [_, ..]) = wire.bytes().get(sent..) {
            match socket.send(std::iter::once(rest)) {
                Ok(count) => sent = sent.saturating_add(count),
                // Accepted all the same; it leaves when there is room.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.outgoing.push(rest);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    /// The same for bytes that stand elsewhere.
    pub(crate) fn write_bytes(&mut self, socket: &mut Socket, bytes: &[u8]) -> io::Result<usize> {
        if self.in_kernel_for_sending(socket)? {
            let count = socket.send(std::iter::once(bytes))?;
            self.sealed(count);
            return Ok(count);
        }
        let session = self.session.as_mut().ok_or(io::ErrorKind::InvalidInput)?;
        session.seal(std::iter::once(bytes), &mut self.outgoing)?;
        match self.flush(socket) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(()) | Err(_) => Ok(bytes.len()),
        }
    }

    /// Sends what was sealed here, and the change of keys that is owed where the kernel seals.
    pub(crate) fn flush(&mut self, socket: &mut Socket) -> io::Result<()> {
        self.send_outgoing(socket, |socket, bytes| socket.send(std::iter::once(bytes)))?;
        let owes = self.session.as_ref().is_some_and(Session::owes_key_update);
        if owes && matches!(self.transmit, Transmit::Kernel { .. }) && !self.closed {
            self.change_kernel_keys(socket)?;
        }
        Ok(())
    }

    fn send_outgoing(
        &mut self,
        socket: &mut Socket,
        send: impl Fn(&mut Socket, &[u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            if !socket.writable {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = send(socket, self.outgoing.bytes())?;
            self.outgoing.wrote(count);
        }
        Ok(())
    }

    /// True where the kernel seals; then the number of records under the key is within its bound.
    fn in_kernel_for_sending(&mut self, socket: &mut Socket) -> io::Result<bool> {
        let Transmit::Kernel { guess, announced } = self.transmit else { return Ok(false) };
        if socket.is_broken() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if announced {
            self.change_kernel_keys(socket)?;
        } else if guess >= ASK_AFTER_RECORDS {
            let limit = self.session.as_ref().map_or(RECORDS_MAX, Session::key_seals_at_most);
            if ktls::tx_sequence(socket.fd())? >= limit {
                self.change_kernel_keys(socket)?;
            }
            self.transmit = Transmit::Kernel { guess: 0, announced: false };
        }
        Ok(true)
    }

    /// Announces the next key and gives it to the kernel.
    fn change_kernel_keys(&mut self, socket: &mut Socket) -> io::Result<()> {
        let (Some(session), Some(Features { rekey: true, .. })) =
            (&mut self.session, self.features)
        else {
            return Err(self.cannot_change_kernel_keys(socket));
        };
        if !matches!(self.transmit, Transmit::Kernel { announced: true, .. }) {
            match ktls::send_record(socket.fd(), HANDSHAKE, &ktls::encode_key_update(false)) {
                Ok(_) => self.transmit = Transmit::Kernel { guess: 0, announced: true },
                Err(error) => {
                    socket.writable &= error.kind() != io::ErrorKind::WouldBlock;
                    return Err(error);
                }
            }
            session.next_tx_keys()?;
        }
        let (keys, sequence) = session.tx_keys().ok_or(Fault::Suite)?;
        if let Err(error) = ktls::set_tx_keys(socket.fd(), keys, sequence) {
            // EAGAIN: records under the old key wait for room.
            socket.writable &= error.kind() != io::ErrorKind::WouldBlock;
            return Err(error);
        }
        self.transmit = Transmit::Kernel { guess: 0, announced: false };
        Ok(())
    }

    /// Tells the peer that this is the end, when there is room for it: until then nothing else is sent.
    fn cannot_change_kernel_keys(&mut self, socket: &mut Socket) -> io::Error {
        if !self.closed {
            let alert = ktls::encode_alert(ktls::alert_description::INTERNAL_ERROR);
            match ktls::send_record(socket.fd(), ALERT, &alert) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket.writable = false;
                    return error;
                }
                Err(error) => tracing::debug!(%error, "an alert could not be sent"),
                Ok(_) => {}
            }
            self.closed = true;
        }
        Fault::Rekey.into()
    }

    /// So many bytes came from the kernel: in how many records, it does not say, but in no fewer than these.
    fn opened_by_kernel(&mut self, bytes: usize) {
        if let Some(session) = &mut self.session {
            let records = bytes.div_ceil(ktls::RECORD_BYTES_MAX);
            session.count_data(u64::try_from(records).unwrap_or(u64::MAX));
        }
    }

    /// So many bytes went to the kernel to be sealed.
    fn sealed(&mut self, bytes: usize) {
        if let Transmit::Kernel { guess, .. } = &mut self.transmit {
            let records = bytes.div_ceil(ktls::RECORD_BYTES_MAX).saturating_add(1);
            *guess = guess.saturating_add(u64::try_from(records).unwrap_or(u64::MAX));
        }
    }

    /// close_notify, then the end of the socket's half.
    pub(crate) fn close_write(&mut self, socket: &mut Socket) -> io::Result<()> {
        match self.transmit {
            Transmit::Here => {
                if let Some(session) = &mut self.session {
                    session.close(&mut self.outgoing)?;
                }
                // The end of the half goes out with it, in one packet.
                self.send_outgoing(socket, Socket::send_before_more)?;
            }
            Transmit::Kernel { .. } if !self.closed => {
                let notify = ktls::encode_alert(ktls::alert_description::CLOSE_NOTIFY);
                if let Err(error) = ktls::send_record(socket.fd(), ALERT, &notify) {
                    socket.writable &= error.kind() != io::ErrorKind::WouldBlock;
                    return Err(error);
                }
                if let Some(session) = &mut self.session {
                    session.closed_by_kernel();
                }
            }
            Transmit::Kernel { .. } => {}
        }
        self.closed = true;
        socket.shut()
    }

    /// Tells the peer why this ends, as far as there is room.
    fn fail(&mut self, socket: &mut Socket, alert: u8) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        // A record that the kernel could not open has left its error on the socket, which would keep the alert from leaving.
        socket.forget_error();
        let told = match (&self.transmit, &mut self.session) {
            (Transmit::Kernel { .. }, _) => {
                let alert = ktls::encode_alert(alert);
                ktls::send_record(socket.fd(), ALERT, &alert).map(|_| ())
            }
            (Transmit::Here, Some(session)) => session
                .fail(alert, &mut self.outgoing)
                .map_err(io::Error::from)
                .and_then(|()| self.flush(socket)),
            (Transmit::Here, None) => Ok(()),
        };
        if let Err(error) = told {
            tracing::debug!(%error, "an alert could not be sent");
        }
    }

    /// Whether an alert has been sent that a reset would overtake.
    pub(crate) fn has_parted(&self) -> bool {
        self.closed
    }

    pub(crate) fn splice_in(
        &mut self,
        socket: &mut Socket,
        pipe: &Pipe,
        max: usize,
    ) -> io::Result<usize> {
        match socket.splice_in(pipe, max) {
            // A record that is no data, or is none at all: the read that comes next has it, and says so to the peer.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput || is_broken(&error) => {
                self.receive = Receive::Kernel { control: true, closed: false };
                Err(io::ErrorKind::InvalidInput.into())
            }
            other => other.inspect(|count| self.opened_by_kernel(*count)),
        }
    }

    pub(crate) fn splice_out(
        &mut self,
        socket: &mut Socket,
        pipe: &Pipe,
        len: usize,
    ) -> io::Result<usize> {
        self.in_kernel_for_sending(socket)?;
        let count = socket.splice_out(pipe, len).inspect_err(|error| {
            if error.kind() == io::ErrorKind::WouldBlock {
                socket.push();
            }
        })?;
        self.sealed(count);
        Ok(count)
    }
}

/// Whether the kernel says by this that a record does not open, or that its header is wrong.
fn is_broken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADMSG | libc::EINVAL | libc::EMSGSIZE))
}

/// How long what begins with `incoming` must be for a whole record, or for its header.
fn wanted(incoming: &[u8]) -> usize {
    match *incoming {
        [_, _, _, high, low, ..] => {
            HEADER_BYTES.saturating_add(usize::from(u16::from_be_bytes([high, low])))
        }
        _ => HEADER_BYTES,
    }
}

/// What a read came to nothing by.
enum Failure {
    Io(io::Error),
    Tls(Fault),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<io::ErrorKind> for Failure {
    fn from(kind: io::ErrorKind) -> Self {
        Self::Io(kind.into())
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Tls(fault)
    }
}

/// The kernel is asked how many records it has sealed after so many that it may have.
const ASK_AFTER_RECORDS: u64 = 1 << 16;
/// Where the session is not known any more: less than any cipher's bound.
const RECORDS_MAX: u64 = 1 << 23;
/// Control records in a row: a change of keys and its answer are two.
const SILENT_RECORDS_MAX: u32 = 64;
