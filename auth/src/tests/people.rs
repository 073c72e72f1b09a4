//! Invites, sign-in, lock-out, what certificates say.

use pki::keys::KeyPairs;
use pki::{Identity, Verifier};
use proto::rpc::admin_client::AdminClient;
use proto::rpc::audit_client::AuditClient;
use proto::rpc::inventory_client::InventoryClient;
use proto::rpc::join_client::JoinClient;
use proto::rpc::sign_in_client::SignInClient;
use proto::rpc::{
    AcceptInviteRequest, AppendRequest, ListNodesRequest, OpenInviteRequest, PutResourceRequest,
    RenewRequest, ResetUserRequest, SequencedEvent, StatusRequest,
};
use proto::snapshot::Authorities;
use tonic::Code;

use super::{Cluster, PASSWORD, refused};

#[tokio::test]
async fn an_invite_is_opened_often_and_accepted_once() {
    let cluster = Cluster::start().await;
    let token = cluster.invite("alice", &["access"], &["alice"]).await;
    let mut sign_in = SignInClient::new(cluster.anonymous());
    let open = |token: &str| OpenInviteRequest { token: token.into() };
    let first = sign_in.open_invite(open(&token)).await.unwrap().into_inner();
    let again = sign_in.open_invite(open(&token)).await.unwrap().into_inner();
    assert_eq!(first, again);
    assert_eq!((first.user.as_str(), first.password_length_min), ("alice", 12));
    assert_eq!(
        first.otpauth_url,
        format!(
            "otpauth://totp/example.com:alice?secret={}&issuer=example.com&algorithm=SHA1&digits=6&period=30",
            first.totp_secret
        )
    );
    let accept = |password: &str, otp: String| AcceptInviteRequest {
        token: token.clone(),
        password: password.into(),
        otp,
    };
    let code = cluster.code(&first.totp_secret);
    let short = sign_in.accept_invite(accept("short", code.clone())).await;
    assert!(refused(short, Code::InvalidArgument).contains("at least 12"));
    let wrong = sign_in.accept_invite(accept(PASSWORD, "000000".into())).await;
    refused(wrong, Code::PermissionDenied);
    let user = sign_in.accept_invite(accept(PASSWORD, code.clone())).await.unwrap();
    assert_eq!(user.into_inner().user, "alice");
    refused(sign_in.accept_invite(accept(PASSWORD, code.clone())).await, Code::Unauthenticated);
    refused(sign_in.open_invite(open(&token)).await, Code::Unauthenticated);
    refused(sign_in.open_invite(open(&"0".repeat(32))).await, Code::Unauthenticated);

    let keys = KeyPairs::generate().unwrap();
    let replayed = cluster.try_login("alice", PASSWORD, &code, &keys).await;
    refused(replayed, Code::Unauthenticated);
    let events = cluster.events(&["user", "name", "error"]).await;
    assert_eq!(
        events,
        [
            "T1002I user.create local-admin alice",
            "T6000I reset_password_token.create local-admin alice",
            "T1006I mfa.add alice",
            "T1005I user.password_change alice",
            "T1000W user.login alice the one-time code was used before",
        ]
    );
}

#[tokio::test]
async fn an_invite_ends_with_its_time_with_a_reset_and_with_its_user() {
    let cluster = Cluster::start().await;
    let mut sign_in = SignInClient::new(cluster.anonymous());
    let open = |token: &str| OpenInviteRequest { token: token.into() };
    let first = cluster.invite("alice", &["access"], &[]).await;
    sign_in.open_invite(open(&first)).await.unwrap();
    cluster.advance(3600);
    refused(sign_in.open_invite(open(&first)).await, Code::Unauthenticated);
    let reset = ResetUserRequest { user: "alice".into(), invite_ttl_seconds: 0 };
    let second = cluster.admin().reset_user(reset.clone()).await.unwrap().into_inner().token;
    let third = cluster.admin().reset_user(reset).await.unwrap().into_inner().token;
    refused(sign_in.open_invite(open(&second)).await, Code::Unauthenticated);
    sign_in.open_invite(open(&third)).await.unwrap();
    let delete = proto::rpc::DeleteResourceRequest { kind: "user".into(), name: "alice".into() };
    cluster.admin().delete_resource(delete).await.unwrap();
    refused(sign_in.open_invite(open(&third)).await, Code::Unauthenticated);
    let long = ResetUserRequest { user: "alice".into(), invite_ttl_seconds: 48 * 3600 + 1 };
    refused(cluster.admin().reset_user(long).await, Code::NotFound);
}

#[tokio::test]
async fn a_sign_in_gives_certificates_that_say_who_it_is() {
    let cluster = Cluster::start().await;
    let secret = cluster.user("alice", &["access", "auditor"], &["alice", "web"]).await;
    let keys = KeyPairs::generate().unwrap();
    let code = cluster.code(&secret);
    let answer = cluster.try_login("alice", PASSWORD, &code, &keys).await.unwrap();
    assert_eq!(answer.logins, ["alice", "web"]);
    assert_eq!(answer.roles, ["access", "auditor"]);
    assert_eq!(answer.valid_until, cluster.now() + 12 * 3600);
    let trust = answer.trust.unwrap();
    let authorities = Authorities {
        host_tls: trust.host_tls_ca_pem,
        user_tls: trust.user_tls_ca_pem,
        host_ssh: trust.host_ssh_ca,
        user_ssh: trust.user_ssh_ca,
    };
    let verifier = Verifier::new(cluster.auth.cluster(), &authorities).unwrap();
    let chain = net::tls::certificates(&answer.tls_certificate_pem).unwrap();
    let Identity::User(identity) = verifier.tls_peer(&chain, cluster.now()).unwrap() else {
        panic!("a person is expected");
    };
    assert_eq!(identity.user().as_str(), "alice");
    assert_eq!(identity.valid_until(), answer.valid_until);
    assert!(answer.ssh_certificate.starts_with("ssh-ed25519-cert-v01@openssh.com "));
    let again = cluster.try_login("alice", PASSWORD, &code, &keys).await;
    refused(again, Code::Unauthenticated);
    let events = cluster.events(&["user", "cert_type"]).await;
    assert_eq!(
        events[4..],
        ["T1000I user.login alice", "TC000I cert.create alice user", "T1000W user.login alice",]
    );
}

#[tokio::test]
async fn without_logins_there_is_no_ssh_certificate() {
    let cluster = Cluster::start().await;
    let secret = cluster.user("eve", &["editor"], &[]).await;
    let keys = KeyPairs::generate().unwrap();
    let answer = cluster.try_login("eve", PASSWORD, &cluster.code(&secret), &keys).await.unwrap();
    assert_eq!(answer.ssh_certificate, "");
    assert!(answer.logins.is_empty());
    assert!(!answer.tls_certificate_pem.is_empty());
}

#[tokio::test]
async fn all_refusals_read_the_same_and_five_lock_the_name() {
    let cluster = Cluster::start().await;
    let secret = cluster.user("alice", &["access"], &["alice"]).await;
    cluster.invite("invited", &["access"], &[]).await;
    let keys = KeyPairs::generate().unwrap();
    let code = cluster.code(&secret);
    let mut messages = Vec::new();
    for (user, password, code) in [
        ("alice", "wrong password", code.as_str()),
        ("alice", PASSWORD, "123"),
        ("alice", "", ""),
        ("nobody", PASSWORD, code.as_str()),
        ("invited", PASSWORD, code.as_str()),
        ("../../etc", PASSWORD, code.as_str()),
        ("", "", ""),
    ] {
        let answer = cluster.try_login(user, password, code, &keys).await;
        messages.push(refused(answer, Code::Unauthenticated));
    }
    for name in ["alice", "nobody"] {
        for _ in 0..5 {
            let answer = cluster.try_login(name, "wrong password", &code, &keys).await;
            messages.push(refused(answer, Code::Unauthenticated));
        }
    }
    let locked = cluster.try_login("alice", PASSWORD, &cluster.code(&secret), &keys).await;
    messages.push(refused(locked, Code::Unauthenticated));
    messages.dedup();
    assert_eq!(messages, ["invalid user, password or one-time code"]);
    let reasons = cluster.events(&["user", "error"]).await;
    assert_eq!(
        reasons.last().unwrap(),
        "T1000W user.login alice locked out after too many failures"
    );
    cluster.advance(30 * 60);
    cluster.try_login("alice", PASSWORD, &cluster.code(&secret), &keys).await.unwrap();
}

#[tokio::test]
async fn of_two_who_bring_one_code_one_gets_in() {
    let cluster = Cluster::start().await;
    let secret = cluster.user("alice", &["access"], &["alice"]).await;
    let keys = KeyPairs::generate().unwrap();
    let code = cluster.code(&secret);
    let (one, two) = tokio::join!(
        cluster.try_login("alice", PASSWORD, &code, &keys),
        cluster.try_login("alice", PASSWORD, &code, &keys),
    );
    assert_eq!(usize::from(one.is_ok()) + usize::from(two.is_ok()), 1);
}

#[tokio::test]
async fn a_locked_user_gets_no_certificate() {
    let cluster = Cluster::start().await;
    let secret = cluster.user("alice", &["access"], &["alice"]).await;
    let lock = r#"{"kind":"lock","version":"v2","metadata":{"name":"stolen-laptop"},
        "spec":{"target":{"user":"alice"}}}"#;
    let request = PutResourceRequest { resource: lock.into(), overwrite: false };
    cluster.admin().put_resource(request).await.unwrap();
    let keys = KeyPairs::generate().unwrap();
    let answer = cluster.try_login("alice", PASSWORD, &cluster.code(&secret), &keys).await;
    refused(answer, Code::PermissionDenied);
}

#[tokio::test]
async fn a_user_is_no_administrator_and_no_machine() {
    let cluster = Cluster::start().await;
    let secret = cluster.user("alice", &["access"], &["alice"]).await;
    let channel = cluster.signed_in("alice", &secret).await;
    let mut admin = AdminClient::new(channel.clone());
    for kind in ["role", "user", "token", "lock", "node"] {
        let get = proto::rpc::GetResourcesRequest { kind: kind.into(), name: String::new() };
        refused(admin.get_resources(get).await, Code::PermissionDenied);
    }
    refused(admin.sign_user(proto::rpc::SignUserRequest::default()).await, Code::PermissionDenied);
    admin.status(StatusRequest {}).await.unwrap();
    let renew = JoinClient::new(channel.clone()).renew(RenewRequest::default()).await;
    refused(renew, Code::PermissionDenied);
    let nodes = InventoryClient::new(channel).list_nodes(ListNodesRequest {}).await.unwrap();
    assert!(nodes.into_inner().nodes.is_empty());
    let mut nobody = InventoryClient::new(cluster.anonymous());
    refused(nobody.list_nodes(ListNodesRequest {}).await, Code::Unauthenticated);
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_not_ignored() {
    let (cluster, other) = (Cluster::start().await, Cluster::start().await);
    let secret = other.user("alice", &["access"], &["alice"]).await;
    let keys = KeyPairs::generate().unwrap();
    let answer = other.try_login("alice", PASSWORD, &other.code(&secret), &keys).await.unwrap();
    let channel = cluster.with_certificate(&answer.tls_certificate_pem, &keys);
    let answer =
        SignInClient::new(channel).open_invite(OpenInviteRequest { token: "x".into() }).await;
    assert_ne!(answer.unwrap_err().code(), Code::Unauthenticated, "the connection itself fails");
}

#[tokio::test]
async fn a_stranger_is_asked_for_a_certificate_before_the_message_is_read() {
    let cluster = Cluster::start().await;
    let json = vec![b' '; net::auth_client::MESSAGE_BYTES_MAX];
    let events = vec![SequencedEvent { sequence: 1, json }];
    // Longer than any service takes: whoever read its beginning would answer with that.
    let append = AuditClient::new(cluster.anonymous()).append(AppendRequest { events }).await;
    refused(append, Code::Unauthenticated);
    let put = PutResourceRequest { resource: vec![b' '; 5 * 1024 * 1024], overwrite: false };
    let put = AdminClient::new(cluster.anonymous()).put_resource(put).await;
    refused(put, Code::Unauthenticated);
    let open = OpenInviteRequest { token: "0".repeat(17 * 1024) };
    let open = SignInClient::new(cluster.anonymous()).open_invite(open).await;
    refused(open, Code::OutOfRange);
}
