//! A session channel's start: a shell, a command or sftp. Decided again with the newest policy, recorded, and durable in
//! the audit spool before the client hears "yes". [`super::relay`] does the rest.

use std::io;
use std::sync::Arc;

use proto::event;
use russh::Channel;
use russh::server::{Handle, Msg};

use crate::account::Account;
use crate::admit;
use crate::context::SessionCounted;
use crate::environment::{self, Given};
use crate::recorder::cast::Header;
use crate::recorder::note::Note;
use crate::recorder::{Extent, Recording};
use crate::rules;
use crate::session::Session;
use crate::ssh::auth;
use crate::ssh::connection::{Admitted, Connection, Enlisted, Slot};
use crate::ssh::process::{self, Process, Program, Start};
use crate::ssh::pty::{self, Terminal, Wanted};
use crate::sys;
use capture::{Tier, Watch};

/// An open channel that has not said what it is for.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) channel: Channel<Msg>,
    pub(crate) slot: Slot,
    pub(crate) terminal: Option<Wanted>,
    pub(crate) environment: Vec<(String, String)>,
}

/// What it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    Command(Vec<u8>),
    Sftp,
    Shell,
}

impl Ask {
    /// For people and events.
    pub(crate) fn command_text(&self) -> String {
        match self {
            Self::Command(line) => String::from_utf8_lossy(line).into_owned(),
            Self::Sftp | Self::Shell => String::new(),
        }
    }
}

/// A started session.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) connection: Arc<Connection>,
    pub(crate) session: Arc<Session>,
    pub(crate) enlisted: Enlisted,
    pub(crate) handle: Handle,
    pub(crate) channel: Channel<Msg>,
    pub(crate) process: Process,
    pub(crate) watch: Option<Watch>,
    pub(crate) recording: Option<Recording>,
    pub(crate) note: Note,
    pub(crate) ask: Ask,
    pub(crate) interactive: bool,
    pub(crate) size: Option<pty::Size>,
    pub(crate) _slot: Slot,
    pub(crate) _counted: SessionCounted,
}

/// Decides, records, starts.
///
/// # Errors
/// What the user reads.
pub(crate) async fn start(
    connection: &Arc<Connection>,
    setup: Setup,
    ask: Ask,
    handle: Handle,
) -> Result<Running, String> {
    let admitted = connection.admitted().ok_or(NOT_POSSIBLE)?;
    let session = Arc::new(permitted(connection, admitted, &ask).await?);
    let interactive = setup.terminal.is_some();
    let terminal = open_terminal(connection, &admitted.account, setup.terminal.as_ref())?;
    let (recording, note) = begin_recording(connection, &session, &setup, &ask, admitted)?;
    let size = setup.terminal.as_ref().map(|wanted| wanted.size);
    let begun = event::SessionStart {
        session: session.facts(),
        interactive,
        user_roles: session.roles(),
        size: size.map(pty::Size::text).unwrap_or_default(),
        initial_command: ask.command_text(),
        capture: captured_on(connection, &session).map_or("", Tier::name).to_owned(),
    };
    if let Err(error) = session.record(begun).await {
        tracing::error!(%error, "a session was refused: its start cannot be recorded");
        forget(connection, &note);
        return Err(NOT_POSSIBLE.to_owned());
    }
    let enlisted = connection.enlist(&session).await;
    let counted = connection.node.count_session();
    let program = ToStart { setup: &setup, ask: &ask, account: &admitted.account, terminal };
    let started = watch(connection, &session)
        .and_then(|watch| start_program(connection, &session, program, watch));
    match started {
        Ok((process, watch)) => Ok(Running {
            connection: connection.clone(),
            session,
            enlisted,
            handle,
            channel: setup.channel,
            process,
            watch,
            recording,
            note,
            ask,
            interactive,
            size,
            _slot: setup.slot,
            _counted: counted,
        }),
        Err(error) => {
            let failed = NotStarted { session: &session, note, recording, ask: &ask, interactive };
            failed.record(connection, &error).await;
            Err(format!("the program cannot be started: {error}"))
        }
    }
}

/// How much the kernel tells of a session: nothing where no role asks for it.
fn captured_on(connection: &Connection, session: &Session) -> Option<Tier> {
    session.options().captured.any().then(|| connection.node.capture.tier()).flatten()
}

/// Watches the session from its first program on, where roles ask for it and the kernel can. Roles that keep a session from
/// something refuse it where the kernel does not.
fn watch(connection: &Connection, session: &Arc<Session>) -> io::Result<Option<Watch>> {
    let (captured, given) = (session.options().captured, &session.options().rules);
    let can = connection.node.capture.tier().is_some();
    if !given.enforces() && !(can && (captured.any() || !given.is_empty())) {
        return Ok(None);
    }
    let wanted = capture::Wanted {
        command: captured.command,
        disk: captured.disk,
        network: captured.network,
        strict: session.is_strict() && captured.any(),
        rules: given.clone(),
    };
    let sink: Arc<dyn capture::Sink> = Arc::<Session>::clone(session);
    let node = &connection.node;
    let watch = node.capture.watch(&sink, wanted)?;
    if let Some(watch) = &watch {
        // Of what has changed since the permit nobody else would tell a session that was not there yet.
        watch.renew_rules(&|roles| rules::of(node, roles))?;
    }
    Ok(watch)
}

/// What is needed of a channel to start its program.
struct ToStart<'a> {
    setup: &'a Setup,
    ask: &'a Ask,
    account: &'a Account,
    terminal: Option<Terminal>,
}

/// The program with its environment.
fn start_program(
    connection: &Connection,
    session: &Session,
    program: ToStart<'_>,
    mut watch: Option<Watch>,
) -> io::Result<(Process, Option<Watch>)> {
    let ToStart { setup, ask, account, terminal } = program;
    let client = connection.client.ip_text();
    let port = connection.client.port.to_string();
    let given = Given {
        account,
        session_id: session.id().as_str(),
        client: (&client, &port),
        terminal: setup
            .terminal
            .as_ref()
            .zip(terminal.as_ref())
            .map(|(wanted, terminal)| (wanted.term.as_str(), terminal.name.as_str())),
    };
    let mut environment = environment::compose(&given, &setup.environment);
    let program = match ask {
        Ask::Command(line) => Program::Command(line),
        Ask::Shell => Program::Shell,
        Ask::Sftp => Program::Sftp(&connection.node.helper),
    };
    if *ask == Ask::Sftp && session.is_strict() {
        environment.push((crate::sftp::STRICT_VARIABLE.to_owned(), "1".into()));
    }
    let serves = &connection.node.serves;
    let start = Start { account, serves, program, environment, terminal, watch: watch.as_mut() };
    Ok((process::start(start)?, watch))
}

/// Everything that may say no.
async fn permitted(
    connection: &Connection,
    admitted: &Admitted,
    ask: &Ask,
) -> Result<Session, String> {
    let node = &connection.node;
    let user = admitted.identity.user().as_str();
    let decided = admit::admit(node, &admitted.identity, &admitted.login, &connection.client);
    let session = match decided {
        Ok(session) => session,
        Err(denial) => {
            auth::reject(connection, user, &admitted.login, &denial.to_string()).await;
            return Err(denial.client_message().to_owned());
        }
    };
    if admitted.account.uid != 0
        && let Some(text) = nologin().await
    {
        auth::reject(connection, user, &admitted.login, "/etc/nologin is there").await;
        return Err(text);
    }
    let command = ask.command_text();
    if serde_json::to_string(&command).map_or(usize::MAX, |text| text.len()) > COMMAND_BYTES_MAX {
        auth::reject(connection, user, &admitted.login, "the command is too long").await;
        return Err("the command is too long to be recorded".to_owned());
    }
    if *ask == Ask::Sftp && !session.options().file_copy {
        let event = event::Sftp {
            session: session.facts(),
            action: event::SftpAction::Disallowed,
            path: String::new(),
            working_directory: String::new(),
            target_path: String::new(),
            flags: String::new(),
            outcome: event::Outcome::failed("a role has ssh_file_copy: false"),
        };
        // Logged inside; refused either way.
        drop(session.record_outcome(event).await);
        return Err("access denied: your roles do not allow file copy".to_owned());
    }
    Ok(session)
}

/// nologin(5): while the file is there, only root comes in; its text is for the others.
async fn nologin() -> Option<String> {
    let text = match tokio::fs::read(NOLOGIN).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(_) => Vec::new(),
    };
    let text = text.get(..NOLOGIN_BYTES_MAX).unwrap_or(&text);
    let text = String::from_utf8_lossy(text).trim().to_owned();
    Some(if text.is_empty() { "the system is closed for logins".to_owned() } else { text })
}

fn open_terminal(
    connection: &Connection,
    account: &Account,
    wanted: Option<&Wanted>,
) -> Result<Option<Terminal>, String> {
    let Some(wanted) = wanted else { return Ok(None) };
    let owner = account
        .switch(&connection.node.serves)
        .map(|switch| (switch.uid, sys::account::group_id("tty").unwrap_or(switch.gid)));
    match pty::open(wanted, owner) {
        Ok(terminal) => Ok(Some(terminal)),
        Err(error) => {
            tracing::error!(%error, "no terminal");
            Err("no terminal is to be had on this node".to_owned())
        }
    }
}

fn begin_recording(
    connection: &Connection,
    session: &Session,
    setup: &Setup,
    ask: &Ask,
    admitted: &Admitted,
) -> Result<(Option<Recording>, Note), String> {
    let recorder = &connection.node.recorder;
    let interactive = setup.terminal.is_some();
    let command = ask.command_text();
    let note =
        |recorded| Note::new(session.facts(), session.started(), interactive, &command, recorded);
    let begun = if *ask == Ask::Sftp {
        let note = note(false);
        note.write(recorder.dir()).map(|()| (None, note)).map_err(Into::into)
    } else {
        let note = note(true);
        let wanted = setup.terminal.as_ref();
        let size = wanted.map_or(pty::Size::new(0, 0, 0, 0), |wanted| wanted.size);
        let header = Header {
            columns: size.columns,
            rows: size.rows,
            timestamp: session.started().unix_timestamp(),
            shell: &admitted.account.shell.to_string_lossy(),
            term: wanted.map_or("", |wanted| &wanted.term),
        };
        let extent = if interactive { Extent::Whole } else { Extent::Bounded };
        recorder.begin(&note, &header, extent).map(|recording| (Some(recording), note))
    };
    match begun {
        Ok(begun) => Ok(begun),
        Err(error) => {
            let error: crate::recorder::RecordError = error;
            tracing::error!(session = %session.id(), %error, "no recording");
            if session.is_strict() {
                return Err("this session must be recorded, and cannot be now".to_owned());
            }
            Ok((None, note(false)))
        }
    }
}

/// Removes what was prepared for a session that never was.
fn forget(connection: &Connection, note: &Note) {
    if let Err(error) = note.remove(connection.node.recorder.dir()) {
        tracing::warn!(%error, "the note of a refused session stays");
    }
}

/// A session that began in the audit log and has no program.
struct NotStarted<'a> {
    session: &'a Session,
    note: Note,
    recording: Option<Recording>,
    ask: &'a Ask,
    interactive: bool,
}

impl NotStarted<'_> {
    async fn record(self, connection: &Connection, error: &io::Error) {
        tracing::warn!(session = %self.session.id(), %error, "a program cannot be started");
        let exec = event::Exec {
            session: self.session.facts(),
            command: self.ask.command_text(),
            exit_code: "255".into(),
            exit_error: error.to_string(),
        };
        let end = event::SessionEnd {
            session: self.session.facts(),
            interactive: self.interactive,
            participants: vec![self.session.user().clone()],
            session_recording: "off".into(),
            enhanced_recording: false,
            recording_truncated: false,
            session_start: self.session.started(),
            session_stop: time::OffsetDateTime::now_utc(),
        };
        drop(self.recording);
        let exec = self.session.record_outcome(exec);
        let end = self.session.record_outcome(end);
        if let (_, Ok(())) = tokio::join!(exec, end) {
            forget(connection, &self.note);
        }
    }
}

const NOT_POSSIBLE: &str = "a session is not possible now: its record cannot be kept";
/// As JSON, in which a control character takes six bytes: with the rest of an event or a recording's note it stays below
/// what the spool and auth take, so that no session is made whose record is refused. Linux' own limit of an argument.
const COMMAND_BYTES_MAX: usize = 128 * 1024;
const NOLOGIN: &str = "/etc/nologin";
/// A notice, not a book.
const NOLOGIN_BYTES_MAX: usize = 4096;
