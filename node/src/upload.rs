//! Finished recordings on their way to auth, resumed where a break left them, deleted here only after auth has said that
//! it holds every byte. One task, one recording at a time; a recording that fails does not hold up the others.
//! At start it also ends, in the audit log, the sessions that a crash cut off.

use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use net::backoff::Backoff;
use net::shutdown::Shutdown;
use proto::event;
use proto::rpc::audit_client::AuditClient;
use proto::rpc::upload_request::Part;
use proto::rpc::{RecordingHead, RecordingSeal, RecordingStatusRequest, UploadRequest};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::audit::Audit;
use crate::recorder::note::{self, Note};

/// Why an upload did not come to its end; it is tried again.
#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error("auth did not take it: {0}")]
    Auth(#[from] tonic::Status),
    #[error("cannot read the recording")]
    File(#[from] io::Error),
    #[error("auth holds {stored} bytes of a recording of {length}")]
    TooLong { stored: u64, length: u64 },
    #[error("auth took the bytes and does not say that they are complete")]
    Incomplete,
    #[error("no progress for {} s", STEP_MAX.as_secs())]
    Stalled,
}

/// Uploads until the node stops. `finished` wakes it.
pub(crate) async fn run(dir: PathBuf, auth: Channel, finished: Arc<Notify>, shutdown: Shutdown) {
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        let all_done = tokio::select! {
            done = upload_all(&dir, &auth) => done,
            () = shutdown.stopped() => return,
        };
        if all_done {
            backoff.reset();
            tokio::select! {
                () = finished.notified() => {}
                () = shutdown.stopped() => return,
            }
        } else {
            let wait = BACKOFF_LEAST + backoff.next(u64::from_ne_bytes(net::random()));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.stopped() => return,
            }
        }
    }
}

/// Tries each once; says whether nothing is left.
async fn upload_all(dir: &Path, auth: &Channel) -> bool {
    let notes = match note::all(dir) {
        Ok(notes) => notes,
        Err(error) => {
            tracing::error!(%error, dir = %dir.display(), "the recordings cannot be listed");
            return false;
        }
    };
    let mut all_done = true;
    for note in notes.iter().filter(|note| note.is_complete()) {
        let result = match upload(dir, note, auth).await {
            Ok(()) => note.remove(dir).map_err(UploadError::from),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(session = %note.sid(), %error, "a recording is not uploaded yet");
            all_done = false;
        }
    }
    all_done
}

/// One recording, from where auth left it.
async fn upload(dir: &Path, note: &Note, auth: &Channel) -> Result<(), UploadError> {
    if !note.is_recorded() {
        return Ok(());
    }
    let mut client = AuditClient::new(auth.clone());
    let sid = note.sid().to_string();
    let asked = client.recording_status(RecordingStatusRequest { sid: sid.clone() });
    let status = step(asked).await??.into_inner();
    if status.complete {
        return Ok(());
    }
    let mut file = match tokio::fs::File::open(note::cast_path(dir, note.sid())).await {
        // Removed after auth had confirmed it, and the note was not yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let length = file.metadata().await?.len();
    if status.stored_bytes > length {
        return Err(UploadError::TooLong { stored: status.stored_bytes, length });
    }
    let digest = digest(&mut file, length).await?;
    file.seek(SeekFrom::Start(status.stored_bytes)).await?;
    let summary_json = serde_json::to_vec(note.summary()).map_err(io::Error::other)?;
    let head = Part::Head(RecordingHead { sid, summary_json });
    let seal = Part::Seal(RecordingSeal { length, sha256: digest });
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
    let left = length - status.stored_bytes;
    let sending = send_parts(file, left, head, seal, sender);
    let call = client.upload_recording(ReceiverStream::new(receiver));
    let within = Duration::from_secs(60 + length / BYTES_PER_SECOND_LEAST);
    let both = async {
        let (sent, answer) = tokio::join!(sending, call);
        // Auth's own words tell more than a stream that nobody reads any more.
        let answer = answer?.into_inner();
        sent.map(|()| answer)
    };
    let answer = tokio::time::timeout(within, both).await.map_err(|_| UploadError::Stalled)??;
    if answer.complete { Ok(()) } else { Err(UploadError::Incomplete) }
}

async fn step<T>(future: impl Future<Output = T>) -> Result<T, UploadError> {
    tokio::time::timeout(STEP_MAX, future).await.map_err(|_| UploadError::Stalled)
}

async fn digest(file: &mut tokio::fs::File, length: u64) -> io::Result<Vec<u8>> {
    let mut hash = Sha256::new();
    let mut left = length;
    while left > 0 {
        let chunk = chunk(file, left).await?;
        left -= u64::try_from(chunk.len()).unwrap_or(left);
        hash.update(&chunk);
    }
    Ok(hash.finalize().to_vec())
}

/// The next bytes of a file that has at least `left` more.
async fn chunk(file: &mut tokio::fs::File, left: u64) -> io::Result<Vec<u8>> {
    let want = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
    let mut chunk = vec![0; want];
    file.read_exact(&mut chunk).await?;
    Ok(chunk)
}

async fn send_parts(
    mut file: tokio::fs::File,
    mut left: u64,
    head: Part,
    seal: Part,
    to: mpsc::Sender<UploadRequest>,
) -> Result<(), UploadError> {
    let request = |part| UploadRequest { part: Some(part) };
    // A closed receiver means that the call is over; its answer says why.
    if to.send(request(head)).await.is_err() {
        return Ok(());
    }
    while left > 0 {
        let chunk = chunk(&mut file, left).await?;
        left -= u64::try_from(chunk.len()).unwrap_or(left);
        if to.send(request(Part::Chunk(chunk))).await.is_err() {
            return Ok(());
        }
    }
    drop(to.send(request(seal)).await);
    Ok(())
}

/// Sessions that were running when the node last died: their recordings are closed at the last whole line, and their
/// end is told. Called before the first connection.
pub(crate) async fn recover(dir: &Path, audit: &dyn Audit) -> io::Result<()> {
    for mut note in note::all(dir)?.into_iter().filter(|note| !note.is_complete()) {
        let (length, stop) = if note.is_recorded() {
            trim(&note::cast_path(dir, note.sid()))?
        } else {
            (0, note.summary().session_start)
        };
        note.set_stop(stop);
        let session = note.session().clone();
        tracing::warn!(session = %session.sid, "a session was cut off by this node's end");
        let end = event::SessionEnd {
            interactive: note.summary().interactive,
            participants: vec![session.user.clone()],
            session_recording: if note.is_recorded() { "node" } else { "off" }.into(),
            enhanced_recording: false,
            recording_truncated: note.is_recorded(),
            session_start: note.summary().session_start,
            session_stop: stop,
            session,
        };
        audit.record(end.into(), EI_AFTER_CRASH).await.map_err(io::Error::other)?;
        note.complete(length, note.is_recorded());
        if note.is_recorded() {
            note.write(dir)?;
        } else {
            note.remove(dir)?;
        }
    }
    Ok(())
}

/// Cuts a torn last line off. Gives what is left and when it was written.
fn trim(path: &Path) -> io::Result<(u64, time::OffsetDateTime)> {
    use std::io::{Read as _, Seek as _};
    let mut file = match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        // The crash came between the note and the file: an empty recording.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::File::create(path)?;
            return Ok((0, time::OffsetDateTime::now_utc()));
        }
        other => other?,
    };
    let written = file.metadata()?.modified()?.into();
    let mut end = file.metadata()?.len();
    let mut block = vec![0; TRIM_BLOCK_BYTES];
    while end > 0 {
        let block_length = end.min(u64::try_from(TRIM_BLOCK_BYTES).unwrap_or(end));
        let begin = end - block_length;
        file.seek(SeekFrom::Start(begin))?;
        let room = usize::try_from(block_length).unwrap_or(0);
        let bytes = block.get_mut(..room).unwrap_or_default();
        file.read_exact(bytes)?;
        if let Some(at) = bytes.iter().rposition(|byte| *byte == b'\n') {
            end = begin + u64::try_from(at).unwrap_or(0) + 1;
            break;
        }
        end = begin;
    }
    file.set_len(end)?;
    file.sync_all()?;
    Ok((end, written))
}

/// The last index that a session can have before auth's own `session.upload`: a crashed session's next one is unknown.
const EI_AFTER_CRASH: u64 = 0x7fff_fffd;
/// As the protocol says.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks in memory beside the one on the wire.
const CHUNKS_WAITING: usize = 2;
/// For auth to say what it holds.
const STEP_MAX: Duration = Duration::from_secs(30);
/// Slower than this and the upload starts again where it broke.
const BYTES_PER_SECOND_LEAST: u64 = 16 * 1024;
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Recordings wait on disk; a minute's delay after auth is back costs nothing.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Full jitter may say zero.
const BACKOFF_LEAST: Duration = Duration::from_millis(200);
const TRIM_BLOCK_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use proto::rpc;

    use super::*;
    use crate::recorder::note::tests::note as some_note;
    use crate::ssh::tests::fixture::MemoryAudit;

    #[tokio::test]
    async fn a_crashed_session_is_ended_and_its_recording_trimmed() {
        let dir = tempfile::tempdir().unwrap();
        let note = some_note();
        note.write(dir.path()).unwrap();
        let path = note::cast_path(dir.path(), note.sid());
        let whole = "{\"version\":2}\n[0.1,\"o\",\"a\"]\n";
        std::fs::write(&path, format!("{whole}[0.2,\"o\",\"to")).unwrap();
        let audit = MemoryAudit::default();
        recover(dir.path(), &audit).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        let events = audit.events();
        assert_eq!(events.len(), 1);
        let event::Body::SessionEnd(end) = &events[0].0 else { panic!("{events:?}") };
        assert!(end.recording_truncated);
        assert_eq!(&end.session.sid, note.sid());
        let after = Note::read(&note::note_path(dir.path(), note.sid())).unwrap();
        assert!(after.is_complete() && after.summary().truncated);
        assert_eq!(after.summary().length, whole.len() as u64);
        recover(dir.path(), &audit).await.unwrap();
        assert_eq!(audit.events().len(), 1, "told once");
    }

    #[tokio::test]
    async fn a_crash_before_the_first_byte_leaves_an_empty_recording() {
        let dir = tempfile::tempdir().unwrap();
        let note = some_note();
        note.write(dir.path()).unwrap();
        recover(dir.path(), &MemoryAudit::default()).await.unwrap();
        let after = Note::read(&note::note_path(dir.path(), note.sid())).unwrap();
        assert_eq!((after.is_complete(), after.summary().length), (true, 0));
    }

    /// Auth's half of uploads: takes so many bytes per call, then breaks off.
    #[derive(Debug, Default)]
    struct Store {
        bytes: std::sync::Mutex<Vec<u8>>,
        breaks_after: std::sync::Mutex<Option<usize>>,
        sealed: std::sync::atomic::AtomicBool,
    }

    #[derive(Debug, Clone, Default)]
    struct Auth(Arc<Store>);

    type Answer<T> = Result<tonic::Response<T>, tonic::Status>;
    type Nothing<T> = tokio_stream::Empty<Result<T, tonic::Status>>;

    fn unused<T>() -> Answer<T> {
        Err(tonic::Status::unimplemented("not in this test"))
    }

    #[tonic::async_trait]
    impl rpc::audit_server::Audit for Auth {
        type TailStream = Nothing<rpc::EventLine>;
        type DownloadRecordingStream = Nothing<rpc::RecordingChunk>;
        type SessionEventsStream = Nothing<rpc::EventLine>;

        async fn append(
            &self,
            _: tonic::Request<rpc::AppendRequest>,
        ) -> Answer<rpc::AppendResponse> {
            unused()
        }
        async fn search(
            &self,
            _: tonic::Request<rpc::SearchRequest>,
        ) -> Answer<rpc::SearchResponse> {
            unused()
        }
        async fn tail(&self, _: tonic::Request<rpc::TailRequest>) -> Answer<Self::TailStream> {
            unused()
        }
        async fn list_recordings(
            &self,
            _: tonic::Request<rpc::ListRecordingsRequest>,
        ) -> Answer<rpc::ListRecordingsResponse> {
            unused()
        }
        async fn download_recording(
            &self,
            _: tonic::Request<rpc::DownloadRequest>,
        ) -> Answer<Self::DownloadRecordingStream> {
            unused()
        }
        async fn session_events(
            &self,
            _: tonic::Request<rpc::SessionEventsRequest>,
        ) -> Answer<Self::SessionEventsStream> {
            unused()
        }
        async fn recording_status(
            &self,
            _: tonic::Request<RecordingStatusRequest>,
        ) -> Answer<rpc::UploadResponse> {
            let stored_bytes = self.0.bytes.lock().unwrap().len() as u64;
            let complete = self.0.sealed.load(std::sync::atomic::Ordering::SeqCst);
            Ok(tonic::Response::new(rpc::UploadResponse { stored_bytes, complete }))
        }
        async fn upload_recording(
            &self,
            request: tonic::Request<tonic::Streaming<UploadRequest>>,
        ) -> Answer<rpc::UploadResponse> {
            let mut parts = request.into_inner();
            let mut seal = None;
            while let Some(part) = parts.message().await? {
                match part.part.unwrap() {
                    Part::Head(head) => assert!(!head.summary_json.is_empty()),
                    Part::Chunk(chunk) => {
                        let mut bytes = self.0.bytes.lock().unwrap();
                        bytes.extend_from_slice(&chunk);
                        let mut breaks = self.0.breaks_after.lock().unwrap();
                        if breaks.is_some_and(|most| bytes.len() >= most) {
                            *breaks = None;
                            return Err(tonic::Status::unavailable("gone"));
                        }
                    }
                    Part::Seal(part) => seal = Some(part),
                }
            }
            let bytes = self.0.bytes.lock().unwrap();
            let seal = seal.unwrap();
            let complete = seal.length == bytes.len() as u64
                && seal.sha256 == Sha256::digest(&*bytes).to_vec();
            self.0.sealed.store(complete, std::sync::atomic::Ordering::SeqCst);
            let stored_bytes = bytes.len() as u64;
            Ok(tonic::Response::new(rpc::UploadResponse { stored_bytes, complete }))
        }
    }

    async fn serve(auth: Auth) -> Channel {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = rpc::audit_server::AuditServer::new(auth);
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy()
    }

    #[tokio::test]
    async fn an_upload_goes_on_where_it_broke_and_only_then_is_the_file_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let mut note = some_note();
        let path = note::cast_path(dir.path(), note.sid());
        let recording: Vec<u8> = (0..1_500_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        std::fs::write(&path, &recording).unwrap();
        note.complete(recording.len() as u64, false);
        note.write(dir.path()).unwrap();
        let auth = Auth::default();
        *auth.0.breaks_after.lock().unwrap() = Some(2 * CHUNK_BYTES);
        let channel = serve(auth.clone()).await;
        assert!(!upload_all(dir.path(), &channel).await, "broken off");
        assert!(path.exists(), "not confirmed, so not deleted");
        assert!(upload_all(dir.path(), &channel).await);
        assert_eq!(*auth.0.bytes.lock().unwrap(), recording);
        assert!(!path.exists());
        assert_eq!(note::all(dir.path()).unwrap(), []);
    }

    #[tokio::test]
    async fn what_auth_does_not_confirm_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut note = some_note();
        let path = note::cast_path(dir.path(), note.sid());
        std::fs::write(&path, b"recording").unwrap();
        note.complete(9, false);
        note.write(dir.path()).unwrap();
        let auth = Auth::default();
        auth.0.bytes.lock().unwrap().extend_from_slice(b"other");
        let channel = serve(auth.clone()).await;
        assert!(!upload_all(dir.path(), &channel).await);
        assert!(path.exists());
        auth.0.bytes.lock().unwrap().extend_from_slice(b"and much longer than ours");
        assert!(!upload_all(dir.path(), &channel).await);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn without_a_spool_a_crashed_session_is_kept_for_later() {
        let dir = tempfile::tempdir().unwrap();
        let note = some_note();
        note.write(dir.path()).unwrap();
        let audit = MemoryAudit::default();
        audit.fail(true);
        assert!(recover(dir.path(), &audit).await.is_err());
        assert!(!Note::read(&note::note_path(dir.path(), note.sid())).unwrap().is_complete());
    }
}
