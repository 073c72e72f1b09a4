//! Who must not come in, what they read, and what is told of it.

use pki::authority::{AuthorityKind, SshAuthority, Validity};
use proto::event::Body;
use russh::keys::PrivateKeyWithHashAlg;

use super::fixture::{Cluster, Person, WAIT, hour, listen, own_login, refusal};
use crate::ssh::auth::{NO_CERTIFICATE, NOT_THIS_LOGIN};

const DENIED: &str = "access denied: your roles do not allow this here \
     (see `tsh status` for your roles and logins)";

#[tokio::test]
async fn a_locked_person_reads_a_neutral_sentence() {
    let cluster = Cluster::new("{}");
    cluster.lock(r#"{"user":"alice"}"#);
    let person = cluster.person(&[own_login()], hour(net::unix_now()));
    let mut handle = cluster.connect().await;
    assert!(!person.try_sign_in(&mut handle, own_login()).await.success());
    assert_eq!(refusal(&mut handle, own_login()).await, DENIED);
    let Body::SessionRejected(event) = cluster.audit.wait("session.rejected").await else {
        panic!()
    };
    assert_eq!((event.user.as_str(), event.login.as_str()), ("alice", own_login()));
    assert!(event.reason.contains("lock"), "{}", event.reason);
}

#[tokio::test]
async fn an_account_that_does_not_exist_reads_as_a_forbidden_one() {
    let cluster = Cluster::new("{}");
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let person = cluster.person(&["no-such-account"], hour(net::unix_now()));
    let mut handle = cluster.connect().await;
    assert!(!person.try_sign_in(&mut handle, "no-such-account").await.success());
    assert_eq!(refusal(&mut handle, "no-such-account").await, DENIED);
    let Body::SessionRejected(event) = cluster.audit.wait("session.rejected").await else {
        panic!()
    };
    assert_eq!(event.reason, "the node has no such account");
}

#[tokio::test]
async fn certificates_that_do_not_hold_are_told_apart_only_in_the_log() {
    let now = net::unix_now();
    let stranger = SshAuthority::generate(AuthorityKind::User).unwrap();
    let stranger = SshAuthority::load(AuthorityKind::User, &stranger).unwrap();
    let past = Validity { not_before: now - 7200, not_after: now - 3600 };
    let cluster = Cluster::new("{}");
    let cases = [
        (Person::signed_by(&stranger, &[own_login()], hour(now)), own_login(), "authority"),
        // Not even its login is told of when the certificate does not hold.
        (Person::signed_by(&stranger, &["somebody"], hour(now)), own_login(), "authority"),
        (cluster.person(&[own_login()], past), own_login(), "valid now"),
        (cluster.person(&[own_login()], hour(now)), "../etc", "form"),
    ];
    for (person, login, reason) in cases {
        let cluster_of_case = &cluster;
        let before = cluster_of_case.audit.events().len();
        let mut handle = cluster_of_case.connect().await;
        assert!(!person.try_sign_in(&mut handle, login).await.success(), "{reason}");
        assert_eq!(refusal(&mut handle, login).await, NO_CERTIFICATE);
        drop(handle);
        let events = loop {
            let events = cluster_of_case.audit.events();
            if events.len() > before {
                break events;
            }
            tokio::task::yield_now().await;
        };
        let Body::Auth(event) = &events[before].0 else { panic!("{events:?}") };
        assert!(event.outcome.error.contains(reason), "{event:?}");
        assert_eq!(event.login, login);
        assert!(!event.outcome.success);
    }
}

#[tokio::test]
async fn a_certificate_for_other_logins_reads_so_whether_the_account_exists_or_not() {
    let cluster = Cluster::new("{}");
    let person = cluster.person(&["somebody"], hour(net::unix_now()));
    for login in [own_login(), "no-such-account"] {
        let mut handle = cluster.connect().await;
        assert!(!person.try_sign_in(&mut handle, login).await.success());
        assert_eq!(refusal(&mut handle, login).await, NOT_THIS_LOGIN);
    }
    let Body::Auth(event) = cluster.audit.wait("auth").await else { panic!() };
    assert!(event.outcome.error.contains("not for"), "{event:?}");
}

#[tokio::test]
async fn a_bare_key_is_no_way_in() {
    let cluster = Cluster::new("{}");
    let keys = pki::keys::KeyPairs::generate().unwrap();
    let mut handle = cluster.connect().await;
    let key = PrivateKeyWithHashAlg::new(std::sync::Arc::new(keys.ssh().clone()), None);
    let result = handle.authenticate_publickey(own_login(), key).await.unwrap();
    assert!(!result.success());
    assert!(!handle.authenticate_none(own_login()).await.unwrap().success());
    assert!(!handle.authenticate_password(own_login(), "x").await.unwrap().success());
    assert_eq!(refusal(&mut handle, own_login()).await, NO_CERTIFICATE);
    drop(handle);
    let Body::Auth(event) = cluster.audit.wait("auth").await else { panic!() };
    assert_eq!(event.login, own_login());
}

#[tokio::test]
async fn nothing_starts_that_cannot_be_recorded() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    cluster.audit.fail(true);
    let marker = cluster.dir.path().join("ran");
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, format!("touch {}", marker.display())).await.unwrap();
    let said = listen(&mut channel).await;
    assert!(said.is_refusal() && said.error.contains("record"), "{said:?}");
    assert!(!marker.exists());
    let left = crate::recorder::note::all(cluster.node.recorder.dir()).unwrap();
    assert!(left.is_empty());
}

#[tokio::test]
async fn a_lock_refuses_new_sessions_of_an_open_connection() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    cluster.lock(r#"{"role":"dev"}"#);
    // Either the connection is cut first, or the session is refused: never does it start.
    if let Ok(mut channel) = handle.channel_open_session().await
        && channel.exec(true, "echo in").await.is_ok()
    {
        assert_eq!(listen(&mut channel).await.output, "");
    }
    assert!(!cluster.audit.names().contains(&"session.start"));
}

#[tokio::test]
async fn forwards_are_refused_where_roles_say_so() {
    let cluster = Cluster::new(r#"{"port_forwarding":false}"#);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let handle = cluster.sign_in().await;
    let opened = handle.channel_open_direct_tcpip("127.0.0.1", port.into(), "127.0.0.1", 1).await;
    assert!(opened.is_err());
    let Body::Port(event) = cluster.audit.wait("port").await else { panic!() };
    assert!(!event.outcome.success);
    assert!(handle.tcpip_forward("127.0.0.1", 0).await.is_err(), "-R");
}

#[tokio::test]
async fn forwards_keep_to_the_rules_that_sessions_have() {
    let rules =
        |mode| format!(r#"{{"capture_rules":{{"mode":"{mode}","deny_connect":["127.0.0.0/8"]}}}}"#);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for (mode, opens) in [("deny", false), ("audit", true)] {
        let cluster = Cluster::new(&rules(mode));
        let handle = cluster.sign_in().await;
        for host in ["127.0.0.1", "localhost", "::ffff:127.0.0.1", "0.0.0.0"] {
            let opened = handle.channel_open_direct_tcpip(host, port.into(), "127.0.0.1", 1).await;
            assert_eq!(opened.is_ok(), opens, "{mode} {host}");
        }
        let Body::Port(event) = cluster.audit.wait("port").await else { panic!() };
        assert_eq!(event.outcome.error.contains("127.0.0.0/8"), !opens, "{event:?}");
    }
}

#[tokio::test]
async fn a_session_whose_rules_cannot_be_kept_is_refused() {
    for (mode, refused) in [("deny", true), ("kill", true), ("audit", false)] {
        let options = format!(r#"{{"capture_rules":{{"mode":"{mode}","contain":true}}}}"#);
        let cluster = Cluster::new(&options);
        let handle = cluster.sign_in().await;
        let mut channel = handle.channel_open_session().await.unwrap();
        channel.exec(true, "echo ran").await.unwrap();
        let said = listen(&mut channel).await;
        assert_eq!(said.output.contains("ran"), !refused, "{said:?}");
        assert_eq!(said.error.contains("capture_rules"), refused, "{said:?}");
    }
}

#[tokio::test]
async fn nothing_more_is_forwarded_once_the_certificate_has_ended() {
    let cluster = Cluster::new("{}");
    let now = net::unix_now();
    let person =
        cluster.person(&[own_login()], Validity { not_before: now - 60, not_after: now + 2 });
    let mut handle = cluster.connect().await;
    assert!(person.try_sign_in(&mut handle, own_login()).await.success());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let open =
        async || handle.channel_open_direct_tcpip("127.0.0.1", port.into(), "127.0.0.1", 1).await;
    let first = open().await.unwrap();
    while net::unix_now() <= now + 2 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(open().await.is_err());
    drop(first);
    let refused = cluster.audit.events().into_iter().any(|(body, _)| match body {
        Body::Port(port) => port.outcome.error.contains("expired"),
        _ => false,
    });
    assert!(refused, "{:?}", cluster.audit.events());
}

#[tokio::test]
async fn a_command_that_no_record_can_hold_is_refused() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    // Six bytes each in JSON.
    channel.exec(true, format!("echo ran; : {}", "\x01".repeat(30_000))).await.unwrap();
    let said = listen(&mut channel).await;
    assert!(said.is_refusal() && said.error.contains("too long"), "{said:?}");
    assert_eq!(cluster.audit.names(), ["session.rejected"]);
}

#[tokio::test]
async fn a_forward_to_nowhere_fails_and_is_told() {
    let cluster = Cluster::new("{}");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let handle = cluster.sign_in().await;
    let opened = handle.channel_open_direct_tcpip("127.0.0.1", port.into(), "127.0.0.1", 1).await;
    assert!(opened.is_err());
    let Body::Port(event) = cluster.audit.wait("port").await else { panic!() };
    assert_eq!((event.addr, event.outcome.success), (format!("127.0.0.1:{port}"), false));
}

#[tokio::test]
async fn unknown_subsystems_and_x11_are_refused() {
    let cluster = Cluster::new("{}");
    let handle = cluster.sign_in().await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "netconf").await.unwrap();
    assert!(listen(&mut channel).await.refused);
    let body = cluster.audit.wait("subsystem").await;
    assert_eq!(body.code(), "T3001E");
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0).await.unwrap();
    let answer = tokio::time::timeout(WAIT, channel.wait()).await.unwrap();
    assert!(matches!(answer, Some(russh::ChannelMsg::Failure)), "{answer:?}");
    assert!(!cluster.audit.names().contains(&"session.start"));
}
