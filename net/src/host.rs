//! A machine's identity: joined once with a token, kept 0600 in its folder, renewed by itself at half of its life.
//! Proxy and node each have one. Key and certificates are one file, so that they never belong to different generations.
//! How to join is [`join`]'s, the file [`stored`]'s.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pki::Verifier;
use pki::keys::KeyPairs;
use proto::id::{ClusterName, HostId, NodeName};
use proto::resource::HostRole;
use proto::rpc::RenewRequest;
use proto::rpc::join_client::JoinClient;
use proto::snapshot::Authorities;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::auth_client::{self, Route, explain};
use crate::backoff::Backoff;
use crate::host::stored::Stored;
use crate::shutdown::Shutdown;
use crate::tls::Trust;

mod join;
mod stored;
#[cfg(test)]
mod tests;

/// The cluster name whose `auth.<cluster>` every auth also answers to. A machine that dials auth directly learns the
/// cluster's real name only from the answer; until then the pin alone says that it is the right auth.
pub const UNKNOWN_CLUSTER: &str = "postern.local";

/// What a role needs to join or to go on.
#[derive(Debug)]
pub struct HostSettings {
    /// Private folder of this role: `<data_dir>/node`.
    pub dir: PathBuf,
    pub role: HostRole,
    pub nodename: NodeName,
    /// Needed only the first time.
    pub token: Option<Zeroizing<String>>,
    pub route: Route,
    /// Needed the first time unless the proxy has a public certificate.
    pub ca_pin: Option<String>,
    /// Proxy: public names and addresses for its certificates.
    pub principals: Vec<String>,
}

/// What a machine holds. Replaced as a whole when renewed.
#[derive(Debug)]
pub struct HostCredentials {
    pub host_id: HostId,
    pub cluster: ClusterName,
    pub nodename: NodeName,
    pub keys: KeyPairs,
    /// OpenSSH one-line certificate.
    pub ssh_certificate: String,
    pub tls: Arc<CertifiedKey>,
    pub authorities: Authorities,
    /// Unix seconds.
    pub valid_until: i64,
}

/// Why a machine has no identity.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("auth refused: {0}")]
    Refused(String),
    #[error(
        "not joined yet and no join token given: get one with `tctl tokens add --type={role}` and pass --token"
    )]
    NoToken { role: &'static str },
    #[error("the authority is not known: pass --ca-pin (printed by `tctl status`)")]
    NoTrust,
    #[error(
        "the identity in {path} has expired: get a token with `tctl tokens add --type={role}` and pass --token to join again"
    )]
    Expired { path: PathBuf, role: &'static str },
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the stored identity in {path} is damaged: {detail}; move the folder away and join again"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error(
        "the cluster there is not the one with this CA pin: compare it with what `tctl status` prints on the auth host"
    )]
    WrongPin,
    #[error("cannot reach auth: {0}")]
    Unreachable(String),
}

/// A joined machine.
#[derive(Debug, Clone)]
pub struct Host {
    credentials: watch::Receiver<Arc<HostCredentials>>,
    channel: Channel,
}

impl Host {
    /// Loads the identity, or joins with the token (keeps trying while auth is unreachable, gives up when it refuses).
    /// Starts the renewal task, which lives until `shutdown` stops.
    ///
    /// # Errors
    /// See [`HostError`].
    pub async fn start(settings: HostSettings, shutdown: Shutdown) -> Result<Self, HostError> {
        let stored = stored_or_joined(&settings, &shutdown).await?;
        let credentials = Arc::new(stored.credentials(&settings.dir)?);
        if credentials.nodename != settings.nodename {
            tracing::warn!(joined = %credentials.nodename, configured = %settings.nodename,
                "the node name is fixed when joining; join again to change it");
        }
        let (keys, key) = watch::channel(Some(credentials.tls.clone()));
        let trust = Trust::HostAuthority(Arc::new(credentials.verifier()?.host_roots()));
        let channel = auth_client::channel(&settings.route, &credentials.cluster, &trust, key)
            .map_err(|error| stored::damaged(&settings.dir, error))?;
        let (replace, watch) = watch::channel(credentials);
        let host = Self { credentials: watch, channel };
        let renewal = Renewal { settings, stored, host: host.clone(), replace, keys };
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.stopped() => {}
                () = renewal.run() => {}
            }
        });
        Ok(host)
    }
    /// For tests: what [`Self::start`] would have made.
    #[cfg(test)]
    pub(crate) fn from_parts(
        credentials: watch::Receiver<Arc<HostCredentials>>,
        channel: Channel,
    ) -> Self {
        Self { credentials, channel }
    }
    /// Newest credentials.
    pub fn credentials(&self) -> Arc<HostCredentials> {
        self.credentials.borrow().clone()
    }
    /// To be told of renewals.
    pub fn watch(&self) -> watch::Receiver<Arc<HostCredentials>> {
        self.credentials.clone()
    }
    /// gRPC to auth with this machine's certificate.
    pub fn auth(&self) -> Channel {
        self.channel.clone()
    }
    /// Asked by rustls at each handshake of a server: always the newest certificate.
    pub fn server_certificate(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::new(NewestCertificate(self.credentials.clone()))
    }
}

impl HostCredentials {
    /// Checks others against the authorities that this machine learned when it joined or was renewed.
    ///
    /// # Errors
    /// The authorities cannot be read.
    pub fn verifier(&self) -> Result<Verifier, HostError> {
        Verifier::new(&self.cluster, &self.authorities).map_err(HostError::Refused)
    }
}

/// Whether `dir` holds an identity, so that no token is needed. One that is damaged counts: [`Host::start`] says what is
/// wrong with it. An expired one does not.
pub fn is_joined(dir: &Path) -> bool {
    stored::is_usable(dir, crate::unix_now())
}

async fn stored_or_joined(
    settings: &HostSettings,
    shutdown: &Shutdown,
) -> Result<Stored, HostError> {
    let role = settings.role.as_str();
    let stored = Stored::load(&settings.dir, settings.role)?;
    match (stored, &settings.token) {
        (Some(stored), _) if stored.valid_until() > crate::unix_now() => Ok(stored),
        (Some(_), None) => Err(HostError::Expired { path: settings.dir.clone(), role }),
        (None, None) => Err(HostError::NoToken { role }),
        (_, Some(token)) => {
            let stored = tokio::select! {
                () = shutdown.stopped() => return Err(HostError::Unreachable("stopped".into())),
                joined = join::join(settings, token) => joined?,
            };
            stored.save(&settings.dir)?;
            tracing::info!(host = %stored.host_id(), role, "joined the cluster");
            Ok(stored)
        }
    }
}

#[derive(Debug)]
struct NewestCertificate(watch::Receiver<Arc<HostCredentials>>);

impl ResolvesServerCert for NewestCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.borrow().tls.clone())
    }
}

/// The task that keeps the identity alive. The one writer of the file and of both watches.
struct Renewal {
    settings: HostSettings,
    stored: Stored,
    host: Host,
    replace: watch::Sender<Arc<HostCredentials>>,
    keys: watch::Sender<Option<Arc<CertifiedKey>>>,
}

impl Renewal {
    async fn run(mut self) {
        let mut backoff = Backoff::new(RENEW_WAIT_FIRST, RENEW_WAIT_MAX);
        loop {
            let principals = &self.settings.principals;
            let due_in = self.stored.renewal_due_in(principals, crate::unix_now(), crate::random());
            sleep(due_in.min(LOOK_EVERY)).await;
            if due_in > LOOK_EVERY {
                continue;
            }
            while let Err(error) = self.renew().await {
                let left_s = self.stored.valid_until().saturating_sub(crate::unix_now());
                if left_s > 0 {
                    tracing::warn!(left_s, "cannot renew this machine's certificates: {error}");
                } else {
                    tracing::error!(
                        "this machine's certificates have expired, join again with a token: {error}"
                    );
                }
                backoff.wait().await;
            }
            backoff.reset();
            tracing::info!(
                valid_until = self.stored.valid_until(),
                "renewed this machine's certificates"
            );
        }
    }

    async fn renew(&mut self) -> Result<(), HostError> {
        let keys = KeyPairs::generate().map_err(|error| HostError::Refused(error.to_string()))?;
        let request = RenewRequest {
            ssh_public_key: keys.ssh_public_line(),
            tls_public_key: keys.tls_spki(),
            principals: self.settings.principals.clone(),
        };
        let answer = timeout(CALL_WITHIN, JoinClient::new(self.host.auth()).renew(request))
            .await
            .map_err(|_| HostError::Unreachable("no answer in time".into()))?
            .map_err(|status| HostError::Refused(explain(&status)))?
            .into_inner();
        let renewed = Stored::new(&self.settings, &keys, answer)?;
        if renewed.host_id() != self.stored.host_id() {
            return Err(HostError::Refused("auth answered for another machine".into()));
        }
        let credentials = Arc::new(renewed.credentials(&self.settings.dir)?);
        let dir = self.settings.dir.clone();
        let renewed = tokio::task::spawn_blocking(move || renewed.save(&dir).map(|()| renewed))
            .await
            .map_err(|error| HostError::Unreachable(error.to_string()))??;
        self.stored = renewed;
        self.keys.send_replace(Some(credentials.tls.clone()));
        self.replace.send_replace(credentials);
        Ok(())
    }
}

/// One call to auth, connecting included.
const CALL_WITHIN: Duration = Duration::from_secs(30);
/// Sleep is measured by a clock that stands still while the machine sleeps, and the end of a certificate is not.
const LOOK_EVERY: Duration = Duration::from_secs(600);
const RENEW_WAIT_FIRST: Duration = Duration::from_secs(5);
/// Half of a certificate's life is left when the first try fails: no hurry.
const RENEW_WAIT_MAX: Duration = Duration::from_secs(300);
