//! Live upgrade: a proxy's daemon starts its program anew and hands over what it has: listeners, relayed connections, the
//! data folder. Established sessions do not notice. What cannot be handed over (TLS that is kept in user space, `ssh -J`)
//! stays with the old process until it ends or `upgrade_timeout` has passed. Both sides are here: they must agree.
//!
//! The conversation, over a socket that is the new process's standard input:
//! 1. new > `Hello`: it has read its configuration, and what that asks for works here
//! 2. old > `Listeners`, with descriptors; new > `Taken`. Until then a failure changes nothing.
//! 3. old stops accepting, lets go of the data folder; `Released`
//! 4. new opens the folder and listens > `Serving`; one that does not in time is ended
//! 5. old > every stream, then the end; new > `Adopted`. Streams that did not leave go on in the old process.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use proxy::{Listeners, Proxy};
use relay::upgrade::{Moved, receive_descriptors, send_descriptors};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::config::ProxySection;
use crate::output;

/// Names the socket that is the new process's standard input. The environment cannot be changed in a running process:
/// whoever inherits the variable without the socket is not meant.
const VARIABLE: &str = "POSTERN_UPGRADE";
/// For the new process to read its configuration.
const HELLO_WITHIN: Duration = Duration::from_secs(15);
/// From a process's last descriptor to its status.
const ENDS_WITHIN: Duration = Duration::from_millis(50);
/// For a process to open its state, or to let go of it.
const STEP_WITHIN: Duration = Duration::from_secs(60);

/// For all streams: a thousand take a tenth of a second.
const STREAMS_WITHIN: Duration = Duration::from_secs(15);

#[derive(Debug, Serialize, Deserialize)]
enum Message {
    Adopted {
        streams: usize,
    },
    Hello {
        version: String,
    },
    Listeners {
        web: usize,
        jump: bool,
    },
    Released,
    /// What the new process's configuration asks for and an upgrade does not bring.
    Serving {
        kept: Vec<String>,
    },
    Taken,
}

/// What came of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The new process.
    pub(crate) pid: u32,
    /// Streams that go on there.
    pub(crate) moved: usize,
    /// Streams that go on in the old process.
    pub(crate) stayed: usize,
    /// What the configuration asks for and only a restart brings, a sentence each.
    #[serde(default)]
    pub(crate) kept: Vec<String>,
}

/// For people.
impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, moved, stayed, kept } = self;
        writeln!(out, "process {pid} has taken over, with {}", output::streams(*moved))?;
        if *stayed > 0 {
            let (streams, go) =
                (output::streams(*stayed), if *stayed == 1 { "goes" } else { "go" });
            writeln!(out, "{streams} that cannot be handed over {go} on in the old process")?;
        }
        kept.iter().try_for_each(|kept| writeln!(out, "WARNING: {kept}"))
    }
}

/// What the configuration says of addresses that did not become so, since listeners are handed over as they are.
pub(crate) fn kept_addresses(section: &ProxySection, proxy: &Proxy) -> Vec<String> {
    let web = kept("web_listen_addr", Some(section.web_listen_addr), Some(proxy.web_addr()));
    let jump = kept("listen_addr", section.ssh_listen_addr, proxy.jump_addr());
    web.into_iter().chain(jump).collect()
}

fn kept(key: &str, asked: Option<SocketAddr>, stands: Option<SocketAddr>) -> Option<String> {
    let asked = asked?;
    let Some(stands) = stands else {
        return Some(format!(
            "proxy_service.{key} is {asked} now, which cannot be listened on: nothing is until the daemon is restarted"
        ));
    };
    // Port 0 is whichever is free.
    let same = asked.ip() == stands.ip() && (asked.port() == 0 || asked.port() == stands.port());
    (!same).then(|| {
        format!(
            "proxy_service.{key} is {asked} now, but an upgrade keeps its listeners: connections are taken at {stands} \
             until the daemon is restarted"
        )
    })
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
    /// It has the listeners and the data folder: dropped, it goes on.
    serves: bool,
}

/// One that does not serve is ended. One that does is our child as long as we live, and is reaped when it ends.
impl Drop for Successor {
    fn drop(&mut self) {
        if !self.serves {
            self.end();
            return;
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        std::thread::spawn(move || {
            rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).ok();
        });
    }
}

impl Successor {
    /// Starts this very program again, with the arguments that this process was given.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("no socket for the new process")?;
        let program = program()?;
        let socket = name_of(&theirs).context("no socket for the new process")?;
        let child = Command::new(&program)
            .args(std::env::args_os().skip(1))
            .env(VARIABLE, socket)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut successor = Self { talk: Talk { socket: Arc::new(ours) }, child, serves: false };
        match successor.talk.hear(HELLO_WITHIN).await {
            Ok((Message::Hello { version }, _)) => {
                info!(pid = successor.child.id(), version, "a new process is ready to take over");
                Ok(successor)
            }
            Ok(_) => bail!("the new process spoke out of turn. Nothing has changed"),
            Err(error) => {
                let why = successor.ended(&error).await;
                bail!(
                    "the new process did not get ready ({why}); its own words are in the log. Nothing has changed"
                )
            }
        }
    }

    /// The new process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Why nothing was heard of it.
    async fn ended(&mut self, error: &io::Error) -> String {
        // Its socket closes a moment before it can be seen to have ended.
        tokio::time::sleep(ENDS_WITHIN).await;
        match (error.kind(), self.child.try_wait()) {
            (io::ErrorKind::WouldBlock, _) => format!("it said nothing for {HELLO_WITHIN:?}"),
            (_, Ok(Some(status))) => format!("it ended with {status}"),
            (io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe, _) => {
                "it closed its socket".to_owned()
            }
            (_, _) => error.to_string(),
        }
    }

    fn end(&mut self) {
        self.serves = false;
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            warn!(%error, "the new process could not be ended");
        }
    }

    /// Hands over the listeners, and waits until they are taken; to be followed by letting go of the data folder.
    pub(crate) async fn give_listeners(&mut self, listeners: Listeners) -> anyhow::Result<()> {
        let message =
            Message::Listeners { web: listeners.web.len(), jump: listeners.jump.is_some() };
        let mut descriptors = listeners.web;
        descriptors.extend(listeners.jump);
        self.talk
            .say(message, descriptors)
            .await
            .context("the new process took no listeners. Nothing has changed")?;
        match self.talk.hear(HELLO_WITHIN).await {
            Ok((Message::Taken, _)) => Ok(()),
            Ok(_) => bail!("the new process spoke out of turn. Nothing has changed"),
            Err(error) => {
                let why = self.ended(&error).await;
                bail!("the new process took no listeners ({why}). Nothing has changed")
            }
        }
    }

    /// Says that the data folder is free, and waits until the new process serves; what it says of its configuration.
    /// One that does not serve in time is to be dropped: it would hold the folder and the listeners for ever.
    pub(crate) async fn release(&mut self) -> anyhow::Result<Vec<String>> {
        let kept = self.serve_now().await.context("the new process did not begin to serve")?;
        self.serves = true;
        Ok(kept)
    }

    async fn serve_now(&self) -> anyhow::Result<Vec<String>> {
        self.talk.say(Message::Released, Vec::new()).await?;
        match self.talk.hear(STEP_WITHIN).await? {
            (Message::Serving { kept }, _) => Ok(kept),
            _ => bail!("the new process spoke out of turn"),
        }
    }

    /// Hands over what can be handed over of the streams. When the new process takes no more it is ended, and those that
    /// did not leave go on here.
    pub(crate) async fn give_streams(
        mut self,
        proxy: &Proxy,
        kept: Vec<String>,
    ) -> anyhow::Result<Report> {
        let streams = proxy.leave().await;
        let count = streams.len();
        let (left, sent) = self.talk.blocking(move |socket| Ok(send_each(socket, streams))).await?;
        let adopted = match sent {
            Ok(()) => self.talk.hear(STREAMS_WITHIN).await,
            Err(error) => Err(error),
        };
        let moved = match adopted {
            Ok((Message::Adopted { streams }, _)) => streams,
            failed => {
                self.end();
                let stay = left.len();
                left.into_iter().for_each(|stream| proxy.adopt(stream));
                let why = match failed {
                    Ok(_) => "it spoke out of turn".to_owned(),
                    Err(error) => error.to_string(),
                };
                bail!(
                    "the new process stopped taking streams ({why}); {stay} of {count} go on here"
                );
            }
        };
        if moved != count {
            warn!(sent = count, taken = moved, "some streams were lost on the way");
        }
        Ok(Report { pid: self.child.id(), moved, stayed: proxy.stayed().await, kept })
    }
}

/// Sends streams, then the end, within [`STREAMS_WITHIN`] altogether. Those that were not sent, and why.
fn send_each(socket: &UnixStream, streams: Vec<Moved>) -> (Vec<Moved>, io::Result<()>) {
    let until = Instant::now() + STREAMS_WITHIN;
    let mut streams = streams.into_iter();
    while let Some(stream) = streams.next() {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let sent = socket.set_write_timeout(Some(left)).and_then(|()| stream.send(socket));
        match sent {
            Ok(()) => {}
            // Its own fault, of which the socket knows nothing.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                warn!(%error, "a stream could not be handed over");
            }
            Err(error) => return (streams.collect(), Err(error)),
        }
    }
    (Vec::new(), socket.shutdown(std::net::Shutdown::Write))
}

/// A descriptor's file, by device and inode: what nobody else's standard input is while it is open.
fn name_of(file: impl AsFd) -> io::Result<String> {
    let stat = rustix::fs::fstat(file)?;
    Ok(format!("{}:{}", stat.st_dev, stat.st_ino))
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
        let Some(named) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let stdin = std::io::stdin();
        if name_of(&stdin).ok().is_none_or(|name| named != *name) {
            return Ok(None);
        }
        let taken = || -> io::Result<OwnedFd> {
            let socket = stdin.as_fd().try_clone_to_owned()?;
            // Nobody whom we start is meant either.
            rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
            Ok(socket)
        };
        let socket =
            taken().map(UnixStream::from).context("the old process behind standard input")?;
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
        self.talk.say(Message::Taken, Vec::new()).await?;
        match self.talk.hear(STEP_WITHIN).await? {
            (Message::Released, _) => Ok(Listeners { web: descriptors, jump }),
            _ => bail!("the old process spoke out of turn"),
        }
    }

    /// Says that we serve, and takes the streams. Whatever happens to the old process now, we go on with what came.
    /// `kept` is what the old process tells whoever asked for the upgrade.
    pub(crate) async fn take_streams(self, proxy: &Proxy, kept: Vec<String>) -> usize {
        let mut streams = 0_usize;
        if let Err(error) = self.take_each(proxy, kept, &mut streams).await {
            warn!(%error, streams, "the old process did not finish handing over");
        }
        streams
    }

    async fn take_each(
        &self,
        proxy: &Proxy,
        kept: Vec<String>,
        streams: &mut usize,
    ) -> io::Result<()> {
        self.talk.say(Message::Serving { kept }, Vec::new()).await?;
        loop {
            let moved = self
                .talk
                .blocking(|socket| {
                    socket.set_read_timeout(Some(STREAMS_WITHIN))?;
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

    #[tokio::test]
    async fn a_new_process_that_does_not_serve_is_ended() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let talk = Talk { socket: Arc::new(ours) };
        let mut successor = Successor { talk, child, serves: false };
        let pid = successor.pid();
        // It hears that the folder is free, and then nothing is heard of it.
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let error = successor.release().await.unwrap_err();
        assert!(error.to_string().contains("did not begin to serve"), "{error:#}");
        drop(successor);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "it goes on");
    }

    #[test]
    fn a_socket_has_a_name_of_its_own() {
        let (one, other) = UnixStream::pair().unwrap();
        let again = one.try_clone().unwrap();
        assert_eq!(name_of(&one).unwrap(), name_of(&again).unwrap());
        assert_ne!(name_of(&one).unwrap(), name_of(&other).unwrap());
    }

    #[test]
    fn addresses_that_an_upgrade_keeps_are_told() {
        fn check(asked: &str, stands: &str, told: bool) {
            let said = kept("listen_addr", asked.parse().ok(), stands.parse().ok());
            assert_eq!(said.is_some(), told, "{asked} {stands}: {said:?}");
        }
        check("0.0.0.0:3080", "0.0.0.0:3080", false);
        check("127.0.0.1:0", "127.0.0.1:4711", false);
        check("0.0.0.0:3080", "127.0.0.1:3080", true);
        check("0.0.0.0:443", "0.0.0.0:3080", true);
        // A listener that comes or goes does so by an upgrade too.
        check("off", "0.0.0.0:3023", false);
        // One that was asked for and does not stand could not be opened.
        check("0.0.0.0:3023", "none", true);
    }

    #[test]
    fn people_are_told_what_has_moved() {
        let report = Report { pid: 7, moved: 1, stayed: 0, kept: Vec::new() };
        assert_eq!(report.to_string(), "process 7 has taken over, with 1 stream\n");
        let report = Report { stayed: 2, moved: 0, kept: vec!["so".into()], ..report };
        assert_eq!(
            report.to_string(),
            "process 7 has taken over, with 0 streams\n2 streams that cannot be handed over go on in the old process\nWARNING: so\n"
        );
    }
}
