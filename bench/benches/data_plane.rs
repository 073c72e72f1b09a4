//! The parts of relaying that are ours: looking at a ClientHello, and one step of the relay, there and back through two
//! sockets each way, on every rung that this machine offers. The step includes the system calls and the wake-up.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark: a fault ends it")]

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use relay::tls::Established;
use relay::{
    DataPlane, Given, Limits, Next, OpeningFault, Outcome, Place, Relay, Service, Settings,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

fn sniffing(criterion: &mut Criterion) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"postern-ssh".to_vec()];
    let name = ServerName::try_from("proxy.example.com").unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    criterion.bench_function("sniff/client_hello", |b| {
        b.iter(|| proxy::sniff::look(black_box(&hello)).unwrap());
    });
}

/// Everybody goes to one place.
struct To(SocketAddr);

impl Service for To {
    fn admit(&self, _: SocketAddr) -> Option<Place> {
        Some(Box::new(()))
    }
    fn route(&self, _: SocketAddr, _: &[u8]) -> Next {
        let limits = Limits { idle_timeout: Some(Duration::from_secs(600)) };
        Next::Dial { to: self.0, limits, place: None, tag: bytes::Bytes::new() }
    }
    fn established(&self, _: SocketAddr, _: &Established) -> Next {
        Next::Give
    }
    fn give(&self, _: Given) {}
    fn failed(&self, _: SocketAddr, _: &OpeningFault) {}
    fn ended(&self, _: SocketAddr, _: &Outcome) {}
    fn within(&self) -> Duration {
        Duration::from_secs(10)
    }
}

fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.expect("the echo's own connection");
            let mut buffer = [0; 64];
            while socket.read_exact(&mut buffer).is_ok() && socket.write_all(&buffer).is_ok() {}
        }
    });
    address
}

fn step(criterion: &mut Criterion) {
    for (name, data_plane) in [
        ("relay_step/uring-ktls", DataPlane::UringKtls),
        ("relay_step/uring", DataPlane::Uring),
        ("relay_step/epoll", DataPlane::Epoll),
    ] {
        let settings = Settings { streams_max: 8, workers: Some(1), data_plane };
        let relay = match Relay::start(settings) {
            Ok(relay) => relay,
            Err(error) => {
                println!("{name}: {error}");
                continue;
            }
        };
        let service: Arc<dyn Service> = Arc::new(To(echo()));
        let at = relay.listen((Ipv4Addr::LOCALHOST, 0).into(), &service).unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        client.set_nodelay(true).unwrap();
        let mut message = [7; 64];
        criterion.bench_function(name, |b| {
            b.iter(|| {
                client.write_all(&message).unwrap();
                client.read_exact(&mut message).unwrap();
            });
        });
    }
}

criterion_group!(benches, sniffing, step);
criterion_main!(benches);
