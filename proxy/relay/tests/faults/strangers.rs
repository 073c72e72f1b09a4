//! Before a connection is relayed: whoever is slow, says nonsense, or comes in thousands.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use relay::DataPlane;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::bench::{Bench, REFUSAL, SOON, Told, echo, hello, localhost, ping, rest, transfer};
use crate::child;

pub(crate) async fn whoever_is_slow_is_ended_in_time_and_costs_nobody_anything(plane: DataPlane) {
    let within = Duration::from_millis(700);
    let bench = Bench::new(plane, echo().await, within);
    let mut friend = bench.connect().await;
    ping(&mut friend).await;
    let hello = hello(&bench.client);
    let mut half_way = hello.clone();
    half_way.truncate(hello.len() / 2);
    // Nothing, a header, half a hello, a hello and no more; and the same byte by byte below.
    let began = Instant::now();
    let mut slow = Vec::new();
    for first in [&b""[..], &hello[..3], &half_way, &hello] {
        let mut socket = bench.connect().await;
        socket.write_all(first).await.unwrap();
        slow.push(socket);
    }
    let mut drip = bench.connect().await;
    let mut drops = hello.iter();
    let mut over = 0;
    while over < slow.len() + 1 {
        ping(&mut friend).await;
        if let Some(byte) = drops.next() {
            drop(drip.write_all(&[*byte]).await);
        }
        if let Ok(told) = tokio::time::timeout(Duration::from_millis(20), bench.told()).await {
            let Told::Failed(kind) = told else { panic!("{told:?}") };
            assert_eq!(kind, "timed out");
            assert!(began.elapsed() >= within - Duration::from_millis(20), "too early");
            over += 1;
        }
        assert!(began.elapsed() < within + Duration::from_secs(5), "{over} ended");
    }
    // Their sockets are closed, and the places are free.
    for mut socket in slow {
        drop(rest(&mut socket).await);
    }
    bench.places(0).await;
    nobody_answers(&bench, &mut friend, within).await;
}

/// A target that does not answer ends the dialing, as soon as a connection that is slow itself is ended.
async fn nobody_answers(bench: &Bench, friend: &mut TcpStream, within: Duration) {
    let began = Instant::now();
    let mut dialing = bench.connect().await;
    dialing.write_all(b"B").await.unwrap();
    let over = tokio::spawn(async move { rest(&mut dialing).await });
    while !over.is_finished() {
        ping(friend).await;
        tokio::task::yield_now().await;
        assert!(began.elapsed() < SOON, "a dial without end");
    }
    let told = bench.told().await;
    assert!(matches!(told, Told::Failed("dial")), "{told:?}");
    assert!(began.elapsed() < within + Duration::from_secs(2), "{:?}", began.elapsed());
    bench.places(0).await;
}

pub(crate) async fn garbage_instead_of_a_hello_is_refused_at_once(plane: DataPlane) {
    let bench = Bench::new(plane, echo().await, SOON);
    let mut broken = hello(&bench.client);
    broken[5] = 99;
    let garbage: [&[u8]; 5] = [
        &broken,
        // TLS 1.0's alert, a record that is too long, HTTP, noise.
        &[22, 3, 1, 0xff, 0xff, 1],
        b"HEAD / HTTP/1.1\r\nHost: somewhere\r\n\r\n",
        &[0x80; 4000],
        &[22, 3, 1, 0, 4, 1, 0, 0, 0],
    ];
    for bytes in garbage {
        let began = Instant::now();
        let mut socket = bench.connect().await;
        socket.write_all(bytes).await.unwrap();
        let told = bench.told().await;
        assert!(matches!(told, Told::Failed("handshake")), "{bytes:?}: {told:?}");
        assert!(began.elapsed() < SOON / 2, "{bytes:?}");
        drop(rest(&mut socket).await);
    }
    ping(&mut bench.connect().await).await;
}

/// As many as descriptors allow: half of this process's limit, which is this end of each; the other end of each is a
/// child's. 10,000 where `ulimit -n` is 20,000, while both rungs run side by side.
pub(crate) async fn half_open_connections_do_not_slow_a_transfer(plane: DataPlane) {
    const MEBIBYTES: usize = 192;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let count = usize::try_from(limit.unwrap_or(20_000).min(20_000)).unwrap() / 2 - 600;
    let bench = Bench::new(plane, echo().await, Duration::from_secs(300));
    transfer(bench.at, 16).await;
    let began = Instant::now();
    transfer(bench.at, MEBIBYTES).await;
    let alone = began.elapsed();
    let hello = hello(&bench.client);
    let crowd = child::Crowd::connect(bench.at, count, &hello[..hello.len() / 2]);
    bench.places(count).await;
    let began = Instant::now();
    transfer(bench.at, MEBIBYTES).await;
    let among = began.elapsed();
    println!("{MEBIBYTES} MiB there and back: {alone:?} alone, {among:?} beside {count}");
    // Other tests run beside this one: what is looked for is a cost per connection and event, which would be tenfold.
    assert!(among < alone * 4 + Duration::from_secs(1), "{among:?} beside them, {alone:?} alone");
    drop(crowd);
    bench.places(0).await;
}

pub(crate) async fn who_is_refused_is_told_why(plane: DataPlane) {
    let bench = Bench::new(plane, echo().await, SOON);
    let mut plain = bench.connect().await;
    plain.write_all(b"N").await.unwrap();
    assert_eq!(rest(&mut plain).await.unwrap(), REFUSAL);
    bench.door.refuses.store(true, Ordering::SeqCst);
    let connector = TlsConnector::from(Arc::clone(&bench.client));
    let socket = bench.connect().await;
    let mut client = timeout(SOON, connector.connect(localhost(), socket)).await.unwrap().unwrap();
    let mut heard = Vec::new();
    // With an orderly end: without a close_notify it would be an error.
    timeout(SOON, client.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, REFUSAL);
    bench.places(0).await;
}

pub(crate) async fn a_service_that_panics_ends_no_other_stream(plane: DataPlane) {
    let bench = Bench::new(plane, echo().await, SOON);
    let mut friend = bench.connect().await;
    ping(&mut friend).await;
    // In `route`, in `give`.
    for first in [b"X", b"G"] {
        let mut socket = bench.connect().await;
        socket.write_all(first).await.unwrap();
        drop(rest(&mut socket).await);
        ping(&mut friend).await;
    }
    // In `failed`: a client that goes; in `established`; in `ended`.
    let gone = bench.connect().await;
    let mut greeting = bench.connect().await;
    let mut ending = bench.connect().await;
    ping(&mut ending).await;
    bench.door.panics.store(true, Ordering::SeqCst);
    drop(gone);
    greeting.write_all(&[22, 3, 1, 0, 4, 1, 0, 0, 0]).await.unwrap();
    drop(rest(&mut greeting).await);
    ending.shutdown().await.unwrap();
    drop(rest(&mut ending).await);
    ping(&mut friend).await;
    // In `admit`.
    let mut refused = bench.connect().await;
    drop(rest(&mut refused).await);
    ping(&mut friend).await;
    bench.door.panics.store(false, Ordering::SeqCst);
    ping(&mut bench.connect().await).await;
    assert!(bench.relay.active() >= 1);
}
