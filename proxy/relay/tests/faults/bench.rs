//! The relay under test with a service that does as the first byte says, an echo to dial, and what is awaited.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use relay::tls::Established;
use relay::{
    DataPlane, Given, Limits, Next, OpeningFault, Outcome, Place, Relay, Service, Settings,
};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

/// No test waits longer for what must happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What is said to whoever is refused.
pub(crate) const REFUSAL: &[u8] = b"not today";

/// What the service was told.
#[derive(Debug)]
pub(crate) enum Told {
    Ended(Outcome),
    Failed(&'static str),
}

/// Says what it does by the first byte: `X` panics, `B` goes where nobody answers, `G` is given away, `N` is refused, a handshake is
/// terminated, and the rest goes to the target.
pub(crate) struct Door {
    target: SocketAddr,
    black_hole: SocketAddr,
    tls: Arc<ServerConfig>,
    within: Duration,
    limits: Limits,
    told: UnboundedSender<Told>,
    /// Connections that hold a place.
    pub(crate) places: Arc<AtomicUsize>,
    pub(crate) panics: AtomicBool,
    /// Everybody who has shaken hands.
    pub(crate) refuses: AtomicBool,
}

struct Taken(Arc<AtomicUsize>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Door {
    fn dial(&self, to: SocketAddr) -> Next {
        Next::Dial { to, limits: self.limits, place: None, tag: Bytes::new() }
    }

    fn panic_if_told(&self) {
        assert!(!self.panics.load(Ordering::SeqCst), "as the test wants");
    }
}

impl Service for Door {
    fn admit(&self, _from: SocketAddr) -> Option<Place> {
        self.panic_if_told();
        self.places.fetch_add(1, Ordering::SeqCst);
        Some(Box::new(Taken(Arc::clone(&self.places))))
    }
    fn route(&self, _from: SocketAddr, opening: &[u8]) -> Next {
        match opening.first() {
            None => Next::More,
            Some(b'X') => panic!("as the client wants"),
            Some(b'B') => self.dial(self.black_hole),
            Some(b'G') => Next::Give,
            Some(b'N') => Next::Refuse(Bytes::from_static(REFUSAL)),
            // "GET" and noise too: what is no hello is TLS's to find out.
            Some(22 | b'H' | 0x80..) => Next::Terminate(Arc::clone(&self.tls)),
            Some(_) => self.dial(self.target),
        }
    }
    fn established(&self, _from: SocketAddr, _peer: &Established) -> Next {
        self.panic_if_told();
        match self.refuses.load(Ordering::SeqCst) {
            true => Next::Refuse(Bytes::from_static(REFUSAL)),
            false => self.dial(self.target),
        }
    }
    fn give(&self, _given: Given) {
        panic!("as the client wants");
    }
    fn failed(&self, _from: SocketAddr, fault: &OpeningFault) {
        self.panic_if_told();
        let kind = match fault {
            OpeningFault::Dial(_) => "dial",
            OpeningFault::Full => "full",
            OpeningFault::Handshake(_) => "handshake",
            OpeningFault::Io(_) => "io",
            OpeningFault::TimedOut => "timed out",
            OpeningFault::TooLong => "too long",
        };
        drop(self.told.send(Told::Failed(kind)));
    }
    fn ended(&self, _from: SocketAddr, outcome: &Outcome) {
        self.panic_if_told();
        let (up, down) = (outcome.bytes_from_client, outcome.bytes_from_target);
        let end = match &outcome.end {
            relay::End::Closed => relay::End::Closed,
            relay::End::Cut => relay::End::Cut,
            relay::End::Failed(error) => relay::End::Failed(error.kind().into()),
            relay::End::Idle => relay::End::Idle,
            relay::End::Moved => relay::End::Moved,
        };
        let outcome = Outcome { bytes_from_client: up, bytes_from_target: down, end };
        drop(self.told.send(Told::Ended(outcome)));
    }
    fn within(&self) -> Duration {
        self.within
    }
}

/// A relay that listens.
pub(crate) struct Bench {
    pub(crate) relay: Relay,
    pub(crate) door: Arc<Door>,
    pub(crate) at: SocketAddr,
    pub(crate) client: Arc<ClientConfig>,
    told: Mutex<UnboundedReceiver<Told>>,
    _full: Vec<std::net::TcpStream>,
    _black_hole: OwnedFd,
}

impl Bench {
    pub(crate) fn new(plane: DataPlane, target: SocketAddr, within: Duration) -> Self {
        Self::with_limits(plane, target, within, Limits { idle_timeout: None })
    }

    pub(crate) fn with_limits(
        plane: DataPlane,
        target: SocketAddr,
        within: Duration,
        limits: Limits,
    ) -> Self {
        // One worker: what one connection does to the worker, it does to all.
        let settings = Settings { streams_max: 100_000, workers: Some(1), data_plane: plane };
        let relay = Relay::start(settings).unwrap();
        let (server, client) = tls();
        let (sender, told) = unbounded_channel();
        let (hole, black_hole, full) = black_hole();
        let door = Arc::new(Door {
            target,
            black_hole,
            tls: server,
            within,
            limits,
            told: sender,
            places: Arc::default(),
            panics: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
        });
        let service: Arc<dyn Service> = Arc::clone(&door) as Arc<dyn Service>;
        let at = relay.listen(SocketAddr::from(([127, 0, 0, 1], 0)), &service).unwrap();
        let told = Mutex::new(told);
        Self { relay, door, at, client, told, _full: full, _black_hole: hole }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        timeout(SOON, TcpStream::connect(self.at)).await.unwrap().unwrap()
    }

    pub(crate) async fn told(&self) -> Told {
        timeout(SOON, async { self.told.lock().await.recv().await }).await.unwrap().unwrap()
    }

    /// Waits until so many places are taken: they are freed a moment after the end is told.
    pub(crate) async fn places(&self, count: usize) {
        let began = tokio::time::Instant::now();
        while self.door.places.load(Ordering::SeqCst) != count {
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert!(began.elapsed() < SOON, "{:?} places, not {count}", self.door.places);
        }
    }

    /// The next stream that ends.
    pub(crate) async fn outcome(&self) -> Outcome {
        match self.told().await {
            Told::Ended(outcome) => outcome,
            Told::Failed(kind) => panic!("a connection failed: {kind}"),
        }
    }
}

/// A listener whose queue is full: a connection to it is never answered.
fn black_hole() -> (OwnedFd, SocketAddr, Vec<std::net::TcpStream>) {
    use rustix::net::{AddressFamily, SocketType};
    let listener = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = SocketAddr::try_from(rustix::net::getsockname(&listener).unwrap()).unwrap();
    let mut full = Vec::new();
    while let Ok(one) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        full.push(one);
    }
    (listener, address, full)
}

fn tls() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    server.enable_secret_extraction = true;
    let mut roots = RootCertStore::empty();
    roots.add(own.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

pub(crate) fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// A client's first flight.
pub(crate) fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let mut client = rustls::ClientConnection::new(Arc::clone(config), localhost()).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    wire
}

pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Says everything back, for as long as the runtime lives.
pub(crate) async fn echo() -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.into_split();
                if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                    drop(write.shutdown().await);
                }
            });
        }
    });
    address
}

/// One question and its answer.
pub(crate) async fn ping(socket: &mut TcpStream) {
    let mut answer = [0; 4];
    let both = async {
        socket.write_all(b"ping").await?;
        socket.read_exact(&mut answer).await
    };
    timeout(SOON, both).await.unwrap().unwrap();
    assert_eq!(&answer, b"ping");
}

/// What is left to read, or how it broke.
pub(crate) async fn rest(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut got = Vec::new();
    timeout(SOON, socket.read_to_end(&mut got)).await.unwrap().map(|_| got)
}

/// The same bytes for the same seed.
pub(crate) fn noise(count: usize, mut seed: u64) -> Vec<u8> {
    let mut noise = Vec::with_capacity(count + 8);
    while noise.len() < count {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.extend_from_slice(&(seed >> 16).to_le_bytes());
    }
    noise.truncate(count);
    noise
}

/// Sends so many mebibytes to an echo and checks what comes back.
pub(crate) async fn transfer(at: SocketAddr, mebibytes: usize) {
    let block = Arc::new(noise(1 << 20, 5));
    let socket = timeout(SOON, TcpStream::connect(at)).await.unwrap().unwrap();
    let (mut read, mut write) = socket.into_split();
    let sent = Arc::clone(&block);
    let send = tokio::spawn(async move {
        for _ in 0..mebibytes {
            write.write_all(&sent).await.unwrap();
        }
        write.shutdown().await.unwrap();
    });
    let mut got = vec![0; block.len()];
    for number in 0..mebibytes {
        timeout(SOON, read.read_exact(&mut got)).await.unwrap().unwrap();
        assert!(got == *block, "mebibyte {number} of {mebibytes}");
    }
    assert_eq!(read.read(&mut got).await.unwrap(), 0);
    send.await.unwrap();
}
