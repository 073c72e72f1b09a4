//! The program of a session as the target user: forked and executed directly, without a helper in between. Its rights
//! are `sys::child`'s, its environment `environment`'s; here they come together. Also ends what is left of a session.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;
use tokio::process::Child;

use crate::account::{Account, Serves};
use crate::ssh::fd::Endpoint;
use crate::ssh::pty::Terminal;
use crate::sys::child::{Plan, follow};
use capture::Watch;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Program<'a> {
    /// The login shell, as one.
    Shell,
    /// A command line for the login shell.
    Command(&'a [u8]),
    /// Our own binary at this path, as SFTP server.
    Sftp(&'a Path),
}

/// A running program and our ends of its input and output.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) pid: Pid,
    pub(crate) exit: Exit,
    pub(crate) io: Io,
    /// What an SFTP server tells about its operations.
    pub(crate) reports: Option<Endpoint>,
}

/// The end of a process, seen without reaping it: until then its number, and with it the session's and the group's, is
/// nobody else's, so that a signal meant for it can't meet a stranger. Needs Linux 5.3 for the descriptor.
#[derive(Debug)]
pub(crate) struct Exit(AsyncFd<OwnedFd>);

impl Exit {
    fn of(pid: Pid) -> io::Result<Self> {
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self(crate::sys::poll::register(fd)?))
    }

    /// Waits for it; at once when it was already.
    pub(crate) async fn wait(&self) {
        // Fails only when the runtime stops, which ends the waiting as well.
        drop(self.0.readable().await);
    }
}

/// Our ends.
#[derive(Debug)]
pub(crate) enum Io {
    Pipes { input: Option<Endpoint>, output: Endpoint, error: Endpoint },
    Terminal(Endpoint),
}

/// All that a start needs.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) account: &'a Account,
    pub(crate) serves: &'a Serves,
    pub(crate) program: Program<'a>,
    pub(crate) environment: Vec<(String, OsString)>,
    pub(crate) terminal: Option<Terminal>,
    /// The session is captured.
    pub(crate) watch: Option<&'a mut Watch>,
}

/// Starts it.
///
/// # Errors
/// The operating system's: no such shell, no process, rights that could not be taken.
pub(crate) fn start(start: Start<'_>) -> io::Result<Process> {
    let Start { account, serves, program, environment, terminal, watch } = start;
    let mut command = command(account, program);
    command.env_clear().envs(environment);
    let reports = match program {
        Program::Sftp(_) => Some(std::os::unix::net::UnixStream::pair()?),
        Program::Command(_) | Program::Shell => None,
    };
    let mut plan = Plan {
        switch: account.switch(serves),
        controlling_terminal: terminal.is_some(),
        mark: watch.as_ref().map(|watch| watch.marker()),
        inherit: None,
        home: CString::new(account.home.as_os_str().as_bytes())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
    };
    if let Some((_, theirs)) = &reports {
        let fd = theirs.as_raw_fd();
        command.env(crate::sftp::REPORT_FD_VARIABLE, fd.to_string());
        plan.inherit = Some(fd);
    }
    let io = match terminal {
        Some(terminal) => {
            command.stdin(terminal.slave.try_clone()?);
            command.stdout(terminal.slave.try_clone()?);
            command.stderr(terminal.slave);
            Io::Terminal(Endpoint::new(terminal.master)?)
        }
        None => pipes(&mut command)?,
    };
    follow(&mut command, plan);
    let mut command = tokio::process::Command::from(command);
    // Nothing of ours runs on without anybody who records it.
    command.kill_on_drop(true);
    let child = command.spawn()?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("a child without a number"))?;
    if let Some(watch) = watch {
        watch.started(pid.as_raw_nonzero().get().unsigned_abs());
    }
    // The child's end closes with `theirs`: only now, since the plan names it by number.
    let reports = match reports {
        Some((ours, _theirs)) => Some(Endpoint::new(OwnedFd::from(ours))?),
        None => None,
    };
    Ok(Process { child, pid, exit: Exit::of(pid)?, io, reports })
}

fn command(account: &Account, program: Program<'_>) -> Command {
    match program {
        Program::Shell => {
            let mut command = Command::new(&account.shell);
            let mut name = OsString::from("-");
            name.push(account.shell.file_name().unwrap_or_else(|| OsStr::new("sh")));
            command.arg0(name);
            command
        }
        Program::Command(line) => {
            let mut command = Command::new(&account.shell);
            if let Some(name) = account.shell.file_name() {
                command.arg0(name);
            }
            command.arg("-c").arg(OsStr::from_bytes(line));
            command
        }
        Program::Sftp(helper) => {
            let mut command = Command::new(helper);
            command.arg0("postern").arg(crate::sftp::SUBCOMMAND);
            command
        }
    }
}

fn pipes(command: &mut Command) -> io::Result<Io> {
    let (input_theirs, input) = io::pipe()?;
    let (output, output_theirs) = io::pipe()?;
    let (error, error_theirs) = io::pipe()?;
    command.stdin(Stdio::from(OwnedFd::from(input_theirs)));
    command.stdout(Stdio::from(OwnedFd::from(output_theirs)));
    command.stderr(Stdio::from(OwnedFd::from(error_theirs)));
    Ok(Io::Pipes {
        input: Some(Endpoint::new(input.into())?),
        output: Endpoint::new(output.into())?,
        error: Endpoint::new(error.into())?,
    })
}

/// How much is left of a session after its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The user went away: programs are told, and those that ignore it (nohup) live on, as under sshd.
    HangUp,
    /// Access was taken away: nothing of the session may live on.
    Kill,
}

/// Ends a session whose leader has not been reaped, and waits for the leader. A process that has left the session by
/// `setsid` is not found: that needs a cgroup.
pub(crate) async fn end(exit: &Exit, leader: Pid, ending: Ending) {
    signal_all(&members(leader).await, Signal::HUP);
    let gone = tokio::time::timeout(KILL_AFTER, exit.wait()).await.is_ok();
    match ending {
        Ending::HangUp if gone => return,
        Ending::HangUp => signal_all(&[leader], Signal::KILL),
        Ending::Kill => kill_all(leader).await,
    }
    if tokio::time::timeout(KILL_AFTER, exit.wait()).await.is_err() {
        tracing::error!(pid = leader.as_raw_nonzero(), "a session's process cannot be killed");
    }
}

/// Kills what lives of a session. More than once: a process may have forked between the listing and its end.
async fn kill_all(leader: Pid) {
    for _ in 0..KILL_ROUNDS {
        let left = members(leader).await;
        if left.is_empty() {
            return;
        }
        signal_all(&left, Signal::KILL);
        tokio::task::yield_now().await;
    }
    tracing::error!(pid = leader.as_raw_nonzero(), "processes of a session may live on");
}

fn signal_all(processes: &[Pid], signal: Signal) {
    for &process in processes {
        if let Err(error) = rustix::process::kill_process(process, signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::debug!(%error, "a session's process could not be signalled");
        }
    }
}

/// The living processes of a session, from `/proc`.
async fn members(leader: Pid) -> Vec<Pid> {
    tokio::task::spawn_blocking(move || {
        let Ok(folder) = std::fs::read_dir("/proc") else { return vec![leader] };
        folder
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| living_session_of(*pid) == Some(leader.as_raw_nonzero().get()))
            .filter_map(Pid::from_raw)
            .collect()
    })
    .await
    .unwrap_or_default()
}

/// The session of a process that is no zombie (proc_pid_stat(5): field 3 is the state, field 6 the session).
fn living_session_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, may hold anything, parentheses too: count from its last one.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(session)
}

/// For programs to tidy up after SIGHUP.
pub(crate) const KILL_AFTER: Duration = Duration::from_secs(5);
/// One is enough unless a program forks without end; each finds fewer.
const KILL_ROUNDS: usize = 100;
