//! A node without a cluster: authorities and a policy of its own, events in memory, russh's client over a pipe.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use net::policy_feed::Current;
use net::shutdown::Shutdown;
use net::spool::SpoolError;
use pki::Verifier;
use pki::authority::{AuthorityKind, SshAuthority, TlsAuthority, Validity};
use pki::claims::{HostClaims, UserClaims};
use pki::keys::KeyPairs;
use policy::Policy;
use policy::decide::NodeFacts;
use proto::event::{Body, Happened};
use proto::id::HostId;
use proto::resource::{HostRole, Lock, Role};
use proto::snapshot::{Authorities, Snapshot};
use russh::client::{self, AuthResult, KeyboardInteractiveAuthResponse};
use russh::keys::{Certificate, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg};
use tempfile::TempDir;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::account::Serves;
use crate::audit::Audit;
use crate::context::{Client, HostKey, HostKeySource, NodeContext};
use crate::environment::AllowList;
use crate::recorder::Recorder;
use capture::Capture;

/// Everything here ends within this, or the test fails.
pub(crate) const WAIT: Duration = Duration::from_secs(30);

/// Keeps events in memory; fails when told to.
#[derive(Debug, Default)]
pub(crate) struct MemoryAudit {
    events: Mutex<Vec<(Body, u64)>>,
    failing: AtomicBool,
    changed: Notify,
}

impl MemoryAudit {
    pub(crate) fn events(&self) -> Vec<(Body, u64)> {
        self.events.lock().unwrap().clone()
    }
    pub(crate) fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }
    /// Waits for an event of this name, and gives the first.
    pub(crate) async fn wait(&self, name: &str) -> Body {
        let found = timeout(WAIT, async {
            loop {
                let changed = self.changed.notified();
                if let Some((body, _)) = self.events().into_iter().find(|(b, _)| b.name() == name) {
                    return body;
                }
                changed.await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("no {name} in {:?}", self.events()))
    }
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.events().iter().map(|(body, _)| body.name()).collect()
    }
}

impl Audit for MemoryAudit {
    fn record(&self, body: Body, ei: u64) -> BoxFuture<'_, Result<(), SpoolError>> {
        Box::pin(async move {
            if self.failing.load(Ordering::SeqCst) {
                return Err(SpoolError::Full { bytes: 1 });
            }
            self.events.lock().unwrap().push((body, ei));
            self.changed.notify_waiters();
            Ok(())
        })
    }

    fn record_all(&self, happened: Vec<(Happened, u64)>) -> BoxFuture<'_, Result<(), SpoolError>> {
        Box::pin(async move {
            for (happened, ei) in happened {
                self.record(happened.body, ei).await?;
            }
            Ok(())
        })
    }
}

/// See the module.
pub(crate) struct Cluster {
    pub(crate) node: Arc<NodeContext>,
    pub(crate) audit: Arc<MemoryAudit>,
    pub(crate) dir: TempDir,
    user_ca: SshAuthority,
    authorities: Authorities,
    role: Role,
    policy: watch::Sender<Arc<Current<Policy>>>,
}

impl Cluster {
    /// With these role options, as JSON.
    pub(crate) fn new(options: &str) -> Self {
        let cluster = "example.com".parse().unwrap();
        let now = net::unix_now();
        let ssh = |kind| SshAuthority::load(kind, &SshAuthority::generate(kind).unwrap()).unwrap();
        let tls = |kind| TlsAuthority::generate(kind, &cluster, now).unwrap().1;
        let (user_ca, host_ca) = (ssh(AuthorityKind::User), ssh(AuthorityKind::Host));
        let authorities = Authorities {
            host_tls: vec![tls(AuthorityKind::Host)],
            user_tls: vec![tls(AuthorityKind::User)],
            host_ssh: vec![host_ca.public_key().to_openssh().unwrap()],
            user_ssh: vec![user_ca.public_key().to_openssh().unwrap()],
        };
        let role = format!(
            r#"{{"kind":"role","version":"v7","metadata":{{"name":"dev"}},"spec":{{
                "options":{options},
                "allow":{{"logins":["{{{{internal.logins}}}}"],"node_labels":{{"*":"*"}}}}}}}}"#
        );
        let role: Role = serde_json::from_str(&role).unwrap();
        let host_id = HostId::from_random([9; 16]);
        let keys = Arc::new(KeyPairs::generate().unwrap());
        let claims = HostClaims {
            cluster,
            host_id: host_id.clone(),
            nodename: "web1".parse().unwrap(),
            roles: vec![HostRole::Node],
        };
        let certificate =
            host_ca.issue_host(&claims, &[], &keys.ssh_public_line(), hour(now)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let recordings = dir.path().join("recordings");
        net::file::private_dir(&recordings).unwrap();
        let audit = Arc::new(MemoryAudit::default());
        let (policy, feed) = watch::channel(current(&authorities, &role, vec![], 1));
        let node = Arc::new(NodeContext {
            facts: NodeFacts { host_id, nodename: claims.nodename, labels: Default::default() },
            policy: feed,
            host_key: HostKeySource::new(move || {
                let certificate =
                    Certificate::from_openssh(&certificate).map_err(|e| e.to_string())?;
                Ok(HostKey { key: keys.ssh().clone(), certificate })
            }),
            audit: audit.clone(),
            recorder: Recorder::open(recordings).unwrap(),
            capture: Capture::none(),
            finished_recordings: Arc::new(Notify::new()),
            serves: Serves::probe().unwrap(),
            environment_allow: AllowList::new(crate::environment::default_allow()),
            helper: helper(dir.path()),
            sessions: AtomicUsize::new(0),
            shutdown: Shutdown::new(),
        });
        Self { node, audit, dir, user_ca, authorities, role, policy }
    }

    /// A new revision with these locks, as JSON of their targets.
    pub(crate) fn lock(&self, target: &str) {
        let lock = format!(
            r#"{{"kind":"lock","version":"v2","metadata":{{"name":"l"}},"spec":{{"target":{target}}}}}"#
        );
        let locks: Vec<Lock> = vec![serde_json::from_str(&lock).unwrap()];
        self.policy.send_replace(current(&self.authorities, &self.role, locks, 2));
    }

    /// A new revision in which the role has other options, as JSON.
    pub(crate) fn options(&self, options: &str) {
        let mut role = self.role.clone();
        role.spec.options = serde_json::from_str(options).unwrap();
        self.policy.send_replace(current(&self.authorities, &role, vec![], 2));
    }

    /// Signs for these logins.
    pub(crate) fn person(&self, logins: &[&str], validity: Validity) -> Person {
        Person::signed_by(&self.user_ca, logins, validity)
    }

    /// A connection that has not signed in.
    pub(crate) async fn connect(&self) -> client::Handle<Trusting> {
        let (near, far) = tokio::io::duplex(1024 * 1024);
        let client = Client::new("192.0.2.7:4711", "trace");
        tokio::spawn(crate::ssh::serve(self.node.clone(), client, far));
        let config = Arc::new(client::Config::default());
        client::connect_stream(config, near, Trusting).await.unwrap()
    }

    /// A connection of a person who may be the account that tests use.
    pub(crate) async fn sign_in(&self) -> client::Handle<Trusting> {
        self.sign_in_as(own_login()).await
    }
    pub(crate) async fn sign_in_as(&self, login: &str) -> client::Handle<Trusting> {
        let person = self.person(&[login], hour(net::unix_now()));
        let mut handle = self.connect().await;
        let result = person.try_sign_in(&mut handle, login).await;
        assert!(result.success(), "{result:?} {:?}", self.audit.events());
        handle
    }

    /// The only recording there is, and its note.
    pub(crate) fn recording(&self) -> (String, crate::recorder::note::Note) {
        let notes = crate::recorder::note::all(self.node.recorder.dir()).unwrap();
        assert_eq!(notes.len(), 1);
        let note = notes.into_iter().next().unwrap();
        let path = crate::recorder::note::cast_path(self.node.recorder.dir(), note.sid());
        (std::fs::read_to_string(path).unwrap(), note)
    }
}

fn current(
    authorities: &Authorities,
    role: &Role,
    locks: Vec<Lock>,
    revision: u64,
) -> Arc<Current<Policy>> {
    let cluster = "example.com".parse().unwrap();
    let verifier = Verifier::new(&cluster, authorities).unwrap();
    let snapshot = Snapshot {
        format: proto::snapshot::FORMAT,
        cluster,
        revision,
        issued_at: net::unix_now(),
        authorities: authorities.clone(),
        roles: vec![role.clone()],
        locks,
    };
    Arc::new(Current { policy: Policy::new(snapshot).unwrap(), verifier, revision })
}

/// From a minute ago, for an hour.
pub(crate) fn hour(now: i64) -> Validity {
    Validity { not_before: now - 60, not_after: now + 3600 }
}

/// The account that this test runs as: root in CI.
pub(crate) fn own_login() -> &'static str {
    static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    NAME.get_or_init(|| {
        let uid = rustix::process::geteuid().as_raw();
        crate::sys::account::by_uid(uid).unwrap().unwrap().name
    })
}

/// The sftp half as a program that every user may run. `cargo test` builds it: it is an example of this crate.
fn helper(dir: &std::path::Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap().parent().unwrap().join("examples/sftp_helper");
    let copy = dir.join("postern");
    std::fs::hard_link(&built, &copy)
        .or_else(|_| std::fs::copy(&built, &copy).map(drop))
        .unwrap_or_else(|e| panic!("{}: {e}; run `cargo test -p node`", built.display()));
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    copy
}

/// Somebody with a key and a certificate.
pub(crate) struct Person {
    keys: KeyPairs,
    certificate: Certificate,
}

impl Person {
    pub(crate) fn signed_by(ca: &SshAuthority, logins: &[&str], validity: Validity) -> Self {
        let keys = KeyPairs::generate().unwrap();
        let logins: Vec<_> = logins.iter().map(|l| l.parse().unwrap()).collect();
        let names = logins.iter().map(ToString::to_string).collect();
        let claims = UserClaims {
            cluster: "example.com".parse().unwrap(),
            user: "alice".parse().unwrap(),
            roles: vec!["dev".parse().unwrap()],
            traits: [("logins".to_owned(), names)].into(),
            logins,
        };
        let line = ca.issue_user(&claims, &keys.ssh_public_line(), validity).unwrap();
        Self { keys, certificate: Certificate::from_openssh(&line).unwrap() }
    }
    pub(crate) async fn try_sign_in(
        &self,
        handle: &mut client::Handle<Trusting>,
        login: &str,
    ) -> AuthResult {
        let key = Arc::new(self.keys.ssh().clone());
        let trying = handle.authenticate_openssh_cert(login, key, self.certificate.clone());
        timeout(WAIT, trying).await.unwrap().unwrap()
    }
}

/// What a refused person reads.
pub(crate) async fn refusal(handle: &mut client::Handle<Trusting>, login: &str) -> String {
    let asking = handle.authenticate_keyboard_interactive_start(login, None);
    match asking.await.unwrap() {
        KeyboardInteractiveAuthResponse::InfoRequest { instructions, prompts, .. } => {
            assert!(prompts.is_empty());
            let answer = handle.authenticate_keyboard_interactive_respond(vec![]).await.unwrap();
            assert!(matches!(answer, KeyboardInteractiveAuthResponse::Failure { .. }));
            instructions
        }
        other => panic!("{other:?}"),
    }
}

/// A client that believes any host: who the host is has tests in `pki`.
pub(crate) struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;
    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// All that a channel said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) output: String,
    pub(crate) error: String,
    pub(crate) status: Option<u32>,
    pub(crate) signal: Option<String>,
    /// A request was.
    pub(crate) refused: bool,
    pub(crate) eof: bool,
}

impl Said {
    /// It was said why, and nothing ran.
    pub(crate) fn is_refusal(&self) -> bool {
        self.status == Some(255) && self.output.is_empty() && !self.error.is_empty()
    }
}

/// Listens until the channel is closed.
pub(crate) async fn listen(channel: &mut Channel<client::Msg>) -> Said {
    let mut said = Said::default();
    let listening = async {
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } => said.output += &String::from_utf8_lossy(&data),
                ChannelMsg::ExtendedData { data, .. } => {
                    said.error += &String::from_utf8_lossy(&data);
                }
                ChannelMsg::ExitStatus { exit_status } => said.status = Some(exit_status),
                ChannelMsg::ExitSignal { signal_name, .. } => {
                    said.signal = Some(format!("{signal_name:?}"));
                }
                ChannelMsg::Failure => said.refused = true,
                ChannelMsg::Eof => said.eof = true,
                ChannelMsg::Close => break,
                _ => {}
            }
        }
    };
    timeout(WAIT, listening).await.expect("the channel is closed in time");
    said
}

/// Waits until the output holds `text`.
pub(crate) async fn listen_for(channel: &mut Channel<client::Msg>, text: &str) -> String {
    let mut output = String::new();
    let listening = async {
        while !output.contains(text) {
            match channel.wait().await {
                Some(ChannelMsg::Data { data }) => output += &String::from_utf8_lossy(&data),
                Some(_) => {}
                None => panic!("closed before {text:?}: {output:?}"),
            }
        }
    };
    timeout(WAIT, listening).await.expect("output in time");
    output
}
