//! The shell or command on a channel: standard input, output and error, terminal size, exit status. Input is read by a
//! thread of its own, because reading a terminal cannot be cancelled, and output is written by one ([`super::output`]);
//! everything else is one loop.

use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Pty, Sig};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use crate::ssh::EXIT_SSH;
use crate::ssh::escape::{Escape, Typed};
use crate::ssh::link::Link;
use crate::ssh::output::{Output, Standard};
use crate::ssh::terminal::{self, RawTerminal};
use cli::failure::Failure;
use cli::output::plain;

/// What to run.
#[derive(Debug)]
pub(crate) struct SessionSettings {
    /// `None`: a shell.
    pub(crate) command: Option<String>,
    pub(crate) terminal: bool,
    pub(crate) forward_agent: bool,
}

/// Runs it to its end and gives its exit status.
///
/// # Errors
/// The host refuses, or the connection breaks.
pub(crate) async fn run(link: &Link, settings: SessionSettings) -> Result<u8, Failure> {
    let channel = match link.handle().channel_open_session().await {
        Ok(channel) => channel,
        Err(error) => return Err(link.end_reason().unwrap_or_else(|| error.into())),
    };
    let (read, write) = channel.split();
    let write = Arc::new(write);
    let raw = if settings.terminal { RawTerminal::enter() } else { None };
    let awaited = request(&write, &settings, raw.as_ref()).await?;
    let disconnect = Arc::new(Notify::new());
    let escape = raw.is_some().then(|| (Escape::new(), Arc::clone(&disconnect)));
    tokio::spawn(send(read_input(escape), Arc::clone(&write)));
    let ended = Running { read, write, awaited, status: None }.run(&disconnect).await;
    // Before anything is printed.
    drop(raw);
    match ended? {
        End::Disconnected => {
            eprintln!("\nConnection closed.");
            Ok(EXIT_SSH)
        }
        End::Lost => Err(link
            .end_reason()
            .unwrap_or_else(|| Failure::new("the connection ended without an exit status"))),
        End::Refused => Err(Failure::new("the host refused to start the session")),
        End::Signal(name) => {
            eprintln!("ended by signal {}", plain(&name));
            Ok(EXIT_SSH)
        }
        End::Status(status) => Ok(status),
    }
}

/// A request whose answer is awaited, in the order of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Agent,
    Start,
    Terminal,
}

/// Asks for all at once: no round trip between. Stack of answers, the first on top.
async fn request(
    write: &ChannelWriteHalf<Msg>,
    settings: &SessionSettings,
    raw: Option<&RawTerminal>,
) -> Result<Vec<Awaited>, Failure> {
    let mut awaited = vec![Awaited::Start];
    for (name, value) in std::env::vars().filter(|(name, _)| is_sent(name)) {
        write.set_env(false, name, value).await?;
    }
    if settings.forward_agent {
        write.agent_forward(true).await?;
    }
    if settings.terminal {
        let size = terminal::size();
        let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".into());
        let modes = [
            (Pty::TTY_OP_ISPEED, BAUD),
            (Pty::TTY_OP_OSPEED, BAUD),
            (Pty::VERASE, raw.map_or(0x7f, |raw| raw.erase().into())),
        ];
        write
            .request_pty(
                true,
                &term,
                size.columns,
                size.rows,
                size.pixels_wide,
                size.pixels_high,
                &modes,
            )
            .await?;
        awaited.push(Awaited::Terminal);
    }
    if settings.forward_agent {
        awaited.push(Awaited::Agent);
    }
    match &settings.command {
        Some(command) => write.exec(true, command.as_bytes()).await?,
        None => write.request_shell(true).await?,
    }
    Ok(awaited)
}

fn is_sent(name: &str) -> bool {
    name == "LANG" || name.starts_with("LC_")
}

/// How a session ends.
#[derive(Debug)]
enum End {
    /// `~.` or a signal to us.
    Disconnected,
    Lost,
    /// The host did not start what was asked for.
    Refused,
    Signal(String),
    Status(u8),
}

struct Running {
    read: ChannelReadHalf,
    write: Arc<ChannelWriteHalf<Msg>>,
    awaited: Vec<Awaited>,
    status: Option<End>,
}

impl Running {
    async fn run(mut self, disconnect: &Notify) -> Result<End, Failure> {
        let mut resized = signal(SignalKind::window_change())?;
        let mut told_to_end = EndSignals::new()?;
        let mut output = Output::start()?;
        while !matches!(self.status, Some(End::Refused)) {
            tokio::select! {
                message = self.read.wait() => match message {
                    Some(ChannelMsg::Data { data }) => tokio::select! {
                        put = output.put(Standard::Output, data) => put?,
                        // Also while nobody reads what we write.
                        () = disconnect.notified() => return Ok(End::Disconnected),
                        () = told_to_end.recv() => return Ok(End::Disconnected),
                    },
                    Some(ChannelMsg::ExtendedData { data, ext: 1 }) => tokio::select! {
                        put = output.put(Standard::Error, data) => put?,
                        () = disconnect.notified() => return Ok(End::Disconnected),
                        () = told_to_end.recv() => return Ok(End::Disconnected),
                    },
                    Some(ChannelMsg::Close) | None => break,
                    Some(message) => self.control(message),
                },
                _ = resized.recv() => self.resize().await,
                () = disconnect.notified() => return Ok(End::Disconnected),
                () = told_to_end.recv() => return Ok(End::Disconnected),
            }
        }
        tokio::select! {
            written = output.finish() => written?,
            () = disconnect.notified() => return Ok(End::Disconnected),
            () = told_to_end.recv() => return Ok(End::Disconnected),
        }
        Ok(self.status.unwrap_or(End::Lost))
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a foreign, growing enum of which a client gets these few"
    )]
    fn control(&mut self, message: ChannelMsg) {
        match message {
            ChannelMsg::ExitStatus { exit_status } => {
                // POSIX statuses have eight bits.
                self.status = Some(End::Status(exit_status.to_be_bytes()[3]));
            }
            ChannelMsg::ExitSignal { signal_name, .. } => {
                self.status = Some(End::Signal(signal_text(&signal_name)));
            }
            ChannelMsg::Success => drop(self.awaited.pop()),
            ChannelMsg::Failure => match self.awaited.pop() {
                Some(Awaited::Agent) => {
                    eprintln!("The host does not forward the agent.\r");
                }
                Some(Awaited::Terminal) => eprintln!("The host gave no terminal."),
                Some(Awaited::Start) => {
                    self.status = Some(End::Refused);
                }
                None => {}
            },
            // Window changes are russh's business, the rest is for servers.
            _ => {}
        }
    }

    async fn resize(&self) {
        let size = terminal::size();
        let sent =
            self.write.window_change(size.columns, size.rows, size.pixels_wide, size.pixels_high);
        // Fails only when the connection is gone, which the loop notices by itself.
        drop(sent.await);
    }
}

/// Signals that end us politely, so that the terminal is restored first.
pub(crate) struct EndSignals([Signal; 3]);

impl EndSignals {
    pub(crate) fn new() -> std::io::Result<Self> {
        let on = |kind| signal(kind);
        Ok(Self([
            on(SignalKind::terminate())?,
            on(SignalKind::hangup())?,
            on(SignalKind::interrupt())?,
        ]))
    }
    pub(crate) async fn recv(&mut self) {
        let [terminate, hangup, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

fn signal_text(signal: &Sig) -> String {
    if let Sig::Custom(name) = signal { name.clone() } else { format!("{signal:?}") }
}

/// Standard input, read by a thread until it ends or nobody listens.
fn read_input(mut escape: Option<(Escape, Arc<Notify>)>) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; INPUT_BYTES];
        loop {
            let read = match stdin.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => return,
                Ok(count) => buffer.get(..count).unwrap_or_default(),
            };
            let bytes = match &mut escape {
                None => Bytes::copy_from_slice(read),
                Some((escape, disconnect)) => match escape.feed(read) {
                    Typed::Send(bytes) => Bytes::from(bytes),
                    Typed::Disconnect => return disconnect.notify_one(),
                },
            };
            if sender.blocking_send(bytes).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Input to the channel, then its end. Waits for the host's window here, so that the loop does not.
async fn send(mut input: mpsc::Receiver<Bytes>, write: Arc<ChannelWriteHalf<Msg>>) {
    while let Some(bytes) = input.recv().await {
        if write.data_bytes(bytes).await.is_err() {
            return;
        }
    }
    // Fails only when the connection is gone.
    drop(write.eof().await);
}

/// Reads ahead of a slow host: enough that `~.` is still seen when nothing is taken any more.
const INPUT_QUEUE: usize = 64;
/// One read; an SSH packet takes twice that.
const INPUT_BYTES: usize = 16 * 1024;
/// Terminal speed told to the host, which has no meaning today.
const BAUD: u32 = 38_400;
