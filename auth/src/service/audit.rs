//! `Audit`: events and recordings come in from machines and go out to people. With the rule `session: list, read`
//! somebody sees all recordings; everybody sees those of their own sessions. A recording is given out only after the
//! event that says so is durable.

use std::path::PathBuf;
use std::sync::Arc;

use net::shutdown::Shutdown;
use proto::event::{self, SessionRecordingAccess};
use proto::recording::Summary;
use proto::rpc::audit_server::Audit;
use proto::rpc::upload_request::Part;
use proto::rpc::{
    AppendRequest, AppendResponse, DownloadRequest, EventLine, ListRecordingsRequest,
    ListRecordingsResponse, RecordingChunk, RecordingStatusRequest, SearchRequest, SearchResponse,
    SessionEventsRequest, TailRequest, UploadRequest, UploadResponse,
};
use tokio::io::AsyncReadExt as _;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::caller::{Caller, Gate};
use super::{Answers, SILENCE_MAX, Sender, answers};
use crate::fault::Fault;
use crate::log::{Filter, From, Log, SEARCH_MAX, Sequenced};
use crate::recordings::{Opened, Progress, Recordings, Upload};

#[derive(Debug)]
pub(crate) struct AuditService {
    pub(crate) gate: Arc<Gate>,
    pub(crate) log: Log,
    pub(crate) recordings: Arc<Recordings>,
    pub(crate) shutdown: Shutdown,
}

#[tonic::async_trait]
impl Audit for AuditService {
    type TailStream = Answers<EventLine>;
    type DownloadRecordingStream = Answers<RecordingChunk>;
    type SessionEventsStream = Answers<EventLine>;

    async fn append(
        &self,
        request: Request<AppendRequest>,
    ) -> Result<Response<AppendResponse>, Status> {
        let host = self.gate.host(&request)?;
        let events = request
            .into_inner()
            .events
            .into_iter()
            .map(|event| Sequenced { sequence: event.sequence, json: event.json })
            .collect();
        let acknowledged = self.log.append(&host, events).await.map_err(Fault::from)?;
        Ok(Response::new(AppendResponse { acknowledged }))
    }

    async fn search(
        &self,
        request: Request<SearchRequest>,
    ) -> Result<Response<SearchResponse>, Status> {
        self.gate.administrator(&request, "event", "list")?;
        let search = request.into_inner();
        let filter = Filter {
            names: names(search.types)?,
            user: search.user,
            sid: search.session,
            since_ms: (search.since != 0).then_some(search.since),
            until_ms: (search.until != 0).then_some(search.until),
        };
        let limit = match search.limit {
            0 => SEARCH_DEFAULT,
            limit => usize::try_from(limit).unwrap_or(SEARCH_MAX),
        };
        let from = page::read(&search.page, search.oldest_first)?;
        let page = self.log.search(filter, from, limit).await.map_err(Fault::from)?;
        let next = if page.more { page::write(page.next) } else { String::new() };
        Ok(Response::new(SearchResponse { events: page.events.into(), next }))
    }

    async fn tail(
        &self,
        request: Request<TailRequest>,
    ) -> Result<Response<Self::TailStream>, Status> {
        let caller = self.gate.administrator(&request, "event", "list")?;
        let tail = request.into_inner();
        let filter = Filter { names: names(tail.types)?, user: tail.user, ..Filter::default() };
        let mut follow = self.log.follow(filter);
        let (gate, shutdown) = (self.gate.clone(), self.shutdown.clone());
        let (sender, receiver) = answers();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = follow.next() => next,
                    () = sender.closed() => return,
                    () = shutdown.stopped() => return,
                };
                // Roles and locks may have changed since the stream was opened.
                let allowed = gate.check(&caller, "event", "list");
                let lines = match allowed.and_then(|()| Ok(next?)) {
                    Ok(lines) => lines,
                    Err(fault) => {
                        sender.send(Err(fault.into())).await.ok();
                        return;
                    }
                };
                for json in lines {
                    if sender.send(Ok(EventLine { json })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(receiver))
    }

    async fn upload_recording(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        let host = self.gate.node(&request)?;
        let mut stream = request.into_inner();
        let Some(Part::Head(head)) = next_part(&mut stream).await? else {
            return Err(Fault::Invalid("an upload begins with its head".into()).into());
        };
        let opened = self.recordings.begin(&host, &head.sid, &head.summary_json).await?;
        let progress = match opened {
            Opened::Complete(progress) => progress,
            Opened::Upload(upload) => self.receive(*upload, &mut stream).await?,
        };
        Ok(Response::new(answer(progress)))
    }

    async fn recording_status(
        &self,
        request: Request<RecordingStatusRequest>,
    ) -> Result<Response<UploadResponse>, Status> {
        let host = self.gate.node(&request)?;
        let progress = self.recordings.progress(&host, &request.get_ref().sid).await?;
        Ok(Response::new(answer(progress)))
    }

    async fn list_recordings(
        &self,
        request: Request<ListRecordingsRequest>,
    ) -> Result<Response<ListRecordingsResponse>, Status> {
        let caller = self.gate.person(&request)?;
        let sees_all = self.gate.may(&caller, "session", "list");
        let request = request.into_inner();
        let limit = match request.limit {
            0 => RECORDINGS_DEFAULT,
            limit => usize::try_from(limit).unwrap_or(RECORDINGS_MAX).min(RECORDINGS_MAX),
        };
        let wanted = |summary: &Summary| sees_all || took_part(&caller, summary);
        let (since, until) = (request.since, request.until);
        let summaries = self.recordings.list(since, until, wanted, limit).await?;
        Ok(Response::new(ListRecordingsResponse { summaries }))
    }

    async fn download_recording(
        &self,
        request: Request<DownloadRequest>,
    ) -> Result<Response<Self::DownloadRecordingStream>, Status> {
        let caller = self.gate.person(&request)?;
        let (_, path) = self.play(&caller, &request.get_ref().sid).await?;
        let file = tokio::fs::File::open(&path)
            .await
            .map_err(|error| Fault::Internal(format!("{}: {error}", path.display())))?;
        let (sender, receiver) = answers();
        tokio::spawn(send_file(file, sender));
        Ok(Response::new(receiver))
    }

    async fn session_events(
        &self,
        request: Request<SessionEventsRequest>,
    ) -> Result<Response<Self::SessionEventsStream>, Status> {
        let caller = self.gate.person(&request)?;
        let (summary, _) = self.play(&caller, &request.get_ref().sid).await?;
        let names = event::CAPTURED.iter().map(|name| (*name).to_owned()).collect();
        let filter = Filter { names, sid: summary.sid.to_string(), ..Filter::default() };
        let (sender, receiver) = answers();
        tokio::spawn(send_events(self.log.clone(), filter, sender));
        Ok(Response::new(receiver))
    }
}

impl AuditService {
    /// Lets somebody see a recording and what belongs to it, once the event that says so is durable. Missing and
    /// forbidden read the same.
    async fn play(&self, caller: &Caller, sid: &str) -> Result<(Summary, PathBuf), Fault> {
        let found = self.recordings.find(sid).await;
        let sees_all = self.gate.check(caller, "session", "read");
        let (summary, path) = match (found, sees_all) {
            (Ok(found), Ok(())) => found,
            (Ok(found), Err(_)) if took_part(caller, &found.0) => found,
            (Err(fault), Ok(())) => return Err(fault),
            (Ok(_) | Err(_), Err(_)) => {
                return Err(Fault::Missing("a recording of this session".into()));
            }
        };
        let access = SessionRecordingAccess { actor: caller.actor(), sid: summary.sid.clone() };
        self.log.record([access.into()]).await?;
        Ok((summary, path))
    }

    /// Takes in the pieces until the seal. Whatever ends the stream before it, what came is kept.
    async fn receive(
        &self,
        mut upload: Upload,
        stream: &mut Streaming<UploadRequest>,
    ) -> Result<Progress, Status> {
        loop {
            match next_part(stream).await {
                Ok(Some(Part::Chunk(chunk))) => upload.append(&chunk).await?,
                Ok(Some(Part::Seal(seal))) => {
                    return Ok(self.recordings.seal(upload, seal.length, &seal.sha256).await?);
                }
                Ok(Some(Part::Head(_))) => {
                    return Err(Fault::Invalid("an upload has one head".into()).into());
                }
                Ok(None) => return Ok(upload.interrupt().await?),
                Err(status) => {
                    let kept = upload.interrupt().await?;
                    warn!(stored = kept.stored_bytes, "an upload broke off");
                    return Err(status);
                }
            }
        }
    }
}

async fn next_part(stream: &mut Streaming<UploadRequest>) -> Result<Option<Part>, Status> {
    match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
        Ok(Ok(Some(UploadRequest { part: Some(part) }))) => Ok(Some(part)),
        Ok(Ok(Some(UploadRequest { part: None }))) => {
            Err(Fault::Invalid("a message of an unknown kind".into()).into())
        }
        Ok(Ok(None)) => Ok(None),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded("nothing came for a while")),
    }
}

async fn send_file(mut file: tokio::fs::File, sender: Sender<RecordingChunk>) {
    loop {
        let mut data = vec![0; DOWNLOAD_CHUNK_BYTES];
        let chunk = match file.read(&mut data).await {
            Ok(0) => return,
            Ok(read) => {
                data.truncate(read);
                Ok(RecordingChunk { data })
            }
            Err(error) => {
                tracing::error!(%error, "a recording cannot be read");
                Err(Status::internal("the recording cannot be read"))
            }
        };
        let failed = chunk.is_err();
        if sender.send(chunk).await.is_err() || failed {
            return;
        }
    }
}

/// All that match, page by page, no faster than they are read.
async fn send_events(log: Log, filter: Filter, sender: Sender<EventLine>) {
    let mut from = From::After(0);
    loop {
        let page = match log.search(filter.clone(), from, SEARCH_DEFAULT).await {
            Ok(page) => page,
            Err(error) => {
                sender.send(Err(Fault::from(error).into())).await.ok();
                return;
            }
        };
        for json in page.events {
            if sender.send(Ok(EventLine { json })).await.is_err() {
                return;
            }
        }
        if !page.more {
            return;
        }
        from = page.next;
    }
}

/// Where the next page of a search begins, as clients carry it: they know nothing of its meaning.
mod page {
    use crate::fault::Fault;
    use crate::log::From;

    /// A stranger's text; the entry and the time in it are only places in an order.
    pub(super) fn read(text: &str, oldest_first: bool) -> Result<From, Fault> {
        let from = match (text, oldest_first) {
            ("", true) => Some(From::After(0)),
            ("", false) => Some(From::Newest),
            (id, true) => id.parse().ok().map(From::After),
            (both, false) => both.split_once('.').and_then(|(time, id)| {
                Some(From::Before { time_ms: time.parse().ok()?, id: id.parse().ok()? })
            }),
        };
        from.ok_or_else(|| Fault::Invalid("a page that no answer has named".into()))
    }

    pub(super) fn write(from: From) -> String {
        match from {
            From::After(id) => id.to_string(),
            From::Before { time_ms, id } => format!("{time_ms}.{id}"),
            From::Newest => String::new(),
        }
    }
}

fn took_part(caller: &Caller, summary: &Summary) -> bool {
    caller.user().is_some_and(|user| *user == summary.user)
}

fn answer(progress: Progress) -> UploadResponse {
    UploadResponse { stored_bytes: progress.stored_bytes, complete: progress.complete }
}

/// Those that there are, and not too many: each becomes a part of a query.
fn names(types: Vec<String>) -> Result<Vec<String>, Fault> {
    let known = proto::event::NAMES;
    if types.len() > known.len() {
        return Err(Fault::Invalid("more types of events than there are".into()));
    }
    match types.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(Fault::Invalid(format!(
            "no event is of type {name:?}; there are {}",
            known.join(", ")
        ))),
        None => Ok(types),
    }
}

const SEARCH_DEFAULT: usize = 100;
const RECORDINGS_DEFAULT: usize = 100;
/// A summary has some 500 bytes, a long command apart: this stays within a message.
const RECORDINGS_MAX: usize = 2_000;
const DOWNLOAD_CHUNK_BYTES: usize = 64 * 1024;
