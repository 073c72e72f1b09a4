//! Joining, renewal, names, heartbeats, the policy snapshot.

use std::time::Duration;

use net::auth_client::Route;
use net::host::{Host, HostSettings};
use net::shutdown::Shutdown;
use pki::keys::KeyPairs;
use pki::{Identity, Verifier};
use proto::id::NodeName;
use proto::resource::HostRole;
use proto::rpc::admin_client::AdminClient;
use proto::rpc::inventory_client::InventoryClient;
use proto::rpc::join_client::JoinClient;
use proto::rpc::policy_client::PolicyClient;
use proto::rpc::{
    CaptureStatus, CreateTokenRequest, DeleteResourceRequest, HeartbeatRequest, ListCaptureRequest,
    ListNodesRequest, PutResourceRequest, RefusedProgram, RegisterRequest, RenewRequest,
    SignHostRequest, StatusRequest, WatchRequest,
};
use proto::snapshot::{Authorities, SIGNATURE_CONTEXT, Snapshot};
use tonic::Code;
use zeroize::Zeroizing;

use super::{Cluster, Machine, refused};

fn verifier(cluster: &Cluster, machine: &Machine) -> Verifier {
    let trust = machine.certificates.trust.clone().unwrap();
    let authorities = Authorities {
        host_tls: trust.host_tls_ca_pem,
        user_tls: trust.user_tls_ca_pem,
        host_ssh: trust.host_ssh_ca,
        user_ssh: trust.user_ssh_ca,
    };
    Verifier::new(cluster.auth.cluster(), &authorities).unwrap()
}

fn renewal() -> RenewRequest {
    let keys = KeyPairs::generate().unwrap();
    RenewRequest {
        ssh_public_key: keys.ssh_public_line(),
        tls_public_key: keys.tls_spki(),
        principals: Vec::new(),
    }
}

#[tokio::test]
async fn a_machine_joins_and_renews_as_itself() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let renewed = JoinClient::new(machine.channel.clone()).renew(renewal()).await.unwrap();
    let renewed = renewed.into_inner();
    assert_eq!(renewed.host_id, machine.certificates.host_id);
    assert_eq!(renewed.valid_until, cluster.now() + 7 * 24 * 3600);
    let chain = net::tls::certificates(&renewed.tls_certificate_pem).unwrap();
    let Identity::Host(host) =
        verifier(&cluster, &machine).tls_peer(&chain, cluster.now()).unwrap()
    else {
        panic!("a machine is expected");
    };
    assert_eq!(host.nodename().as_str(), "web1");
    assert_eq!(host.roles(), [HostRole::Node]);
    let events = cluster.events(&["node_name", "role", "method", "cert_type"]).await;
    assert_eq!(
        events,
        [
            "TJT00I join_token.create",
            "TJ002I instance.join web1 node token",
            "TC000I cert.create host",
            "TC000I cert.create host",
        ]
    );
}

#[tokio::test]
async fn the_roles_of_one_process_join_by_the_hosts_own_code() {
    let cluster = Cluster::start().await;
    let token = cluster.auth.local_join_token(HostRole::Proxy).await.unwrap();
    let settings = |token: Zeroizing<String>, dir: &str| HostSettings {
        dir: cluster.dir.path().join(dir),
        role: HostRole::Proxy,
        nodename: NodeName::parse("box").unwrap(),
        token: Some(token),
        route: Route::Direct(cluster.auth.local_addr().to_string()),
        ca_pin: Some(cluster.auth.ca_pin().to_owned()),
        principals: vec!["localhost".into(), "127.0.0.1".into(), "box".into()],
    };
    let shutdown = Shutdown::new();
    let host = Host::start(settings(token.clone(), "proxy"), shutdown.clone()).await.unwrap();
    assert_eq!(host.credentials().cluster, *cluster.auth.cluster());
    refused(AdminClient::new(host.auth()).status(StatusRequest {}).await, Code::PermissionDenied);
    let again = Host::start(settings(token, "other"), shutdown.clone()).await;
    assert!(again.is_err(), "the token was good once");
    shutdown.stop();
}

#[tokio::test]
async fn a_token_is_good_for_its_roles_and_its_time() {
    let cluster = Cluster::start().await;
    let token = cluster.token(&["node"]).await;
    for (value, role, code) in [
        (token.as_str(), "proxy", Code::Unauthenticated),
        (token.as_str(), "auth", Code::InvalidArgument),
        ("0123456789abcdef0123456789abcdef", "node", Code::Unauthenticated),
        ("", "node", Code::Unauthenticated),
    ] {
        refused(cluster.try_join(value, role, "web1", &[]).await, code);
    }
    cluster.try_join(&token, "node", "web1", &[]).await.unwrap();
    cluster.try_join(&token, "node", "web2", &[]).await.unwrap();
    cluster.advance(3600);
    refused(cluster.try_join(&token, "node", "web3", &[]).await, Code::Unauthenticated);
    let events = cluster.events(&["node_name", "role"]).await;
    assert!(events.contains(&"TJ002E instance.join web3 node".to_owned()), "{events:?}");
    let events = cluster.events(&["name", "error"]).await.join("\n");
    assert!(!events.contains(&token), "events tell no tokens");
}

#[tokio::test]
async fn names_of_others_and_of_services_are_refused() {
    let cluster = Cluster::start().await;
    let token = cluster.token(&["node", "proxy"]).await;
    cluster.try_join(&token, "node", "db1", &[]).await.unwrap();
    for (role, nodename, principals, code) in [
        ("node", "auth", &[][..], Code::InvalidArgument),
        ("node", "AUTH", &[], Code::InvalidArgument),
        ("node", "proxy", &[], Code::InvalidArgument),
        ("node", "kube.example.com", &[], Code::InvalidArgument),
        ("node", "x/y", &[], Code::InvalidArgument),
        ("node", "db1", &[], Code::AlreadyExists),
        ("node", "DB1", &[], Code::AlreadyExists),
        ("node", "web1", &["other"], Code::InvalidArgument),
        ("node", "0f0e0d0c-0b0a-4908-8706-050403020100", &[], Code::InvalidArgument),
        ("proxy", "edge", &["db1.example.com"], Code::AlreadyExists),
        ("proxy", "edge", &["auth.example.com"], Code::InvalidArgument),
        ("proxy", "edge", &["auth.postern.local"], Code::InvalidArgument),
        ("proxy", "edge", &["*.example.com"], Code::InvalidArgument),
    ] {
        let answer = cluster.try_join(&token, role, nodename, principals).await;
        let message = refused(answer, code);
        assert!(!message.is_empty(), "{nodename}");
    }
    let proxy = cluster.try_join(&token, "proxy", "edge", &["access.example.com"]).await.unwrap();
    // A stolen proxy cannot become a node by renewing.
    let stolen = RenewRequest { principals: vec!["db1".into()], ..renewal() };
    refused(JoinClient::new(proxy.channel).renew(stolen).await, Code::AlreadyExists);
    let gone = DeleteResourceRequest { kind: "node".into(), name: "db1".into() };
    cluster.admin().delete_resource(gone).await.unwrap();
    cluster.try_join(&token, "node", "db1", &[]).await.unwrap();
}

#[tokio::test]
async fn nodes_say_what_their_kernels_tell() {
    let cluster = Cluster::start().await;
    let capture = CaptureStatus {
        tier: "B".into(),
        refused: vec![RefusedProgram { name: "task_alloc".into(), reason: "no LSM".into() }],
        lost: 3,
        ..CaptureStatus::default()
    };
    let beat = |nodename: &str, capture| HeartbeatRequest {
        role: "node".into(),
        nodename: nodename.into(),
        capture,
        ..HeartbeatRequest::default()
    };
    let told = cluster.join(HostRole::Node, "web1").await;
    let mut told = InventoryClient::new(told.channel);
    told.heartbeat(beat("web1", Some(capture.clone()))).await.unwrap();
    let silent = cluster.join(HostRole::Node, "web2").await;
    InventoryClient::new(silent.channel).heartbeat(beat("web2", None)).await.unwrap();
    let secret = cluster.user("eve", &["editor"], &[]).await;
    let mut eve = InventoryClient::new(cluster.signed_in("eve", &secret).await);
    let ask = |node: &str| ListCaptureRequest { node: node.into(), page: String::new() };
    let all = eve.list_capture(ask("")).await.unwrap().into_inner();
    assert_eq!((all.nodes.len(), all.next.as_str()), (2, ""));
    let one = eve.list_capture(ask("WEB1")).await.unwrap().into_inner().nodes;
    assert_eq!(one.len(), 1);
    assert_eq!((one[0].nodename.as_str(), &one[0].capture), ("web1", &Some(capture.clone())));
    let silent = eve.list_capture(ask("web2")).await.unwrap().into_inner().nodes;
    assert_eq!(silent[0].capture, None);
    assert!(eve.list_capture(ask("web3")).await.unwrap().into_inner().nodes.is_empty());

    let program = RefusedProgram { name: "n".repeat(65), reason: String::new() };
    let long = CaptureStatus { refused: vec![program], ..capture };
    refused(told.heartbeat(beat("web1", Some(long))).await, Code::InvalidArgument);
    refused(told.list_capture(ask("")).await, Code::PermissionDenied);
    let secret = cluster.user("alice", &["access"], &["alice"]).await;
    let mut alice = InventoryClient::new(cluster.signed_in("alice", &secret).await);
    refused(alice.list_capture(ask("")).await, Code::PermissionDenied);
}

#[tokio::test]
async fn heartbeats_make_a_list_that_forgets() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let mut inventory = InventoryClient::new(machine.channel.clone());
    let beat = HeartbeatRequest {
        role: "node".into(),
        nodename: "web1".into(),
        labels: [("env".to_owned(), "prod".to_owned())].into(),
        version: "0.1.0".into(),
        policy_revision: 1,
        address: String::new(),
        capture: None,
    };
    inventory.heartbeat(beat.clone()).await.unwrap();
    let as_proxy = HeartbeatRequest { role: "proxy".into(), ..beat.clone() };
    refused(inventory.heartbeat(as_proxy).await, Code::PermissionDenied);
    let as_other = HeartbeatRequest { nodename: "db1".into(), ..beat.clone() };
    refused(inventory.heartbeat(as_other).await, Code::PermissionDenied);
    refused(inventory.list_nodes(ListNodesRequest {}).await, Code::PermissionDenied);

    let secret = cluster.user("alice", &["access"], &["alice"]).await;
    let alice = cluster.signed_in("alice", &secret).await;
    let nodes = InventoryClient::new(alice).list_nodes(ListNodesRequest {}).await.unwrap();
    let nodes = nodes.into_inner().nodes;
    assert_eq!((nodes[0].nodename.as_str(), &nodes[0].logins), ("web1", &vec!["alice".into()]));
    let secret = cluster.user("bob", &["auditor"], &["bob"]).await;
    let bob = cluster.signed_in("bob", &secret).await;
    let none = InventoryClient::new(bob).list_nodes(ListNodesRequest {}).await.unwrap();
    assert!(none.into_inner().nodes.is_empty(), "no role of his allows a node");

    let cluster = cluster.restart().await;
    let local = net::auth_client::socket_channel(cluster.auth.socket_path().to_owned());
    let mut local = InventoryClient::new(local);
    let count = async |client: &mut InventoryClient<_>| {
        client.list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes.len()
    };
    assert_eq!(count(&mut local).await, 1, "known after a restart");
    cluster.advance(600);
    assert_eq!(count(&mut local).await, 0);
}

#[tokio::test]
async fn the_policy_is_pushed_signed_and_only_forward() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let verifier = verifier(&cluster, &machine);
    let mut policy = PolicyClient::new(machine.channel.clone());
    let mut stream = policy.watch(WatchRequest { known_revision: 0 }).await.unwrap().into_inner();
    let first = read(&verifier, stream.message().await.unwrap().unwrap());
    let names = |snapshot: &Snapshot| -> Vec<String> {
        snapshot.roles.iter().map(|role| role.metadata.name.clone()).collect()
    };
    assert_eq!(names(&first), ["access", "auditor", "editor"]);
    let role = r#"{"kind":"role","version":"v7","metadata":{"name":"dba"},"spec":{}}"#;
    let put = PutResourceRequest { resource: role.into(), overwrite: false };
    cluster.admin().put_resource(put).await.unwrap();
    let second = read(&verifier, stream.message().await.unwrap().unwrap());
    assert_eq!(names(&second), ["access", "auditor", "dba", "editor"]);
    assert!(second.revision > first.revision);

    // A lock that expires: nobody changes anything, and yet there is a new snapshot.
    let end = time::OffsetDateTime::from_unix_timestamp(cluster.now() + 60).unwrap();
    let end = end.format(&time::format_description::well_known::Rfc3339).unwrap();
    let lock = format!(
        r#"{{"kind":"lock","version":"v2","metadata":{{"name":"l","expires":"{end}"}},
        "spec":{{"target":{{"login":"root"}}}}}}"#
    );
    let put = PutResourceRequest { resource: lock.into(), overwrite: false };
    cluster.admin().put_resource(put).await.unwrap();
    let third = read(&verifier, stream.message().await.unwrap().unwrap());
    assert_eq!(third.locks.len(), 1);
    cluster.advance(60);
    let fourth = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
    let fourth = read(&verifier, fourth.unwrap().unwrap().unwrap());
    assert!(fourth.locks.is_empty() && fourth.revision > third.revision);

    refused(
        PolicyClient::new(cluster.anonymous()).watch(WatchRequest { known_revision: 0 }).await,
        Code::Unauthenticated,
    );
}

fn read(verifier: &Verifier, signed: proto::rpc::SignedSnapshot) -> Snapshot {
    verifier
        .signed_by_host_authority(SIGNATURE_CONTEXT, &signed.payload, &signed.signature)
        .unwrap();
    serde_json::from_slice(&signed.payload).unwrap()
}

#[tokio::test]
async fn the_keys_of_another_machine_do_not_give_its_name() {
    let cluster = Cluster::start().await;
    let token = cluster.token(&["node"]).await;
    let (theirs, mine) = (KeyPairs::generate().unwrap(), KeyPairs::generate().unwrap());
    let request = |ssh: &KeyPairs, tls: &KeyPairs| RegisterRequest {
        token: token.clone(),
        role: "node".into(),
        nodename: "web1".into(),
        ssh_public_key: ssh.ssh_public_line(),
        tls_public_key: tls.tls_spki(),
        principals: Vec::new(),
    };
    let mut join = JoinClient::new(cluster.anonymous());
    join.register(request(&theirs, &theirs)).await.unwrap();
    // An SSH certificate for a key of mine with their name would let me pass for them.
    refused(join.register(request(&mine, &theirs)).await, Code::AlreadyExists);
    refused(join.register(request(&theirs, &mine)).await, Code::AlreadyExists);
    join.register(request(&theirs, &theirs)).await.unwrap();
}

#[tokio::test]
async fn without_a_proxy_of_its_own_auth_shows_one_that_reports() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_without_proxy(dir).await;
    let shown = async || {
        let request = CreateTokenRequest { roles: vec!["node".into()], ..Default::default() };
        cluster.admin().create_token(request).await.unwrap().into_inner().proxy_address
    };
    assert_eq!(shown().await, "");
    for (nodename, address) in [("a", "x;id:1"), ("b", "proxy.example.com:443"), ("c", "late:1")] {
        let proxy = cluster.join(HostRole::Proxy, nodename).await;
        let beat = HeartbeatRequest {
            role: "proxy".into(),
            nodename: nodename.into(),
            address: address.into(),
            ..HeartbeatRequest::default()
        };
        InventoryClient::new(proxy.channel).heartbeat(beat).await.unwrap();
    }
    assert_eq!(shown().await, "proxy.example.com:443");
    let status = cluster.admin().status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.proxy_address, "proxy.example.com:443");
    cluster.advance(600);
    assert_eq!(shown().await, "");
}

#[tokio::test]
async fn a_locked_machine_is_not_renewed() {
    let cluster = Cluster::start().await;
    let machine = cluster.join(HostRole::Node, "web1").await;
    let lock = format!(
        r#"{{"kind":"lock","version":"v2","metadata":{{"name":"l"}},"spec":{{"target":{{"node":"{}"}}}}}}"#,
        machine.certificates.host_id
    );
    let put = PutResourceRequest { resource: lock.into(), overwrite: false };
    cluster.admin().put_resource(put).await.unwrap();
    let renewed = JoinClient::new(machine.channel).renew(renewal()).await;
    refused(renewed, Code::PermissionDenied);
}

#[tokio::test]
async fn hosts_are_signed_for_the_local_administrator_only() {
    let cluster = Cluster::start().await;
    let keys = KeyPairs::generate().unwrap();
    let request = SignHostRequest {
        principals: vec!["legacy".into(), "10.0.0.7".into()],
        ssh_public_key: keys.ssh_public_line(),
        tls_public_key: keys.tls_spki(),
        ttl_seconds: 0,
    };
    let signed = cluster.admin().sign_host(request.clone()).await.unwrap().into_inner();
    assert!(signed.ssh_certificate.starts_with("ssh-ed25519-cert-v01@openssh.com "));
    let secret = cluster.user("eve", &["editor"], &[]).await;
    let eve = cluster.signed_in("eve", &secret).await;
    refused(AdminClient::new(eve).sign_host(request).await, Code::PermissionDenied);
}
