//! The leg through the proxy and the SSH connection inside it. The host is believed only by a certificate of the
//! cluster's host authority that names it; the user is authenticated only by certificate. What runs on the connection
//! is `session`'s and `scp`'s.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use net::dial::{self, DialError};
use pki::{IdentityError, Verifier};
use proto::preamble::{ALPN_SSH, Dial, Inner, VERSION};
use russh::client::{
    self, AuthResult, ChannelOpenHandle, DisconnectReason, Handle, KeyboardInteractiveAuthResponse,
    Msg,
};
use russh::keys::{Algorithm, PublicKeyOrCertificate};
use russh::{Channel, Disconnect, Preferred, cipher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::signed_in::SignedIn;
use crate::target::Target;
use cli::failure::{Failure, Fallible as _};
use cli::output::{plain, plain_lines};

/// How to link.
#[derive(Debug)]
pub(crate) struct LinkSettings {
    pub(crate) inner: Inner,
    pub(crate) window_bytes: u32,
    /// The ssh-agent to forward, if any.
    pub(crate) agent: Option<PathBuf>,
}

/// An authenticated SSH connection.
pub(crate) struct Link {
    handle: Arc<Handle<Client>>,
    ended: watch::Receiver<Option<String>>,
}

/// What goes wrong on the connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SshError {
    #[error("the host showed a bare key in place of a certificate of the cluster")]
    BareKey,
    #[error("the host ended the connection: {0}")]
    Disconnected(String),
    #[error("the host did not prove that it is {expected}")]
    Host {
        expected: String,
        #[source]
        source: IdentityError,
    },
    #[error("the connection to the host was lost")]
    Lost,
    #[error(transparent)]
    Protocol(russh::Error),
}

impl From<russh::Error> for SshError {
    fn from(error: russh::Error) -> Self {
        if let russh::Error::IO(io) = &error
            && matches!(
                io.kind(),
                ErrorKind::BrokenPipe
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::ConnectionReset
                    | ErrorKind::UnexpectedEof
            )
        {
            return Self::Lost;
        }
        Self::Protocol(error)
    }
}

impl Link {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// The proxy refuses, the host is not who it should be, or it does not let this login in.
    pub(crate) async fn open(
        signed_in: &SignedIn,
        target: &Target,
        settings: LinkSettings,
    ) -> Result<Self, Failure> {
        let stream = leg(signed_in, target.host.as_str(), settings.inner).await?;
        Self::over(stream, signed_in, target, settings).await
    }

    /// As [`Self::open`], on a stream that leads to the host's SSH server.
    ///
    /// # Errors
    /// The host is not who it should be, or does not let this login in.
    pub(crate) async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        signed_in: &SignedIn,
        target: &Target,
        settings: LinkSettings,
    ) -> Result<Self, Failure> {
        let (ended_sender, ended) = watch::channel(None);
        let client = Client {
            verifier: signed_in.verifier()?,
            expected: target.host.as_str().to_owned(),
            agent: settings.agent,
            agent_channels: Arc::new(Semaphore::new(AGENT_CHANNELS_MAX)),
            ended: ended_sender,
        };
        let config = Arc::new(config(settings.window_bytes));
        let handshake = client::connect_stream(config, stream, client);
        let mut handle = timeout(HANDSHAKE_WITHIN, handshake)
            .await
            .map_err(|_| Failure::new(format!("no answer within {HANDSHAKE_WITHIN:?}")))
            .and_then(|result| Ok(result?))
            .doing(target.host.as_str())?;
        let key = Arc::new(signed_in.keys.ssh().clone());
        let certificate = signed_in.ssh_certificate.clone();
        let authentication =
            handle.authenticate_openssh_cert(target.login.as_str(), key, certificate);
        let result = timeout(HANDSHAKE_WITHIN, authentication)
            .await
            .map_err(|_| Failure::new(format!("no answer within {HANDSHAKE_WITHIN:?}")))??;
        match result {
            AuthResult::Success => Ok(Self { handle: Arc::new(handle), ended }),
            // A connection that is lost meanwhile looks like a refusal to russh.
            AuthResult::Failure { .. } => {
                let reason = ended.borrow().clone();
                match reason {
                    Some(reason) => Err(Failure::new(plain(&reason)).doing(target.host.as_str())),
                    None => Err(denied(signed_in, target, told(&mut handle, target).await)),
                }
            }
        }
    }

    pub(crate) fn handle(&self) -> Arc<Handle<Client>> {
        Arc::clone(&self.handle)
    }

    /// Waits for the connection's end, which only a failure or the other side brings.
    ///
    /// # Errors
    /// The reason, when there is one.
    pub(crate) async fn until_ended(&self) -> Result<(), Failure> {
        let mut ended = self.ended.clone();
        // Errs when the connection's task is gone, which is an end as well.
        if ended.wait_for(Option::is_some).await.is_err() {
            return Ok(());
        }
        self.end_reason().map_or(Ok(()), Err)
    }

    /// Why the connection ended, if it did and a reason is known.
    pub(crate) fn end_reason(&self) -> Option<Failure> {
        self.ended.borrow().as_ref().map(|reason| Failure::new(plain(reason)))
    }

    /// Says goodbye; a peer that does not listen is left.
    pub(crate) async fn close(&self) {
        let goodbye = self.handle.disconnect(Disconnect::ByApplication, "", "");
        let mut ended = self.ended.clone();
        let flushed = async {
            if goodbye.await.is_ok() {
                // Ends with an error as soon as the connection's task has written and gone.
                while ended.changed().await.is_ok() {}
            }
        };
        if timeout(GOODBYE_WITHIN, flushed).await.is_err() {
            // Nobody reads the goodbye; the socket closes with the process.
        }
    }
}

/// A stream to the host's SSH server.
///
/// # Errors
/// The proxy does not answer, or refuses.
pub(crate) async fn leg(
    signed_in: &SignedIn,
    host: &str,
    inner: Inner,
) -> Result<net::stream::Stream, Failure> {
    let request = Dial {
        version: VERSION,
        cluster: signed_in.cluster.clone(),
        target: host.to_owned(),
        inner,
        trace: format!("{:032x}", u128::from_be_bytes(net::random16())),
    };
    let tls = signed_in.tls(&[ALPN_SSH])?;
    dial::ssh(&signed_in.proxy.to_string(), tls, &request).await.map_err(|error| {
        // The proxy's sentence names the host already.
        let named = matches!(&error, DialError::Refused { message, .. } if message.contains(host));
        let failure = Failure::from(error);
        if named { failure } else { failure.doing(host) }
    })
}

/// Why the host refused, as nodes tell it: a keyboard-interactive round that asks nothing.
async fn told(handle: &mut Handle<Client>, target: &Target) -> Option<String> {
    let asked = handle.authenticate_keyboard_interactive_start(target.login.as_str(), None);
    match timeout(HANDSHAKE_WITHIN, asked).await {
        Ok(Ok(KeyboardInteractiveAuthResponse::InfoRequest { instructions, prompts, .. }))
            if prompts.is_empty() =>
        {
            let said: String = plain(&instructions).chars().take(REASON_CHARS_MAX).collect();
            let said = said.strip_prefix("access denied: ").unwrap_or(&said).trim();
            (!said.is_empty()).then(|| said.to_owned())
        }
        _ => None,
    }
}

fn denied(signed_in: &SignedIn, target: &Target, told: Option<String>) -> Failure {
    let what = format!("access denied to {} as {}", target.host.as_str(), target.login);
    let failure = match told {
        Some(reason) => Failure::new(format!("{what}: {reason}")),
        None => Failure::new(what),
    };
    let logins = signed_in.logins();
    if logins.contains(&target.login) {
        return failure.hint("`tsh ls` shows the hosts that you may reach.");
    }
    let list: Vec<&str> = logins.iter().map(AsRef::as_ref).collect();
    failure.hint(format!("Your logins are {}.", list.join(", ")))
}

fn config(window_bytes: u32) -> client::Config {
    client::Config {
        window_size: window_bytes,
        keepalive_interval: Some(KEEPALIVE_EVERY),
        keepalive_max: KEEPALIVES_UNANSWERED_MAX,
        preferred: Preferred {
            host_key_certificates: Cow::Borrowed(&[Algorithm::Ed25519]),
            key: Cow::Borrowed(&[Algorithm::Ed25519]),
            cipher: Cow::Borrowed(&[
                cipher::AES_128_GCM,
                cipher::AES_256_GCM,
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_CTR,
            ]),
            compression: Cow::Borrowed(&[russh::compression::NONE]),
            ..Preferred::default()
        },
        ..client::Config::default()
    }
}

/// What the host may say and ask of us.
pub(crate) struct Client {
    verifier: Verifier,
    expected: String,
    agent: Option<PathBuf>,
    agent_channels: Arc<Semaphore>,
    ended: watch::Sender<Option<String>>,
}

impl client::Handler for Client {
    type Error = SshError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, SshError> {
        match shown {
            PublicKeyOrCertificate::Certificate(certificate) => {
                let now = net::unix_now();
                match self.verifier.ssh_host(certificate, &self.expected, now) {
                    Ok(_host) => Ok(true),
                    Err(source) => Err(SshError::Host { expected: self.expected.clone(), source }),
                }
            }
            PublicKeyOrCertificate::PublicKey { .. } => Err(SshError::BareKey),
        }
    }

    async fn auth_banner(
        &mut self,
        banner: &str,
        _session: &mut client::Session,
    ) -> Result<(), SshError> {
        eprintln!("{}", plain_lines(banner).trim_end());
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), SshError> {
        let permit = Arc::clone(&self.agent_channels).try_acquire_owned();
        // Dropping `reply` refuses: nobody asked to forward, or too many ask.
        if let (Some(path), Ok(permit)) = (self.agent.clone(), permit) {
            reply.accept().await;
            tokio::spawn(async move {
                let _permit = permit;
                if let Ok(mut agent) = UnixStream::connect(path).await {
                    let mut channel = channel.into_stream();
                    // Either side may hang up at any time; the node then sees its channel close.
                    drop(tokio::io::copy_bidirectional(&mut channel, &mut agent).await);
                }
            });
        }
        Ok(())
    }

    // What we never ask for is refused: russh's defaults accept.
    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _connected_address: &str,
        _connected_port: u32,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _socket_path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host_to_connect: &str,
        _port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _socket_path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _channel: Channel<Msg>,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<SshError>) -> Result<(), SshError> {
        let error = match reason {
            DisconnectReason::ReceivedDisconnect(info) => SshError::Disconnected(info.message),
            DisconnectReason::Error(error) => error,
        };
        self.ended.send_replace(Some(Failure::new(error.to_string()).message().to_owned()));
        Err(error)
    }
}

/// TCP, TLS and the proxy's answer come before; this is key exchange or authentication alone.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(20);
/// A sentence or two.
const REASON_CHARS_MAX: usize = 500;
/// The goodbye is local work; longer means that nothing leaves any more.
const GOODBYE_WITHIN: Duration = Duration::from_millis(200);
/// Notices a dead network within a minute without waking a laptop all the time.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVES_UNANSWERED_MAX: usize = 3;
/// Programs on the host that use the forwarded agent at the same moment.
const AGENT_CHANNELS_MAX: usize = 16;
