//! The records of a TLS 1.3 connection after its handshake: opening in place, sealing, key updates both ways, alerts, and
//! the number of records that a key may seal. Records are opened by rustls' ciphers (`rustls::crypto::cipher`) and sealed
//! by [`super::sealer`]; the next keys come from `rustls::kernel`. Reads and writes nothing itself; used by
//! [`crate::port`] and [`super::TlsStream`].

use std::io;
use std::ops::Range;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::crypto::cipher::{InboundOpaqueMessage, MessageDecrypter};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{
    ConnectionTrafficSecrets, ContentType, ProtocolVersion, SupportedCipherSuite, Tls13CipherSuite,
};

use crate::ktls::alert_description::{
    BAD_RECORD_MAC, INTERNAL_ERROR, RECORD_OVERFLOW, UNEXPECTED_MESSAGE,
};
use crate::ktls::{
    Alert, HandshakeMessage, Keys, Malformed, alert_description, encode_alert, encode_key_update,
    handshake_messages, parse_alert,
};
use crate::tls::sealer::{SEALED_OVERHEAD, Sealer};

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The peer sent a fatal alert (its number, RFC 8446 section 6).
    #[error("the peer ended TLS with alert {0}")]
    Alert(u8),
    #[error("the peer sends records that say nothing")]
    Empty,
    #[error("the peer changes keys too often")]
    KeyUpdates,
    #[error("the peer sent what cannot be read")]
    Malformed(#[from] Malformed),
    #[error("the peer sent what TLS does not allow here: {0}")]
    Protocol(&'static str),
    #[error("the kernel cannot change the keys of a connection")]
    Rekey,
    #[error("TLS 1.3 with a suite of ours was not agreed on")]
    Suite,
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

impl Fault {
    /// What to tell the peer (RFC 8446, section 6.2); nothing when it has ended by itself.
    pub(crate) fn alert(&self) -> Option<u8> {
        match self {
            Self::Alert(_) => None,
            Self::Empty | Self::KeyUpdates | Self::Protocol(_) => Some(UNEXPECTED_MESSAGE),
            Self::Malformed(malformed) => Some(malformed.alert_description()),
            Self::Rekey | Self::Suite => Some(INTERNAL_ERROR),
            Self::Tls(rustls::Error::DecryptError) => Some(BAD_RECORD_MAC),
            Self::Tls(rustls::Error::PeerMisbehaved(_)) => Some(UNEXPECTED_MESSAGE),
            Self::Tls(rustls::Error::PeerSentOversizedRecord) => Some(RECORD_OVERFLOW),
            Self::Tls(_) => Some(INTERNAL_ERROR),
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        let kind = match fault {
            Fault::Alert(_) => io::ErrorKind::ConnectionAborted,
            Fault::Empty
            | Fault::KeyUpdates
            | Fault::Malformed(_)
            | Fault::Protocol(_)
            | Fault::Rekey
            | Fault::Suite
            | Fault::Tls(_) => io::ErrorKind::InvalidData,
        };
        Self::new(kind, fault)
    }
}

enum Role {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// An established connection's keys.
pub struct Session {
    role: Role,
    suite: &'static Tls13CipherSuite,
    opener: Box<dyn MessageDecrypter>,
    sealer: Sealer,
    /// The keys again, in the form in which the kernel takes them; kept only where that may happen.
    rx_keys: Option<Keys>,
    tx_keys: Option<Keys>,
    /// The kernel seals: what we would is out of step.
    tx_in_kernel: bool,
    rx_sequence: u64,
    tx_sequence: u64,
    /// Key updates that the peer may still make; grows with what it sends.
    key_updates_left: u32,
    /// Records without data that the peer may still send until the next one with some.
    empty_records_left: u32,
    /// Why no further record can be opened, when ones before it were in the same call.
    fault: Option<Fault>,
    /// Records of data since the last one was granted.
    data_records: u64,
    peer_closed: bool,
    closed: bool,
    update_requested: bool,
    /// Key updates of the peer so far.
    rx_updates: u64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let suite = self.suite.common.suite;
        out.debug_struct("Session").field("suite", &suite).finish_non_exhaustive()
    }
}

/// What [`Session::open`] did.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// Bytes at the front that are done with.
    pub(crate) consumed: usize,
    /// The peer has said that it sends no more.
    pub(crate) closed: bool,
}

impl Session {
    pub(crate) fn server(
        connection: UnbufferedServerConnection,
        keep_keys: bool,
    ) -> Result<Self, Fault> {
        let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
        let suite = kernel.negotiated_cipher_suite();
        Self::new(Role::Server(kernel), suite, secrets, keep_keys)
    }

    /// For tests and for whoever dials.
    pub fn client(connection: UnbufferedClientConnection, keep_keys: bool) -> Result<Self, Fault> {
        let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
        let suite = kernel.negotiated_cipher_suite();
        Self::new(Role::Client(kernel), suite, secrets, keep_keys)
    }

    fn new(
        role: Role,
        suite: SupportedCipherSuite,
        secrets: rustls::ExtractedSecrets,
        keep_keys: bool,
    ) -> Result<Self, Fault> {
        let suite = suite.tls13().ok_or(Fault::Suite)?;
        let keep = |secrets| Keys::of(secrets).filter(|_| keep_keys);
        let (rx_sequence, rx) = secrets.rx;
        let (tx_sequence, tx) = secrets.tx;
        Ok(Self {
            role,
            suite,
            rx_keys: keep(&rx),
            tx_keys: keep(&tx),
            opener: opener(suite, rx)?,
            sealer: Sealer::new(&tx)?,
            rx_sequence,
            tx_sequence,
            tx_in_kernel: false,
            key_updates_left: KEY_UPDATES_BURST,
            empty_records_left: EMPTY_RECORDS_MAX,
            fault: None,
            data_records: 0,
            peer_closed: false,
            closed: false,
            update_requested: false,
            rx_updates: 0,
        })
    }

    /// Opens whole records at the front of `wire` in place and adds where the plaintext of each stands to `pieces`; stops
    /// at the first record that is not whole. Answers that the peer asked for are added to `out`.
    pub(crate) fn open(
        &mut self,
        wire: &mut [u8],
        pieces: &mut Vec<Range<usize>>,
        records_max: usize,
        out: &mut Outgoing,
    ) -> Result<Opened, Fault> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let mut opened = Opened { consumed: 0, closed: self.peer_closed };
        for _ in 0..records_max {
            if self.peer_closed {
                break;
            }
            match self.open_one(wire, opened.consumed, pieces, out) {
                Ok(0) => break,
                Ok(length) => opened.consumed = opened.consumed.saturating_add(length),
                Err(fault) if pieces.is_empty() => return Err(fault),
                Err(fault) => {
                    // What came before is good, and is given out first. The record stays where it is, so that there is
                    // something to ask about.
                    self.fault = Some(fault);
                    break;
                }
            }
        }
        opened.closed = self.peer_closed;
        Ok(opened)
    }

    /// Opens the record at `at` and says how long it is; 0 when it is not whole.
    fn open_one(
        &mut self,
        wire: &mut [u8],
        at: usize,
        pieces: &mut Vec<Range<usize>>,
        out: &mut Outgoing,
    ) -> Result<usize, Fault> {
        let rest = wire.get_mut(at..).unwrap_or_default();
        let Some(length) = record_length(rest)? else { return Ok(0) };
        let body = rest.get_mut(HEADER_BYTES..length).unwrap_or_default();
        let start = at.saturating_add(HEADER_BYTES);
        let opaque =
            InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, body);
        let plain = self.opener.decrypt(opaque, self.rx_sequence)?;
        self.rx_sequence = self.rx_sequence.saturating_add(1);
        let bytes = plain.payload.len();
        if plain.typ == ContentType::ApplicationData && bytes > 0 {
            self.empty_records_left = EMPTY_RECORDS_MAX;
            self.count_data(1);
            pieces.push(start..start.saturating_add(bytes));
            return Ok(length);
        }
        self.empty_records_left = self.empty_records_left.checked_sub(1).ok_or(Fault::Empty)?;
        if plain.typ != ContentType::ApplicationData {
            let (content_type, payload) = (u8::from(plain.typ), plain.payload.to_vec());
            self.control(content_type, &payload, out)?;
        }
        Ok(length)
    }

    /// So many records of data came: who sends much may change keys more often.
    pub(crate) fn count_data(&mut self, records: u64) {
        self.data_records = self.data_records.saturating_add(records);
        if self.data_records >= KEY_UPDATE_EVERY {
            self.data_records = 0;
            self.key_updates_left = self.key_updates_left.saturating_add(1).min(KEY_UPDATES_BURST);
        }
    }

    /// Works off a record that is no application data.
    pub(crate) fn control(
        &mut self,
        content_type: u8,
        payload: &[u8],
        out: &mut Outgoing,
    ) -> Result<(), Fault> {
        match content_type {
            ALERT => self.alert(payload),
            HANDSHAKE => self.handshake_messages(payload, out),
            _ => Err(Fault::Protocol("a record of a type that has no place here")),
        }
    }

    fn alert(&mut self, payload: &[u8]) -> Result<(), Fault> {
        match parse_alert(payload)? {
            Alert::CloseNotify => {
                self.peer_closed = true;
                Ok(())
            }
            Alert::Fatal(number) => Err(Fault::Alert(number)),
            Alert::Warning => Ok(()),
        }
    }

    fn handshake_messages(&mut self, payload: &[u8], out: &mut Outgoing) -> Result<(), Fault> {
        for message in handshake_messages(payload) {
            match message? {
                HandshakeMessage::KeyUpdate { request } => self.peer_updates_keys(request, out)?,
                HandshakeMessage::NewSessionTicket(ticket) => match &mut self.role {
                    Role::Client(kernel) => kernel.handle_new_session_ticket(ticket)?,
                    Role::Server(_) => return Err(Fault::Protocol("a ticket from a client")),
                },
                HandshakeMessage::Other(_) => {
                    return Err(Fault::Protocol("a handshake message that has no place here"));
                }
            }
        }
        Ok(())
    }

    fn peer_updates_keys(&mut self, requested: bool, out: &mut Outgoing) -> Result<(), Fault> {
        self.key_updates_left = self.key_updates_left.checked_sub(1).ok_or(Fault::KeyUpdates)?;
        let (sequence, secrets) = match &mut self.role {
            Role::Client(kernel) => kernel.update_rx_secret()?,
            Role::Server(kernel) => kernel.update_rx_secret()?,
        };
        self.rx_keys = self.rx_keys.take().and_then(|_| Keys::of(&secrets));
        self.opener = opener(self.suite, secrets)?;
        self.rx_sequence = sequence;
        self.rx_updates = self.rx_updates.saturating_add(1);
        self.update_requested |= requested;
        if self.update_requested && !self.tx_in_kernel && out.is_idle() {
            self.update_keys(out)?;
        }
        Ok(())
    }

    /// Changes the key that we seal with, as the peer asked or because it has sealed enough.
    fn update_keys(&mut self, out: &mut Outgoing) -> Result<(), Fault> {
        self.update_requested = false;
        if self.closed {
            return Ok(());
        }
        self.seal_one(HANDSHAKE, &encode_key_update(false), out)?;
        self.next_tx_keys()
    }

    /// Changes to the next key to seal with; the message that says so has been sent.
    pub(crate) fn next_tx_keys(&mut self) -> Result<(), Fault> {
        self.update_requested = false;
        let (sequence, secrets) = match &mut self.role {
            Role::Client(kernel) => kernel.update_tx_secret()?,
            Role::Server(kernel) => kernel.update_tx_secret()?,
        };
        self.tx_keys = self.tx_keys.take().and_then(|_| Keys::of(&secrets));
        self.sealer = Sealer::new(&secrets)?;
        self.tx_sequence = sequence;
        Ok(())
    }

    /// The keys that the kernel would open with now, and the number of the next record.
    pub(crate) fn rx_keys(&self) -> Option<(&Keys, u64)> {
        self.rx_keys.as_ref().map(|keys| (keys, self.rx_sequence))
    }
    /// The same for sealing.
    pub(crate) fn tx_keys(&self) -> Option<(&Keys, u64)> {
        self.tx_keys.as_ref().map(|keys| (keys, self.tx_sequence))
    }
    /// The kernel seals from now on.
    pub(crate) fn tx_moved_to_kernel(&mut self) {
        self.tx_in_kernel = true;
    }
    /// The peer has asked for new keys, and the kernel seals.
    pub(crate) fn owes_key_update(&self) -> bool {
        self.update_requested && !self.closed
    }
    /// Says that the kernel has sent our close_notify.
    pub(crate) fn closed_by_kernel(&mut self) {
        self.closed = true;
    }
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }
    /// Seals the alert that says why we stop.
    pub(crate) fn fail(&mut self, alert: u8, out: &mut Outgoing) -> Result<(), Fault> {
        if !self.closed {
            self.closed = true;
            self.seal_one(ALERT, &encode_alert(alert), out)?;
        }
        Ok(())
    }

    /// Seals all of `pieces` as application data; no record holds bytes of two pieces.
    pub(crate) fn seal<'a>(
        &mut self,
        pieces: impl Iterator<Item = &'a [u8]>,
        out: &mut Outgoing,
    ) -> Result<(), Fault> {
        for part in pieces.flat_map(|piece| piece.chunks(PLAINTEXT_BYTES_MAX)) {
            if self.update_requested || self.tx_sequence >= self.records_max() {
                self.update_keys(out)?;
            }
            self.seal_one(APPLICATION_DATA, part, out)?;
        }
        Ok(())
    }

    /// Says that we send no more.
    pub(crate) fn close(&mut self, out: &mut Outgoing) -> Result<(), Fault> {
        if !self.closed {
            self.closed = true;
            self.seal_one(ALERT, &encode_alert(alert_description::CLOSE_NOTIFY), out)?;
        }
        Ok(())
    }

    fn seal_one(
        &mut self,
        content_type: u8,
        payload: &[u8],
        out: &mut Outgoing,
    ) -> Result<(), Fault> {
        let sequence = self.tx_sequence;
        // Whatever comes of it, this number's nonce is used up.
        self.tx_sequence = sequence.saturating_add(1);
        let record = out.room(payload.len().saturating_add(SEALED_OVERHEAD));
        self.sealer.seal(sequence, content_type, payload, record)?;
        out.filled(payload.len().saturating_add(SEALED_OVERHEAD));
        Ok(())
    }

    /// How many records a key may seal, with room for the record that changes it.
    fn records_max(&self) -> u64 {
        self.suite.common.confidentiality_limit.saturating_sub(2).min(RECORDS_MAX)
    }

    /// The same, for who counts the kernel's.
    pub(crate) fn key_seals_at_most(&self) -> u64 {
        self.records_max()
    }

    /// Key updates of the peer so far.
    pub(crate) fn rx_updates(&self) -> u64 {
        self.rx_updates
    }

    /// The peer has said that it sends no more.
    pub(crate) fn peer_closed(&self) -> bool {
        self.peer_closed
    }
}

fn opener(
    suite: &Tls13CipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, Fault> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            Ok(suite.aead_alg.decrypter(key, iv))
        }
        _ => Err(Fault::Suite),
    }
}

/// Length of the record at the front, header included; none while it is not whole.
pub(crate) fn record_length(wire: &[u8]) -> Result<Option<usize>, Fault> {
    let [content_type, _, _, high, low, ..] = *wire else { return Ok(None) };
    if content_type != APPLICATION_DATA {
        return Err(Fault::Protocol("a record in the clear"));
    }
    let body = usize::from(u16::from_be_bytes([high, low]));
    if body > BODY_BYTES_MAX {
        return Err(Fault::Protocol("a record that is too long"));
    }
    let length = HEADER_BYTES.saturating_add(body);
    Ok((length <= wire.len()).then_some(length))
}

/// Sealed records on their way out, one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// The records stand in `done..end`; what is behind them is room that has been used before.
    buffer: Vec<u8>,
    done: usize,
    end: usize,
}

impl Outgoing {
    pub(crate) fn is_empty(&self) -> bool {
        self.done == self.end
    }

    /// Whether an answer may be added: a peer that asks and never reads must not make us keep more and more.
    fn is_idle(&self) -> bool {
        self.bytes().len() < ANSWERS_BYTES_MAX
    }

    /// What is to be written next.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.get(self.done..self.end).unwrap_or_default()
    }

    /// Adds bytes that are records already.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.truncate(self.end);
        self.buffer.extend_from_slice(bytes);
        self.end = self.buffer.len();
    }

    /// Room for a record of so many bytes.
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        let end = self.end.saturating_add(bytes);
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        self.buffer.get_mut(self.end..end).unwrap_or_default()
    }

    /// So many bytes of the room hold a record now.
    fn filled(&mut self, bytes: usize) {
        self.end = self.end.saturating_add(bytes).min(self.buffer.len());
    }

    /// So many bytes have been written. When it was the last, the memory is freed: a queue that has once been long is not
    /// to keep it.
    pub(crate) fn wrote(&mut self, count: usize) {
        self.done = self.done.saturating_add(count).min(self.end);
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Forgets the records and keeps the memory.
    pub(crate) fn clear(&mut self) {
        (self.done, self.end) = (0, 0);
    }
}

pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const APPLICATION_DATA: u8 = 23;

/// Content type, legacy version, length.
pub(crate) const HEADER_BYTES: usize = 5;
/// RFC 8446, section 5.1.
const PLAINTEXT_BYTES_MAX: usize = 16 * 1024;
/// RFC 8446, section 5.2.
const BODY_BYTES_MAX: usize = PLAINTEXT_BYTES_MAX + 256;
/// A whole record.
pub(crate) const RECORD_BYTES_MAX: usize = HEADER_BYTES + BODY_BYTES_MAX;
/// Records after which we change our key whatever the suite would allow: 256 GiB in full ones, as others do.
#[cfg(not(test))]
const RECORDS_MAX: u64 = 1 << 24;
/// So few that tests see keys change.
#[cfg(test)]
const RECORDS_MAX: u64 = 200;
/// Key updates that a peer may make at once; a careful one makes one in 2^24 records.
const KEY_UPDATES_BURST: u32 = 32;
/// Records without data that may follow one another: a peer that sends nothing else costs work and gives none of it back.
const EMPTY_RECORDS_MAX: u32 = 2 * KEY_UPDATES_BURST;
/// One more is allowed after so many records.
const KEY_UPDATE_EVERY: u64 = 4096;
/// What may wait before answers to key updates are put off until there is data to send: some answers.
const ANSWERS_BYTES_MAX: usize = 128;

#[cfg(test)]
#[path = "session_tests.rs"]
pub(crate) mod tests;
