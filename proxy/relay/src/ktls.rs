//! Kernel TLS: gives a direction's keys to the kernel, and sends and receives the records that are no data. TLS 1.3 only.
//! Does no handshake, holds no state of a connection and decides nothing: when a direction moves to the kernel, what a
//! control record leads to, and when keys have to change are the caller's. Measured behaviour is in `kernel-tests/`.
//!
//! The order of a hand-over: handshake and tickets in user space, everything flushed; [`attach`]; [`set_tx`]; and where the
//! direction is going to be spliced, [`set_rx`] at the first record that was not decrypted in user space.
//!
//! What the kernels do afterwards, which no manual page says (Linux 6.1, 6.12 and 7.3):
//! - At a record that is no data, `splice(2)` gives EINVAL and `recv` EIO: [`recv_record`] then has it. Data that lies
//!   before it is given out first.
//! - A broken header gives EINVAL too, or EBADMSG or EMSGSIZE, and that once; afterwards there may be silence. So where
//!   [`recv_record`] has nothing (EAGAIN) after an EINVAL, the stream is broken: waiting for it would be for ever.
//! - Linux 6.1 polls readable for half a record, of which reads and splices have nothing (EAGAIN); 6.12 and 7.3 do not.
//!   Polling by level spins there.
//! - A record that does not decrypt gives EBADMSG, for this read and all later ones; and it stays on the socket as its
//!   error, which the next call to send gets instead of sending, unless SO_ERROR takes it off first.
//! - A record of data may be empty: a splice gives 0 for it as for the end. A read tells them apart.
//! - The end of the stream without a close_notify is an end like any other, in the middle of a record too: a reader that
//!   saw no [`Alert::CloseNotify`] was cut off.
//! - After a reset, reading gives ECONNRESET once, but writes and splices go on to be taken and lead nowhere. Who only
//!   writes learns it from poll: POLLHUP.
//! - Once the peer has changed keys, reads give EKEYEXPIRED (Linux 6.14 and newer) and poll is quiet, until [`set_rx`] was
//!   called with the new ones. Older kernels refuse new keys with EBUSY, and give EBADMSG for what comes next.
//! - `SPLICE_F_MORE` holds a record back until it is full since Linux 6.5; before, each splice ends a record.
//! - Linux 6.1 keeps records of a splice in TCP until the splice's last page. If the socket is full before, it stays so:
//!   nothing is sent, nothing acknowledged. Setting TCP_NODELAY again sends.
//! - MSG_ZEROCOPY, and for writes MSG_WAITALL, are refused with EOPNOTSUPP.
//! - rustls asks for an answer when it changes keys ([`HandshakeMessage::KeyUpdate`] with `request`).
//!
//! - [`keys`]: the structures that carry keys
//! - [`probe`](mod@probe): what this kernel offers
//! - [`records`]: alerts, KeyUpdates, tickets

mod keys;
mod probe;
mod records;

use std::io;
use std::os::fd::BorrowedFd;

use rustls::ConnectionTrafficSecrets;

use crate::sys::ktls as sys;

pub use self::keys::{Keys, Suite};
pub use self::probe::{Features, Suites, Support, probe};
pub use self::records::{
    Alert, HandshakeMessage, HandshakeMessages, Malformed, alert_description, content_type,
    encode_alert, encode_key_update, handshake_messages, parse_alert,
};

use self::keys::CryptoInfo;

/// The most plaintext in a record (RFC 8446, section 5.1): a buffer of that size takes any record whole.
pub const RECORD_BYTES_MAX: usize = 16_384;

/// Why kernel TLS cannot be attached to a socket.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("the socket is not connected")]
    NotConnected,
    #[error("kernel TLS, or another protocol, is attached to the socket already")]
    Taken,
    #[error("this process may not attach kernel TLS")]
    Forbidden,
    #[error("the kernel was built without TLS, or its module `tls` is not loaded")]
    Missing,
    #[error("cannot attach kernel TLS")]
    Failed(#[source] io::Error),
}

impl AttachError {
    fn new(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOTCONN) => Self::NotConnected,
            Some(libc::EEXIST) => Self::Taken,
            Some(libc::EACCES | libc::EPERM) => Self::Forbidden,
            // ENOPROTOOPT: no TCP_ULP at all, before 4.13 or where the socket is no TCP socket of the kernel's.
            Some(libc::ENOENT | libc::ENOPROTOOPT) => Self::Missing,
            _ => Self::Failed(error),
        }
    }
}

impl From<AttachError> for io::Error {
    fn from(error: AttachError) -> Self {
        let kind = match error {
            AttachError::NotConnected => io::ErrorKind::NotConnected,
            AttachError::Taken => io::ErrorKind::AlreadyExists,
            AttachError::Forbidden => io::ErrorKind::PermissionDenied,
            AttachError::Missing => io::ErrorKind::Unsupported,
            AttachError::Failed(error) => return error,
        };
        Self::new(kind, error)
    }
}

/// Prepares a TCP socket for keys; it works as before until it has some. Linux 4.13. The socket must be established: one
/// whose peer has sent its FIN already is refused as not connected.
pub fn attach(socket: BorrowedFd<'_>) -> Result<(), AttachError> {
    sys::attach(socket).map_err(AttachError::new)
}

/// What is written from now on is encrypted, the next record with the sequence number `sequence`. Linux 5.1 (5.11 for
/// ChaCha20-Poly1305). Everything encrypted in user space must have been written to the socket before.
///
/// Called again, it changes keys: Linux 6.14; EBUSY before. The KeyUpdate is sent first, as the last record under the old
/// keys; EAGAIN here means that records are still waiting for room in the socket.
pub fn set_tx(
    socket: BorrowedFd<'_>,
    secrets: &ConnectionTrafficSecrets,
    sequence: u64,
) -> io::Result<()> {
    set(socket, sys::Direction::Transmit, secrets, sequence)
}

/// What is read from now on is decrypted, the next record with the sequence number `sequence`. Linux 5.1 (5.11 for
/// ChaCha20-Poly1305). The next unread byte must be the first of a record.
///
/// Called again, it changes keys: Linux 6.14; EBUSY before. To be done after the peer's KeyUpdate was received.
pub fn set_rx(
    socket: BorrowedFd<'_>,
    secrets: &ConnectionTrafficSecrets,
    sequence: u64,
) -> io::Result<()> {
    set(socket, sys::Direction::Receive, secrets, sequence)
}

fn set(
    socket: BorrowedFd<'_>,
    direction: sys::Direction,
    secrets: &ConnectionTrafficSecrets,
    sequence: u64,
) -> io::Result<()> {
    let unknown =
        || io::Error::new(io::ErrorKind::Unsupported, "a cipher that kernel TLS does not have");
    let info = CryptoInfo::new(secrets, sequence).ok_or_else(unknown)?;
    sys::set_crypto_info(socket, direction, info.as_bytes())
}

/// [`set_tx`] with keys that were kept.
pub fn set_tx_keys(socket: BorrowedFd<'_>, keys: &Keys, sequence: u64) -> io::Result<()> {
    sys::set_crypto_info(socket, sys::Direction::Transmit, keys.from(sequence).as_bytes())
}

/// [`set_rx`] with keys that were kept.
pub fn set_rx_keys(socket: BorrowedFd<'_>, keys: &Keys, sequence: u64) -> io::Result<()> {
    sys::set_crypto_info(socket, sys::Direction::Receive, keys.from(sequence).as_bytes())
}

/// Tells the kernel that this peer pads no records, which saves a copy; one that does costs a second decryption, no error.
/// After [`set_rx`]. Linux 6.0.
pub fn set_rx_no_pad(socket: BorrowedFd<'_>) -> io::Result<()> {
    sys::expect_no_padding(socket)
}

/// The sequence number of the next record to be sent: how many were sent under these keys. For the limit of the cipher,
/// which nobody else watches. Linux 5.1 (5.11 for ChaCha20-Poly1305).
pub fn tx_sequence(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's keys are not ours");
    let mut header = [0; keys::HEADER_BYTES];
    sys::crypto_info(socket, sys::Direction::Transmit, &mut header)?;
    let suite = keys::suite_in(header).ok_or_else(unknown)?;
    let mut info = CryptoInfo::sized_for(suite);
    sys::crypto_info(socket, sys::Direction::Transmit, info.as_bytes_mut())?;
    info.sequence().ok_or_else(unknown)
}

/// Sends one record of a type, at most [`RECORD_BYTES_MAX`] long; data that is waiting to fill a record is sent before it.
/// Linux 4.13. Blocks or not as the socket does.
pub fn send_record(socket: BorrowedFd<'_>, content_type: u8, payload: &[u8]) -> io::Result<usize> {
    sys::send_record(socket, content_type, payload)
}

/// Receives one record, or several of data: the type, and the length of what is in `buffer`. A record longer than the
/// buffer goes on in the next call, so control records want [`RECORD_BYTES_MAX`]. A length of 0 with the type
/// [`content_type::APPLICATION_DATA`] is the end of the stream. Linux 4.17. Blocks or not as the socket does.
pub fn recv_record(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(u8, usize)> {
    let (kind, length) = sys::receive_record(socket, buffer)?;
    Ok((kind.unwrap_or(content_type::APPLICATION_DATA), length))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn errors_are_told_apart() {
        fn check(number: i32, expect: io::ErrorKind) {
            let error = AttachError::new(io::Error::from_raw_os_error(number));
            assert_eq!(io::Error::from(error).kind(), expect);
        }
        check(libc::ENOENT, io::ErrorKind::Unsupported);
        check(libc::ENOPROTOOPT, io::ErrorKind::Unsupported);
        check(libc::ENOTCONN, io::ErrorKind::NotConnected);
        check(libc::EEXIST, io::ErrorKind::AlreadyExists);
        check(libc::EPERM, io::ErrorKind::PermissionDenied);
        check(libc::EACCES, io::ErrorKind::PermissionDenied);
        check(libc::ENOMEM, io::ErrorKind::OutOfMemory);
    }

    /// Whatever this machine's kernel offers: a socket that listens gets no TLS, and one without TLS has no sequence.
    #[test]
    fn sockets_that_cannot_are_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(
            attach(listener.as_fd()),
            Err(AttachError::NotConnected | AttachError::Missing | AttachError::Forbidden)
        ));
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(tx_sequence(stream.as_fd()).is_err());
        assert!(set_rx_no_pad(stream.as_fd()).is_err());
    }
}
