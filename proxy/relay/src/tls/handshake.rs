//! The server's side of a TLS 1.3 handshake without a socket. Bytes that came after the client's last handshake message
//! are kept apart, still sealed, so that they count neither for rustls nor get lost. Next: [`super::Session`].

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError};

use super::session::{Fault, HEADER_BYTES, Outgoing, RECORD_BYTES_MAX, Session};

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeFault {
    #[error("the handshake failed")]
    Tls(#[from] rustls::Error),
    #[error("the client says more than a handshake needs")]
    TooLong,
    #[error("the keys cannot be used")]
    Keys(#[from] Fault),
    #[error("the client ended TLS during the handshake")]
    Closed,
}

/// A handshake under way.
pub struct Handshake {
    connection: UnbufferedServerConnection,
    /// What came and is not used up.
    incoming: Vec<u8>,
    /// So much of it has been looked at: a record at a time, so that nothing behind the handshake is.
    window: usize,
    pub(crate) outgoing: Outgoing,
    keep_keys: bool,
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Handshake").finish_non_exhaustive()
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Established {
    pub session: Session,
    /// The client's certificate chain; empty when none was asked for.
    pub certificates: Vec<CertificateDer<'static>>,
    pub alpn: Option<Vec<u8>>,
    /// What came behind the handshake, still sealed.
    pub(crate) incoming: Vec<u8>,
    /// What has not left yet: tickets.
    pub(crate) outgoing: Outgoing,
}

impl Handshake {
    /// Begins one. The configuration must allow secrets to be extracted (`enable_secret_extraction`).
    ///
    /// # Errors
    /// The configuration does not fit together.
    pub fn new(config: Arc<ServerConfig>, keep_keys: bool) -> Result<Self, HandshakeFault> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config)?,
            incoming: Vec::new(),
            window: 0,
            outgoing: Outgoing::default(),
            keep_keys,
        })
    }

    /// Takes bytes from the client. True when both sides are done: then [`Handshake::finish`].
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<bool, HandshakeFault> {
        self.incoming.extend_from_slice(bytes);
        loop {
            if self.advance()? {
                return Ok(true);
            }
            if !self.widen()? {
                return Ok(false);
            }
        }
    }

    /// Lets one further record be seen; false when there is no whole one.
    fn widen(&mut self) -> Result<bool, HandshakeFault> {
        if self.incoming.len() > INCOMING_BYTES_MAX {
            return Err(HandshakeFault::TooLong);
        }
        let rest = self.incoming.get(self.window..).unwrap_or_default();
        let [_, _, _, high, low, ..] = *rest else { return Ok(false) };
        let length = HEADER_BYTES.saturating_add(usize::from(u16::from_be_bytes([high, low])));
        if length > RECORD_BYTES_MAX {
            return Err(HandshakeFault::TooLong);
        }
        if rest.len() < length {
            return Ok(false);
        }
        self.window = self.window.saturating_add(length);
        Ok(true)
    }

    /// Works off what may be seen.
    fn advance(&mut self) -> Result<bool, HandshakeFault> {
        loop {
            let seen = self.incoming.get_mut(..self.window).unwrap_or_default();
            let status = self.connection.process_tls_records(seen);
            let discard = status.discard;
            let next = match status.state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    self.outgoing.push(&encode(|room| data.encode(room))?);
                    Next::Again
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    Next::Again
                }
                Ok(ConnectionState::BlockedHandshake) => Next::More,
                Ok(ConnectionState::WriteTraffic(_)) => Next::Done,
                Ok(_) => return Err(HandshakeFault::Closed),
                Err(error) => {
                    // The alert that says why is still to be sent.
                    self.drain_alert();
                    return Err(error.into());
                }
            };
            self.incoming.drain(..discard.min(self.incoming.len()));
            self.window = self.window.saturating_sub(discard);
            match next {
                Next::Again => {}
                Next::Done => return Ok(true),
                Next::More => return Ok(false),
            }
        }
    }

    fn drain_alert(&mut self) {
        for _ in 0..ALERTS_MAX {
            match self.connection.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    if let Ok(bytes) = encode(|room| data.encode(room)) {
                        self.outgoing.push(&bytes);
                    }
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// The session.
    pub(crate) fn finish(self) -> Result<Established, HandshakeFault> {
        let connection = &self.connection;
        let certificates = connection
            .peer_certificates()
            .map(|chain| chain.iter().map(|one| one.clone().into_owned()).collect())
            .unwrap_or_default();
        let alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
        let session = Session::server(self.connection, self.keep_keys)?;
        let (incoming, outgoing) = (self.incoming, self.outgoing);
        Ok(Established { session, certificates, alpn, incoming, outgoing })
    }
}

enum Next {
    Again,
    Done,
    More,
}

fn encode(
    mut into: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<Vec<u8>, HandshakeFault> {
    let mut room = vec![0; ENCODE_BYTES];
    loop {
        match into(&mut room) {
            Ok(count) => {
                room.truncate(count);
                return Ok(room);
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                room.resize(required_size, 0);
            }
            Err(EncodeError::AlreadyEncoded) => return Ok(Vec::new()),
        }
    }
}

/// A client's whole handshake with a chain of certificates; the largest that are seen take some 10 KiB.
const INCOMING_BYTES_MAX: usize = 64 * 1024;
/// Most flights' parts.
const ENCODE_BYTES: usize = 2048;
/// One is sent; the bound is for what should not happen.
const ALERTS_MAX: usize = 4;
