//! A connection on loopback with TLS 1.3: the near end in the kernel, the far one in user space with rustls. The handshake
//! is made in memory, so that nothing is on the wire when the kernel takes over; [`crate::openssl`] makes it over the socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use relay::ktls::{self, Suite};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{
    ClientConfig, ClientConnection, Connection, ConnectionTrafficSecrets, ExtractedSecrets,
    RootCertStore, ServerConfig, ServerConnection, version,
};

use crate::waiting::{self, readable, retry, writable};

/// Which end of the handshake the near one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// Every suite with both roles, each named by [`crate::at`].
pub(crate) fn each(test: impl Fn(Role, Suite)) {
    for suite in Suite::ALL {
        for role in [Role::Client, Role::Server] {
            crate::at(format!("{role:?}, {}", suite.name()));
            test(role, suite);
        }
    }
}

/// The end whose TLS is in the kernel.
pub(crate) struct Near {
    pub(crate) socket: TcpStream,
    keys: Option<Keys>,
}

/// What is left of the near end's handshake.
pub(crate) enum Keys {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// The end whose TLS is in user space.
pub(crate) struct Far {
    pub(crate) socket: TcpStream,
    pub(crate) tls: Connection,
}

/// Both ends, with keys for both directions in the near end's kernel.
pub(crate) fn pair(role: Role, suite: Suite) -> (Near, Far) {
    let (near, far) = sockets();
    let (keys, secrets, tls) = handshake(role, suite, 0);
    let near = Near::new(near, keys);
    near.hand_over(&secrets);
    (near, Far { socket: far, tls })
}

/// As [`pair`], with the near end as client; the far one still has to send so many tickets.
pub(crate) fn pair_with_tickets(suite: Suite, tickets: usize) -> (Near, Far) {
    let (near, far) = sockets();
    let (keys, secrets, tls) = handshake(Role::Client, suite, tickets);
    let near = Near::new(near, keys);
    near.hand_over(&secrets);
    (near, Far { socket: far, tls })
}

/// A connection with nothing on it; neither end blocks.
pub(crate) fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    for socket in [&one, &other] {
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
    }
    (one, other)
}

impl Near {
    pub(crate) fn new(socket: TcpStream, keys: Keys) -> Self {
        Self { socket, keys: Some(keys) }
    }

    /// What is left of the handshake, where this end made it.
    pub(crate) fn keys(&mut self) -> &mut Keys {
        self.keys.as_mut().unwrap()
    }

    /// Attaches kernel TLS and gives it the keys of both directions.
    pub(crate) fn hand_over(&self, secrets: &ExtractedSecrets) {
        ktls::attach(self.fd()).unwrap();
        ktls::set_tx(self.fd(), &secrets.tx.1, secrets.tx.0).unwrap();
        ktls::set_rx(self.fd(), &secrets.rx.1, secrets.rx.0).unwrap();
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        waiting::write_all(&self.socket, bytes).unwrap();
    }

    pub(crate) fn read_exactly(&self, length: usize) -> Vec<u8> {
        waiting::read_exactly(&self.socket, length)
    }

    pub(crate) fn send_record(&self, kind: u8, payload: &[u8]) {
        let sent =
            retry(|| writable(self.fd()), || ktls::send_record(self.fd(), kind, payload)).unwrap();
        assert_eq!(sent, payload.len());
    }

    /// One record, or more of data: type and bytes.
    pub(crate) fn receive_record(&self) -> io::Result<(u8, Vec<u8>)> {
        let mut buffer = vec![0; ktls::RECORD_BYTES_MAX];
        let (kind, length) =
            retry(|| readable(self.fd()), || ktls::recv_record(self.fd(), &mut buffer))?;
        buffer.truncate(length);
        Ok((kind, buffer))
    }

    /// The number of the error that a plain read gives.
    pub(crate) fn read_error(&self) -> Option<i32> {
        waiting::read(&self.socket, &mut [0; 100]).unwrap_err().raw_os_error()
    }
}

impl Keys {
    pub(crate) fn update_tx(&mut self) -> (u64, ConnectionTrafficSecrets) {
        match self {
            Self::Client(kernel) => kernel.update_tx_secret().unwrap(),
            Self::Server(kernel) => kernel.update_tx_secret().unwrap(),
        }
    }

    pub(crate) fn update_rx(&mut self) -> (u64, ConnectionTrafficSecrets) {
        match self {
            Self::Client(kernel) => kernel.update_rx_secret().unwrap(),
            Self::Server(kernel) => kernel.update_rx_secret().unwrap(),
        }
    }

    pub(crate) fn take_ticket(&mut self, ticket: &[u8]) {
        match self {
            Self::Client(kernel) => kernel.handle_new_session_ticket(ticket).unwrap(),
            Self::Server(_) => panic!("a ticket for a server"),
        }
    }
}

impl Far {
    /// Encrypts: whole records, with whatever else rustls has to say.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        self.tls.writer().write_all(plain).unwrap();
        self.pending()
    }

    /// What rustls has to say without being asked: tickets, alerts, KeyUpdates.
    pub(crate) fn pending(&mut self) -> Vec<u8> {
        let mut sealed = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut sealed).unwrap();
        }
        sealed
    }

    pub(crate) fn send(&mut self, plain: &[u8]) {
        let sealed = self.seal(plain);
        waiting::write_all(&self.socket, &sealed).unwrap();
    }

    pub(crate) fn send_pending(&mut self) {
        self.send(&[]);
    }

    /// Decrypts what has come; 0 after a close_notify, `UnexpectedEof` where there was none before the end.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            let mut socket = &self.socket;
            retry(|| readable(&self.socket), || self.tls.read_tls(&mut socket))?;
            self.tls.process_new_packets().map_err(io::Error::other)?;
        }
    }

    pub(crate) fn receive_exactly(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.receive(&mut bytes[filled..]).unwrap() {
                0 => panic!("closed after {filled} of {length} bytes"),
                count => filled += count,
            }
        }
        bytes
    }

    /// Gives this end to the kernel too, which then sends records of any type.
    pub(crate) fn into_kernel(self) -> Near {
        let secrets = self.tls.dangerous_extract_secrets().unwrap();
        let near = Near { socket: self.socket, keys: None };
        near.hand_over(&secrets);
        near
    }
}

/// The near end's keys and secrets, and the far end's connection.
pub(crate) fn handshake(
    role: Role,
    suite: Suite,
    tickets: usize,
) -> (Keys, ExtractedSecrets, Connection) {
    let name = ServerName::try_from("localhost").unwrap();
    match role {
        Role::Client => {
            let far = ServerConnection::new(server_config(suite, tickets)).unwrap();
            let mut far = unbounded(Connection::Server(far));
            let mut near = UnbufferedClientConnection::new(client_config(suite), name).unwrap();
            in_memory(&mut far, |incoming, outgoing| {
                advance(near.process_tls_records(incoming), outgoing)
            });
            let (secrets, kernel) = near.dangerous_into_kernel_connection().unwrap();
            (Keys::Client(kernel), secrets, far)
        }
        Role::Server => {
            let far = ClientConnection::new(client_config(suite), name).unwrap();
            let mut far = unbounded(Connection::Client(far));
            let mut near = UnbufferedServerConnection::new(server_config(suite, tickets)).unwrap();
            in_memory(&mut far, |incoming, outgoing| {
                advance(near.process_tls_records(incoming), outgoing)
            });
            let (secrets, kernel) = near.dangerous_into_kernel_connection().unwrap();
            (Keys::Server(kernel), secrets, far)
        }
    }
}

/// Takes any amount of plaintext at once.
fn unbounded(mut far: Connection) -> Connection {
    far.set_buffer_limit(None);
    far
}

/// What the near end's handshake does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Again,
    Feed,
    Ready,
}

/// One step of the near end's handshake: bytes used up, and what is next.
pub(crate) fn advance<D>(
    status: UnbufferedStatus<'_, '_, D>,
    outgoing: &mut Vec<u8>,
) -> (usize, Next) {
    let next = match status.state.unwrap() {
        ConnectionState::EncodeTlsData(mut data) => {
            let mut buffer = vec![0; 32 << 10];
            let length = data.encode(&mut buffer).unwrap();
            outgoing.extend_from_slice(&buffer[..length]);
            Next::Again
        }
        ConnectionState::TransmitTlsData(sent) => {
            sent.done();
            Next::Again
        }
        ConnectionState::BlockedHandshake => Next::Feed,
        ConnectionState::WriteTraffic(_) => Next::Ready,
        other => panic!("{other:?} within the handshake"),
    };
    (status.discard, next)
}

/// Carries the handshake's bytes to and fro until both ends are done with it; the far end's tickets stay where they are.
fn in_memory(far: &mut Connection, mut near: impl FnMut(&mut [u8], &mut Vec<u8>) -> (usize, Next)) {
    let mut incoming = Vec::new();
    loop {
        let mut outgoing = Vec::new();
        let (used, next) = near(&mut incoming, &mut outgoing);
        incoming.drain(..used);
        let mut rest = outgoing.as_slice();
        while !rest.is_empty() {
            far.read_tls(&mut rest).unwrap();
            far.process_new_packets().unwrap();
        }
        match next {
            Next::Again => {}
            Next::Ready if !far.is_handshaking() => return,
            Next::Ready | Next::Feed => {
                assert!(far.wants_write(), "both ends wait");
                far.write_tls(&mut incoming).unwrap();
            }
        }
    }
}

/// A certificate for localhost, and its key.
pub(crate) fn identity() -> &'static (rcgen::Certificate, rcgen::KeyPair) {
    static IDENTITY: OnceLock<(rcgen::Certificate, rcgen::KeyPair)> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert, made.signing_key)
    })
}

fn provider(suite: Suite) -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|one| Suite::negotiated(*one) == Some(suite));
    Arc::new(provider)
}

pub(crate) fn server_config(suite: Suite, tickets: usize) -> Arc<ServerConfig> {
    let (certificate, key) = identity();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(certificate.der().to_vec())], key)
        .unwrap();
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = tickets;
    Arc::new(config)
}

pub(crate) fn client_config(suite: Suite) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(identity().0.der().to_vec())).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    Arc::new(config)
}
