//! Leaving TLS over real sockets: whatever the network cuts or glues together, each side sees exactly the raw bytes that
//! the other wrote behind the last record.

use std::sync::Arc;
use std::time::Duration;

use proto::preamble::{ALPN_SSH, Dial, Inner, Refusal, Reply, VERSION};
use proto::resource::HostRole;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::dial::{self, DialError};
use crate::frame;
use crate::testing::{Cluster, Dice, accept, listener};
use crate::tls::{Trust, client_config};

const SOON: Duration = Duration::from_secs(10);

/// Passes bytes on in pieces of random size. While `hold` says so, what the far side sends is gathered, so that its last
/// record and what follows leave in one write.
async fn cutting_network(
    listener: TcpListener,
    server: String,
    seed: u64,
    hold: watch::Receiver<bool>,
) {
    let (client, _) = listener.accept().await.unwrap();
    let server = TcpStream::connect(server).await.unwrap();
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let never = watch::channel(false).1;
    tokio::join!(
        pass(from_client, to_server, Dice::new(seed), never),
        pass(from_server, to_client, Dice::new(seed + 1000), hold),
    );
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut dice: Dice,
    mut hold: watch::Receiver<bool>,
) {
    let piece_max = [1, 3, 6, 100, 2000, 100_000][dice.below(6)];
    let mut gathered = Vec::new();
    loop {
        if from.read_buf(&mut gathered).await.unwrap() == 0 {
            return;
        }
        while *hold.borrow_and_update() {
            tokio::select! {
                read = from.read_buf(&mut gathered) => assert!(read.unwrap() > 0),
                changed = hold.changed() => changed.unwrap(),
            }
        }
        // All that was sent before the hold ended is there: loopback delivers at once.
        while let Ok(read) = from.try_read_buf(&mut gathered) {
            if read == 0 {
                break;
            }
        }
        let mut rest = gathered.as_slice();
        while !rest.is_empty() {
            let piece = (1 + dice.below(piece_max)).min(rest.len());
            to.write_all(&rest[..piece]).await.unwrap();
            rest = &rest[piece..];
        }
        gathered.clear();
    }
}

fn raw(mark: u8, length: usize) -> Vec<u8> {
    // Looks like TLS records, to tempt whoever reads on.
    [23, 3, 3, 0, 40].into_iter().chain(std::iter::repeat_n(mark, length)).collect()
}

async fn serve(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    hold: watch::Sender<bool>,
    length: usize,
    inner: Inner,
) -> (Stream, Vec<u8>) {
    let (socket, _) = listener.accept().await.unwrap();
    let mut tls = accept(socket, config).await.unwrap();
    let dial: Dial = frame::read(&mut tls, SOON).await.unwrap();
    assert_eq!(dial.target, "db1");
    assert!(tls.get_ref().1.peer_certificates().is_some());
    hold.send_replace(true);
    frame::write(&mut tls, &Reply::Ok { inner }, SOON).await.unwrap();
    let mut stream = Stream::after_reply(tls, inner).unwrap();
    let bytes = raw(b's', length);
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
    hold.send_replace(false);
    let mut heard = vec![0; raw(b'c', length).len()];
    stream.read_exact(&mut heard).await.unwrap();
    (stream, heard)
}

fn dial_message(cluster: &Cluster, inner: Inner) -> Dial {
    Dial {
        version: VERSION,
        cluster: cluster.name.clone(),
        target: "db1".into(),
        inner,
        trace: "0".repeat(32),
    }
}

struct Ends {
    cluster: Cluster,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

fn ends() -> Ends {
    let cluster = Cluster::new("example.com");
    let proxy = cluster.machine(HostRole::Proxy, "p1", &[]);
    let server = cluster.server(&proxy, &[ALPN_SSH]);
    let trust = Trust::HostAuthority(cluster.host_roots());
    let client = client_config(&trust, Some(cluster.person("alice")), &[ALPN_SSH]).unwrap();
    Ends { cluster, server, client }
}

async fn exchange(ends: &Ends, seed: u64, length: usize, asked: Inner, answered: Inner) {
    let (far, far_address) = listener().await;
    let (near, near_address) = listener().await;
    let (hold, held) = watch::channel(false);
    tokio::spawn(cutting_network(near, far_address, seed, held));
    let server = tokio::spawn(serve(far, ends.server.clone(), hold, length, answered));
    let message = dial_message(&ends.cluster, asked);
    let mut stream = dial::ssh(&near_address, ends.client.clone(), &message).await.unwrap();
    assert_eq!(matches!(stream, Stream::Plain(_)), answered == Inner::Plain);
    let mut heard = vec![0; raw(b's', length).len()];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, raw(b's', length), "seed {seed}");
    stream.write_all(&raw(b'c', length)).await.unwrap();
    stream.flush().await.unwrap();
    let (_kept_open, heard) = server.await.unwrap();
    assert_eq!(heard, raw(b'c', length), "seed {seed}");
}

/// The same settings for all seeds: the first handshakes are full ones, later ones resume.
#[tokio::test]
async fn leaving_tls_loses_and_adds_no_byte() {
    let ends = ends();
    for seed in 0..120 {
        let length = [0, 1, 40, 5000, 40_000][usize::try_from(seed).unwrap() % 5];
        exchange(&ends, seed, length, Inner::Plain, Inner::Plain).await;
    }
}

#[tokio::test]
async fn tls_stays_when_either_side_wants_it() {
    let ends = ends();
    for seed in 0..10 {
        exchange(&ends, seed, 40_000, Inner::Tls, Inner::Tls).await;
        exchange(&ends, seed, 40_000, Inner::Plain, Inner::Tls).await;
    }
}

/// Runs a server that answers `reply` and gives what the client makes of it.
async fn answered(reply: Reply, asked: Inner) -> Result<Stream, DialError> {
    let ends = ends();
    let (far, address) = listener().await;
    let config = ends.server.clone();
    let server = tokio::spawn(async move {
        let (socket, _) = far.accept().await.unwrap();
        let mut tls = accept(socket, config).await.unwrap();
        frame::read::<Dial>(&mut tls, SOON).await.unwrap();
        frame::write(&mut tls, &reply, SOON).await.unwrap();
        tls
    });
    let outcome =
        dial::ssh(&address, ends.client.clone(), &dial_message(&ends.cluster, asked)).await;
    server.await.unwrap();
    outcome
}

#[tokio::test]
async fn a_proxy_cannot_talk_the_client_out_of_tls() {
    let error = answered(Reply::Ok { inner: Inner::Plain }, Inner::Tls).await.unwrap_err();
    assert!(matches!(error, DialError::Frame(_)), "{error:?}");
}

#[tokio::test]
async fn a_refusal_carries_its_sentence() {
    let message = "no such target\x1b[31m".to_owned();
    let reply = Reply::Refused { reason: Refusal::NoTarget, message };
    let error = answered(reply, Inner::Plain).await.unwrap_err();
    assert_eq!(error.to_string(), "no such target[31m");
    assert!(matches!(error, DialError::Refused { reason: Refusal::NoTarget, .. }));
}

/// A server that leaves TLS although the client sent more inside it.
#[tokio::test]
async fn bytes_inside_tls_are_never_dropped_on_leaving() {
    let ends = ends();
    let (far, address) = listener().await;
    let config = ends.server.clone();
    let server = tokio::spawn(async move {
        let (socket, _) = far.accept().await.unwrap();
        let mut tls = accept(socket, config).await.unwrap();
        frame::read::<Dial>(&mut tls, SOON).await.unwrap();
        Stream::after_reply(tls, Inner::Plain).map(|_| ())
    });
    let mut tls = dial::tls(&address, "proxy.example.com", ends.client.clone()).await.unwrap();
    let mut bytes = proto::preamble::encode(&dial_message(&ends.cluster, Inner::Plain)).unwrap();
    bytes.extend_from_slice(b"early");
    tls.write_all(&bytes).await.unwrap();
    tls.flush().await.unwrap();
    assert!(server.await.unwrap().is_err());
}

/// Bytes read while sniffing come first, and TLS cannot be left before they are used.
#[tokio::test]
async fn a_prefix_is_read_first() {
    let (far, address) = listener().await;
    let mut near = TcpStream::connect(address).await.unwrap();
    let (socket, _) = far.accept().await.unwrap();
    near.write_all(b"def").await.unwrap();
    let mut prefixed = Prefixed::new(bytes::Bytes::from_static(b"abc"), socket);
    let mut heard = [0; 2];
    prefixed.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ab");
    let mut heard = [0; 4];
    prefixed.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"cdef");
}
