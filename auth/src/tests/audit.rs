//! Events and recordings, from a node to a reader.

use std::time::Duration;

use proto::event::{self, Body, Event, Happened, Outcome, SessionEnd, SessionStart, UserLogin};
use proto::id::{HostId, Login, NodeName, SessionId, UserName};
use proto::recording::Summary;
use proto::resource::HostRole;
use proto::rpc::audit_client::AuditClient;
use proto::rpc::upload_request::Part;
use proto::rpc::{
    AppendRequest, DownloadRequest, ListRecordingsRequest, PutResourceRequest, RecordingHead,
    RecordingSeal, RecordingStatusRequest, SearchRequest, SequencedEvent, SessionEventsRequest,
    TailRequest, UploadRequest, UploadResponse,
};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{Cluster, Machine, refused, summary};

fn session(machine: &Machine, sid: &SessionId, user: &str) -> event::Session {
    event::Session {
        sid: sid.clone(),
        namespace: "default".into(),
        user: UserName::parse(user).unwrap(),
        login: Login::parse("root").unwrap(),
        server_id: HostId::parse(&*machine.certificates.host_id).unwrap(),
        server_hostname: NodeName::parse("web1").unwrap(),
        server_labels: Default::default(),
        server_version: "0.1.0".into(),
        addr_remote: "10.0.0.9:1234".into(),
        proto: "ssh".into(),
    }
}

fn start_of(machine: &Machine, sid: &SessionId, user: &str) -> Body {
    SessionStart {
        session: session(machine, sid, user),
        interactive: true,
        user_roles: vec!["access".into()],
        size: "80:25".into(),
        initial_command: String::new(),
        capture: String::new(),
    }
    .into()
}

fn sequenced(cluster: &Cluster, sequence: u64, body: Body) -> SequencedEvent {
    let time = OffsetDateTime::from_unix_timestamp(cluster.now()).unwrap();
    let event =
        Event::new(Happened { time, body }, 0, net::random16(), cluster.auth.cluster().clone());
    SequencedEvent { sequence, json: serde_json::to_vec(&event).unwrap() }
}

async fn append(channel: &Channel, events: Vec<SequencedEvent>) -> Result<u64, Status> {
    let request = AppendRequest { events };
    Ok(AuditClient::new(channel.clone()).append(request).await?.into_inner().acknowledged)
}

fn sid(byte: u8) -> SessionId {
    SessionId::from_random([byte; 16])
}

#[tokio::test]
async fn an_event_is_stored_once_and_found() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    assert_eq!(append(&machine.channel, vec![]).await.unwrap(), 0);
    let first = sequenced(&cluster, 1, start_of(&machine, &sid(1), "alice"));
    let second = sequenced(&cluster, 2, start_of(&machine, &sid(2), "bob"));
    assert_eq!(append(&machine.channel, vec![first.clone()]).await.unwrap(), 1);
    let both = vec![first.clone(), second, first];
    assert_eq!(append(&machine.channel, both).await.unwrap(), 2);
    assert_eq!(append(&machine.channel, vec![]).await.unwrap(), 2);
    // A spool that was lost counts anew; its events are not taken for old ones.
    let anew = sequenced(&cluster, 1, start_of(&machine, &sid(3), "carol"));
    assert_eq!(append(&machine.channel, vec![anew]).await.unwrap(), 1);

    let cluster = cluster.restart().await;
    let local = net::auth_client::socket_channel(cluster.auth.socket_path().to_owned());
    let mut client = AuditClient::new(local);
    let mut found = async |request: SearchRequest| -> Vec<String> {
        let events = client.search(request).await.unwrap().into_inner().events;
        events.iter().map(|json| summary(json, &["user"])).collect()
    };
    let starts = SearchRequest { types: vec!["session.start".into()], ..Default::default() };
    let expect =
        ["T2000I session.start alice", "T2000I session.start bob", "T2000I session.start carol"];
    assert_eq!(found(starts.clone()).await, expect);
    assert_eq!(found(SearchRequest { limit: 1, ..starts.clone() }).await, expect[2..]);
    assert_eq!(found(SearchRequest { user: "bob".into(), ..starts.clone() }).await, expect[1..2]);
    let by_session = SearchRequest { session: sid(1).to_string(), ..Default::default() };
    assert_eq!(found(by_session).await, expect[..1]);
    let later = SearchRequest { since: (cluster.now() + 1) * 1000, ..starts.clone() };
    assert!(found(later).await.is_empty());
    let before = SearchRequest { until: cluster.now() * 1000 - 1, ..starts };
    assert!(found(before).await.is_empty());
    let unknown = SearchRequest { types: vec!["session.comand".into()], ..Default::default() };
    refused(client.search(unknown).await, Code::InvalidArgument);
    let log = cluster.dir.path().join("auth/log/events.log");
    let text = std::fs::read_to_string(log).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains("session.start")).count(), 3);
}

#[tokio::test]
async fn a_host_speaks_for_itself_only_and_nothing_is_lost() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let other = cluster.join(HostRole::Node, "web2").await;
    let login = UserLogin {
        user: "alice".into(),
        method: "local".into(),
        addr_remote: String::new(),
        outcome: Outcome::ok(),
    };
    let foreign = start_of(&other, &sid(1), "alice");
    let forged = [
        sequenced(&cluster, 1, login.into()),
        sequenced(&cluster, 2, foreign),
        SequencedEvent { sequence: 3, json: b"{\"event\":\"sess\nion.start\"}".to_vec() },
        SequencedEvent { sequence: 4, json: vec![b' '; 1024 * 1024 + 1] },
    ];
    let good = sequenced(&cluster, 5, start_of(&machine, &sid(2), "bob"));
    let all = [&forged[..], &[good]].concat();
    assert_eq!(append(&machine.channel, all).await.unwrap(), 5, "the spool goes on");
    let events = cluster.events(&["user"]).await;
    assert_eq!(events.iter().filter(|line| !line.contains("T2000I")).count() + 1, events.len());
    assert_eq!(events.last().unwrap(), "T2000I session.start bob");
    let rejected = cluster.dir.path().join("auth/log/rejected.log");
    let rejected = std::fs::read_to_string(rejected).unwrap();
    let reasons: Vec<String> = rejected
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["reason"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(reasons.len(), 4);
    assert_eq!(reasons[..2], ["not for a host to say", "about another host"]);

    let proxy = cluster.join(HostRole::Proxy, "edge").await;
    let of_proxy = sequenced(&cluster, 1, start_of(&proxy, &sid(4), "bob"));
    append(&proxy.channel, vec![of_proxy]).await.unwrap();
    assert_eq!(cluster.events(&[]).await.iter().filter(|e| e.contains("T2000I")).count(), 1);
    refused(append(&cluster.anonymous(), vec![]).await, Code::Unauthenticated);
}

#[tokio::test]
async fn a_tail_shows_what_comes() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let secret = cluster.user("ann", &["auditor"], &[]).await;
    let ann = cluster.signed_in("ann", &secret).await;
    let request = TailRequest { types: vec!["session.start".into()], user: String::new() };
    let mut stream = AuditClient::new(ann).tail(request).await.unwrap().into_inner();
    for (number, user) in [(1, "alice"), (2, "bob")] {
        let event = sequenced(&cluster, number, start_of(&machine, &sid(1), user));
        append(&machine.channel, vec![event]).await.unwrap();
        let line = tokio::time::timeout(Duration::from_secs(10), stream.message()).await.unwrap();
        let line = line.unwrap().unwrap();
        assert_eq!(summary(&line.json, &["user"]), format!("T2000I session.start {user}"));
    }
    let secret = cluster.user("alice", &["access"], &["alice"]).await;
    let alice = cluster.signed_in("alice", &secret).await;
    let mut alice = AuditClient::new(alice);
    refused(alice.tail(TailRequest::default()).await, Code::PermissionDenied);
    refused(alice.search(SearchRequest::default()).await, Code::PermissionDenied);
}

fn recording(machine: &Machine, sid: &SessionId, user: &str) -> Summary {
    let start = OffsetDateTime::from_unix_timestamp(net::unix_now()).unwrap();
    Summary {
        sid: sid.clone(),
        user: UserName::parse(user).unwrap(),
        login: Login::parse("root").unwrap(),
        server_id: HostId::parse(&*machine.certificates.host_id).unwrap(),
        server_hostname: NodeName::parse("web1").unwrap(),
        session_start: start,
        session_stop: start,
        interactive: true,
        command: String::new(),
        truncated: false,
        length: 0,
    }
}

fn head(sid: &str, summary: &Summary) -> Part {
    let summary_json = serde_json::to_vec(summary).unwrap();
    Part::Head(RecordingHead { sid: sid.into(), summary_json })
}

fn seal(bytes: &[u8]) -> Part {
    let length = u64::try_from(bytes.len()).unwrap();
    Part::Seal(RecordingSeal { length, sha256: Sha256::digest(bytes).to_vec() })
}

async fn upload(channel: &Channel, parts: Vec<Part>) -> Result<UploadResponse, Status> {
    let requests = parts.into_iter().map(|part| UploadRequest { part: Some(part) });
    let stream = tokio_stream::iter(requests.collect::<Vec<_>>());
    Ok(AuditClient::new(channel.clone()).upload_recording(stream).await?.into_inner())
}

async fn status(channel: &Channel, sid: &str) -> Result<UploadResponse, Status> {
    let request = RecordingStatusRequest { sid: sid.into() };
    Ok(AuditClient::new(channel.clone()).recording_status(request).await?.into_inner())
}

async fn download(channel: &Channel, sid: &str) -> Result<Vec<u8>, Status> {
    let request = DownloadRequest { sid: sid.into() };
    let mut stream =
        AuditClient::new(channel.clone()).download_recording(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await? {
        bytes.extend(chunk.data);
    }
    Ok(bytes)
}

#[tokio::test]
async fn an_upload_goes_on_where_it_stopped() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let id = sid(7);
    let summary = recording(&machine, &id, "alice");
    let bytes = b"{\"version\": 2}\n".repeat(20_000);
    let (first, rest) = bytes.split_at(100_000);
    let stored = |stored_bytes, complete| UploadResponse { stored_bytes, complete };
    assert_eq!(status(&machine.channel, id.as_str()).await.unwrap(), stored(0, false));
    let broken = vec![head(id.as_str(), &summary), Part::Chunk(first.to_vec())];
    assert_eq!(upload(&machine.channel, broken).await.unwrap(), stored(100_000, false));
    assert_eq!(status(&machine.channel, id.as_str()).await.unwrap(), stored(100_000, false));

    let parts = vec![head(id.as_str(), &summary), Part::Chunk(rest.to_vec()), seal(&bytes)];
    assert_eq!(upload(&machine.channel, parts.clone()).await.unwrap(), stored(300_000, true));
    assert_eq!(status(&machine.channel, id.as_str()).await.unwrap(), stored(300_000, true));
    assert_eq!(upload(&machine.channel, parts).await.unwrap(), stored(300_000, true));

    let folder = cluster.dir.path().join("auth/recordings");
    assert_eq!(std::fs::read(folder.join(format!("{id}.cast"))).unwrap(), bytes);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "the recording and its summary");
    let uploads = cluster.events(&["sid", "sha256"]).await;
    let uploads: Vec<_> = uploads.iter().filter(|e| e.contains("session.upload")).collect();
    let digest = hex::encode(Sha256::digest(&bytes));
    assert_eq!(uploads, [&format!("T2005I session.upload {id} {digest}")]);
}

#[tokio::test]
async fn a_seal_that_does_not_fit_throws_the_upload_away() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let id = sid(7);
    let summary = recording(&machine, &id, "alice");
    let chunk = Part::Chunk(b"what came".to_vec());
    let parts = vec![head(id.as_str(), &summary), chunk.clone(), seal(b"what went")];
    refused(upload(&machine.channel, parts).await, Code::InvalidArgument);
    assert_eq!(status(&machine.channel, id.as_str()).await.unwrap().stored_bytes, 0);
    let parts = vec![head(id.as_str(), &summary), chunk, seal(b"what came")];
    assert!(upload(&machine.channel, parts).await.unwrap().complete);
}

#[tokio::test]
async fn a_recording_belongs_to_the_machine_of_its_session() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let other = cluster.join(HostRole::Node, "web2").await;
    let proxy = cluster.join(HostRole::Proxy, "edge").await;
    let id = sid(7);
    let own = recording(&machine, &id, "alice");
    refused(upload(&other.channel, vec![head(id.as_str(), &own)]).await, Code::PermissionDenied);
    refused(upload(&proxy.channel, vec![head(id.as_str(), &own)]).await, Code::PermissionDenied);

    // Whoever learns of a session's id before its node uploads cannot take its place.
    let start = sequenced(&cluster, 1, start_of(&machine, &id, "alice"));
    append(&machine.channel, vec![start]).await.unwrap();
    let squat = recording(&other, &id, "alice");
    refused(upload(&other.channel, vec![head(id.as_str(), &squat)]).await, Code::PermissionDenied);
    upload(&machine.channel, vec![head(id.as_str(), &own)]).await.unwrap();
    refused(status(&other.channel, id.as_str()).await, Code::PermissionDenied);

    for bad in [
        "",
        "../../../../etc/cron.d/x",
        "a",
        "-",
        "07070707-0707-4707-8707-07070707070",
        "070707070707-4707-8707-0707-07070707",
        "07070707-0707-4707-8707-07070707070/",
    ] {
        refused(status(&machine.channel, bad).await, Code::InvalidArgument);
        refused(upload(&machine.channel, vec![head(bad, &own)]).await, Code::InvalidArgument);
    }
    let mixed = sid(8);
    refused(
        upload(&machine.channel, vec![head(mixed.as_str(), &own)]).await,
        Code::PermissionDenied,
    );
    // Who hears of a session and claims events of it does not keep its machine from sending the recording.
    let claimed = sid(6);
    append(&machine.channel, vec![sequenced(&cluster, 9, start_of(&machine, &claimed, "alice"))])
        .await
        .unwrap();
    let forged = sequenced(&cluster, 9, start_of(&other, &claimed, "alice"));
    append(&other.channel, vec![forged]).await.unwrap();
    let parts =
        |of: &Machine| vec![head(claimed.as_str(), &recording(of, &claimed, "alice")), seal(b"")];
    refused(upload(&other.channel, parts(&other)).await, Code::PermissionDenied);
    assert!(upload(&machine.channel, parts(&machine)).await.unwrap().complete);
    refused(upload(&machine.channel, vec![seal(b"")]).await, Code::InvalidArgument);
    let long = vec![head(id.as_str(), &own), Part::Chunk(vec![0; 256 * 1024 + 1])];
    refused(upload(&machine.channel, long).await, Code::InvalidArgument);
}

#[tokio::test]
async fn who_may_see_a_recording_leaves_a_trace() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let mut ids = Vec::new();
    for (byte, user) in [(1, "alice"), (2, "bob")] {
        let id = sid(byte);
        let parts = vec![
            head(id.as_str(), &recording(&machine, &id, user)),
            Part::Chunk(user.into()),
            seal(user.as_bytes()),
        ];
        upload(&machine.channel, parts).await.unwrap();
        ids.push(id.to_string());
    }
    let secret = cluster.user("alice", &["access"], &["alice"]).await;
    let alice = cluster.signed_in("alice", &secret).await;
    let secret = cluster.user("ann", &["auditor"], &[]).await;
    let ann = cluster.signed_in("ann", &secret).await;
    let list = async |channel: &Channel, limit| {
        let request = ListRecordingsRequest { limit, ..Default::default() };
        let answer = AuditClient::new(channel.clone()).list_recordings(request).await.unwrap();
        let summaries = answer.into_inner().summaries;
        let users = summaries
            .iter()
            .map(|json| serde_json::from_slice::<Summary>(json).unwrap().user.to_string());
        users.collect::<Vec<_>>()
    };
    assert_eq!(list(&alice, 0).await, ["alice"]);
    assert_eq!(list(&ann, 0).await.len(), 2);
    assert_eq!(list(&ann, 1).await.len(), 1);
    let bounded = async |since: i64, until: i64| {
        let (since, until) = (since * 1000, until * 1000);
        let request = ListRecordingsRequest { since, until, limit: 0 };
        let answer = AuditClient::new(ann.clone()).list_recordings(request).await.unwrap();
        answer.into_inner().summaries.len()
    };
    let now = net::unix_now();
    assert_eq!(bounded(now - 600, 0).await, 2);
    assert_eq!(bounded(now + 600, 0).await, 0);
    assert_eq!(bounded(0, now - 600).await, 0);
    assert_eq!(bounded(now - 600, now + 600).await, 2);
    assert_eq!(download(&alice, &ids[0]).await.unwrap(), b"alice");
    let forbidden = refused(download(&alice, &ids[1]).await, Code::NotFound);
    let missing = refused(download(&alice, sid(9).as_str()).await, Code::NotFound);
    assert_eq!(forbidden, missing);
    assert_eq!(download(&ann, &ids[1]).await.unwrap(), b"bob");
    refused(download(&machine.channel, &ids[1]).await, Code::PermissionDenied);
    let seen = cluster.events(&["user", "sid"]).await;
    let seen: Vec<_> = seen.into_iter().filter(|e| e.contains("recording.access")).collect();
    assert_eq!(
        seen,
        [
            format!("T2012I session.recording.access alice {}", ids[0]),
            format!("T2012I session.recording.access ann {}", ids[1]),
        ]
    );
}

async fn events_of(channel: &Channel, sid: &str) -> Result<Vec<String>, Status> {
    let request = SessionEventsRequest { sid: sid.into() };
    let mut lines = AuditClient::new(channel.clone()).session_events(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(line) = lines.message().await? {
        events.push(summary(&line.json, &["program", "sid"]));
    }
    Ok(events)
}

fn exit_of(machine: &Machine, sid: &SessionId, program: &str) -> Body {
    event::SessionCommandExit {
        session: session(machine, sid, "alice"),
        pid: 7,
        ppid: 1,
        program: program.into(),
        exit_code: 0,
        signal: 0,
    }
    .into()
}

#[tokio::test]
async fn whoever_may_play_a_recording_sees_its_events_and_nobody_else() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let (own, other) = (sid(1), sid(2));
    for (id, user) in [(&own, "alice"), (&other, "bob")] {
        let parts = vec![head(id.as_str(), &recording(&machine, id, user)), seal(b"")];
        upload(&machine.channel, parts).await.unwrap();
    }
    // More than a page.
    let mut events = vec![sequenced(&cluster, 1, start_of(&machine, &own, "alice"))];
    events
        .extend((2..=250).map(|n| sequenced(&cluster, n, exit_of(&machine, &own, &n.to_string()))));
    events.push(sequenced(&cluster, 251, exit_of(&machine, &other, "other")));
    append(&machine.channel, events).await.unwrap();
    let secret = cluster.user("alice", &["access"], &["alice"]).await;
    let alice = cluster.signed_in("alice", &secret).await;
    let secret = cluster.user("ann", &["auditor"], &[]).await;
    let ann = cluster.signed_in("ann", &secret).await;
    let seen = events_of(&alice, own.as_str()).await.unwrap();
    assert_eq!(seen.len(), 250);
    assert_eq!(seen[0], format!("T2000I session.start {own}"));
    assert_eq!(seen[249], format!("TSC00I session.command.exit 250 {own}"));
    assert!(seen.iter().all(|event| event.ends_with(own.as_str())));
    assert_eq!(events_of(&ann, own.as_str()).await.unwrap(), seen, "who watched is not among them");
    assert_eq!(events_of(&ann, other.as_str()).await.unwrap().len(), 1);
    let forbidden = refused(events_of(&alice, other.as_str()).await, Code::NotFound);
    let missing = refused(events_of(&alice, sid(9).as_str()).await, Code::NotFound);
    let unplayable = refused(download(&alice, other.as_str()).await, Code::NotFound);
    assert_eq!((&forbidden, &forbidden), (&missing, &unplayable));
    refused(events_of(&ann, sid(9).as_str()).await, Code::NotFound);
    refused(events_of(&machine.channel, own.as_str()).await, Code::PermissionDenied);
    refused(events_of(&cluster.anonymous(), own.as_str()).await, Code::Unauthenticated);
    let watched = cluster.events(&["user", "sid"]).await;
    let watched = watched.iter().filter(|event| event.contains("recording.access")).count();
    assert_eq!(watched, 3);
}

#[tokio::test]
async fn a_search_goes_on_page_by_page() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let exits: Vec<_> = (1..=25)
        .map(|n| sequenced(&cluster, n, exit_of(&machine, &sid(1), &n.to_string())))
        .collect();
    append(&machine.channel, exits).await.unwrap();
    let local = net::auth_client::socket_channel(cluster.auth.socket_path().to_owned());
    let mut client = AuditClient::new(local);
    for oldest_first in [true, false] {
        let mut request = SearchRequest {
            types: vec!["session.command.exit".into(), "session.command".into()],
            session: sid(1).to_string(),
            limit: 10,
            oldest_first,
            ..Default::default()
        };
        let mut pages = Vec::new();
        loop {
            let answer = client.search(request.clone()).await.unwrap().into_inner();
            pages.push(answer.events.iter().map(|e| summary(e, &["program"])).collect::<Vec<_>>());
            if answer.next.is_empty() {
                break;
            }
            request.page = answer.next;
        }
        if !oldest_first {
            pages.reverse();
        }
        let expect: Vec<_> = (1..=25).map(|n| format!("TSC00I session.command.exit {n}")).collect();
        assert_eq!(pages.concat(), expect);
        let odd = SearchRequest { page: "1.2.3".into(), ..request };
        refused(client.search(odd).await, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_lock_ends_access_to_ones_own_recordings() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let id = sid(1);
    let summary = recording(&machine, &id, "alice");
    let parts = vec![head(id.as_str(), &summary), Part::Chunk(b"x".to_vec()), seal(b"x")];
    upload(&machine.channel, parts).await.unwrap();
    let secret = cluster.user("alice", &["access"], &["alice"]).await;
    let alice = cluster.signed_in("alice", &secret).await;
    assert_eq!(download(&alice, id.as_str()).await.unwrap(), b"x");
    let lock = r#"{"kind":"lock","version":"v2","metadata":{"name":"l"},"spec":{"target":{"user":"alice"}}}"#;
    let put = PutResourceRequest { resource: lock.into(), overwrite: false };
    cluster.admin().put_resource(put).await.unwrap();
    refused(download(&alice, id.as_str()).await, Code::PermissionDenied);
    let list = ListRecordingsRequest::default();
    let listed = AuditClient::new(alice).list_recordings(list).await;
    refused(listed, Code::PermissionDenied);
}

#[tokio::test]
async fn one_machine_does_not_keep_others_from_uploading() {
    let cluster = Cluster::start().await;
    let greedy = cluster.join(HostRole::Node, "web1").await;
    let other = cluster.join(HostRole::Node, "web2").await;
    let mut open = Vec::new();
    for byte in 1..=9 {
        let id = sid(byte);
        let (parts, stream) = tokio::sync::mpsc::channel(2);
        let part = Some(head(id.as_str(), &recording(&greedy, &id, "alice")));
        parts.send(UploadRequest { part }).await.unwrap();
        let mut client = AuditClient::new(greedy.channel.clone());
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let call = tokio::spawn(async move { client.upload_recording(stream).await });
        open.push((parts, call));
    }
    // One of the nine is refused, whichever came last.
    let refusal = async {
        loop {
            if let Some(at) = open.iter().position(|(_, call)| call.is_finished()) {
                return open.swap_remove(at).1.await.unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    let refusal = tokio::time::timeout(Duration::from_secs(20), refusal).await.unwrap();
    assert!(refused(refusal, Code::ResourceExhausted).contains("this machine"));
    assert!(open.iter().all(|(_, call)| !call.is_finished()));
    let id = sid(99);
    let parts = vec![head(id.as_str(), &recording(&other, &id, "bob")), seal(b"")];
    assert!(upload(&other.channel, parts).await.unwrap().complete);
}

#[tokio::test]
async fn the_hosts_own_spool_ships_to_auth() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let dir = cluster.dir.path().join("spool");
    let spool = net::spool::Spool::open(dir, cluster.auth.cluster().clone()).unwrap();
    let shutdown = net::shutdown::Shutdown::new();
    tokio::spawn(spool.clone().ship(machine.channel.clone(), shutdown.clone()));
    let local = net::auth_client::socket_channel(cluster.auth.socket_path().to_owned());
    let request = TailRequest { types: vec!["session.end".into()], user: String::new() };
    let mut tail = AuditClient::new(local).tail(request).await.unwrap().into_inner();
    let start = OffsetDateTime::from_unix_timestamp(cluster.now()).unwrap();
    let end = SessionEnd {
        session: session(&machine, &sid(1), "alice"),
        interactive: true,
        participants: vec![UserName::parse("alice").unwrap()],
        session_recording: "node".into(),
        enhanced_recording: false,
        recording_truncated: false,
        session_start: start,
        session_stop: start,
    };
    let written = spool.record(end, 3).await.unwrap();
    let line = tokio::time::timeout(Duration::from_secs(20), tail.message()).await.unwrap();
    let line = line.unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<Event>(&line.json).unwrap().uid, written.uid);
    shutdown.stop();
}
