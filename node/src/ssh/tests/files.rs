//! SFTP, with russh-sftp's client. Real clients (`sftp`, `scp`) are the daemon's tests.

use std::os::unix::fs::MetadataExt as _;

use proto::event::{Body, SftpAction};
use russh_sftp::client::SftpSession;
use russh_sftp::protocol::OpenFlags;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::fixture::{Cluster, listen, own_login};

async fn sftp(cluster: &Cluster, login: &str) -> SftpSession {
    let handle = cluster.sign_in_as(login).await;
    let channel = handle.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "sftp").await.unwrap();
    let session = SftpSession::new(channel.into_stream()).await;
    // The connection lives as long as the handle.
    std::mem::forget(handle);
    session.unwrap_or_else(|e| panic!("{e}: {:?}", cluster.audit.events()))
}

fn operations(cluster: &Cluster) -> Vec<(SftpAction, String, bool)> {
    let events = cluster.audit.events();
    let sftp = events.into_iter().filter_map(|(body, _)| match body {
        Body::Sftp(event) => Some((event.action, event.path, event.outcome.success)),
        _ => None,
    });
    sftp.collect()
}

async fn round_trip(options: &str) {
    let root = rustix::process::geteuid().is_root();
    let login = if root { "nobody" } else { own_login() };
    let cluster = Cluster::new(options);
    let sftp = sftp(&cluster, login).await;
    let folder = cluster.dir.path().join("in");
    let folder = folder.to_str().unwrap();
    sftp.create_dir(folder).await.unwrap();
    let path = format!("{folder}/data");
    let data: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut file = sftp.create(&path).await.unwrap();
    file.write_all(&data).await.unwrap();
    file.shutdown().await.unwrap();
    drop(file);
    assert_eq!(std::fs::read(&path).unwrap(), data);
    if root {
        assert_eq!(std::fs::metadata(&path).unwrap().uid(), 65534);
    }
    let mut back = Vec::new();
    let mut file = sftp.open_with_flags(&path, OpenFlags::READ).await.unwrap();
    file.read_to_end(&mut back).await.unwrap();
    drop(file);
    assert_eq!(back, data);
    let moved = format!("{folder}/moved");
    sftp.rename(&path, &moved).await.unwrap();
    let names: Vec<_> = sftp.read_dir(folder).await.unwrap().map(|e| e.file_name()).collect();
    assert!(names.contains(&"moved".to_owned()), "{names:?}");
    sftp.remove_file(&moved).await.unwrap();
    assert!(sftp.open(&moved).await.is_err());
    sftp.remove_dir(folder).await.unwrap();
    sftp.close().await.unwrap();
    cluster.audit.wait("session.end").await;
    let expect = [
        (SftpAction::Mkdir, folder, true),
        (SftpAction::Open, &path, true),
        (SftpAction::Open, &path, true),
        (SftpAction::Rename, &path, true),
        (SftpAction::Opendir, folder, true),
        (SftpAction::Remove, &moved, true),
        (SftpAction::Open, &moved, false),
        (SftpAction::Rmdir, folder, true),
    ]
    .map(|(action, path, good)| (action, path.to_owned(), good));
    assert_eq!(operations(&cluster), expect);
    assert!(crate::recorder::note::all(cluster.node.recorder.dir()).unwrap().is_empty());
}

#[tokio::test]
async fn files_travel_as_the_target_user_and_are_told() {
    round_trip("{}").await;
}

#[tokio::test]
async fn a_strict_session_waits_for_its_records() {
    round_trip(r#"{"record_session":{"ssh":"strict"}}"#).await;
}

/// As `tsh scp` does: the last request is sent and the channel closed, or the connection left, without waiting.
async fn hasty_client(leaves: bool) {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "sftp").await.unwrap();
    while !matches!(channel.wait().await, Some(russh::ChannelMsg::Success)) {}
    let folder = cluster.dir.path().join("made");
    let mut requests = vec![0, 0, 0, 5, 1, 0, 0, 0, 3];
    // More answers than a pipe holds (SSH_FXP_REALPATH), then a folder (SSH_FXP_MKDIR).
    for _ in 0..5_000 {
        requests.extend([0, 0, 0, 10, 16, 0, 0, 0, 1, 0, 0, 0, 1, b'.']);
    }
    let path = folder.to_str().unwrap().as_bytes();
    let length = u8::try_from(path.len()).unwrap();
    requests.extend([0, 0, 0, length + 13, 14, 0, 0, 0, 1, 0, 0, 0, length]);
    requests.extend(path);
    requests.extend([0; 4]);
    channel.data(requests.as_slice()).await.unwrap();
    channel.close().await.unwrap();
    if leaves {
        drop((channel, handle));
    }
    cluster.audit.wait("session.end").await;
    let Body::Subsystem(event) = cluster.audit.wait("subsystem").await else { panic!() };
    assert_eq!(event.exit_error, "");
    assert!(folder.is_dir());
    let made = (SftpAction::Mkdir, folder.to_str().unwrap().to_owned(), true);
    assert_eq!(operations(&cluster), [made]);
}

#[tokio::test]
async fn a_client_that_closes_without_waiting_has_not_failed() {
    hasty_client(false).await;
}

#[tokio::test]
async fn a_client_that_leaves_without_waiting_has_not_failed() {
    hasty_client(true).await;
}

#[tokio::test]
async fn the_target_users_rights_hold() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let cluster = Cluster::new("{}");
    let sftp = sftp(&cluster, "nobody").await;
    assert!(sftp.open("/etc/shadow").await.is_err());
    assert!(sftp.create("/etc/postern-test").await.is_err());
    let denied = [(SftpAction::Open, "/etc/shadow"), (SftpAction::Open, "/etc/postern-test")]
        .map(|(action, path)| (action, path.to_owned(), false));
    assert_eq!(operations(&cluster), denied);
}

#[tokio::test]
async fn an_unrecorded_operation_gets_no_answer_in_a_strict_session() {
    let cluster = Cluster::new(r#"{"record_session":{"ssh":"strict"}}"#);
    let sftp = sftp(&cluster, own_login()).await;
    cluster.audit.fail(true);
    assert!(sftp.open("/etc/passwd").await.is_err());
}

#[tokio::test]
async fn file_copy_is_refused_where_roles_say_so() {
    let cluster = Cluster::new(r#"{"ssh_file_copy":false}"#);
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "sftp").await.unwrap();
    let said = listen(&mut channel).await;
    assert!(said.is_refusal() && said.error.contains("file copy"), "{said:?}");
    let body = cluster.audit.wait("sftp").await;
    assert_eq!(body.code(), "TS020E");
}
