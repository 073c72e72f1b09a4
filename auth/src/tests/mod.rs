//! Auth as a whole: a real server on loopback, real TLS, the clients' own code. Only the clock is turned by hand.

mod admin;
mod audit;
mod machines;
mod people;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use net::auth_client::{Route, channel, socket_channel};
use net::shutdown::Shutdown;
use net::tls::{Trust, certified_key};
use pki::keys::KeyPairs;
use proto::id::ClusterName;
use proto::resource::HostRole;
use proto::rpc::admin_client::AdminClient;
use proto::rpc::join_client::JoinClient;
use proto::rpc::sign_in_client::SignInClient;
use proto::rpc::{
    AcceptInviteRequest, CreateTokenRequest, CreateUserRequest, HostCertificates, LoginRequest,
    LoginResponse, OpenInviteRequest, RegisterRequest, SearchRequest, TraitValues,
};
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

use crate::clock::Clock;
use crate::credentials::totp;
use crate::start::{Auth, AuthConfig, start_at};

/// A cluster that runs in this test.
struct Cluster {
    auth: Auth,
    hand: Arc<AtomicI64>,
    shutdown: Shutdown,
    dir: tempfile::TempDir,
}

/// A machine that has joined.
struct Machine {
    certificates: HostCertificates,
    channel: Channel,
}

fn config(dir: &Path) -> AuthConfig {
    AuthConfig {
        data_dir: dir.join("auth"),
        cluster_name: ClusterName::parse("example.com").unwrap(),
        cluster_name_given: true,
        listen: "127.0.0.1:0".parse().unwrap(),
        names: vec!["127.0.0.1".into()],
        proxy_address: "proxy.example.com:3080".into(),
        auth_address: "auth.example.com:3025".into(),
    }
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Clients check certificates by the real time: ours is behind it, so that what is issued later is valid already.
        // It begins with a time step, so that no code ends early.
        let now = (net::unix_now() - 4 * 3600) / 30 * 30;
        Self::start_in(dir, now).await
    }

    async fn start_in(dir: tempfile::TempDir, now: i64) -> Self {
        let config = config(dir.path());
        Self::start_with(config, dir, now).await
    }

    /// As in a process without a proxy.
    async fn start_without_proxy(dir: tempfile::TempDir) -> Self {
        let config = AuthConfig { proxy_address: String::new(), ..config(dir.path()) };
        Self::start_with(config, dir, net::unix_now() - 4 * 3600).await
    }

    async fn start_with(config: AuthConfig, dir: tempfile::TempDir, now: i64) -> Self {
        let (clock, hand) = Clock::fake(now);
        let shutdown = Shutdown::new();
        let auth = start_at(config, shutdown.clone(), clock).await.unwrap();
        Self { auth, hand, shutdown, dir }
    }

    /// Stops, and starts again on the same folder.
    async fn restart(self) -> Self {
        let now = self.now();
        self.shutdown.stop();
        self.auth.finished().await;
        Self::start_in(self.dir, now).await
    }

    fn now(&self) -> i64 {
        self.hand.load(Ordering::SeqCst)
    }

    fn advance(&self, seconds: i64) {
        self.hand.fetch_add(seconds, Ordering::SeqCst);
    }

    /// A channel of somebody whom nobody knows.
    fn anonymous(&self) -> Channel {
        self.channel(None)
    }

    fn with_certificate(&self, chain_pem: &str, keys: &KeyPairs) -> Channel {
        self.channel(Some(certified_key(chain_pem, keys).unwrap()))
    }

    fn channel(&self, key: Option<Arc<rustls::sign::CertifiedKey>>) -> Channel {
        let route = Route::Direct(self.auth.local_addr().to_string());
        let trust = Trust::Pin(self.auth.ca_pin().to_owned());
        // The sender may go: without it the key stays.
        let (_, key) = watch::channel(key);
        channel(&route, self.auth.cluster(), &trust, key).unwrap()
    }

    fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(socket_channel(self.auth.socket_path().to_owned()))
    }

    /// A user with an enrolled second factor; gives its secret.
    async fn user(&self, name: &str, roles: &[&str], logins: &[&str]) -> String {
        let invite = self.invite(name, roles, logins).await;
        let mut sign_in = SignInClient::new(self.anonymous());
        let open = OpenInviteRequest { token: invite.clone() };
        let opened = sign_in.open_invite(open).await.unwrap().into_inner();
        let otp = self.code(&opened.totp_secret);
        let accept = AcceptInviteRequest { token: invite, password: PASSWORD.into(), otp };
        sign_in.accept_invite(accept).await.unwrap();
        self.advance(30);
        opened.totp_secret
    }

    /// A new user's invite.
    async fn invite(&self, name: &str, roles: &[&str], logins: &[&str]) -> String {
        let logins = TraitValues { values: owned(logins) };
        let request = CreateUserRequest {
            user: name.into(),
            roles: owned(roles),
            traits: [("logins".to_owned(), logins)].into(),
            invite_ttl_seconds: 0,
        };
        self.admin().create_user(request).await.unwrap().into_inner().token
    }

    fn code(&self, secret: &str) -> String {
        totp(secret).unwrap().generate(u64::try_from(self.now()).unwrap()).to_string()
    }

    async fn try_login(
        &self,
        user: &str,
        password: &str,
        otp: &str,
        keys: &KeyPairs,
    ) -> Result<LoginResponse, Status> {
        let request = LoginRequest {
            user: user.into(),
            password: password.into(),
            otp: otp.into(),
            ssh_public_key: keys.ssh_public_line(),
            tls_public_key: keys.tls_spki(),
            ttl_seconds: 0,
        };
        Ok(SignInClient::new(self.anonymous()).login(request).await?.into_inner())
    }

    /// A signed-in user's channel.
    async fn signed_in(&self, user: &str, secret: &str) -> Channel {
        let keys = KeyPairs::generate().unwrap();
        let answer = self.try_login(user, PASSWORD, &self.code(secret), &keys).await.unwrap();
        self.advance(30);
        self.with_certificate(&answer.tls_certificate_pem, &keys)
    }

    async fn token(&self, roles: &[&str]) -> String {
        let request = CreateTokenRequest { roles: owned(roles), ..CreateTokenRequest::default() };
        self.admin().create_token(request).await.unwrap().into_inner().token
    }

    async fn try_join(
        &self,
        token: &str,
        role: &str,
        nodename: &str,
        principals: &[&str],
    ) -> Result<Machine, Status> {
        let keys = KeyPairs::generate().unwrap();
        let request = RegisterRequest {
            token: token.into(),
            role: role.into(),
            nodename: nodename.into(),
            ssh_public_key: keys.ssh_public_line(),
            tls_public_key: keys.tls_spki(),
            principals: owned(principals),
        };
        let answer = JoinClient::new(self.anonymous()).register(request).await?;
        let certificates = answer.into_inner();
        let channel = self.with_certificate(&certificates.tls_certificate_pem, &keys);
        Ok(Machine { certificates, channel })
    }

    async fn join(&self, role: HostRole, nodename: &str) -> Machine {
        let token = self.token(&[role.as_str()]).await;
        self.try_join(&token, role.as_str(), nodename, &[]).await.unwrap()
    }

    /// All events so far, oldest first, as `code event` and what else is asked for.
    async fn events(&self, fields: &[&str]) -> Vec<String> {
        let local = socket_channel(self.auth.socket_path().to_owned());
        let request = SearchRequest { limit: 1000, ..SearchRequest::default() };
        let mut client = proto::rpc::audit_client::AuditClient::new(local);
        let events = client.search(request).await.unwrap().into_inner().events;
        events.iter().map(|json| summary(json, fields)).collect()
    }
}

fn summary(json: &[u8], fields: &[&str]) -> String {
    let value: serde_json::Value = serde_json::from_slice(json).unwrap();
    let text = |name: &str| value[name].as_str().map(str::to_owned);
    let mut parts = vec![text("code").unwrap(), text("event").unwrap()];
    parts.extend(fields.iter().filter_map(|name| text(name)));
    parts.join(" ")
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: tonic::Code) -> String {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    status.message().to_owned()
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Machine")
    }
}

const PASSWORD: &str = "correct horse battery";
