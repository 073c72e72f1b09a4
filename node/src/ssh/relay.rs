//! A running session: bytes between channel and program, recorded on the way; signals and sizes; the end, with its
//! events. Input and output go on independently, so that neither waits for the other.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use proto::event;
use russh::server::{Handle, Msg};
use russh::{ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use rustix::process::{Pid, Signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::recorder::note::Note;
use crate::recorder::{RecordError, Recording, Source};
use crate::rules;
use crate::session::Session;
use crate::ssh::connection::{self, Connection};
use crate::ssh::fd::Endpoint;
use crate::ssh::process::{self, Ending, Io};
use crate::ssh::pty::Size;
use crate::ssh::session_channel::{Ask, Running};
use crate::ssh::sftp;
use capture::Watch;

/// How it ended.
#[derive(Debug)]
enum End {
    /// The client closed the channel or vanished, and the program did not end by itself.
    ClientGone,
    /// The connection is being ended from this side.
    Cut,
    /// The program is over and its output is through.
    Exited,
    /// Its roles have rules now that this node cannot keep.
    Unkept(String),
    /// A strict session whose record cannot be kept.
    Unrecorded(RecordError),
}

impl End {
    fn of(ended: Option<Self>, connection: &Connection) -> Self {
        match ended {
            // The client may have gone because it was told of the cut.
            Some(Self::ClientGone) if connection.cut.is_cancelled() => Self::Cut,
            ended => ended.unwrap_or(Self::Exited),
        }
    }

    /// Why the node ends the session, where it is for the session's own sake.
    async fn tell(&self, session: &Session) {
        match self {
            Self::Unkept(why) => connection::record_disconnect(session, why.clone()).await,
            Self::Unrecorded(error) => {
                tracing::error!(session = %session.id(), %error, "a strict session is ended");
            }
            Self::ClientGone | Self::Cut | Self::Exited => {}
        }
    }

    /// The same for the user.
    fn client_message(&self) -> Option<&'static str> {
        match self {
            Self::Unkept(_) => Some("this session has rules now that this node cannot keep"),
            Self::Unrecorded(_) => Some("this session must be recorded, and cannot be any more"),
            Self::ClientGone | Self::Cut | Self::Exited => None,
        }
    }
}

/// What both directions need.
struct Flow<'a> {
    connection: &'a Connection,
    session: &'a Session,
    recording: Option<&'a Recording>,
    recording_failed: AtomicBool,
    /// Bytes from the user and to the user.
    rx: AtomicU64,
    tx: AtomicU64,
    /// A file transfer: what the client sent before it went is still done, and the server then ends by itself.
    lingers: bool,
    /// Cancelled when the client has closed the channel or left.
    gone: CancellationToken,
}

impl Running {
    /// Runs it to its end.
    pub(crate) async fn run(self) {
        let Self { connection, session, enlisted, handle, channel, mut process, mut watch, .. } =
            self;
        let id = channel.id();
        let (mut reader, writer) = channel.split();
        let flow = Flow {
            connection: &connection,
            session: &session,
            recording: self.recording.as_ref(),
            recording_failed: AtomicBool::new(false),
            rx: AtomicU64::new(0),
            tx: AtomicU64::new(0),
            lingers: self.ask == Ask::Sftp,
            gone: connection.left.child_token(),
        };
        let (mut exited, mut ended) = (false, None);
        {
            let (input, output) = process.io.halves();
            let input = flow.take_input(&mut reader, input, process.pid, self.size);
            let output = flow.give_output(output, &writer);
            let reports = sftp::record_reports(&session, process.reports);
            let output = async { tokio::try_join!(output, reports).map(drop) };
            let gone = flow.until_gone();
            let unkept = rules::until_unkept(&connection.node, &session, watch.as_mut());
            tokio::pin!(input, output, gone, unkept);
            let (mut drained, mut fed) = (false, false);
            while ended.is_none() && !(drained && exited) {
                tokio::select! {
                    () = process.exit.wait(), if !exited => exited = true,
                    result = &mut output, if !drained => {
                        drained = true;
                        ended = result.err().map(End::Unrecorded);
                    }
                    () = &mut input, if !fed => fed = true,
                    why = &mut unkept => ended = Some(End::Unkept(why)),
                    () = &mut gone => ended = Some(End::ClientGone),
                    () = connection.cut.cancelled() => ended = Some(End::Cut),
                }
            }
        }
        // What ends from here on is told as an end, not as cut short.
        drop(enlisted);
        let end = End::of(ended, &connection);
        end.tell(&session).await;
        let (rx, tx) = (flow.rx.load(Ordering::Relaxed), flow.tx.load(Ordering::Relaxed));
        let ending = match end {
            // What a leader that has ended left behind lives on only with leave.
            End::Cut | End::Unkept(_) | End::Unrecorded(_) => Some(Ending::Kill),
            End::ClientGone | End::Exited => (!exited).then_some(Ending::HangUp),
        };
        if let Some(ending) = ending {
            process::end(&process.exit, process.pid, ending).await;
        }
        // Reaped only now: until here nobody else could get its number.
        let status = process.child.try_wait().ok().flatten();
        let over = Over {
            watch,
            session: &session,
            recording: self.recording,
            note: self.note,
            ask: &self.ask,
            interactive: self.interactive,
            status,
            rx,
            tx,
        };
        // First the trail, then the answer: who has read the exit status finds it in the audit log, whatever dies next.
        over.record(&connection).await;
        say_end(&writer, &handle, id, &end, status).await;
    }
}

impl Flow<'_> {
    /// Until the client is gone and nothing is waited for any more.
    async fn until_gone(&self) {
        self.gone.cancelled().await;
        if self.lingers {
            tokio::time::sleep(LINGER_MAX).await;
        }
    }

    /// From the client, until the channel is closed or the connection is gone.
    async fn take_input(
        &self,
        reader: &mut ChannelReadHalf,
        sink: InputSink<'_>,
        leader: Pid,
        mut size: Option<Size>,
    ) {
        let mut queue: VecDeque<Bytes> = VecDeque::new();
        let mut queued = 0_usize;
        let (mut ended, mut closed, mut sink) = (false, false, sink);
        loop {
            let front = queue.front().cloned().unwrap_or_default();
            tokio::select! {
                message = reader.wait(), if !closed && queued < INPUT_QUEUE_BYTES_MAX => match message {
                    None | Some(ChannelMsg::Close) => {
                        self.gone.cancel();
                        if !self.lingers {
                            return;
                        }
                        (ended, closed) = (true, true);
                    }
                    Some(ChannelMsg::Data { data }) => {
                        self.count(&self.rx, data.len());
                        if sink.is_open() && !data.is_empty() {
                            queued += data.len();
                            queue.push_back(data);
                        }
                    }
                    Some(ChannelMsg::Eof) => ended = true,
                    Some(ChannelMsg::Signal { signal }) => send_signal(&sink, leader, &signal),
                    Some(ChannelMsg::WindowChange {
                        col_width, row_height, pix_width, pix_height,
                    }) => {
                        let new = Size::new(col_width, row_height, pix_width, pix_height);
                        self.resize(&sink, &mut size, new).await;
                    }
                    Some(_) => {}
                },
                written = sink.write(&front), if !front.is_empty() => {
                    let count = written.unwrap_or_else(|_| {
                        // The program has closed its input: what comes is thrown away, as by sshd.
                        sink.close();
                        queued
                    });
                    queued -= advance(&mut queue, count);
                }
            }
            if ended && queue.is_empty() {
                sink.end();
                if closed {
                    return;
                }
            }
        }
    }

    async fn resize(&self, sink: &InputSink<'_>, old: &mut Option<Size>, new: Size) {
        let InputSink::Terminal(master) = sink else { return };
        if *old == Some(new) {
            return;
        }
        *old = Some(new);
        if let Err(error) = new.apply(master.as_fd()) {
            tracing::debug!(%error, "a terminal's size could not be set");
        }
        if let Some(recording) = self.recording {
            // A failing recording is dealt with where output is written.
            drop(recording.resize(new.columns, new.rows).await);
        }
        let event = event::Resize { session: self.session.facts(), size: new.text() };
        // Logged inside; a size is no reason to end a session.
        drop(self.session.record_outcome(event).await);
    }

    /// To the client, until the program's output ends.
    async fn give_output(
        &self,
        output: OutputSource<'_>,
        writer: &ChannelWriteHalf<Msg>,
    ) -> Result<(), RecordError> {
        match output {
            OutputSource::Terminal(master) => self.give(master, Source::Output, writer).await,
            OutputSource::Pipes(output, error) => {
                let output = self.give(output, Source::Output, writer);
                let error = self.give(error, Source::Error, writer);
                tokio::try_join!(output, error).map(drop)
            }
        }
    }

    async fn give(
        &self,
        from: &Endpoint,
        source: Source,
        writer: &ChannelWriteHalf<Msg>,
    ) -> Result<(), RecordError> {
        loop {
            let bytes = match from.read().await {
                Ok(bytes) if bytes.is_empty() => return Ok(()),
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::debug!(%error, "a program's output cannot be read any more");
                    return Ok(());
                }
            };
            if self.gone.is_cancelled() {
                // For nobody; a program that lingers must not wait for a reader.
                continue;
            }
            self.count(&self.tx, bytes.len());
            self.record(source, &bytes).await?;
            let sending = async {
                match source {
                    Source::Output => writer.data_bytes(bytes).await,
                    Source::Error => writer.extended_data_bytes(STDERR, bytes).await,
                }
            };
            tokio::select! {
                sent = sending => if sent.is_err() {
                    // The connection is gone, which is seen in a moment.
                    self.gone.cancelled().await;
                },
                () = self.gone.cancelled() => {}
            }
        }
    }

    async fn record(&self, source: Source, bytes: &[u8]) -> Result<(), RecordError> {
        let Some(recording) = self.recording else { return Ok(()) };
        let Err(error) = recording.output(source, bytes).await else { return Ok(()) };
        if self.session.is_strict() {
            return Err(error);
        }
        if !self.recording_failed.swap(true, Ordering::Relaxed) {
            tracing::error!(session = %self.session.id(), %error, "recording failed; best effort goes on");
        }
        Ok(())
    }

    fn count(&self, counter: &AtomicU64, bytes: usize) {
        counter.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        self.connection.touch();
    }
}

/// Drops `count` bytes from the front; gives how many there were to drop.
fn advance(queue: &mut VecDeque<Bytes>, count: usize) -> usize {
    let mut left = count;
    while let Some(front) = queue.front_mut() {
        if front.len() > left {
            front.advance(left);
            return count;
        }
        left -= front.len();
        queue.pop_front();
    }
    count - left
}

/// Where input goes.
enum InputSink<'a> {
    Closed,
    Pipe(Option<Endpoint>),
    Terminal(&'a Endpoint),
}

/// Where output comes from.
enum OutputSource<'a> {
    Pipes(&'a Endpoint, &'a Endpoint),
    Terminal(&'a Endpoint),
}

impl Io {
    fn halves(&mut self) -> (InputSink<'_>, OutputSource<'_>) {
        match self {
            Self::Pipes { input, output, error } => {
                (InputSink::Pipe(input.take()), OutputSource::Pipes(output, error))
            }
            Self::Terminal(master) => (InputSink::Terminal(master), OutputSource::Terminal(master)),
        }
    }
}

impl InputSink<'_> {
    fn is_open(&self) -> bool {
        matches!(self, Self::Terminal(_) | Self::Pipe(Some(_)))
    }
    async fn write(&self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Pipe(Some(pipe)) => pipe.write(bytes).await,
            Self::Terminal(master) => master.write(bytes).await,
            Self::Closed | Self::Pipe(None) => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }
    /// End of input: a pipe's program sees it; a terminal has no such thing, as under sshd.
    fn end(&mut self) {
        if let Self::Pipe(_) = self {
            self.close();
        }
    }
    fn close(&mut self) {
        *self = Self::Closed;
    }
}

/// A signal from the client goes to the terminal's foreground job, else to the program's group.
fn send_signal(sink: &InputSink<'_>, leader: Pid, signal: &Sig) {
    let Some(signal) = signal_number(signal) else { return };
    let foreground = match sink {
        InputSink::Terminal(master) => rustix::termios::tcgetpgrp(master.as_fd()).ok(),
        InputSink::Closed | InputSink::Pipe(_) => None,
    };
    if let Err(error) = rustix::process::kill_process_group(foreground.unwrap_or(leader), signal) {
        tracing::debug!(%error, "a client's signal could not be delivered");
    }
}

fn signal_number(signal: &Sig) -> Option<Signal> {
    Some(match signal {
        Sig::ABRT => Signal::ABORT,
        Sig::ALRM => Signal::ALARM,
        Sig::FPE => Signal::FPE,
        Sig::HUP => Signal::HUP,
        Sig::ILL => Signal::ILL,
        Sig::INT => Signal::INT,
        Sig::KILL => Signal::KILL,
        Sig::PIPE => Signal::PIPE,
        Sig::QUIT => Signal::QUIT,
        Sig::SEGV => Signal::SEGV,
        Sig::TERM => Signal::TERM,
        Sig::USR1 => Signal::USR1,
        Sig::Custom(name) if name == "USR2" => Signal::USR2,
        Sig::Custom(_) => return None,
    })
}

fn signal_name(number: i32) -> Sig {
    match number {
        libc::SIGABRT => Sig::ABRT,
        libc::SIGALRM => Sig::ALRM,
        libc::SIGFPE => Sig::FPE,
        libc::SIGHUP => Sig::HUP,
        libc::SIGILL => Sig::ILL,
        libc::SIGINT => Sig::INT,
        libc::SIGKILL => Sig::KILL,
        libc::SIGPIPE => Sig::PIPE,
        libc::SIGQUIT => Sig::QUIT,
        libc::SIGSEGV => Sig::SEGV,
        libc::SIGTERM => Sig::TERM,
        libc::SIGUSR1 => Sig::USR1,
        libc::SIGUSR2 => Sig::Custom("USR2".into()),
        other => Sig::Custom(format!("{other}@postern")),
    }
}

/// Tells the client. A client that does not listen is not waited for.
async fn say_end(
    writer: &ChannelWriteHalf<Msg>,
    handle: &Handle,
    id: ChannelId,
    end: &End,
    status: Option<ExitStatus>,
) {
    let saying = async {
        if let Some(text) = end.client_message() {
            let text = Bytes::from(format!("\r\n{text}\r\n"));
            writer.extended_data_bytes(STDERR, text).await?;
        }
        writer.eof().await?;
        match (status.and_then(|s| s.code()), status.and_then(|s| s.signal())) {
            (Some(code), _) => {
                writer.exit_status(u32::try_from(code).unwrap_or(255)).await?;
            }
            (None, Some(number)) => {
                let core = status.is_some_and(|s| s.core_dumped());
                let name = signal_name(number);
                let text = String::new();
                let sent = handle.exit_signal_request(id, name, core, text.clone(), text).await;
                if sent.is_err() {
                    return Ok(());
                }
            }
            (None, None) => writer.exit_status(255).await?,
        }
        writer.close().await
    };
    if timeout(SAY_END_MAX, saying).await.is_err() {
        tracing::debug!("a client did not take its session's end");
    }
}

/// A session that is over.
struct Over<'a> {
    watch: Option<Watch>,
    session: &'a Session,
    recording: Option<Recording>,
    note: Note,
    ask: &'a Ask,
    interactive: bool,
    status: Option<ExitStatus>,
    rx: u64,
    tx: u64,
}

impl Over<'_> {
    /// The last events, then the note: a crash in between tells the end twice rather than never.
    async fn record(mut self, connection: &Connection) {
        let node = &connection.node;
        let session = self.session;
        let stop = time::OffsetDateTime::now_utc();
        // What it did comes before its end.
        if let Some(watch) = &mut self.watch {
            watch.settled().await;
        }
        self.note.set_stop(stop);
        let recorded = self.recording.is_some();
        let truncated = match self.recording.take() {
            Some(recording) => recording.finish(self.note.clone()).await.unwrap_or(true),
            None => false,
        };
        let what = async {
            let event: event::Body = match self.ask {
                Ask::Command(_) => self.exec().into(),
                Ask::Sftp => self.subsystem().into(),
                Ask::Shell => return,
            };
            // Logged inside; what happened has happened.
            drop(session.record_outcome(event).await);
        };
        let data = event::SessionData { session: session.facts(), tx: self.tx, rx: self.rx };
        let end = event::SessionEnd {
            session: session.facts(),
            interactive: self.interactive,
            participants: vec![session.user().clone()],
            session_recording: if recorded { "node" } else { "off" }.into(),
            enhanced_recording: self.watch.is_some() && session.options().captured.any(),
            recording_truncated: truncated,
            session_start: session.started(),
            session_stop: stop,
        };
        let (data, end) = (session.record_outcome(data), session.record_outcome(end));
        // Together: they share one sync of the spool.
        let ((), _, end) = tokio::join!(what, data, end);
        if recorded {
            node.finished_recordings.notify_one();
        } else if end.is_ok()
            && let Err(error) = self.note.remove(node.recorder.dir())
        {
            tracing::warn!(%error, "the note of an ended session stays");
        }
    }

    fn exec(&self) -> event::Exec {
        let (code, error) = self.outcome();
        event::Exec {
            session: self.session.facts(),
            command: self.ask.command_text(),
            exit_code: code.to_string(),
            exit_error: error,
        }
    }

    fn subsystem(&self) -> event::Subsystem {
        let (_, exit_error) = self.outcome();
        event::Subsystem { session: self.session.facts(), name: "sftp".into(), exit_error }
    }

    /// Exit code, and what went wrong.
    fn outcome(&self) -> (i32, String) {
        match self.status {
            Some(status) => match (status.code(), status.signal()) {
                (Some(0), _) => (0, String::new()),
                (Some(code), _) => (code, format!("exit status {code}")),
                (None, signal) => (255, format!("killed by signal {}", signal.unwrap_or(0))),
            },
            None => (255, "the program did not end".to_owned()),
        }
    }
}

/// SSH_EXTENDED_DATA_STDERR (RFC 4254, section 5.2).
const STDERR: u32 = 1;
/// Twice the channel window: a program may be that far behind its client.
const INPUT_QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// For an SFTP server to do what was asked before its client went. As long as programs have for tidying up.
const LINGER_MAX: Duration = process::KILL_AFTER;
/// For a client to take the last output and the exit status.
const SAY_END_MAX: Duration = Duration::from_secs(5);
