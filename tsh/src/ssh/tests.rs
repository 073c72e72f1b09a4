//! The client against an SSH server in the same process, with real certificates: whom it believes, and what it tells.

use std::sync::Arc;

use pki::authority::{AuthorityKind, SshAuthority, TlsAuthority, Validity};
use pki::claims::{HostClaims, UserClaims};
use pki::keys::KeyPairs;
use proto::id::HostId;
use proto::preamble::Inner;
use proto::resource::HostRole;
use proto::rpc::TrustBundle;
use russh::keys::{Certificate, PrivateKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Session};
use russh::{Channel, ChannelId};

use crate::home::{Home, Login};
use crate::profile::{Profile, ProxyTrust};
use crate::signed_in::SignedIn;
use crate::ssh::link::{Link, LinkSettings, SshError};
use crate::ssh::session::{self, SessionSettings};
use crate::target::{Host, Target};
use cli::failure::Failure;

/// A host that lets `root` in and ends every command with 7.
struct Node;

impl server::Handler for Node {
    type Error = russh::Error;

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        _certificate: &Certificate,
    ) -> Result<Auth, russh::Error> {
        Ok(if user == "root" { Auth::Accept } else { Auth::reject() })
    }
    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _user: &str,
        _submethods: &str,
        _response: Option<server::Response<'a>>,
    ) -> Result<Auth, russh::Error> {
        let instructions = "access denied: closed\x1b[2J for today".into();
        Ok(Auth::Partial { name: "".into(), instructions, prompts: Vec::new().into() })
    }
    async fn channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }
    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        match command {
            b"refuse" => session.channel_failure(channel)?,
            b"vanish" => {
                session.disconnect(russh::Disconnect::ByApplication, "locked\x1b[2J", "")?
            }
            _ => {
                session.channel_success(channel)?;
                session.exit_status_request(channel, 7)?;
                session.eof(channel)?;
                session.close(channel)?;
            }
        }
        Ok(())
    }
}

/// A cluster's SSH authorities.
struct Cluster {
    hosts: SshAuthority,
    users: SshAuthority,
}

impl Cluster {
    fn new() -> Self {
        let make = |kind| SshAuthority::load(kind, &SshAuthority::generate(kind).unwrap()).unwrap();
        Self { hosts: make(AuthorityKind::Host), users: make(AuthorityKind::User) }
    }

    /// A host's key and its certificate under `nodename`.
    fn host(&self, nodename: &str) -> (PrivateKey, Certificate) {
        let keys = KeyPairs::generate().unwrap();
        let claims = HostClaims {
            cluster: "demo".parse().unwrap(),
            host_id: HostId::from_random([1; 16]),
            nodename: nodename.parse().unwrap(),
            roles: vec![HostRole::Node],
        };
        let certificate =
            self.hosts.issue_host(&claims, &[], &keys.ssh_public_line(), validity()).unwrap();
        (keys.ssh().clone(), Certificate::from_openssh(&certificate).unwrap())
    }

    /// What `tsh login` leaves, loaded.
    fn signed_in(&self, home: &Home) -> SignedIn {
        let keys = KeyPairs::generate().unwrap();
        let claims = UserClaims {
            cluster: "demo".parse().unwrap(),
            user: "alice".parse().unwrap(),
            roles: vec![],
            traits: Default::default(),
            logins: vec!["root".parse().unwrap()],
        };
        let ssh_certificate =
            self.users.issue_user(&claims, &keys.ssh_public_line(), validity()).unwrap();
        let cluster = "demo".parse().unwrap();
        let (_, tls) =
            TlsAuthority::generate(AuthorityKind::Host, &cluster, net::unix_now()).unwrap();
        let profile = Profile {
            web_proxy_addr: "p:3080".into(),
            ssh_proxy_addr: String::new(),
            user: "alice".into(),
            cluster: "demo".into(),
            tls_routing_enabled: true,
            auth_connector: "local".into(),
            proxy_trust: ProxyTrust::HostAuthority,
            roles: vec![],
            traits: Default::default(),
        };
        let login = Login {
            proxy_host: "p",
            profile: &profile,
            keys: &keys,
            ssh_certificate: &ssh_certificate,
            tls_certificate_pem: "",
            trust: &TrustBundle {
                host_tls_ca_pem: vec![tls],
                host_ssh_ca: vec![self.hosts.public_key().to_openssh().unwrap()],
                ..TrustBundle::default()
            },
        };
        home.save(&home.lock().unwrap(), &login).unwrap();
        SignedIn::load(home, None).unwrap()
    }
}

fn validity() -> Validity {
    Validity { not_before: net::unix_now() - 60, not_after: net::unix_now() + 600 }
}

/// Links as `login` to a host that shows this key and certificate, expecting `web1`.
async fn link(
    cluster: &Cluster,
    key: PrivateKey,
    certificate: Option<Certificate>,
    login: &str,
) -> Result<Link, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let signed_in = cluster.signed_in(&Home::at(dir.path()));
    let config = Arc::new(server::Config {
        keys: vec![key],
        certificates: certificate.into_iter().collect(),
        auth_rejection_time: std::time::Duration::ZERO,
        ..server::Config::default()
    });
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        if let Ok(running) = server::run_stream(config, far, Node).await {
            drop(running.await);
        }
    });
    let target = Target {
        login: login.parse().unwrap(),
        host: Host::parse("web1.demo", &signed_in.cluster).unwrap(),
    };
    let settings = LinkSettings { inner: Inner::Plain, window_bytes: 1 << 20, agent: None };
    Link::over(near, &signed_in, &target, settings).await
}

fn why(result: Result<Link, Failure>) -> String {
    result.err().map(|failure| failure.text()).unwrap_or_else(|| "let in".into())
}

#[tokio::test]
async fn a_host_is_believed_by_its_certificate_and_name_only() {
    let cluster = Cluster::new();
    let (key, certificate) = cluster.host("web1");
    assert_eq!(why(link(&cluster, key.clone(), Some(certificate), "root").await), "let in");
    let bare = why(link(&cluster, key, None, "root").await);
    assert!(bare.contains("bare key"), "{bare}");
    let (key, certificate) = cluster.host("web2");
    let other_name = why(link(&cluster, key, Some(certificate), "root").await);
    assert!(other_name.contains("did not prove that it is web1"), "{other_name}");
    let (key, certificate) = Cluster::new().host("web1");
    let other_authority = why(link(&cluster, key, Some(certificate), "root").await);
    assert!(other_authority.contains("did not prove that it is web1"), "{other_authority}");
}

#[tokio::test]
async fn a_login_that_is_denied_is_told_with_those_that_are_not() {
    let cluster = Cluster::new();
    let (key, certificate) = cluster.host("web1");
    let denied = why(link(&cluster, key, Some(certificate), "admin").await);
    assert!(denied.contains("access denied to web1 as admin: closed[2J for today"), "{denied}");
    assert!(denied.contains("Your logins are root."), "{denied}");
}

#[tokio::test]
async fn commands_end_with_their_status_or_a_reason() {
    let cluster = Cluster::new();
    let settings = |command: &str| SessionSettings {
        command: Some(command.into()),
        terminal: false,
        forward_agent: false,
    };
    let (key, certificate) = cluster.host("web1");
    let link = link(&cluster, key, Some(certificate), "root").await.unwrap();
    assert_eq!(session::run(&link, settings("true")).await.unwrap(), 7);
    let refused = session::run(&link, settings("refuse")).await.unwrap_err();
    assert!(refused.message().contains("refused"), "{}", refused.message());
    let vanished = session::run(&link, settings("vanish")).await.unwrap_err();
    assert!(vanished.message().contains("locked[2J"), "{}", vanished.message());
    link.until_ended().await.unwrap_err();
    link.close().await;
}

#[test]
fn a_lost_connection_is_told_in_words() {
    use std::io::{Error, ErrorKind};
    let text = |kind| SshError::from(russh::Error::IO(Error::new(kind, "early eof"))).to_string();
    assert_eq!(text(ErrorKind::UnexpectedEof), "the connection to the host was lost");
    assert_eq!(text(ErrorKind::ConnectionReset), "the connection to the host was lost");
    assert!(text(ErrorKind::Other).contains("early eof"));
}
