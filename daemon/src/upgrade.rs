//! Live upgrade: a proxy's daemon starts its program anew and hands over what it has: listeners, relayed connections, the
//! data folder. Established sessions do not notice. What cannot be handed over (TLS that is kept in user space, `ssh -J`)
//! stays with the old process until it ends or `upgrade_timeout` has passed. Both sides are here: they must agree.
//!
//! The conversation, over a socket that is the new process's standard input:
//! 1. new > `Hello`: it has read its configuration, and what that asks for works here. Until then a failure changes nothing.
//! 2. old > `Listeners`, with descriptors; stops accepting, lets go of the data folder; `Released`
//! 3. new opens the folder and listens > `Serving`
//! 4. old > every stream, then the end; new > `Adopted`

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use proxy::{Listeners, Proxy};
use relay::upgrade::{Moved, receive_descriptors, send_descriptors};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

/// Tells the new process what its standard input is.
const VARIABLE: &str = "POSTERN_UPGRADE";
/// For the new process to read its configuration.
const HELLO_WITHIN: Duration = Duration::from_secs(15);
/// For a process to open its state, or to let go of it.
const STEP_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
enum Message {
    Adopted { streams: usize },
    Hello { version: String },
    Listeners { web: usize, jump: bool },
    Released,
    Serving,
}

/// What came of an upgrade.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The new process.
    pub(crate) pid: u32,
    /// Streams that go on there.
    pub(crate) moved: usize,
    /// Streams that go on in the old process.
    pub(crate) stayed: usize,
}

/// One end of the conversation. Every wait on it ends.
#[derive(Debug, Clone)]
struct Talk {
    socket: Arc<UnixStream>,
}

impl Talk {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&UnixStream) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let socket = Arc::clone(&self.socket);
        tokio::task::spawn_blocking(move || work(&socket)).await.map_err(io::Error::other)?
    }

    async fn say(&self, message: Message, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        self.blocking(move |socket| {
            socket.set_write_timeout(Some(STEP_WITHIN))?;
            send_descriptors(socket, &serde_json::to_vec(&message)?, &descriptors)
        })
        .await
    }

    async fn hear(&self, within: Duration) -> io::Result<(Message, Vec<OwnedFd>)> {
        self.blocking(move |socket| {
            socket.set_read_timeout(Some(within))?;
            let (record, descriptors) =
                receive_descriptors(socket)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok((serde_json::from_slice(&record)?, descriptors))
        })
        .await
    }
}

/// The old process's side, up to the point of no return: a new process that is ready to take over.
#[derive(Debug)]
pub(crate) struct Successor {
    talk: Talk,
    child: Child,
}

impl Successor {
    /// Starts this very program again, with the arguments that this process was given.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("no socket for the new process")?;
        let program = program()?;
        let child = Command::new(&program)
            .args(std::env::args_os().skip(1))
            .env(VARIABLE, "stdin")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut successor = Self { talk: Talk { socket: Arc::new(ours) }, child };
        match successor.talk.hear(HELLO_WITHIN).await {
            Ok((Message::Hello { version }, _)) => {
                info!(pid = successor.child.id(), version, "a new process is ready to take over");
                Ok(successor)
            }
            Ok(_) => Err(successor.give_up(anyhow!("the new process spoke out of turn"))),
            Err(error) => {
                let why = successor.ended(&error);
                Err(successor.give_up(anyhow!(
                    "the new process did not get ready ({why}); its own words are in the log. Nothing has changed"
                )))
            }
        }
    }

    /// The new process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Why nothing was heard of it.
    fn ended(&mut self, error: &io::Error) -> String {
        match (error.kind(), self.child.try_wait()) {
            (io::ErrorKind::WouldBlock, _) => format!("it said nothing for {HELLO_WITHIN:?}"),
            (io::ErrorKind::UnexpectedEof, _) => match self.child.wait() {
                Ok(status) => format!("it ended with {status}"),
                Err(error) => error.to_string(),
            },
            (_, _) => error.to_string(),
        }
    }

    /// Ends the new process.
    fn give_up(&mut self, error: anyhow::Error) -> anyhow::Error {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            warn!(%error, "the new process could not be ended");
        }
        error
    }

    /// Hands over the listeners; to be followed by letting go of the data folder.
    pub(crate) async fn give_listeners(&self, listeners: Listeners) -> anyhow::Result<()> {
        let message =
            Message::Listeners { web: listeners.web.len(), jump: listeners.jump.is_some() };
        let mut descriptors = listeners.web;
        descriptors.extend(listeners.jump);
        Ok(self.talk.say(message, descriptors).await?)
    }

    /// Says that the data folder is free, and waits until the new process serves.
    pub(crate) async fn release(&self) -> anyhow::Result<()> {
        self.talk.say(Message::Released, Vec::new()).await?;
        match self.talk.hear(STEP_WITHIN).await? {
            (Message::Serving, _) => Ok(()),
            _ => bail!("the new process spoke out of turn"),
        }
    }

    /// Hands over what can be handed over of the streams.
    pub(crate) async fn give_streams(self, proxy: &Proxy) -> anyhow::Result<Report> {
        let streams = proxy.leave().await;
        let count = streams.len();
        self.talk
            .blocking(move |socket| {
                let mut lost = 0_usize;
                for stream in streams {
                    if let Err(error) = stream.send(socket) {
                        // One that broke in this very moment; a socket that broke loses the others too.
                        warn!(%error, "a stream could not be handed over");
                        lost = lost.saturating_add(1);
                    }
                }
                socket.shutdown(std::net::Shutdown::Write)?;
                Ok(lost)
            })
            .await?;
        let moved = match self.talk.hear(STEP_WITHIN).await? {
            (Message::Adopted { streams }, _) => streams,
            _ => bail!("the new process spoke out of turn"),
        };
        if moved != count {
            warn!(sent = count, taken = moved, "some streams were lost on the way");
        }
        Ok(Report { pid: self.child.id(), moved, stayed: proxy.streams() })
    }
}

/// The path that this program was started by, where a newer one may lie by now. Not `/proc/self/exe` unless there is nothing
/// else: that follows the old file when it is renamed out of the way.
fn program() -> anyhow::Result<PathBuf> {
    let invoked = std::env::args_os().next().map(PathBuf::from);
    let by_name = invoked.and_then(|path| match path.components().count() {
        0 => None,
        1 if !path.has_root() => {
            let dirs = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&dirs).map(|dir| dir.join(&path)).find(|file| file.is_file())
        }
        _ => path.is_file().then_some(path),
    });
    if let Some(path) = by_name {
        return Ok(path);
    }
    let path = std::env::current_exe().context("this program's file is not known")?;
    match path.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(path) => Ok(PathBuf::from(path)),
        None => Ok(path),
    }
}

/// The new process's side.
#[derive(Debug)]
pub(crate) struct Predecessor {
    talk: Talk,
}

impl Predecessor {
    /// The old process, if one has started this one.
    pub(crate) fn from_environment() -> anyhow::Result<Option<Self>> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let socket = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map(UnixStream::from)
            .context("there is no old process behind standard input")?;
        Ok(Some(Self { talk: Talk { socket: Arc::new(socket) } }))
    }

    /// Says that we are ready, and waits for the listeners and for the data folder.
    pub(crate) async fn take_listeners(&self) -> anyhow::Result<Listeners> {
        let hello = Message::Hello { version: proto::VERSION.into() };
        self.talk.say(hello, Vec::new()).await.context("the old process is gone")?;
        let (message, mut descriptors) = self.talk.hear(STEP_WITHIN).await?;
        let Message::Listeners { web, jump } = message else {
            bail!("the old process spoke out of turn");
        };
        if descriptors.len() != web.saturating_add(usize::from(jump)) {
            bail!("the old process's listeners did not all arrive");
        }
        let jump = if jump { descriptors.pop() } else { None };
        match self.talk.hear(STEP_WITHIN).await? {
            (Message::Released, _) => Ok(Listeners { web: descriptors, jump }),
            _ => bail!("the old process spoke out of turn"),
        }
    }

    /// Says that we serve, and takes the streams. Whatever happens to the old process now, we go on with what came.
    pub(crate) async fn take_streams(self, proxy: &Proxy) -> usize {
        let mut streams = 0_usize;
        if let Err(error) = self.take_each(proxy, &mut streams).await {
            warn!(%error, streams, "the old process did not finish handing over");
        }
        streams
    }

    async fn take_each(&self, proxy: &Proxy, streams: &mut usize) -> io::Result<()> {
        self.talk.say(Message::Serving, Vec::new()).await?;
        loop {
            let moved = self
                .talk
                .blocking(|socket| {
                    socket.set_read_timeout(Some(STEP_WITHIN))?;
                    Moved::receive(socket)
                })
                .await?;
            let Some(stream) = moved else { break };
            proxy.adopt(stream);
            *streams = streams.saturating_add(1);
        }
        self.talk.say(Message::Adopted { streams: *streams }, Vec::new()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_and_descriptors_arrive_and_waits_end() {
        let (near, far) = UnixStream::pair().unwrap();
        let (near, far) = (Talk { socket: Arc::new(near) }, Talk { socket: Arc::new(far) });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        near.say(Message::Listeners { web: 1, jump: false }, vec![listener.into()]).await.unwrap();
        let (message, mut descriptors) = far.hear(STEP_WITHIN).await.unwrap();
        assert!(matches!(message, Message::Listeners { web: 1, jump: false }), "{message:?}");
        let listener = std::net::TcpListener::from(descriptors.pop().unwrap());
        assert_eq!(listener.local_addr().unwrap(), address);
        let waited = far.hear(Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(waited.kind(), io::ErrorKind::WouldBlock);
        drop(near);
        let gone = far.hear(STEP_WITHIN).await.unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::UnexpectedEof);
    }
}
