//! The jump listener, for `ssh -J`: ends an outer SSH connection whose user shows a certificate, and relays `direct-tcpip`
//! channels to nodes as [`crate::user`] does streams. Everything else that SSH can do is refused. What travels inside is
//! SSH again, end to end with the node.

mod greeting;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pki::{IdentityError, UserIdentity};
use policy::Denial;
use proto::id::UserName;
use proto::preamble::Inner;
use relay::Leg;
use russh::keys::ssh_key::Algorithm;
use russh::keys::{Certificate, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, Session};
use russh::{Channel, ChannelOpenFailure, MethodKind, MethodSet, Preferred, SshId};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::Core;
use crate::carry::carry;
use crate::dial::{Ask, Refused, dial};
use crate::jump::greeting::{Offer, VERSION};
use crate::jump::wire::Wire;
use crate::listen::Admission;
use crate::quota::Counted;
use crate::user::new_trace;

/// Why a jump connection came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JumpError {
    #[error("the proxy's own host key or certificate cannot be used")]
    HostKey,
    #[error("nobody authenticated in time")]
    TimedOut,
    #[error("the SSH connection failed")]
    Ssh(#[from] russh::Error),
    #[error("there are too many jump connections")]
    TooMany,
}

impl JumpError {
    /// For metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::HostKey => "jump_host_key",
            Self::TimedOut => "jump_timed_out",
            Self::Ssh(_) => "jump_ssh",
            Self::TooMany => "jump_limit",
        }
    }
}

/// Serves one connection until its end.
pub(crate) async fn serve(
    core: &Arc<Core>,
    mut socket: TcpStream,
    from: SocketAddr,
    admission: Admission,
) -> Result<(), JumpError> {
    let deadline = Instant::now() + core.config.limits.jump_login_within;
    let _place = core.jump_connections.try_acquire().map_err(|_| JumpError::TooMany)?;
    let end = CancellationToken::new();
    // Whatever happens to this task, the connection's own task ends with it.
    let _guard = end.clone().drop_guard();
    let (known, mut authenticated) = watch::channel(false);
    let connection = Connection {
        core: Arc::clone(core),
        from,
        identity: None,
        place: None,
        known,
        channels: Arc::default(),
        end: end.clone(),
    };
    let greeting = greeting::exchange(&mut socket, deadline).await?;
    let config = config(core, greeting.offer)?;
    let wire = Wire::after_greeting(socket, greeting.bytes, end);
    let running = russh::server::run_stream(config, wire, connection);
    let running = timeout_at(deadline, running).await.map_err(|_| JumpError::TimedOut)??;
    tokio::pin!(running);
    tokio::select! {
        end = &mut running => return Ok(end?),
        known = timeout_at(deadline, authenticated.wait_for(|known| *known)) => {
            // A sender that is gone is a connection that is over, and says so below.
            drop(known.map_err(|_| JumpError::TimedOut)?);
        }
    }
    drop(admission);
    Ok(running.await?)
}

fn config(core: &Core, offer: Offer) -> Result<Arc<Config>, JumpError> {
    let credentials = core.host.credentials();
    let certificate =
        Certificate::from_openssh(&credentials.ssh_certificate).map_err(|_| JumpError::HostKey)?;
    let mut methods = MethodSet::empty();
    methods.push(MethodKind::PublicKey);
    Ok(Arc::new(Config {
        server_id: SshId::Raw(VERSION.into()),
        preferred: Preferred { cipher: offer.ciphers().into(), ..Preferred::DEFAULT },
        methods,
        keys: vec![credentials.keys.ssh().clone()],
        certificates: vec![certificate],
        max_auth_attempts: AUTH_ATTEMPTS_MAX,
        // Nothing can be guessed here, so nothing is gained by waiting.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: KEEPALIVES_MAX,
        channel_buffer_size: MESSAGES_MAX,
        event_buffer_size: MESSAGES_MAX,
        nodelay: true,
        ..Config::default()
    }))
}

/// One jump connection, as russh asks about it.
struct Connection {
    core: Arc<Core>,
    from: SocketAddr,
    identity: Option<Arc<UserIdentity>>,
    place: Option<Counted<UserName>>,
    known: watch::Sender<bool>,
    channels: Arc<AtomicUsize>,
    end: CancellationToken,
}

impl Handler for Connection {
    type Error = russh::Error;

    /// Our certificates are Ed25519: no other key is worth a signature.
    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        let public_key: &PublicKey = offer.public_key;
        Ok(if public_key.algorithm() == Algorithm::Ed25519 { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_openssh_certificate(
        &mut self,
        login: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        match self.identify(certificate) {
            Ok(identity) => {
                let user = identity.user();
                let most = self.core.config.limits.streams_per_user_max;
                self.place = self.core.users.enter(user, most);
                if self.place.is_none() {
                    return Ok(Auth::reject());
                }
                self.identity = Some(Arc::new(identity));
                Ok(Auth::Accept)
            }
            Err(refused) => {
                self.refused(&refused, certificate.key_id(), login).await;
                Ok(Auth::reject())
            }
        }
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        self.known.send_replace(true);
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(identity) = self.identity.clone() else { return Ok(()) };
        let Some(place) = self.place_for_channel() else {
            reply.reject(failure(SHORTAGE, "too many channels on this connection")).await;
            return Ok(());
        };
        if !PORTS.contains(&port) {
            let message = format!("port {port} is not served here: only a node's SSH, port 22");
            reply.reject(failure(PROHIBITED, message)).await;
            return Ok(());
        }
        let jump = Jump {
            core: Arc::clone(&self.core),
            identity,
            from: self.from,
            target: host.to_owned(),
            _place: place,
        };
        let end = self.end.clone();
        self.core.tasks.spawn(async move {
            tokio::select! {
                () = jump.relay(channel, reply) => {}
                () = end.cancelled() => {}
            }
        });
        Ok(())
    }
}

/// Why a certificate does not authenticate.
enum Unwelcome {
    Certificate(IdentityError),
    User(Denial),
}

impl Connection {
    /// Who shows the certificate; russh has checked that they hold its key.
    fn identify(&self, certificate: &Certificate) -> Result<UserIdentity, Unwelcome> {
        let now = net::unix_now();
        let current = self.core.policy.current();
        let address = self.from.ip().to_canonical();
        let identity = current
            .verifier
            .ssh_user_any_login(certificate, Some(address), now)
            .map_err(Unwelcome::Certificate)?;
        match crate::dial::denied_everywhere(&current.policy, &identity, now) {
            Some(denial) => Err(Unwelcome::User(denial)),
            None => Ok(identity),
        }
    }

    async fn refused(&self, refused: &Unwelcome, user: &str, login: &str) {
        let audit = &self.core.audit;
        match refused {
            // These come after the authority's signature has been checked: the name is a real one.
            Unwelcome::Certificate(
                error @ (IdentityError::Cluster(_)
                | IdentityError::Expired
                | IdentityError::NotYetValid
                | IdentityError::SourceAddress(_)
                | IdentityError::UnknownCriticalOption(_)),
            ) => audit.authentication_failed(user, login, self.from, error.to_string()).await,
            Unwelcome::User(denial) => {
                audit.authentication_failed(user, login, self.from, denial.to_string()).await;
            }
            Unwelcome::Certificate(error) => audit.stranger(self.from, error.kind(), error),
        }
    }

    fn place_for_channel(&self) -> Option<ChannelPlace> {
        let most = self.core.config.limits.jump_channels_max;
        let more = |count: usize| (count < most).then(|| count.saturating_add(1));
        self.channels.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(ChannelPlace(Arc::clone(&self.channels)))
    }
}

/// One channel of a connection.
struct ChannelPlace(Arc<AtomicUsize>);

impl Drop for ChannelPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One channel on its way to a node.
struct Jump {
    core: Arc<Core>,
    identity: Arc<UserIdentity>,
    from: SocketAddr,
    target: String,
    _place: ChannelPlace,
}

impl Jump {
    async fn relay(self, channel: Channel<Msg>, reply: ChannelOpenHandle) {
        if self.core.shutdown.is_draining() {
            reply.reject(failure(CONNECT_FAILED, "the proxy is going away: try again")).await;
            return;
        }
        let trace = new_trace();
        let ask = Ask {
            identity: &self.identity,
            target: &self.target,
            from: self.from,
            inner: Inner::Plain,
            trace: &trace,
        };
        match dial(&self.core, &ask).await {
            Ok(dialed) => {
                reply.accept().await;
                let client = Leg::Stream(Box::new(channel.into_stream()));
                // Part of an SSH connection that ends here: no other process could go on with it.
                carry(&self.core, &self.identity, &[], client, dialed).await;
            }
            Err(refused) => {
                let code = match refused {
                    Refused::Unreachable { .. } => CONNECT_FAILED,
                    Refused::Limit(_) => SHORTAGE,
                    Refused::Ambiguous
                    | Refused::Forbidden { .. }
                    | Refused::Identity(_)
                    | Refused::Missing
                    | Refused::Node { .. } => PROHIBITED,
                };
                reply.reject(failure(code, refused.client_message(&self.target))).await;
            }
        }
    }
}

fn failure(code: u32, reason: impl Into<String>) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code, reason: reason.into() }
}

/// Reason codes of RFC 4254, section 5.1.
const PROHIBITED: u32 = 1;
const CONNECT_FAILED: u32 = 2;
const SHORTAGE: u32 = 4;
/// What people write for a node's SSH: the default, Teleport's, and none.
const PORTS: [u32; 3] = [0, 22, 3022];
/// An agent with some keys that are not ours comes first.
const AUTH_ATTEMPTS_MAX: usize = 12;
/// A dead client is known after two minutes; one that is only quiet answers.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVES_MAX: usize = 3;
/// Messages of at most 32 KiB between the connection's task and a channel's. The connection's task stands still when one
/// is full, so it must hold what an inner SSH session can have under way in one direction (2 MiB with OpenSSH):
/// otherwise a session that is busy both ways could wait for itself.
const MESSAGES_MAX: usize = 128;
