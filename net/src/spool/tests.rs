//! The spool against crashes, full disks, restarts and an auth that comes and goes.

use std::path::Path;
use std::sync::Mutex;

use proto::event::SessionUpload;
use proto::id::SessionId;
use proto::rpc::audit_server::{Audit, AuditServer};
use proto::rpc::{
    AppendResponse, DownloadRequest, EventLine, ListRecordingsRequest, ListRecordingsResponse,
    RecordingChunk, RecordingStatusRequest, SearchRequest, SearchResponse, TailRequest,
    UploadRequest, UploadResponse,
};
use tokio_stream::Empty;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::testing::{Dice, serve_socket};

fn cluster() -> ClusterName {
    "example.com".parse().unwrap()
}

fn open(dir: &Path) -> Spool {
    Spool::open(dir.to_owned(), cluster()).unwrap()
}

/// Segments of a few events each.
fn open_small(dir: &Path) -> Spool {
    let limits =
        Limits { total_bytes: 20_000, segment_bytes: 1000, batch_events: 3, batch_bytes: 700 };
    Spool::open_with(dir.to_owned(), cluster(), limits).unwrap()
}

fn body(mark: u64) -> SessionUpload {
    SessionUpload {
        sid: SessionId::from_random([7; 16]),
        url: format!("mark-{mark}"),
        bytes: mark,
        sha256: String::new(),
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "jsonl"))
        .collect();
    paths.sort();
    paths
}

/// Sequences and marks on disk.
fn on_disk(dir: &Path) -> Vec<(u64, u64)> {
    let text: String =
        segments(dir).iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    text.lines()
        .map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            (value["seq"].as_u64().unwrap(), value["event"]["bytes"].as_u64().unwrap())
        })
        .collect()
}

/// What auth would store.
#[derive(Debug, Default)]
struct Stored {
    events: Vec<(u64, u64)>,
    requests: usize,
    /// So many requests fail, after having been stored or not.
    fail: usize,
    store_though_failing: bool,
}

#[derive(Debug, Clone)]
struct FakeAuth {
    stored: Arc<Mutex<Stored>>,
    highest: watch::Sender<u64>,
}

impl FakeAuth {
    fn new() -> Self {
        Self { stored: Arc::default(), highest: watch::channel(0).0 }
    }

    fn serve(&self, dir: &Path) -> Channel {
        let server = AuditServer::new(self.clone());
        serve_socket(dir, tonic::service::Routes::new(server))
    }

    async fn until(&self, highest: u64) {
        let mut watch = self.highest.subscribe();
        timeout(Duration::from_secs(20), watch.wait_for(|it| *it >= highest))
            .await
            .unwrap()
            .unwrap();
    }

    fn marks(&self) -> Vec<u64> {
        self.stored.lock().unwrap().events.iter().map(|(_, mark)| *mark).collect()
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Audit for FakeAuth {
    type TailStream = Empty<Result<EventLine, Status>>;
    type DownloadRecordingStream = Empty<Result<RecordingChunk, Status>>;
    type SessionEventsStream = Empty<Result<EventLine, Status>>;

    async fn append(&self, request: Request<AppendRequest>) -> Answer<AppendResponse> {
        let mut stored = self.stored.lock().unwrap();
        stored.requests += 1;
        let failing = stored.fail > 0;
        stored.fail = stored.fail.saturating_sub(1);
        let mut highest = *self.highest.borrow();
        if !failing || stored.store_though_failing {
            for event in request.into_inner().events {
                if event.sequence <= highest {
                    continue;
                }
                let value: serde_json::Value = serde_json::from_slice(&event.json).unwrap();
                assert_eq!(value["event"], "session.upload");
                highest = event.sequence;
                stored.events.push((highest, value["bytes"].as_u64().unwrap()));
            }
            self.highest.send_replace(highest);
        }
        if failing {
            return Err(Status::unavailable("not now"));
        }
        Ok(Response::new(AppendResponse { acknowledged: highest }))
    }
    async fn search(&self, _: Request<SearchRequest>) -> Answer<SearchResponse> {
        Err(Status::unimplemented(""))
    }
    async fn tail(&self, _: Request<TailRequest>) -> Answer<Self::TailStream> {
        Err(Status::unimplemented(""))
    }
    async fn upload_recording(
        &self,
        _: Request<Streaming<UploadRequest>>,
    ) -> Answer<UploadResponse> {
        Err(Status::unimplemented(""))
    }
    async fn recording_status(&self, _: Request<RecordingStatusRequest>) -> Answer<UploadResponse> {
        Err(Status::unimplemented(""))
    }
    async fn list_recordings(
        &self,
        _: Request<ListRecordingsRequest>,
    ) -> Answer<ListRecordingsResponse> {
        Err(Status::unimplemented(""))
    }
    async fn download_recording(
        &self,
        _: Request<DownloadRequest>,
    ) -> Answer<Self::DownloadRecordingStream> {
        Err(Status::unimplemented(""))
    }
    async fn session_events(
        &self,
        _: Request<proto::rpc::SessionEventsRequest>,
    ) -> Answer<Self::SessionEventsStream> {
        Err(Status::unimplemented(""))
    }
}

/// Waits until nothing is pending: the acknowledgement has come back, too.
async fn until_acknowledged(spool: &Spool) {
    timeout(Duration::from_secs(20), async {
        while spool.pending() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_was_recorded_is_on_disk_and_numbered_without_gaps() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let tasks: Vec<_> = (1..=100)
        .map(|mark| {
            let spool = spool.clone();
            tokio::spawn(async move { spool.record(body(mark), 3).await.unwrap() })
        })
        .collect();
    for task in tasks {
        let event = task.await.unwrap();
        assert_eq!((event.ei, event.name()), (3, "session.upload"));
    }
    assert_eq!(spool.pending(), 100);
    let found = on_disk(dir.path());
    assert!(found.iter().map(|(seq, _)| *seq).eq(1..=100));
    let mut marks: Vec<_> = found.iter().map(|(_, mark)| *mark).collect();
    marks.sort_unstable();
    assert!(marks.into_iter().eq(1..=100));
}

#[tokio::test]
async fn a_crash_at_any_byte_loses_only_the_torn_line() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    for mark in 1..=4 {
        spool.record(body(mark), 0).await.unwrap();
    }
    drop(spool);
    let whole = std::fs::read(&segments(dir.path())[0]).unwrap();
    let ends: Vec<_> =
        whole.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1).collect();
    let mut dice = Dice::new(1);
    let random = (0..60).map(|_| dice.below(whole.len()));
    for cut in ends.iter().copied().chain(ends.iter().map(|end| end - 1)).chain(random) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("00000000000000000001.jsonl"), &whole[..cut]).unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        let kept = u64::try_from(ends.iter().filter(|end| **end <= cut).count()).unwrap();
        let spool = open(dir.path());
        assert_eq!(spool.pending(), kept, "cut {cut}");
        spool.record(body(99), 0).await.unwrap();
        let found = on_disk(dir.path());
        assert!(found.iter().map(|(seq, _)| *seq).eq(1..=kept + 1), "cut {cut}: {found:?}");
        assert_eq!(found.last().unwrap().1, 99);
    }
}

#[tokio::test]
async fn zeros_at_the_tail_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.record(body(1), 0).await.unwrap();
    drop(spool);
    let path = &segments(dir.path())[0];
    let mut text = std::fs::read(path).unwrap();
    text.extend([0; 4096]);
    std::fs::write(path, text).unwrap();
    let spool = open(dir.path());
    spool.record(body(2), 0).await.unwrap();
    assert_eq!(on_disk(dir.path()), [(1, 1), (2, 2)]);
}

#[tokio::test]
async fn events_arrive_once_in_order_and_their_files_go() {
    let dir = tempfile::tempdir().unwrap();
    let auth = FakeAuth::new();
    {
        let mut stored = auth.stored.lock().unwrap();
        stored.fail = 2;
        stored.store_though_failing = true;
    }
    let spool = open_small(&dir.path().join("spool"));
    for mark in 1..=20 {
        spool.record(body(mark), 0).await.unwrap();
    }
    assert!(segments(&dir.path().join("spool")).len() > 3);
    let shutdown = Shutdown::new();
    let shipping = tokio::spawn(spool.clone().ship(auth.serve(dir.path()), shutdown.clone()));
    auth.until(20).await;
    for mark in 21..=30 {
        spool.record(body(mark), 0).await.unwrap();
    }
    auth.until(30).await;
    until_acknowledged(&spool).await;
    assert!(auth.marks().into_iter().eq(1..=30));
    assert!(segments(&dir.path().join("spool")).len() <= 1, "only the open segment stays");
    shutdown.stop();
    shipping.await.unwrap();
}

#[tokio::test]
async fn the_sequence_goes_on_after_everything_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spool");
    let auth = FakeAuth::new();
    let channel = auth.serve(dir.path());
    for round in 0..4 {
        let spool = open_small(&path);
        assert_eq!(spool.pending(), 0);
        let shutdown = Shutdown::new();
        let shipping = tokio::spawn(spool.clone().ship(channel.clone(), shutdown.clone()));
        for mark in round * 5 + 1..=round * 5 + 5 {
            spool.record(body(mark), 0).await.unwrap();
        }
        auth.until(round * 5 + 5).await;
        until_acknowledged(&spool).await;
        shutdown.stop();
        shipping.await.unwrap();
    }
    let expect: Vec<_> = (1..=20).map(|n| (n, n)).collect();
    assert_eq!(auth.stored.lock().unwrap().events, expect);
}

/// Auth would take the new events for old ones, were their numbers not moved behind what it has.
#[tokio::test]
async fn a_lost_folder_does_not_hide_new_events() {
    let dir = tempfile::tempdir().unwrap();
    let auth = FakeAuth::new();
    auth.highest.send_replace(1000);
    let channel = auth.serve(dir.path());
    let path = dir.path().join("spool");
    for mark in 1..=2 {
        let spool = open(&path);
        let shutdown = Shutdown::new();
        spool.record(body(mark), 0).await.unwrap();
        let shipping = tokio::spawn(spool.clone().ship(channel.clone(), shutdown.clone()));
        auth.until(1000 + mark).await;
        until_acknowledged(&spool).await;
        shutdown.stop();
        shipping.await.unwrap();
    }
    assert_eq!(auth.stored.lock().unwrap().events, [(1001, 1), (1002, 2)]);
}

#[tokio::test]
async fn a_full_spool_refuses_and_takes_again_once_sent() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_small(&dir.path().join("spool"));
    let mut recorded = 0;
    let error = loop {
        match spool.record(body(recorded + 1), 0).await {
            Ok(_) => recorded += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpoolError::Full { .. }), "{error:?}");
    assert!(recorded > 20);
    let auth = FakeAuth::new();
    let shutdown = Shutdown::new();
    let shipping = tokio::spawn(spool.clone().ship(auth.serve(dir.path()), shutdown.clone()));
    auth.until(recorded).await;
    until_acknowledged(&spool).await;
    spool.record(body(recorded + 1), 0).await.unwrap();
    auth.until(recorded + 1).await;
    assert!(auth.marks().into_iter().eq(1..=recorded + 1));
    shutdown.stop();
    shipping.await.unwrap();
}

#[tokio::test]
async fn what_there_is_much_of_leaves_room_for_decisions() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open_small(&dir.path().join("spool"));
    let error = loop {
        let batch = spool.batch([(Happened::now(body(1)), 0)]).unwrap();
        if let Err(error) = spool.write(&batch).await {
            break error;
        }
    };
    assert!(matches!(error, SpoolError::Full { bytes } if bytes < 17_000), "{error:?}");
    spool.record(body(2), 0).await.unwrap();
}

#[tokio::test]
async fn damage_in_the_middle_is_a_visible_gap() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spool");
    let spool = open_small(&path);
    for mark in 1..=12 {
        spool.record(body(mark), 0).await.unwrap();
    }
    drop(spool);
    let files = segments(&path);
    assert!(files.len() >= 4);
    std::fs::remove_file(&files[1]).unwrap();
    std::fs::write(&files[2], "damaged\n").unwrap();
    let expect = on_disk_good(&path);
    assert!(!expect.is_empty());
    let spool = open_small(&path);
    let auth = FakeAuth::new();
    let shutdown = Shutdown::new();
    let shipping = tokio::spawn(spool.clone().ship(auth.serve(dir.path()), shutdown.clone()));
    auth.until(12).await;
    assert_eq!(auth.stored.lock().unwrap().events, expect);
    shutdown.stop();
    shipping.await.unwrap();
}

fn on_disk_good(dir: &Path) -> Vec<(u64, u64)> {
    for path in segments(dir) {
        if std::fs::read(&path).unwrap() == b"damaged\n" {
            let good = tempfile::tempdir().unwrap();
            for other in segments(dir).iter().filter(|other| **other != path) {
                std::fs::copy(other, good.path().join(other.file_name().unwrap())).unwrap();
            }
            return on_disk(good.path());
        }
    }
    on_disk(dir)
}

#[tokio::test]
async fn two_processes_cannot_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let error = Spool::open(dir.path().to_owned(), cluster()).unwrap_err();
    assert!(matches!(error, SpoolError::File { .. }), "{error:?}");
    drop(spool);
    open(dir.path());
}

#[tokio::test]
async fn an_event_beyond_all_measure_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let mut long = body(1);
    long.url = "x".repeat(300_000);
    assert!(matches!(spool.record(long, 0).await, Err(SpoolError::TooLong { .. })));
    spool.record(body(1), 0).await.unwrap();
    assert_eq!(on_disk(dir.path()), [(1, 1)]);
}

/// A folder that refuses: nothing is acknowledged, and once it takes again the numbers go on without a gap.
#[tokio::test]
async fn a_failed_write_is_told_and_leaves_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spool");
    let spool = open_small(&path);
    spool.record(body(1), 0).await.unwrap();
    let away = dir.path().join("away");
    // Makes the next segment impossible to create; root is not stopped by permissions.
    let mut mark = 1;
    std::fs::rename(&path, &away).unwrap();
    let error = loop {
        mark += 1;
        match spool.record(body(mark), 0).await {
            Ok(_) => assert!(mark < 20, "a new segment should have been needed"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpoolError::File { .. }), "{error:?}");
    std::fs::rename(&away, &path).unwrap();
    spool.record(body(mark), 0).await.unwrap();
    let expect: Vec<_> = (1..=mark).map(|n| (n, n)).collect();
    assert_eq!(on_disk(&path), expect);
}
