//! After a connection is relayed: how peers end, and one that never reads.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use relay::{DataPlane, End, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::bench::{Bench, SOON, echo, listener, localhost, noise, ping, rest};

pub(crate) async fn an_end_right_behind_the_opening_is_not_lost(plane: DataPlane) {
    let (target, address) = listener().await;
    let bench = Bench::new(plane, address, SOON);
    // Less, as much and more than is read before it is known where the bytes go.
    for count in [1, 1000, 16 * 1024, 16 * 1024 + 1, 20_000, 100_000] {
        let mut bytes = noise(count, 3);
        bytes[0] = b'a';
        // All of it there before the relay looks, end included.
        let socket = bench.connect().await;
        let (mut read, mut write) = socket.into_split();
        write.write_all(&bytes).await.unwrap();
        write.shutdown().await.unwrap();
        let (mut far, _) = timeout(SOON, target.accept()).await.unwrap().unwrap();
        assert!(rest(&mut far).await.unwrap() == bytes, "{count} bytes");
        far.write_all(b"understood").await.unwrap();
        drop(far);
        let mut answer = Vec::new();
        timeout(SOON, read.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, b"understood");
        assert!(matches!(bench.outcome().await.end, End::Closed));
    }
}

pub(crate) async fn a_target_that_greets_and_goes_is_heard(plane: DataPlane) {
    let (target, address) = listener().await;
    let bench = Bench::new(plane, address, SOON);
    for _ in 0..50 {
        let mut socket = bench.connect().await;
        let greet = async {
            let (mut far, _) = target.accept().await.unwrap();
            let mut first = [0; 1];
            far.read_exact(&mut first).await.unwrap();
            far.write_all(b"too many users").await.unwrap();
        };
        socket.write_all(b"a").await.unwrap();
        timeout(SOON, greet).await.unwrap();
        assert_eq!(rest(&mut socket).await.unwrap(), b"too many users");
        socket.shutdown().await.unwrap();
        assert!(matches!(bench.outcome().await.end, End::Closed));
    }
}

/// Sends without end and reads until the end. The error of a reset goes to whichever call asks first; after an orderly
/// end it would be a broken pipe.
async fn blast_and_hear(socket: TcpStream, heard: Arc<AtomicU64>) -> std::io::Result<()> {
    let (mut read, mut write) = socket.into_split();
    let blast = tokio::spawn(async move {
        let block = vec![b'a'; 64 * 1024];
        loop {
            if let Err(error) = write.write_all(&block).await {
                return error;
            }
        }
    });
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match read.read(&mut buffer).await? {
            0 => break,
            count => heard.fetch_add(count as u64, Ordering::SeqCst),
        };
    }
    let error = timeout(SOON, blast).await.unwrap().unwrap();
    if error.kind() == ErrorKind::ConnectionReset { Err(error) } else { Ok(()) }
}

pub(crate) async fn a_reset_in_the_middle_of_both_directions_is_a_reset(plane: DataPlane) {
    let (target, address) = listener().await;
    let bench = Bench::new(plane, address, SOON);
    for round in 0..40 {
        let mut client = bench.connect().await;
        client.write_all(b"a").await.unwrap();
        let (far, _) = timeout(SOON, target.accept()).await.unwrap().unwrap();
        let (goes, stays) = if round % 2 == 0 { (client, far) } else { (far, client) };
        let heard = Arc::new(AtomicU64::new(0));
        let stays = tokio::spawn(blast_and_hear(stays, Arc::clone(&heard)));
        // Not split: a half that is dropped says an orderly end.
        let goes = Arc::new(goes);
        let feeding = Arc::clone(&goes);
        let feed = tokio::spawn(async move {
            let block = vec![b'b'; 64 * 1024];
            while feeding.writable().await.is_ok() {
                drop(feeding.try_write(&block));
            }
        });
        // In the middle: while small, while bulk.
        let mut buffer = vec![0; 64 * 1024];
        while heard.load(Ordering::SeqCst) < 1 << (round / 2) {
            timeout(SOON, goes.readable()).await.unwrap().unwrap();
            drop(goes.try_read(&mut buffer));
        }
        feed.abort();
        drop(feed.await);
        goes.set_zero_linger().unwrap();
        drop(goes);
        let end = timeout(SOON, stays).await.unwrap().unwrap();
        let kind = end.expect_err("a stream that was cut short ended in order").kind();
        assert_eq!(kind, ErrorKind::ConnectionReset, "round {round}");
        assert!(matches!(bench.outcome().await.end, End::Failed(_)), "round {round}");
    }
}

pub(crate) async fn tls_that_vanishes_is_no_orderly_end(plane: DataPlane) {
    let (target, address) = listener().await;
    let bench = Bench::new(plane, address, SOON);
    for says_close in [true, false] {
        let socket = bench.connect().await;
        let connector = TlsConnector::from(Arc::clone(&bench.client));
        let mut client =
            timeout(SOON, connector.connect(localhost(), socket)).await.unwrap().unwrap();
        client.write_all(b"half a story").await.unwrap();
        client.flush().await.unwrap();
        let (mut far, _) = timeout(SOON, target.accept()).await.unwrap().unwrap();
        far.write_all(b"go on").await.unwrap();
        let mut asked = [0; 5];
        timeout(SOON, client.read_exact(&mut asked)).await.unwrap().unwrap();
        let mut story = [0; 12];
        timeout(SOON, far.read_exact(&mut story)).await.unwrap().unwrap();
        if says_close {
            client.shutdown().await.unwrap();
            assert!(rest(&mut far).await.unwrap().is_empty());
            drop(far);
            assert!(matches!(bench.outcome().await.end, End::Closed));
        } else {
            // FIN, and no close_notify before it.
            let (mut socket, _) = client.into_inner();
            socket.shutdown().await.unwrap();
            assert_eq!(rest(&mut far).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            let end = bench.outcome().await.end;
            let eof = matches!(&end, End::Failed(e) if e.kind() == ErrorKind::UnexpectedEof);
            assert!(eof, "{end:?}");
        }
    }
}

pub(crate) async fn a_client_that_never_reads_is_bounded_and_ends(plane: DataPlane) {
    let (target, address) = listener().await;
    let limits = Limits { idle_timeout: Some(Duration::from_millis(700)) };
    let bench = Bench::with_limits(plane, address, SOON, limits);
    for over_tls in [false, true] {
        let socket = bench.connect().await;
        let mut stalled: Box<dyn relay::Io> = if over_tls {
            let connector = TlsConnector::from(Arc::clone(&bench.client));
            Box::new(timeout(SOON, connector.connect(localhost(), socket)).await.unwrap().unwrap())
        } else {
            Box::new(socket)
        };
        stalled.write_all(b"a").await.unwrap();
        stalled.flush().await.unwrap();
        let (mut far, _) = timeout(SOON, target.accept()).await.unwrap().unwrap();
        let block = vec![7; 1 << 20];
        let mut taken = 0;
        // Until nothing is taken any more; then the relay ends it, and the write fails.
        while timeout(SOON, far.write_all(&block)).await.unwrap().is_ok() {
            taken += 1;
            assert!(taken < 64, "{taken} MiB taken that nobody reads");
        }
        let outcome = bench.outcome().await;
        assert!(matches!(outcome.end, End::Idle), "{outcome:?}");
        drop(stalled);
    }
    // Whoever reads is served.
    let (echo, bench) = (echo().await, bench);
    drop(bench);
    let bench = Bench::new(plane, echo, SOON);
    ping(&mut bench.connect().await).await;
}
