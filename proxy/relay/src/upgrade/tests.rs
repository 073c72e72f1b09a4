//! A thousand streams under load, given from one relay to another and back ten times: no byte is lost, doubled or out of
//! order, counters go on, and ends are still ends. Both relays are in this process; what passes between them is what
//! passes between two. The daemon's own test does it with programs.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Moved;
use crate::{DataPlane, End, Leg, Limits, Outcome, Relay, Settings};

const STREAMS: usize = 1000;
const UPGRADES: usize = 10;
/// Every so many streams one is bulk.
const BULK_EVERY: usize = 50;
const SMALL_BYTES: u64 = 96 * 1024;
const BULK_BYTES: u64 = 12 * 1024 * 1024;
const SOON: Duration = Duration::from_secs(120);

/// The same bytes from the same seed, wherever one begins to read.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let bytes = (self.0 >> 13).to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// Sends `length` bytes in pieces with pauses, so that some are always under way, then ends.
async fn send(
    mut to: tokio::net::tcp::OwnedWriteHalf,
    seed: u64,
    length: u64,
    pace: Arc<AtomicU64>,
) {
    let mut noise = Noise(seed);
    let mut sent = 0;
    let piece = usize::try_from(length / 24).unwrap();
    let mut buffer = vec![0; piece / 8 * 8];
    while sent < length {
        let count = buffer.len().min(usize::try_from(length - sent).unwrap());
        noise.fill(&mut buffer[..count]);
        to.write_all(&buffer[..count]).await.unwrap();
        sent += count as u64;
        // Goes on with the upgrades: the last piece leaves after the last one.
        let due = sent * UPGRADES as u64 / length;
        while pace.load(Ordering::Relaxed) < due {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
    to.shutdown().await.unwrap();
}

async fn check(mut from: tokio::net::tcp::OwnedReadHalf, seed: u64, length: u64) {
    let mut noise = Noise(seed);
    let piece = usize::try_from(length / 24).unwrap() / 8 * 8;
    let (mut got, mut expected) = (vec![0; piece], vec![0; piece]);
    let mut read = 0;
    while read < length {
        let count = piece.min(usize::try_from(length - read).unwrap());
        from.read_exact(&mut got[..count]).await.unwrap();
        noise.fill(&mut expected[..count]);
        assert!(got[..count] == expected[..count], "bytes differ after {read} of {length}");
        read += count as u64;
    }
    assert_eq!(from.read(&mut got).await.unwrap(), 0, "something comes after the end");
}

async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let (near, far) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn relay(data_plane: DataPlane) -> Relay {
    Relay::start(Settings { streams_max: 2 * STREAMS, workers: Some(2), data_plane }).unwrap()
}

/// Ends are collected here, by whichever relay sees them.
type Ends = JoinSet<(usize, Outcome)>;

/// Everything that can move goes from `old` to `new`; what could not (it was just ending) stays.
async fn upgrade(old: &Relay, new: &Relay, ends: &mut Ends) -> usize {
    let (near, far) = UnixStream::pair().unwrap();
    let left = old.leave().await;
    let count = left.len();
    let sender = std::thread::spawn(move || {
        left.into_iter().for_each(|moved| moved.send(&near).unwrap());
    });
    let received = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        while let Some(moved) = Moved::receive(&far).unwrap() {
            all.push(moved);
        }
        all
    });
    let received = received.await.unwrap();
    sender.join().unwrap();
    assert_eq!(received.len(), count);
    for moved in received {
        let number: usize = std::str::from_utf8(moved.tag()).unwrap().parse().unwrap();
        let (new, id) = (new.clone(), new.next_id());
        ends.spawn(async move { (number, new.adopt(id, moved).await) });
    }
    count
}

async fn ten_upgrades(plane: DataPlane) {
    let relays = [relay(plane), relay(plane)];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut ends, mut load) = (Ends::new(), JoinSet::new());
    let pace = Arc::new(AtomicU64::new(0));
    let length =
        |number: usize| if number.is_multiple_of(BULK_EVERY) { BULK_BYTES } else { SMALL_BYTES };
    for number in 0..STREAMS {
        let (client, client_leg) = pair(&listener).await;
        let (target, target_leg) = pair(&listener).await;
        let legs =
            [client_leg, target_leg].map(|socket| Leg::Socket { socket, pending: Bytes::new() });
        let [client_leg, target_leg] = legs;
        let relay = relays[0].clone();
        let tag = Bytes::from(number.to_string());
        ends.spawn(async move {
            let limits = Limits { idle_timeout: Some(Duration::from_secs(600)) };
            (number, relay.run(relay.next_id(), (client_leg, target_leg), limits, tag).await)
        });
        let (from_client, to_client) = client.into_split();
        let (from_target, to_target) = target.into_split();
        let seed = number as u64;
        load.spawn(send(to_client, seed, length(number), Arc::clone(&pace)));
        load.spawn(check(from_target, seed, length(number)));
        load.spawn(send(to_target, !seed, length(number), Arc::clone(&pace)));
        load.spawn(check(from_client, !seed, length(number)));
    }
    while relays[0].active() < STREAMS {
        tokio::task::yield_now().await;
    }
    for round in 0..UPGRADES {
        let (old, new) = (&relays[round % 2], &relays[(round + 1) % 2]);
        let moved = upgrade(old, new, &mut ends).await;
        while new.active() < STREAMS {
            tokio::task::yield_now().await;
        }
        assert_eq!(moved, STREAMS, "round {round}: all are in the middle of something");
        pace.store(round as u64 + 1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    while let Some(done) = timeout(SOON, load.join_next()).await.unwrap() {
        done.unwrap();
    }
    let mut closed = 0;
    while let Some(ended) = timeout(SOON, ends.join_next()).await.unwrap() {
        let (number, outcome) = ended.unwrap();
        match outcome.end {
            End::Moved => {}
            End::Closed => {
                let bytes = (outcome.bytes_from_client, outcome.bytes_from_target);
                assert_eq!(bytes, (length(number), length(number)), "counters of {number}");
                closed += 1;
            }
            End::Cut | End::Failed(_) | End::Idle => panic!("{number}: {outcome:?}"),
        }
    }
    assert_eq!(closed, STREAMS);
    assert_eq!((relays[0].active(), relays[1].active()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_upgrades_on_the_ring() {
    ten_upgrades(DataPlane::Uring).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_upgrades_on_epoll() {
    ten_upgrades(DataPlane::Epoll).await;
}

#[test]
fn what_is_no_stream_is_refused() {
    let send = |record: &[u8]| {
        let (near, far) = UnixStream::pair().unwrap();
        super::send_descriptors(&near, record, &[]).unwrap();
        drop(near);
        Moved::receive(&far)
    };
    assert!(send(b"{}").is_err());
    assert!(send(b"not json").is_err());
    let (near, far) = UnixStream::pair().unwrap();
    drop(near);
    assert!(Moved::receive(&far).unwrap().is_none());
    // A length that nobody will send.
    let (near, far) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut &near, &u32::MAX.to_be_bytes()).unwrap();
    assert!(Moved::receive(&far).is_err());
}
