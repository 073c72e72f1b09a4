//! A crowd of relayed connections from one process, both ends of each: a user's as `tsh proxy ssh` makes it, and a node's
//! behind the tunnel that every node keeps. What a node has behind its tunnel is here no SSH server but noise that both
//! ends know: the proxy sees no difference, and neither spends time on a cipher. Every byte is compared where it arrives.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use net::auth_client::Route;
use net::exact::ExactRecords;
use net::frame;
use net::host::{Host, HostSettings};
use net::shutdown::Shutdown;
use net::stream::{Prefixed, Stream, Tls};
use net::tls::{Trust, certificates, certified_key, client_config};
use net::tunnel::{self, Incoming, State};
use pki::keys::KeyPairs;
use proto::preamble::{ALPN_SSH, Dial, Inner, Reply, VERSION};
use proto::resource::HostRole;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::cluster::{CLUSTER, Cluster, User};
use crate::run::{WITHIN, until};

const NODE: &str = "crowd-1";
/// A node's connections all come from one address, of which a proxy takes 400 at once and then 100 a second.
const OPEN_EVERY: Duration = Duration::from_millis(8);
/// Handshakes at once, as many as a node makes.
const OPENING_MAX: usize = 16;
/// A person who types, or a program that reports.
const SMALL: Pace =
    Pace { piece_bytes: 1500, pause: Duration::from_millis(150), rest: Duration::ZERO };
/// So much at once that the relay splices.
const BULK: Pace =
    Pace { piece_bytes: 768 * 1024, pause: Duration::from_millis(60), rest: Duration::ZERO };
/// More than its reader takes: everything on the way is full, the relay's pipes too.
const JAMMED: Pace =
    Pace { piece_bytes: 768 * 1024, pause: Duration::ZERO, rest: Duration::from_millis(20) };
const JAMMED_BUFFER_BYTES: usize = 64 * 1024;
/// Of so many connections one is bulk and one is jammed.
const BULK_EVERY: usize = 100;
/// A prime: bytes that are lost or doubled, however many, put what follows out of step.
const NOISE_BYTES: usize = 1_048_573;

/// How a direction moves.
#[derive(Debug, Clone, Copy)]
struct Pace {
    piece_bytes: usize,
    /// The sender's, behind each piece.
    pause: Duration,
    /// The reader's, behind each read.
    rest: Duration,
}

impl Pace {
    fn of(number: usize) -> Self {
        match number % BULK_EVERY {
            0 => BULK,
            1 => JAMMED,
            _ => SMALL,
        }
    }
}

/// One direction of one connection, at both ends.
#[derive(Debug, Default)]
struct Way {
    sent: AtomicU64,
    received: AtomicU64,
}

/// They run until [`Self::finish`].
#[derive(Debug)]
pub(crate) struct Crowd {
    runtime: Runtime,
    /// From the client and from the node, connection by connection.
    ways: Arc<[[Way; 2]]>,
    ends: JoinSet<()>,
    node: mpsc::Receiver<Incoming>,
    /// Draining: senders end.
    shutdown: Shutdown,
}

impl Crowd {
    /// Joins a node of its own, and opens so many connections to it.
    pub(crate) fn open(cluster: &Cluster, user: &User, connections: usize) -> Self {
        let runtime = Runtime::new().unwrap();
        let shutdown = Shutdown::new();
        let node = runtime.block_on(start_node(cluster, &shutdown));
        let ways = (0..connections).map(|_| Default::default()).collect();
        let mut crowd = Self { ways, ends: JoinSet::new(), node, shutdown, runtime };
        let clients = crowd.open_clients(cluster, user);
        assert_eq!(clients, connections);
        crowd
    }

    fn open_clients(&mut self, cluster: &Cluster, user: &User) -> usize {
        let config = credentials(&user.home, &user.name);
        let Self { runtime, ways, ends, node, shutdown } = self;
        runtime.block_on(async {
            let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, cluster.web));
            let mut turn = interval(OPEN_EVERY);
            turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let (mut begun, mut opening, mut open) = (0, JoinSet::new(), [0, 0]);
            while open != [ways.len(), ways.len()] {
                let may_begin = begun < ways.len() && opening.len() < OPENING_MAX;
                tokio::select! {
                    _ = turn.tick(), if may_begin => {
                        let config = Arc::clone(&config);
                        opening.spawn(async move { (begun, dial(begun, proxy, config).await) });
                        begun += 1;
                    }
                    Some(done) = opening.join_next() => {
                        let (number, stream) = done.unwrap();
                        run_end(ends, ways, number, Side::Client, stream, shutdown);
                        open[0] += 1;
                    }
                    Some(incoming) = node.recv() => {
                        let number = usize::from_str_radix(&incoming.open.trace, 16).unwrap();
                        run_end(ends, ways, number, Side::Node, incoming.stream, shutdown);
                        open[1] += 1;
                    }
                    () = sleep(WITHIN) => panic!("only {open:?} of {} are open", ways.len()),
                }
            }
            open[0]
        })
    }

    /// Waits until every direction of every connection has brought something that was sent after this call; of the jammed
    /// ones, which have megabytes on the way, anything.
    pub(crate) fn goes_on(&mut self) {
        let _runtime = self.runtime.enter();
        let all = || {
            self.ways
                .iter()
                .enumerate()
                .flat_map(|(number, ways)| ways.each_ref().map(|way| (Pace::of(number), way)))
        };
        let marks: Vec<u64> = all()
            .map(|(pace, way)| if pace.rest.is_zero() { &way.sent } else { &way.received })
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        until("all connections to move", || {
            assert!(self.ends.try_join_next().is_none(), "a connection has ended");
            let moved =
                |((_, way), mark): ((_, &Way), &u64)| way.received.load(Ordering::Relaxed) > *mark;
            all().zip(&marks).all(moved).then_some(())
        });
    }

    /// Ends all connections in order; how many bytes have arrived.
    pub(crate) fn finish(mut self) -> u64 {
        self.shutdown.drain();
        self.runtime.block_on(async {
            while let Some(end) = timeout(WITHIN, self.ends.join_next()).await.unwrap() {
                end.unwrap();
            }
        });
        self.shutdown.stop();
        let mut bytes = 0;
        for (number, way) in self.ways.iter().flatten().enumerate() {
            let [sent, received] = [&way.sent, &way.received].map(|n| n.load(Ordering::Relaxed));
            assert_eq!(sent, received, "way {} of connection {}", number % 2, number / 2);
            bytes += received;
        }
        bytes
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Node,
}

/// A machine of the cluster with a tunnel, as [`node`] has one.
async fn start_node(cluster: &Cluster, shutdown: &Shutdown) -> mpsc::Receiver<Incoming> {
    let token = cluster.json(&["tokens", "add", "--type=node", "--format", "json"]);
    let settings = HostSettings {
        dir: cluster.path().join(NODE),
        role: HostRole::Node,
        nodename: NODE.parse().unwrap(),
        token: Some(token["token"].as_str().unwrap().to_owned().into()),
        route: Route::Proxy(cluster.proxy()),
        ca_pin: Some(cluster.pin.clone()),
        principals: Vec::new(),
    };
    let host = Host::start(settings, shutdown.clone()).await.unwrap();
    let (to, arrive) = mpsc::channel(OPENING_MAX);
    let (state, mut connected) = watch::channel(State::Connecting);
    let (proxy, shutdown) = (cluster.proxy(), shutdown.clone());
    tokio::spawn(async move {
        let (_labels, labels) = watch::channel([("env".to_owned(), "crowd".to_owned())].into());
        // Senders end when it drains; the tunnel only when it stops.
        tunnel::run(proxy, host, labels, to, state, shutdown).await;
    });
    let stands = connected.wait_for(|state| *state == State::Connected);
    timeout(WITHIN, stands).await.unwrap().unwrap();
    arrive
}

/// What `tsh login` has left.
fn credentials(home: &Path, user: &str) -> Arc<ClientConfig> {
    let keys = home.join("keys").join("localhost");
    let read = |name: &str| std::fs::read_to_string(keys.join(name)).unwrap();
    let mut roots = RootCertStore::empty();
    for authority in certificates(&read(&format!("cas/{CLUSTER}.pem"))).unwrap() {
        roots.add(authority).unwrap();
    }
    let pairs = KeyPairs::from_pem(&read(user), &read(&format!("{user}.key"))).unwrap();
    let certificate = certified_key(&read(&format!("{user}.crt")), &pairs).unwrap();
    client_config(&Trust::HostAuthority(Arc::new(roots)), Some(certificate), &[ALPN_SSH]).unwrap()
}

/// As `net::dial::ssh` does it, but from many addresses: one alone may not begin so many connections a second.
async fn dial(number: usize, proxy: SocketAddr, config: Arc<ClientConfig>) -> Stream {
    let socket = TcpSocket::new_v4().unwrap();
    let last = u8::try_from(number % 200).unwrap() + 1;
    socket.bind((Ipv4Addr::new(127, 0, 1, last), 0).into()).unwrap();
    let socket = socket.connect(proxy).await.unwrap();
    let name = format!("proxy.{CLUSTER}").try_into().unwrap();
    let records = ExactRecords::new(Prefixed::new(Bytes::new(), socket));
    let mut tls = Tls::Client(TlsConnector::from(config).connect(name, records).await.unwrap());
    let request = Dial {
        version: VERSION,
        cluster: CLUSTER.parse().unwrap(),
        target: NODE.into(),
        inner: Inner::Plain,
        trace: format!("{number:032x}"),
    };
    frame::write(&mut tls, &request, WITHIN).await.unwrap();
    match frame::read(&mut tls, WITHIN).await.unwrap() {
        Reply::Ok { inner } => Stream::after_reply(tls, inner).unwrap(),
        Reply::Refused { message, .. } => panic!("connection {number} was refused: {message}"),
    }
}

/// Sends one way and checks the other.
fn run_end(
    ends: &mut JoinSet<()>,
    ways: &Arc<[[Way; 2]]>,
    number: usize,
    side: Side,
    stream: Stream,
    shutdown: &Shutdown,
) {
    let Stream::Plain(socket) = stream else { panic!("TLS was not left") };
    let [ours, theirs] = if side == Side::Client { [0, 1] } else { [1, 0] };
    let pace = Pace::of(number);
    if !pace.rest.is_zero() {
        // What waits here waits long.
        set_socket_recv_buffer_size(&socket, JAMMED_BUFFER_BYTES).unwrap();
        set_socket_send_buffer_size(&socket, JAMMED_BUFFER_BYTES).unwrap();
    }
    let (sending, checking) = (Arc::clone(ways), Arc::clone(ways));
    let (from, to) = TcpStream::into_split(socket);
    let (sender, reader) = (shutdown.clone(), shutdown.clone());
    ends.spawn(async move {
        send(to, &sending[number][ours], 2 * number + ours, pace, &sender).await;
    });
    ends.spawn(async move {
        check(from, &checking[number][theirs], 2 * number + theirs, pace, &reader).await;
    });
}

/// A piece now and then, until it is told to end.
async fn send(mut to: OwnedWriteHalf, way: &Way, seed: usize, pace: Pace, shutdown: &Shutdown) {
    let mut at = 0;
    while !shutdown.is_draining() {
        to.write_all(noise(seed, at, pace.piece_bytes)).await.unwrap();
        at += pace.piece_bytes as u64;
        way.sent.store(at, Ordering::Relaxed);
        wait(pace.pause, shutdown).await;
    }
    to.shutdown().await.unwrap();
}

/// Until the other end's end.
async fn check(mut from: OwnedReadHalf, way: &Way, seed: usize, pace: Pace, shutdown: &Shutdown) {
    let mut at = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).await.unwrap();
        if count == 0 {
            return;
        }
        let as_sent = buffer[..count] == *noise(seed, at, count);
        assert!(as_sent, "way {} of connection {}: wrong after {at}", seed % 2, seed / 2);
        at += count as u64;
        way.received.store(at, Ordering::Relaxed);
        wait(pace.rest, shutdown).await;
    }
}

/// Not at all once the crowd is to end.
async fn wait(pause: Duration, shutdown: &Shutdown) {
    if !pause.is_zero() {
        tokio::select! {
            () = sleep(pause) => {}
            () = shutdown.draining() => {}
        }
    }
}

/// The bytes of a way from a place on.
fn noise(seed: usize, at: u64, count: usize) -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    let noise = NOISE.get_or_init(|| {
        let mut state = 1_u64;
        let bytes = std::iter::repeat_with(|| {
            state =
                state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            state.to_le_bytes()[7]
        });
        let once: Vec<u8> = bytes.take(NOISE_BYTES).collect();
        [once.as_slice(), &once].concat()
    });
    let at = (seed as u64 * 7919 + at) % NOISE_BYTES as u64;
    &noise[usize::try_from(at).unwrap()..][..count]
}
