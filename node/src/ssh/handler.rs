//! russh's callbacks for one connection. Each is short: it asks [`super::auth`], [`super::session_channel`] or
//! [`super::forward`] and answers the client. Answers are given here, in the callback, because russh keeps only the
//! newest request's "want reply".

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt as _;
use russh::keys::Certificate;
use russh::server::{Auth, ChannelOpenHandle, Msg, Response, Session};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Pty};

use crate::environment::VARIABLES_MAX;
use crate::ssh::auth::{self, NO_CERTIFICATE, Refused};
use crate::ssh::connection::Connection;
use crate::ssh::forward;
use crate::ssh::pty::{Size, Wanted};
use crate::ssh::session_channel::{self, Ask, Setup};

/// See the module.
pub(crate) struct Handler {
    connection: Arc<Connection>,
    setups: HashMap<ChannelId, Setup>,
    /// What a refused person reads.
    refusal: Option<String>,
}

impl Handler {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, setups: HashMap::new(), refusal: None }
    }

    /// The channel while it is being set up. Its queue is emptied: requests come twice, by callback and by queue, and a
    /// full queue would stop the connection.
    fn setup(&mut self, id: ChannelId) -> Option<&mut Setup> {
        let setup = self.setups.get_mut(&id)?;
        while let Some(Some(_)) = setup.channel.wait().now_or_never() {}
        Some(setup)
    }

    async fn begin(
        &mut self,
        id: ChannelId,
        ask: Ask,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some(setup) = self.setups.remove(&id) else { return session.channel_failure(id) };
        match session_channel::start(&self.connection, setup, ask, session.handle()).await {
            Ok(running) => {
                session.channel_success(id)?;
                self.connection.touch();
                self.connection.tasks.spawn(running.run());
                Ok(())
            }
            Err(message) => {
                // Begun and ended, since OpenSSH's client shows nothing of a session that was not begun.
                session.channel_success(id)?;
                session.extended_data(id, STDERR, format!("{message}\r\n").into_bytes())?;
                session.exit_status_request(id, REFUSED)?;
                session.eof(id)?;
                session.close(id)
            }
        }
    }
}

impl russh::server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        self.connection.failures.set_login(user);
        Ok(Auth::reject())
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        self.connection.failures.set_login(user);
        let refused = match auth::sign_in(&self.connection, user, certificate).await {
            Ok(admitted) => {
                if self.connection.admit(admitted) {
                    return Ok(Auth::Accept);
                }
                Refused::Certificate(NO_CERTIFICATE)
            }
            Err(refused) => refused,
        };
        let methods = match &refused {
            Refused::Certificate(_) => METHODS,
            // No use in trying other keys of the same person.
            Refused::Person(_) => &[MethodKind::KeyboardInteractive],
        };
        self.refusal = Some(refused.message());
        Ok(Auth::Reject {
            proceed_with_methods: Some(MethodSet::from(methods)),
            partial_success: false,
        })
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        self.connection.failures.set_login(user);
        if response.is_some() {
            return Ok(Auth::Reject {
                proceed_with_methods: Some(MethodSet::from(&[MethodKind::PublicKey][..])),
                partial_success: false,
            });
        }
        let message = self.refusal.clone().unwrap_or_else(|| NO_CERTIFICATE.to_owned());
        Ok(Auth::Partial {
            name: "".into(),
            instructions: message.into(),
            prompts: Vec::new().into(),
        })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(slot) = self.connection.take_session() else {
            if let Some(admitted) = self.connection.admitted() {
                let user = admitted.identity.user().as_str();
                let reason = "too many sessions on one connection";
                auth::reject(&self.connection, user, &admitted.login, reason).await;
            }
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let id = channel.id();
        let setup = Setup { channel, slot, terminal: None, environment: Vec::new() };
        self.setups.insert(id, setup);
        reply.accept().await;
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
        forward::open(&self.connection, channel, host, port, reply).await;
        Ok(())
    }

    async fn channel_close(
        &mut self,
        id: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.setups.remove(&id);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.setup(id) {
            Some(setup) if setup.terminal.is_none() => {
                let size = Size::new(columns, rows, width, height);
                setup.terminal = Some(Wanted::new(term, size, modes));
                session.channel_success(id)
            }
            Some(_) | None => session.channel_failure(id),
        }
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let accepts = self.connection.node.environment_allow.accepts(name, value);
        match self.setup(id) {
            Some(setup) if accepts && setup.environment.len() < VARIABLES_MAX => {
                setup.environment.retain(|(other, _)| other != name);
                setup.environment.push((name.to_owned(), value.to_owned()));
                session.channel_success(id)
            }
            Some(_) | None => session.channel_failure(id),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        // Running sessions take it from their queue.
        if let Some(terminal) = self.setup(id).and_then(|setup| setup.terminal.as_mut()) {
            terminal.size = Size::new(columns, rows, width, height);
        }
        Ok(())
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.begin(id, Ask::Shell, session).await
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.begin(id, Ask::Command(command.to_vec()), session).await
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if name == "sftp" {
            return self.begin(id, Ask::Sftp, session).await;
        }
        self.setups.remove(&id);
        auth::refuse_subsystem(&self.connection, name).await;
        session.channel_failure(id)?;
        session.close(id)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.setup(id);
        session.channel_failure(id)
    }

    async fn signal(
        &mut self,
        id: ChannelId,
        _signal: russh::Sig,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.setup(id);
        Ok(())
    }

    async fn data(
        &mut self,
        id: ChannelId,
        _data: &[u8],
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        // Data before a request belongs to nothing.
        self.setup(id);
        Ok(())
    }

    async fn extended_data(
        &mut self,
        id: ChannelId,
        _code: u32,
        _data: &[u8],
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.setup(id);
        Ok(())
    }

    async fn agent_request(
        &mut self,
        id: ChannelId,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        self.setup(id);
        Ok(false)
    }
}

const METHODS: &[MethodKind] = &[MethodKind::PublicKey, MethodKind::KeyboardInteractive];
/// SSH_EXTENDED_DATA_STDERR (RFC 4254, section 5.2).
const STDERR: u32 = 1;
/// The status of a session that was refused, which is that of ssh(1) for its own failures.
const REFUSED: u32 = 255;
