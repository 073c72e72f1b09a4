//! The feed against a fake auth: order, signatures, restarts, and an auth that is away.

use std::collections::VecDeque;
use std::sync::Mutex;

use proto::resource::HostRole;
use proto::rpc::policy_server::{Policy, PolicyServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::testing::{Cluster, host, serve_socket};

type Message = Result<SignedSnapshot, Status>;

/// Each watch gets what is queued for it at that time, then what `live` is sent.
#[derive(Clone)]
struct FakeAuth {
    known: Arc<Mutex<Vec<u64>>>,
    watches: Arc<Mutex<VecDeque<mpsc::Receiver<Message>>>>,
}

#[tonic::async_trait]
impl Policy for FakeAuth {
    type WatchStream = ReceiverStream<Message>;
    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.known.lock().unwrap().push(request.into_inner().known_revision);
        let next = self.watches.lock().unwrap().pop_front();
        next.map(|stream| Response::new(ReceiverStream::new(stream)))
            .ok_or_else(|| Status::unavailable("no more"))
    }
}

struct Bench {
    dir: tempfile::TempDir,
    cluster: Cluster,
    host: Host,
    auth: FakeAuth,
    sends: VecDeque<mpsc::Sender<Message>>,
    shutdown: Shutdown,
}

impl Bench {
    fn new(watches: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::new("example.com");
        let (sends, watches) = (0..watches).map(|_| mpsc::channel(8)).unzip();
        let auth = FakeAuth { known: Arc::default(), watches: Arc::new(Mutex::new(watches)) };
        let channel =
            serve_socket(dir.path(), tonic::service::Routes::new(PolicyServer::new(auth.clone())));
        let (host, _) = host(cluster.machine(HostRole::Node, "n1", &[]), channel);
        Self { dir, cluster, host, auth, sends, shutdown: Shutdown::new() }
    }

    fn snapshot(&self, revision: u64) -> Snapshot {
        Snapshot {
            format: FORMAT,
            cluster: self.cluster.name.clone(),
            revision,
            issued_at: 0,
            authorities: self.cluster.authorities.clone(),
            roles: vec![],
            locks: vec![],
        }
    }

    async fn start(&self) -> PolicyFeed<u64> {
        let dir = self.dir.path().join("node");
        let start = PolicyFeed::start(dir, self.host.clone(), compile, self.shutdown.clone());
        timeout(Duration::from_secs(20), start).await.unwrap().unwrap()
    }
}

fn compile(snapshot: Snapshot) -> Result<u64, String> {
    if snapshot.revision == 666 { Err("no".into()) } else { Ok(snapshot.revision * 10) }
}

fn signed(by: &Cluster, snapshot: &Snapshot) -> SignedSnapshot {
    let payload = serde_json::to_vec(snapshot).unwrap();
    let signature = by.host_tls.sign(SIGNATURE_CONTEXT, &payload).unwrap();
    SignedSnapshot { payload, signature }
}

async fn until(feed: &PolicyFeed<u64>, revision: u64) {
    let mut watch = feed.watch();
    let reached = watch.wait_for(|current| current.revision >= revision);
    timeout(Duration::from_secs(20), reached).await.unwrap().unwrap();
}

#[tokio::test]
async fn newer_snapshots_replace_older_ones_and_nothing_else_does() {
    let bench = Bench::new(0);
    let other = Cluster::new("example.com");
    let mut foreign = bench.snapshot(50);
    foreign.cluster = "example.org".parse().unwrap();
    let mut newer_format = bench.snapshot(51);
    newer_format.format = FORMAT + 1;
    let mut torn = signed(&bench.cluster, &bench.snapshot(53));
    torn.payload.push(b' ');
    let good = |revision| signed(&bench.cluster, &bench.snapshot(revision));
    let mut follower = Follower::new(bench.dir.path().join(FILE), bench.host.clone(), compile);
    for (case, signed, expect) in [
        ("first, whatever its revision", good(0), Ok(Some(0))),
        ("newer", good(5), Ok(Some(5))),
        ("older", good(4), Ok(None)),
        ("the same", good(5), Ok(None)),
        ("another authority", signed(&other, &bench.snapshot(52)), Err(())),
        ("another cluster", signed(&bench.cluster, &foreign), Err(())),
        ("another format", signed(&bench.cluster, &newer_format), Err(())),
        ("changed after signing", torn, Err(())),
        ("does not compile", good(666), Err(())),
        ("newer than the last good one", good(6), Ok(Some(6))),
    ] {
        let got = follower.accept(&signed);
        let got = got.map(|current| current.map(|it| it.revision)).map_err(|_| ());
        assert_eq!(got, expect, "{case}");
    }
}

#[tokio::test]
async fn a_stored_snapshot_opens_without_auth_and_is_never_undercut() {
    let mut bench = Bench::new(2);
    let first = bench.sends.pop_front().unwrap();
    first.send(Ok(signed(&bench.cluster, &bench.snapshot(7)))).await.unwrap();
    let feed = bench.start().await;
    assert_eq!(feed.current().revision, 7);
    bench.shutdown.stop();
    bench.shutdown = Shutdown::new();
    drop((feed, first));

    let again = bench.start().await;
    assert_eq!(again.current().revision, 7, "from the disk");
    let second = bench.sends.pop_front().unwrap();
    second.send(Ok(signed(&bench.cluster, &bench.snapshot(3)))).await.unwrap();
    second.send(Ok(signed(&bench.cluster, &bench.snapshot(8)))).await.unwrap();
    until(&again, 8).await;
    let stored = std::fs::read_to_string(bench.dir.path().join("node").join(FILE)).unwrap();
    assert!(stored.contains("\\\"revision\\\":8"), "{stored}");
    let known = bench.auth.known.lock().unwrap().clone();
    assert!(known.iter().skip(1).all(|known| *known == 7) && known.len() > 1, "{known:?}");
}

#[tokio::test]
async fn a_forged_file_is_not_believed() {
    let mut bench = Bench::new(1);
    let dir = bench.dir.path().join("node");
    file::private_dir(&dir).unwrap();
    let other = Cluster::new("example.com");
    let forged = signed(&other, &bench.snapshot(99));
    let stored = StoredSnapshot {
        payload: String::from_utf8(forged.payload).unwrap(),
        signature: hex::encode(forged.signature),
    };
    for text in [serde_json::to_vec(&stored).unwrap(), b"{".to_vec(), Vec::new()] {
        file::write_private(&dir.join(FILE), &text).unwrap();
        let mut follower = Follower::new(dir.join(FILE), bench.host.clone(), compile);
        assert!(follower.stored().unwrap().is_none());
    }
    let send = bench.sends.pop_front().unwrap();
    send.send(Ok(signed(&bench.cluster, &bench.snapshot(1)))).await.unwrap();
    assert_eq!(bench.start().await.current().revision, 1);
}

/// A new authority is believed once an old one has vouched for it.
#[tokio::test]
async fn authorities_can_be_replaced() {
    let mut bench = Bench::new(1);
    let send = bench.sends.pop_front().unwrap();
    let new = Cluster::new("example.com");
    let mut handing_over = bench.snapshot(1);
    handing_over.authorities.host_tls.push(new.host_tls.certificate_pem().to_owned());
    send.send(Ok(signed(&bench.cluster, &handing_over))).await.unwrap();
    send.send(Ok(signed(&new, &bench.snapshot(2)))).await.unwrap();
    let feed = bench.start().await;
    until(&feed, 2).await;
}

#[tokio::test]
async fn a_lost_stream_is_opened_again() {
    let mut bench = Bench::new(3);
    let mut revision = 0;
    let mut feed = None;
    while let Some(send) = bench.sends.pop_front() {
        revision += 1;
        send.send(Ok(signed(&bench.cluster, &bench.snapshot(revision)))).await.unwrap();
        if feed.is_none() {
            feed = Some(bench.start().await);
        }
        until(feed.as_ref().unwrap(), revision).await;
        send.send(Err(Status::unavailable("restart"))).await.unwrap();
    }
    assert_eq!(feed.unwrap().current().policy, 30);
}

#[tokio::test]
async fn stopping_ends_the_wait_for_the_first() {
    let bench = Bench::new(0);
    bench.shutdown.stop();
    let dir = bench.dir.path().join("node");
    let start = PolicyFeed::start(dir, bench.host.clone(), compile, bench.shutdown.clone());
    assert!(matches!(start.await, Err(FeedError::Stopped)));
}
