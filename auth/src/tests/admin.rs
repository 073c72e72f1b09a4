//! Resources, and auth's own start.

use net::shutdown::Shutdown;
use proto::id::ClusterName;
use proto::rpc::admin_client::AdminClient;
use proto::rpc::{
    CreateTokenRequest, CreateUserRequest, DeleteResourceRequest, GetResourcesRequest,
    PutResourceRequest, StatusRequest,
};
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use super::{Cluster, config, owned, refused};
use crate::clock::Clock;
use crate::start::{AuthError, start_at};

async fn put(
    admin: &mut AdminClient<Channel>,
    resource: &Value,
    overwrite: bool,
) -> Result<bool, tonic::Status> {
    let request = PutResourceRequest { resource: resource.to_string().into_bytes(), overwrite };
    Ok(admin.put_resource(request).await?.into_inner().created)
}

async fn get(admin: &mut AdminClient<Channel>, kind: &str, name: &str) -> Vec<Value> {
    let request = GetResourcesRequest { kind: kind.into(), name: name.into() };
    let found = admin.get_resources(request).await.unwrap().into_inner().resources;
    found.iter().map(|json| serde_json::from_slice(json).unwrap()).collect()
}

fn role(name: &str) -> Value {
    json!({"kind": "role", "version": "v7", "metadata": {"name": name}, "spec": {}})
}

#[tokio::test]
async fn roles_are_made_replaced_and_removed() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    assert!(put(&mut admin, &role("dba"), false).await.unwrap());
    assert!(
        refused(put(&mut admin, &role("dba"), false).await, Code::AlreadyExists)
            .contains("exists already")
    );
    let held = get(&mut admin, "roles", "dba").await.remove(0);
    assert!(!put(&mut admin, &held, true).await.unwrap());
    refused(put(&mut admin, &held, true).await, Code::Aborted);
    assert_eq!(get(&mut admin, "role", "").await.len(), 4);

    cluster.invite("alice", &["dba"], &[]).await;
    let delete = DeleteResourceRequest { kind: "role".into(), name: "dba".into() };
    let held = refused(admin.delete_resource(delete.clone()).await, Code::AlreadyExists);
    assert!(held.contains("alice"), "{held}");
    let user = DeleteResourceRequest { kind: "user".into(), name: "alice".into() };
    admin.delete_resource(user).await.unwrap();
    admin.delete_resource(delete.clone()).await.unwrap();
    refused(admin.delete_resource(delete).await, Code::NotFound);
    let events = cluster.events(&["user", "name"]).await;
    assert_eq!(
        events,
        [
            "T9000I role.created local-admin dba",
            "T9002I role.updated local-admin dba",
            "T9002I role.updated local-admin dba",
            "T1002I user.create local-admin alice",
            "T6000I reset_password_token.create local-admin alice",
            "T1004I user.delete local-admin alice",
            "T9001I role.deleted local-admin dba",
        ]
    );
}

#[tokio::test]
async fn what_is_not_understood_is_refused_with_a_reason() {
    let cluster = Cluster::start().await;
    let mut admin = cluster.admin();
    let mut check = async |resource: Value, expect: &str| {
        let message = refused(put(&mut admin, &resource, true).await, Code::InvalidArgument);
        assert!(message.contains(expect), "{resource}: {message}");
    };
    let meta = json!({"name": "x"});
    check(json!({"metadata": meta, "spec": {}}), "needs a kind").await;
    check(json!({"kind": "app", "version": "v7", "metadata": meta, "spec": {}}), "kinds").await;
    check(json!({"kind": "role", "version": "v8", "metadata": meta, "spec": {}}), "v7").await;
    let option = json!({"options": {"pin_source_ip": true}});
    check(
        json!({"kind": "role", "version": "v7", "metadata": meta, "spec": option}),
        "pin_source_ip",
    )
    .await;
    check(role("a/b"), "no name").await;
    let target = json!({"target": {"user": "a", "role": "b"}});
    check(json!({"kind": "lock", "version": "v2", "metadata": meta, "spec": target}), "").await;
    let target = json!({"target": {"node": "cafe"}});
    check(json!({"kind": "lock", "version": "v2", "metadata": meta, "spec": target}), "whole id")
        .await;
    let roles = json!({"roles": ["no-such-role"]});
    check(
        json!({"kind": "user", "version": "v2", "metadata": meta, "spec": roles}),
        "no-such-role",
    )
    .await;
    let token = json!({"roles": ["node"]});
    check(json!({"kind": "token", "version": "v2", "metadata": meta, "spec": token}), "16").await;
    check(json!({"kind": "node", "version": "v2", "metadata": meta, "spec": {}}), "register").await;
}

#[tokio::test]
async fn users_show_their_state_and_keep_their_secrets() {
    let cluster = Cluster::start().await;
    cluster.invite("bob", &["access"], &["bob"]).await;
    cluster.user("alice", &["access"], &["alice"]).await;
    let mut admin = cluster.admin();
    let users = get(&mut admin, "user", "").await;
    let enrolled: Vec<_> = users
        .iter()
        .map(|user| {
            (user["metadata"]["name"].as_str().unwrap(), &user["spec"]["status"]["enrolled"])
        })
        .collect();
    assert_eq!(enrolled, [("alice", &json!(true)), ("bob", &json!(false))]);
    let text = format!("{users:?}");
    assert!(!text.contains("argon2") && !text.contains("secret") && !text.contains("invite"));
    let mut changed = users[0].clone();
    changed["spec"]["roles"] = json!(["access", "auditor"]);
    assert!(!put(&mut admin, &changed, true).await.unwrap());
    let again = get(&mut admin, "user", "alice").await.remove(0);
    assert_eq!(again["spec"]["roles"], json!(["access", "auditor"]));
    assert_eq!(again["spec"]["status"]["enrolled"], json!(true));
    let twice = CreateUserRequest { user: "alice".into(), ..CreateUserRequest::default() };
    refused(admin.create_user(twice).await, Code::AlreadyExists);
}

#[tokio::test]
async fn an_editor_administers_and_is_named_in_events() {
    let cluster = Cluster::start().await;
    let secret = cluster.user("eve", &["editor"], &[]).await;
    let mut admin = AdminClient::new(cluster.signed_in("eve", &secret).await);
    put(&mut admin, &role("dba"), false).await.unwrap();
    let token = CreateTokenRequest { roles: owned(&["node"]), ..CreateTokenRequest::default() };
    let token = admin.create_token(token).await.unwrap().into_inner();
    assert_eq!(token.expires, cluster.now() + 3600);
    assert_eq!(get(&mut admin, "token", &token.token).await.len(), 1);
    assert_eq!(get(&mut admin, "token", "").await[0]["metadata"]["name"], json!(token.token));
    let events = cluster.events(&["user"]).await;
    assert!(events.contains(&"T9000I role.created eve".to_owned()));
    assert!(events.contains(&"TJT00I join_token.create eve".to_owned()));
    // Taking the role's power away counts at once, for the certificate that is out already.
    let mut powerless = role("editor");
    powerless["spec"] = json!({"deny": {"rules": [{"resources": ["*"], "verbs": ["*"]}]}});
    put(&mut cluster.admin(), &powerless, true).await.unwrap();
    refused(put(&mut admin, &role("other"), false).await, Code::PermissionDenied);
}

#[tokio::test]
async fn the_cluster_keeps_its_name_its_keys_and_its_folder() {
    let cluster = Cluster::start().await;
    let pin = cluster.auth.ca_pin().to_owned();
    let clock = || Clock::fake(cluster.now()).0;
    let second = start_at(config(cluster.dir.path()), Shutdown::new(), clock()).await;
    assert!(matches!(second, Err(AuthError::InUse { .. })), "{second:?}");
    let cluster = cluster.restart().await;
    assert_eq!(cluster.auth.ca_pin(), pin);
    let status = cluster.admin().status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.cluster.as_str(), &status.ca_pins), ("example.com", &vec![pin]));
    assert_eq!(status.authorities.len(), 4);

    let now = cluster.now();
    cluster.shutdown.stop();
    cluster.auth.finished().await;
    let mut other = config(cluster.dir.path());
    other.cluster_name = ClusterName::parse("other.org").unwrap();
    let renamed = start_at(other.clone(), Shutdown::new(), Clock::fake(now).0).await;
    assert!(matches!(renamed, Err(AuthError::Cluster { .. })), "{renamed:?}");
    other.cluster_name_given = false;
    let shutdown = Shutdown::new();
    let kept = start_at(other.clone(), shutdown.clone(), Clock::fake(now).0).await.unwrap();
    assert_eq!(kept.cluster().as_str(), "example.com");
    shutdown.stop();
    kept.finished().await;
    std::fs::remove_dir_all(cluster.dir.path().join("auth/ca")).unwrap();
    let lost = start_at(other, Shutdown::new(), Clock::fake(now).0).await;
    assert!(lost.is_err(), "lost authorities are not replaced in silence");
}
