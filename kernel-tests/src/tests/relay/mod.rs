//! The whole relay: a client with TLS in user space, a listener that ends TLS, a target in the clear; or two legs that are
//! handed over. What is in the kernel and what is not is seen by the kernel's own counters.
//!
//! - [`bulk`]: bytes, by whichever way, arrive as they were sent
//! - [`crowd`]: more connections than most machines let a process hold
//! - [`ends`]: closes, cuts, resets, back-pressure
//! - [`keys`]: KeyUpdates while the kernel has the keys
//! - [`upgrade`]: streams that go on in another relay, keys and all
//! - [`wire`]: the two ends

pub(super) mod bulk;
pub(super) mod crowd;
pub(super) mod ends;
pub(super) mod keys;
pub(super) mod upgrade;
mod wire;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use relay::ktls::Suite;
use relay::tls::{Established, TlsStream};
use relay::{
    DataPlane, Given, Leg, Limits, Next, OpeningFault, Outcome, Place, Relay, Service, Settings,
};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustls::{ClientConnection, Connection, ServerConfig};
use tokio::runtime::Runtime;

use crate::pair::{Far, client_config, server_config, sockets};
use crate::waiting::{WAIT, readable};

/// More than makes a direction bulk, several times over.
const BULK: usize = 1 << 20;
const NO_LIMITS: Limits = Limits { idle_timeout: None };

/// Everything on the way from a client to a target.
struct Scene {
    target: TcpListener,
    suite: Suite,
    entrance: SocketAddr,
    said: Mutex<Receiver<Said>>,
    /// Each connection that is not open yet holds one of it.
    opening: Arc<()>,
}

/// What the relay said of a connection.
#[derive(Debug)]
enum Said {
    Ended(Outcome),
    Failed(String),
}

impl Scene {
    /// With TLS in the kernel where it pays.
    fn new(suite: Suite) -> Self {
        Self::on(relay(), suite, NO_LIMITS)
    }

    fn on(relay: &Relay, suite: Suite, limits: Limits) -> Self {
        Self::patient(relay, suite, limits, WAIT)
    }

    /// Who has not shaken hands is borne with for so long.
    fn patient(relay: &Relay, suite: Suite, limits: Limits, within: Duration) -> Self {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let (say, said) = channel();
        let to = target.local_addr().unwrap();
        // With tickets: they go out before the kernel takes over, and count.
        let config = server_config(suite, 2);
        let opening = Arc::new(());
        let held = Arc::clone(&opening);
        let service: Arc<dyn Service> =
            Arc::new(Terminating { config, to, limits, within, held, say });
        let entrance = relay.listen("127.0.0.1:0".parse().unwrap(), &service).unwrap();
        Self { target, suite, entrance, said: Mutex::new(said), opening }
    }

    /// A client that has shaken hands, and the target's end of its stream.
    fn connect(&self) -> (Far, TcpStream) {
        let socket = TcpStream::connect(self.entrance).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
        let client = shake(socket, self.suite);
        (client, self.accept())
    }

    fn accept(&self) -> TcpStream {
        readable(&self.target);
        let (target, _) = self.target.accept().unwrap();
        target.set_nonblocking(true).unwrap();
        target
    }

    /// How many connections are not open yet.
    fn opening(&self) -> usize {
        // Less the service's own and this one.
        Arc::strong_count(&self.opening) - 2
    }

    fn outcome(&self) -> Outcome {
        match self.said.lock().unwrap().recv_timeout(WAIT).unwrap() {
            Said::Ended(outcome) => outcome,
            Said::Failed(fault) => panic!("it was never relayed: {fault}"),
        }
    }
}

/// Ends TLS and dials.
struct Terminating {
    config: Arc<ServerConfig>,
    to: SocketAddr,
    limits: Limits,
    within: Duration,
    held: Arc<()>,
    say: Sender<Said>,
}

impl Service for Terminating {
    fn admit(&self, _from: SocketAddr) -> Option<Place> {
        Some(Box::new(Arc::clone(&self.held)))
    }
    fn route(&self, _from: SocketAddr, _opening: &[u8]) -> Next {
        Next::Terminate(Arc::clone(&self.config))
    }
    fn established(&self, _from: SocketAddr, _peer: &Established) -> Next {
        Next::Dial { to: self.to, limits: self.limits, place: None, tag: Bytes::new() }
    }
    fn give(&self, given: Given) {
        panic!("{given:?}, which nobody asked for");
    }
    fn failed(&self, _from: SocketAddr, fault: &OpeningFault) {
        self.say.send(Said::Failed(fault.to_string())).ok();
    }
    fn ended(&self, _from: SocketAddr, outcome: &Outcome) {
        let &Outcome { bytes_from_client, bytes_from_target, ref end } = outcome;
        let end = copy(end);
        self.say.send(Said::Ended(Outcome { bytes_from_client, bytes_from_target, end })).ok();
    }
    fn within(&self) -> Duration {
        self.within
    }
}

fn copy(end: &relay::End) -> relay::End {
    use relay::End;
    match end {
        End::Closed => End::Closed,
        End::Cut => End::Cut,
        End::Failed(error) => End::Failed(std::io::Error::new(error.kind(), error.to_string())),
        End::Idle => End::Idle,
        End::Moved => End::Moved,
    }
}

/// The client's side of a handshake over a socket.
fn shake(socket: TcpStream, suite: Suite) -> Far {
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let tls = ClientConnection::new(client_config(suite), name).unwrap();
    let mut far = Far { socket, tls: Connection::Client(tls) };
    far.tls.set_buffer_limit(None);
    far.send_pending();
    while far.tls.is_handshaking() {
        readable(&far.socket);
        far.tls.read_tls(&mut &far.socket).unwrap();
        far.tls.process_new_packets().unwrap();
        far.send_pending();
    }
    far
}

/// A client that has shaken hands, and the leg to it.
fn tls_leg(suite: Suite) -> (Far, Leg) {
    tls_leg_with_room(suite, None)
}

/// As [`tls_leg`]; the relay's socket takes no more than `room` to be sent.
fn tls_leg_with_room(suite: Suite, room: Option<usize>) -> (Far, Leg) {
    let (near, far) = sockets();
    if let Some(room) = room {
        set_socket_send_buffer_size(&near, room).unwrap();
    }
    let accepting = runtime().spawn(async move {
        let near = tokio::net::TcpStream::from_std(near).unwrap();
        TlsStream::accept(near, Bytes::new(), server_config(suite, 2), true).await.unwrap()
    });
    let far = shake(far, suite);
    let stream = runtime().block_on(accepting).unwrap();
    (far, Leg::Tls(Box::new(stream)))
}

/// A peer in the clear, and the leg to it.
fn plain_leg() -> (TcpStream, Leg) {
    let (near, far) = sockets();
    let _inside = runtime().enter();
    let socket = tokio::net::TcpStream::from_std(near).unwrap();
    (far, Leg::Socket { socket, pending: Bytes::new() })
}

/// Where the relay's asynchronous functions run.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    })
}

/// The relay of most tests; to start one takes a while.
fn relay() -> &'static Relay {
    static RELAY: OnceLock<Relay> = OnceLock::new();
    RELAY.get_or_init(|| start(DataPlane::UringKtls))
}

fn start(data_plane: DataPlane) -> Relay {
    start_for(100, data_plane)
}

fn start_for(streams_max: usize, data_plane: DataPlane) -> Relay {
    Relay::start(Settings { streams_max, workers: Some(1), data_plane }).unwrap()
}

/// What the kernel has counted since it booted: its own TLS, by direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    sending: u64,
    receiving: u64,
    keys_changed_for_sending: u64,
    keys_changed_for_receiving: u64,
}

impl Counters {
    fn now() -> Self {
        let table = std::fs::read_to_string("/proc/net/tls_stat").unwrap();
        let count = |name: &str| {
            let words =
                table.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
            let mut of_name = words.filter(|(word, _)| *word == name);
            // Those about keys are not there where keys cannot be changed.
            of_name.next().map_or(0, |(_, number)| number.trim().parse().unwrap())
        };
        Self {
            sending: count("TlsTxSw"),
            receiving: count("TlsRxSw"),
            keys_changed_for_sending: count("TlsTxRekeyOk"),
            keys_changed_for_receiving: count("TlsRxRekeyOk"),
        }
    }

    /// What was counted since `earlier`: sockets that got keys to send with, to receive with.
    fn since(earlier: Self) -> (u64, u64) {
        let now = Self::now();
        (now.sending - earlier.sending, now.receiving - earlier.receiving)
    }

    /// Changes of keys since `earlier`: to send with, to receive with.
    fn changes_since(earlier: Self) -> (u64, u64) {
        let now = Self::now();
        (
            now.keys_changed_for_sending - earlier.keys_changed_for_sending,
            now.keys_changed_for_receiving - earlier.keys_changed_for_receiving,
        )
    }
}

/// How many pipes this process has: the relay makes them to splice, for nothing else.
fn pipes() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    files
        .filter_map(|file| std::fs::read_link(file.unwrap().path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("pipe:"))
        .count()
}

/// Waits until something that the other threads bring about.
#[track_caller]
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < WAIT, "not seen for {WAIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
