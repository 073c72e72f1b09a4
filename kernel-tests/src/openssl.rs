//! OpenSSL's own client and server as the far end: programs that we talk to through pipes, and the near end's handshake
//! with them over the socket, record by record, so that nothing is read that belongs to the kernel.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::Instant;

use relay::ktls::Suite;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;

use crate::pair::{Keys, Near, Next, Role, advance, client_config, identity, server_config};
use crate::waiting::{WAIT, read_exactly, write_all};

/// `openssl s_server` or `s_client`; ended when dropped.
pub(crate) struct OpenSsl(Child);

/// How the program behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// All of its standard input is data.
    Data,
    /// As [`Manner::Data`]; its records are padded.
    Padded,
    /// A line of standard input that begins with K changes keys, and asks for a change of ours.
    Commands,
}

/// A connection with OpenSSL, the near end of which plays `role`.
pub(crate) fn connect(role: Role, suite: Suite, manner: Manner) -> (Near, OpenSsl) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    match role {
        Role::Client => {
            // The program wants the port for itself.
            drop(listener);
            let far = OpenSsl::start("s_server", &["-accept", &address], suite, manner);
            let started = Instant::now();
            let socket = loop {
                match TcpStream::connect(&address) {
                    Ok(socket) => break socket,
                    Err(error) => assert!(started.elapsed() < WAIT, "{error}"),
                }
                std::thread::yield_now();
            };
            (near(socket, role, suite), far)
        }
        Role::Server => {
            let far = OpenSsl::start("s_client", &["-connect", &address], suite, manner);
            crate::waiting::readable(&listener);
            (near(listener.accept().unwrap().0, role, suite), far)
        }
    }
}

impl OpenSsl {
    /// A client of whoever listens there.
    pub(crate) fn client(address: &str, suite: Suite, manner: Manner) -> Self {
        Self::start("s_client", &["-connect", address], suite, manner)
    }

    fn start(program: &str, arguments: &[&str], suite: Suite, manner: Manner) -> Self {
        // Ours are named TLS13_…, OpenSSL's TLS_…
        let suites = format!("{:?}", suite.cipher_suite()).replace("TLS13", "TLS");
        let mut command = Command::new("/usr/bin/openssl");
        command.arg(program).args(arguments).args(["-tls1_3", "-ciphersuites", &suites]);
        if program == "s_server" {
            command.arg("-cert").arg(pem_file()).arg("-key").arg(pem_file());
        }
        match manner {
            Manner::Commands => {}
            Manner::Data => _ = command.arg("-quiet"),
            Manner::Padded => _ = command.args(["-quiet", "-record_padding", "512"]),
        }
        command.env("OPENSSL_CONF", "/dev/null");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// What it sends, and what it receives.
    pub(crate) fn pipes(&mut self) -> (impl Write + Send, impl Read + Send) {
        (self.0.stdin.take().unwrap(), self.0.stdout.take().unwrap())
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn near(socket: TcpStream, role: Role, suite: Suite) -> Near {
    socket.set_nonblocking(true).unwrap();
    socket.set_nodelay(true).unwrap();
    let (keys, secrets) = match role {
        Role::Client => {
            let name = ServerName::try_from("localhost").unwrap();
            let mut tls = UnbufferedClientConnection::new(client_config(suite), name).unwrap();
            over(&socket, |incoming, out| advance(tls.process_tls_records(incoming), out));
            let (secrets, kernel) = tls.dangerous_into_kernel_connection().unwrap();
            (Keys::Client(kernel), secrets)
        }
        Role::Server => {
            // With tickets: they go out before the kernel takes over, and count.
            let mut tls = UnbufferedServerConnection::new(server_config(suite, 2)).unwrap();
            over(&socket, |incoming, out| advance(tls.process_tls_records(incoming), out));
            let (secrets, kernel) = tls.dangerous_into_kernel_connection().unwrap();
            (Keys::Server(kernel), secrets)
        }
    };
    let near = Near::new(socket, keys);
    near.hand_over(&secrets);
    near
}

fn over(socket: &TcpStream, mut near: impl FnMut(&mut [u8], &mut Vec<u8>) -> (usize, Next)) {
    let mut incoming = Vec::new();
    loop {
        let mut outgoing = Vec::new();
        let (used, next) = near(&mut incoming, &mut outgoing);
        incoming.drain(..used);
        write_all(socket, &outgoing).unwrap();
        match next {
            Next::Again => {}
            Next::Feed => {
                let header = read_exactly(socket, 5);
                let length = u16::from_be_bytes([header[3], header[4]]);
                incoming.extend(header);
                incoming.extend(read_exactly(socket, length.into()));
            }
            Next::Ready => break,
        }
    }
    assert!(incoming.is_empty(), "records that were not used up");
}

/// Our certificate and its key, where the program can read them.
fn pem_file() -> PathBuf {
    static WRITTEN: Once = Once::new();
    let path = std::env::temp_dir().join(format!("kernel-tests-{}.pem", std::process::id()));
    WRITTEN.call_once(|| {
        let (certificate, key) = identity();
        std::fs::write(&path, format!("{}{}", key.serialize_pem(), certificate.pem())).unwrap();
    });
    path
}
