//! The relay over real sockets: what goes in comes out, in order and once; every kind of end reaches the other side.

use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::{DataPlane, End, Leg, Limits, Outcome, Relay, Settings, StreamId};

const NO_LIMITS: Limits = Limits { idle_timeout: None };
/// No test waits longer for what must happen.
const SOON: Duration = Duration::from_secs(20);

fn relay(data_plane: DataPlane, streams_max: usize) -> Relay {
    Relay::start(Settings { streams_max, workers: Some(2), data_plane }).unwrap()
}

/// The tests below on each rung that needs nothing of the kernel that may be missing; the highest rung has its tests in
/// `kernel-tests`.
macro_rules! on_every_rung {
    ($($name:ident)*) => {
        mod epoll {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::DataPlane::Epoll).await;
            })*
        }
        mod uring {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::DataPlane::Uring).await;
            })*
        }
    };
}

on_every_rung! {
    bulk_both_ways_arrives_whole
    half_close_is_passed_on_either_way
    bytes_read_ahead_come_first
    cut_ends_at_once_and_both_sides_see_a_reset
    a_reset_is_passed_on
    last_words_arrive_although_the_other_side_takes_no_more
    idle_streams_end_and_busy_ones_do_not
    a_stalled_reader_stops_the_writer
    a_buffering_writer_is_flushed_when_nothing_more_comes
    streams_are_bounded_and_ids_are_single
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn socket(socket: TcpStream) -> Leg {
    Leg::Socket { socket, pending: Bytes::new() }
}

struct Running {
    client: TcpStream,
    target: TcpStream,
    relay: Relay,
    id: StreamId,
    outcome: JoinHandle<Outcome>,
}

impl Running {
    async fn start(plane: DataPlane, limits: Limits) -> Self {
        let (client, client_leg) = pair().await;
        let (target, target_leg) = pair().await;
        let relay = relay(plane, 8);
        let id = relay.next_id();
        let runner = relay.clone();
        let outcome = tokio::spawn(async move {
            runner.run(id, (socket(client_leg), socket(target_leg)), limits, Bytes::new()).await
        });
        Self { client, target, relay, id, outcome }
    }

    async fn outcome(self) -> Outcome {
        timeout(SOON, self.outcome).await.unwrap().unwrap()
    }
}

fn noise(bytes: usize, mut seed: u64) -> Vec<u8> {
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.extend_from_slice(&(seed >> 16).to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

async fn send(socket: &mut TcpStream, bytes: &[u8]) {
    socket.write_all(bytes).await.unwrap();
    socket.flush().await.unwrap();
}

async fn expect(socket: &mut TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    timeout(SOON, socket.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(got, bytes);
}

async fn rest(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut got = Vec::new();
    timeout(SOON, socket.read_to_end(&mut got)).await.unwrap().map(|_| got)
}

async fn bulk_both_ways_arrives_whole(plane: DataPlane) {
    let running = Running::start(plane, NO_LIMITS).await;
    let (up, down) = (noise(9 << 20, 1), noise((7 << 20) + 13, 2));
    let side = |socket: TcpStream, out: Vec<u8>| async move {
        let (mut read, mut write) = socket.into_split();
        let writer = tokio::spawn(async move {
            write.write_all(&out).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.unwrap();
        writer.await.unwrap();
        Sha256::digest(&got)
    };
    let (up_digest, down_digest) = (Sha256::digest(&up), Sha256::digest(&down));
    let (up_bytes, down_bytes) = (up.len() as u64, down.len() as u64);
    let both = async { tokio::join!(side(running.client, up), side(running.target, down)) };
    let (at_client, at_target) = timeout(SOON, both).await.unwrap();
    assert_eq!(at_client, down_digest);
    assert_eq!(at_target, up_digest);
    let outcome = timeout(SOON, running.outcome).await.unwrap().unwrap();
    assert!(matches!(outcome.end, End::Closed), "{outcome:?}");
    assert_eq!((outcome.bytes_from_client, outcome.bytes_from_target), (up_bytes, down_bytes));
    assert_eq!(running.relay.active(), 0);
}

async fn half_close_is_passed_on_either_way(plane: DataPlane) {
    for client_first in [true, false] {
        let mut running = Running::start(plane, NO_LIMITS).await;
        let (first, second) = if client_first {
            (&mut running.client, &mut running.target)
        } else {
            (&mut running.target, &mut running.client)
        };
        send(first, b"question").await;
        first.shutdown().await.unwrap();
        assert_eq!(rest(second).await.unwrap(), b"question");
        send(second, b"answer").await;
        expect(first, b"answer").await;
        send(second, b", late").await;
        second.shutdown().await.unwrap();
        assert_eq!(rest(first).await.unwrap(), b", late");
        assert!(matches!(running.outcome().await.end, End::Closed));
    }
}

async fn bytes_read_ahead_come_first(plane: DataPlane) {
    let (mut client, client_leg) = pair().await;
    let (mut target, target_leg) = pair().await;
    let relay = relay(plane, 1);
    let id = relay.next_id();
    send(&mut client, b" and later").await;
    client.shutdown().await.unwrap();
    let client_leg = Leg::Socket { socket: client_leg, pending: Bytes::from_static(b"before") };
    let run = tokio::spawn(async move {
        relay.run(id, (client_leg, socket(target_leg)), NO_LIMITS, Bytes::new()).await
    });
    assert_eq!(rest(&mut target).await.unwrap(), b"before and later");
    drop(target);
    assert_eq!(run.await.unwrap().bytes_from_client, 16);
}

async fn cut_ends_at_once_and_both_sides_see_a_reset(plane: DataPlane) {
    let mut running = Running::start(plane, NO_LIMITS).await;
    send(&mut running.client, b"x").await;
    expect(&mut running.target, b"x").await;
    assert!(running.relay.cut(running.id));
    assert_eq!(rest(&mut running.client).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(rest(&mut running.target).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let (relay, id) = (running.relay.clone(), running.id);
    assert!(matches!(running.outcome().await.end, End::Cut));
    assert!(!relay.cut(id));
}

async fn a_reset_is_passed_on(plane: DataPlane) {
    for client_first in [true, false] {
        let mut running = Running::start(plane, NO_LIMITS).await;
        send(&mut running.client, b"x").await;
        expect(&mut running.target, b"x").await;
        let Running { client, target, outcome, .. } = running;
        let (first, mut second) = if client_first { (client, target) } else { (target, client) };
        first.set_zero_linger().unwrap();
        drop(first);
        assert_eq!(rest(&mut second).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let end = timeout(SOON, outcome).await.unwrap().unwrap().end;
        assert!(matches!(end, End::Failed(_)), "{end:?}");
    }
}

/// Takes nothing, and still has something to say.
struct TakesNothing(tokio::io::DuplexStream);

impl AsyncRead for TakesNothing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for TakesNothing {
    fn poll_write(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        _bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Err(ErrorKind::BrokenPipe.into()))
    }
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn last_words_arrive_although_the_other_side_takes_no_more(plane: DataPlane) {
    let (mut client, client_leg) = pair().await;
    let (mut target, target_leg) = tokio::io::duplex(64);
    let relay = relay(plane, 1);
    let id = relay.next_id();
    let run = tokio::spawn(async move {
        let target = Leg::Stream(Box::new(TakesNothing(target_leg)));
        relay.run(id, (socket(client_leg), target), NO_LIMITS, Bytes::new()).await
    });
    send(&mut client, b"refused").await;
    target.write_all(b"exit status 3").await.unwrap();
    drop(target);
    assert_eq!(rest(&mut client).await.unwrap(), b"exit status 3");
    let end = timeout(SOON, run).await.unwrap().unwrap().end;
    assert!(matches!(&end, End::Failed(e) if e.kind() == ErrorKind::BrokenPipe), "{end:?}");
}

/// Remembers whether it was told of an end.
struct ToldOfTheEnd(tokio::io::DuplexStream, Arc<AtomicBool>);

impl AsyncRead for ToldOfTheEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for ToldOfTheEnd {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }
    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.1.store(true, Ordering::SeqCst);
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A write that meets the reset takes its error away, and the next read is told of an end.
#[tokio::test]
async fn a_reset_that_a_write_has_met_is_no_orderly_end() {
    for ends_first in [false, true] {
        let (mut client, client_leg) = tokio::io::duplex(64);
        let (mut target, target_leg) = pair().await;
        let told = Arc::new(AtomicBool::new(false));
        client.write_all(b"into the void").await.unwrap();
        target.write_all(b"half a story").await.unwrap();
        if ends_first {
            target.shutdown().await.unwrap();
        }
        target.set_zero_linger().unwrap();
        drop(target);
        let relay = relay(DataPlane::Epoll, 1);
        let client_leg = Leg::Stream(Box::new(ToldOfTheEnd(client_leg, Arc::clone(&told))));
        let legs = (client_leg, socket(target_leg));
        let run = relay.run(relay.next_id(), legs, NO_LIMITS, Bytes::new());
        let end = timeout(SOON, run).await.unwrap().end;
        assert!(matches!(end, End::Failed(_)), "{end:?}");
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"half a story");
        assert_eq!(told.load(Ordering::SeqCst), ends_first);
    }
}

async fn idle_streams_end_and_busy_ones_do_not(plane: DataPlane) {
    let idle_timeout = Duration::from_millis(300);
    let mut running = Running::start(plane, Limits { idle_timeout: Some(idle_timeout) }).await;
    let started = tokio::time::Instant::now();
    // One byte at a time, for longer than the timeout.
    while started.elapsed() < idle_timeout * 3 {
        send(&mut running.client, b"k").await;
        expect(&mut running.target, b"k").await;
        tokio::time::sleep(idle_timeout / 6).await;
    }
    let quiet_since = tokio::time::Instant::now();
    assert!(rest(&mut running.client).await.is_err());
    assert!(quiet_since.elapsed() > idle_timeout / 2);
    assert!(matches!(running.outcome().await.end, End::Idle));
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_stream_ends_although_no_idle_timeout_is_set() {
    let (mut client, client_leg) = tokio::io::duplex(64);
    let (target, target_leg) = tokio::io::duplex(64);
    let relay = relay(DataPlane::Epoll, 1);
    client.shutdown().await.unwrap();
    let legs = (Leg::Stream(Box::new(client_leg)), Leg::Stream(Box::new(target_leg)));
    let outcome = relay.run(relay.next_id(), (legs.0, legs.1), NO_LIMITS, Bytes::new()).await;
    assert!(matches!(outcome.end, End::Idle), "{outcome:?}");
    drop(target);
}

async fn a_stalled_reader_stops_the_writer(plane: DataPlane) {
    let running = Running::start(plane, NO_LIMITS).await;
    let mut client = running.client;
    let writer = tokio::spawn(async move {
        // More than all socket buffers on the way can hold.
        let mut sent = 0_usize;
        let chunk = vec![7; 1 << 20];
        while sent < 256 << 20 {
            match timeout(Duration::from_secs(1), client.write_all(&chunk)).await {
                Ok(wrote) => wrote.unwrap(),
                Err(_) => break,
            }
            sent += chunk.len();
        }
        (client, sent)
    });
    let (client, sent) = timeout(SOON, writer).await.unwrap().unwrap();
    assert!(sent < 64 << 20, "the relay took {sent} bytes that nobody read");
    drop(client);
    drop(running.target);
}

async fn a_buffering_writer_is_flushed_when_nothing_more_comes(plane: DataPlane) {
    let (mut client, client_leg) = tokio::io::duplex(1024);
    let (mut target, target_leg) = tokio::io::duplex(1024);
    let relay = relay(plane, 1);
    let id = relay.next_id();
    let run = tokio::spawn(async move {
        let target = Leg::Stream(Box::new(BufWriter::with_capacity(1 << 16, target_leg)));
        relay.run(id, (Leg::Stream(Box::new(client_leg)), target), NO_LIMITS, Bytes::new()).await
    });
    client.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    timeout(SOON, target.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(&got, b"ping");
    drop((client, target));
    timeout(SOON, run).await.unwrap().unwrap();
}

async fn streams_are_bounded_and_ids_are_single(plane: DataPlane) {
    let relay = relay(plane, 1);
    let (a, a_leg) = pair().await;
    let (b, b_leg) = pair().await;
    let first = relay.next_id();
    let runner = relay.clone();
    let running = tokio::spawn(async move {
        runner.run(first, (socket(a_leg), socket(b_leg)), NO_LIMITS, Bytes::new()).await
    });
    let (mut a, mut b) = (a, b);
    send(&mut a, b"up").await;
    expect(&mut b, b"up").await;
    assert!(relay.is_full());
    let (mut c, c_leg) = pair().await;
    let (_d, d_leg) = pair().await;
    let second = relay.next_id();
    assert_ne!(first, second);
    let outcome = relay.run(second, (socket(c_leg), socket(d_leg)), NO_LIMITS, Bytes::new()).await;
    assert!(matches!(outcome.end, End::Failed(_)), "{outcome:?}");
    assert_eq!(rest(&mut c).await.unwrap_or_default(), b"");
    drop((a, b));
    timeout(SOON, running).await.unwrap().unwrap();
    assert_eq!(relay.active(), 0);
}
