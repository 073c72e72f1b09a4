//! The jump listener with russh's client.

use std::sync::Arc;
use std::time::Duration;

use proto::preamble::Inner;
use russh::client::{self, Handle};
use russh::keys::ssh_key::Algorithm;
use russh::keys::{Certificate, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelOpenFailure, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::cluster::{Authority, Bench, Person, echoes, lock, within};
use crate::Limits;

struct Client(Arc<Authority>);

impl client::Handler for Client {
    type Error = Error;
    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::Certificate(certificate) = key else { return Ok(false) };
        let host = self.0.verifier().ssh_host(certificate, "localhost", net::unix_now());
        Ok(host.is_ok())
    }
}

async fn connect(bench: &Bench) -> Handle<Client> {
    let mut config = client::Config::default();
    config.preferred.host_key_certificates = vec![Algorithm::Ed25519].into();
    let address = bench.proxy.jump_addr().unwrap();
    let client = Client(bench.authority.clone());
    within(client::connect(Arc::new(config), address, client)).await.unwrap()
}

async fn sign_in(bench: &Bench, person: &Person) -> (Handle<Client>, bool) {
    let mut handle = connect(bench).await;
    let certificate = Certificate::from_openssh(&person.ssh).unwrap();
    let key = Arc::new(person.keys.ssh().clone());
    let result =
        within(handle.authenticate_openssh_cert("whoever", key, certificate)).await.unwrap();
    (handle, result.success())
}

async fn jump(
    handle: &Handle<Client>,
    host: &str,
    port: u32,
) -> Result<russh::ChannelStream<client::Msg>, ChannelOpenFailure> {
    match within(handle.channel_open_direct_tcpip(host, port, "127.0.0.1", 1)).await {
        Ok(channel) => Ok(channel.into_stream()),
        Err(Error::ChannelOpenFailure(failure)) => Err(failure),
        Err(error) => panic!("{error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_reaches_its_node() {
    let bench = Bench::start().await;
    let mut node = bench.node("web1", "dev").await;
    let (handle, success) = sign_in(&bench, &bench.authority.person("alice")).await;
    assert!(success);
    let mut first = jump(&handle, "web1", 22).await.unwrap();
    echoes(&mut first, b"SSH-2.0-inner\r\n").await;
    let open = within(node.opened.recv()).await.unwrap();
    assert_eq!((&*open.target, open.inner), ("web1", Inner::Plain));
    let mut second = jump(&handle, "web1.example.com", 3022).await.unwrap();
    echoes(&mut second, &vec![7; 2_000_000]).await;
    echoes(&mut first, b"still there").await;
    assert_eq!(bench.proxy.streams(), 2);
}

/// RFC 4253 lets either side wait for the other's KEXINIT.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_our_offer_gets_all_of_it() {
    let bench = Bench::start().await;
    let mut socket = TcpStream::connect(bench.proxy.jump_addr().unwrap()).await.unwrap();
    socket.write_all(b"SSH-2.0-patient\r\n").await.unwrap();
    let mut line = vec![0; b"SSH-2.0-postern\r\n".len()];
    within(socket.read_exact(&mut line)).await.unwrap();
    assert_eq!(line, b"SSH-2.0-postern\r\n");
    let mut packet = vec![0; within(socket.read_u32()).await.unwrap().try_into().unwrap()];
    within(socket.read_exact(&mut packet)).await.unwrap();
    let packet = String::from_utf8_lossy(&packet);
    for name in ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr"] {
        assert!(packet.contains(name), "{name} in {packet}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_else_is_refused() {
    let bench = Bench::start().await;
    let _node = bench.node("web1", "dev").await;
    let _prod = bench.node("db1", "prod").await;
    let (handle, success) = sign_in(&bench, &bench.authority.person("alice")).await;
    assert!(success);
    let session = within(handle.channel_open_session()).await;
    assert!(matches!(session, Err(Error::ChannelOpenFailure(_))));
    let socket = within(handle.channel_open_direct_streamlocal("/run/x")).await;
    assert!(matches!(socket, Err(Error::ChannelOpenFailure(_))));
    assert!(within(handle.tcpip_forward("127.0.0.1", 0)).await.is_err());
    for (host, port) in [("web1", 80), ("nowhere", 22), ("db1", 22), ("127.0.0.1", 22)] {
        let failure = jump(&handle, host, port).await.err().unwrap();
        assert_eq!(failure, ChannelOpenFailure::AdministrativelyProhibited, "{host}:{port}");
    }
    let event = bench.event("session.rejected").await;
    assert_eq!(
        (&event["user"], &event["reason"]),
        (&"alice".into(), &"no node \"nowhere\"".into())
    );
    let mut channel = jump(&handle, "web1", 22).await.unwrap();
    echoes(&mut channel, b"and the connection goes on").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_certificates_of_the_cluster_authenticate() {
    let bench = Bench::start().await;
    let (_, success) = sign_in(&bench, &Authority::new().person("alice")).await;
    assert!(!success, "another cluster's");
    let mut handle = connect(&bench).await;
    assert!(!within(handle.authenticate_none("alice")).await.unwrap().success());
    let key = PrivateKeyWithHashAlg::new(
        Arc::new(bench.authority.person("alice").keys.ssh().clone()),
        None,
    );
    assert!(!within(handle.authenticate_publickey("alice", key)).await.unwrap().success());
    bench.push(2, vec![lock("alice")]).await;
    let (_, success) = sign_in(&bench, &bench.authority.person("alice")).await;
    assert!(!success, "locked");
    let event = bench.event("auth").await;
    assert_eq!((&event["code"], &event["user"]), (&"T3007W".into(), &"alice".into()));
    assert_eq!(event["error"], "locked: user alice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_cuts_channels() {
    let bench = Bench::start().await;
    let _node = bench.node("web1", "dev").await;
    let (handle, _) = sign_in(&bench, &bench.authority.person("alice")).await;
    let mut channel = jump(&handle, "web1", 22).await.unwrap();
    echoes(&mut channel, b"before").await;
    bench.push(2, vec![lock("alice")]).await;
    let mut rest = Vec::new();
    drop(within(channel.read_to_end(&mut rest)).await);
    assert!(rest.is_empty());
    assert!(jump(&handle, "web1", 22).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_sign_in_is_let_go() {
    let limits = Limits { jump_login_within: Duration::from_millis(500), ..Limits::default() };
    let bench = Bench::with(limits, Inner::Plain).await;
    let handle = connect(&bench).await;
    within(async {
        while !handle.is_closed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let mut silent =
        tokio::net::TcpStream::connect(bench.proxy.jump_addr().unwrap()).await.unwrap();
    let mut rest = Vec::new();
    drop(within(silent.read_to_end(&mut rest)).await);
    assert!(rest.starts_with(b"SSH-2.0-postern"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_are_bounded() {
    let limits = Limits { jump_channels_max: 2, ..Limits::default() };
    let bench = Bench::with(limits, Inner::Plain).await;
    let _node = bench.node("web1", "dev").await;
    let (handle, _) = sign_in(&bench, &bench.authority.person("alice")).await;
    let _first = jump(&handle, "web1", 22).await.unwrap();
    let _second = jump(&handle, "web1", 22).await.unwrap();
    let third = jump(&handle, "web1", 22).await.err().unwrap();
    assert_eq!(third, ChannelOpenFailure::ResourceShortage);
}
