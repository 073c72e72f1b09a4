//! The life of the daemon, on one page: settings > roles ([`crate::start`]) > until a signal > drain > stop, or until a new
//! process has taken over ([`crate::upgrade`]).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use net::shutdown::Shutdown;
use proto::resource::HostRole;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::diag::{self, Diag, UpgradeAsked};
use crate::health::Health;
use crate::start::{Running, start_roles};
use crate::upgrade::{Predecessor, Report, Successor, kept_addresses};

/// After the drain, tasks get so long to end by themselves: longer than a node waits for a program that ignores SIGHUP
/// before it kills it (5 s), and for its client to read why (2 s).
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// The time in which a client must have said what it wants (`proxy::Limits::request_within`).
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(10);
/// For blocking calls under way; with the drain and [`STOP_WITHIN`] less than the 90 s of the unit file in the guide.
const THREADS_END_WITHIN: Duration = Duration::from_secs(5);

/// Runs until a signal.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    crate::logging::install(&config.log)?;
    // Files that roles make are private unless they say otherwise; children set their own.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(live(config));
    runtime.shutdown_timeout(THREADS_END_WITHIN);
    result
}

/// One daemon per data folder: a second one would take the first one's sockets away. Held until the process ends.
fn lock(data_dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = data_dir.join("postern.lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot use {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => anyhow::bail!(
            "another postern uses {d}: see `postern status --data-dir {d}`, or pass another --data-dir",
            d = data_dir.display()
        ),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// As many open files as the system lets us have: a session costs a few, and the bounds of every role are far above the
/// usual soft limit of 1024, which the programs of sessions get back (`node::sys`).
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!(%error, "the limit of open files stays as it is");
    }
}

async fn live(config: Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    let mut signals = Signals::new()?;
    let roles: Vec<&str> = config.roles().into_iter().map(HostRole::as_str).collect();
    let health = Arc::new(Health::new(config.nodename.as_str(), &roles));
    let (predecessor, listeners, lock) = take_folder(&config).await?;
    let (ask_upgrade, mut upgrades) = mpsc::channel(1);
    let diag = Diag::new(health.clone(), ask_upgrade)?;
    let socket = diag::socket(&config.data_dir);
    diag.listen_socket(&socket)?;
    let mut kept = Vec::new();
    let diag_tcp = match diag_over_tcp(&config, &diag).await {
        Ok(task) => task,
        // Sessions of the old process wait for us: they are worth more.
        Err(error) if predecessor.is_some() => {
            kept.push(format!("{error:#}: no diagnostics over TCP until the daemon is restarted"));
            None
        }
        Err(error) => return Err(error),
    };
    info!(version = proto::VERSION, roles = roles.join(","), data_dir = %config.data_dir.display(), "starting");
    let running = tokio::select! {
        started = start_roles(&config, listeners, &health, &shutdown) => started?,
        () = signals.stop() => return Ok(()),
    };
    notify(&[sd_notify::NotifyState::Ready]);
    info!(roles = roles.join(","), "started");
    let mut held = Held { lock: Some(lock), diag_tcp };
    let ending = async {
        if let Some(predecessor) = predecessor {
            tokio::select! {
                () = take_over(predecessor, &config, &running, kept) => {}
                () = signals.stop() => return Ending::Stop,
            }
        }
        until_end(&running, &health, &shutdown, &mut held, &mut signals, &mut upgrades).await
    };
    let ending = ending.await;
    // Whoever asks for an upgrade from now on hears that there is none.
    drop(upgrades);
    match ending {
        Ending::Stop => {
            drain(&config, running, &health, &shutdown, &mut signals).await;
            // Without the folder it is the new process's, which was given it when we were told to stop.
            if held.lock.is_some() {
                remove_socket(&socket);
            }
            Ok(())
        }
        // The socket is the new process's.
        Ending::Replaced => {
            let most = config.upgrade_timeout;
            linger(&config, most, &diag, running, &health, &shutdown, &mut signals).await;
            info!("stopped; the new process goes on");
            Ok(())
        }
        // Only a new start helps: the service manager is not kept waiting longer than for any other end.
        Ending::Stranded => {
            let most = config.drain_timeout;
            linger(&config, most, &diag, running, &health, &shutdown, &mut signals).await;
            Err(anyhow!("the upgrade failed after this process had stopped accepting"))
        }
    }
}

/// The data folder, from the old process if there is one, with the listeners that come from it.
async fn take_folder(
    config: &Config,
) -> anyhow::Result<(Option<Predecessor>, Option<proxy::Listeners>, std::fs::File)> {
    net::file::private_dir(&config.data_dir)
        .with_context(|| format!("cannot use {}", config.data_dir.display()))?;
    let predecessor = Predecessor::from_environment()?;
    if predecessor.is_some() {
        // What would be found out too late, when the old process has let go of everything.
        check_before_taking_over(config)?;
    }
    let listeners = match &predecessor {
        Some(predecessor) => Some(predecessor.take_listeners().await?),
        None => None,
    };
    let lock = lock(&config.data_dir)?;
    Ok((predecessor, listeners, lock))
}

async fn diag_over_tcp(config: &Config, diag: &Diag) -> anyhow::Result<Option<JoinHandle<()>>> {
    let Some(address) = config.diag_addr else { return Ok(None) };
    let (address, task) = diag.listen(address).await?;
    info!(%address, "diagnostics: /healthz /readyz /metrics");
    Ok(Some(task))
}

/// Goes on with what the old process relayed, and says what of its addresses stays.
async fn take_over(
    predecessor: Predecessor,
    config: &Config,
    running: &Running,
    mut kept: Vec<String>,
) {
    let (Some(section), Some(proxy)) = (&config.proxy, &running.proxy) else { return };
    kept.extend(kept_addresses(section, proxy));
    kept.iter().for_each(|kept| warn!("{kept}"));
    let streams = predecessor.take_streams(proxy, kept).await;
    info!(streams, "what the old process relayed goes on here");
}

/// How the daemon's time to serve ends.
enum Ending {
    /// A new process has taken over.
    Replaced,
    Stop,
    /// An upgrade failed when this process had given up what it needs to go on.
    Stranded,
}

/// Serves until a signal or a successful upgrade.
async fn until_end(
    running: &Running,
    health: &Health,
    shutdown: &Shutdown,
    held: &mut Held,
    signals: &mut Signals,
    upgrades: &mut mpsc::Receiver<UpgradeAsked>,
) -> Ending {
    loop {
        let answer = tokio::select! {
            signal = signals.next() => match signal {
                Signal::Stop => return Ending::Stop,
                Signal::Upgrade => None,
            },
            Some(answer) = upgrades.recv() => Some(answer),
        };
        let handed_over = tokio::select! {
            handed_over = hand_over(running, health, shutdown, held) => handed_over,
            () = signals.stop() => {
                if let Some(answer) = answer {
                    let why = "the daemon was told to stop in the middle of the upgrade";
                    drop(answer.send(Err(why.to_owned())));
                }
                return Ending::Stop;
            }
        };
        let (said, ending) = match handed_over {
            Ok(report) => {
                let Report { pid, moved, stayed, .. } = &report;
                info!(pid, moved, stayed, "a new process has taken over");
                (Ok(report), Some(Ending::Replaced))
            }
            Err(HandOver::Before(error)) => (Err(error), None),
            Err(HandOver::Amid(error)) => {
                let error = error.context(
                    "nothing new is accepted any more, and what runs is ended after drain_timeout: start the daemon \
                     again",
                );
                (Err(error), Some(Ending::Stranded))
            }
        };
        let said = said.map_err(|error| format!("{error:#}"));
        if let Err(error) = &said {
            error!("the upgrade failed: {error}");
        }
        if let Some(answer) = answer {
            // Whoever asked may be gone.
            drop(answer.send(said));
        }
        if let Some(ending) = ending {
            return ending;
        }
    }
}

/// What only one process may hold.
struct Held {
    lock: Option<std::fs::File>,
    diag_tcp: Option<JoinHandle<()>>,
}

/// When an upgrade failed.
enum HandOver {
    /// Nothing has changed.
    Before(anyhow::Error),
    /// Nothing new is accepted here any more; what is relayed goes on.
    Amid(anyhow::Error),
}

/// Gives everything to a new process of this program.
async fn hand_over(
    running: &Running,
    health: &Health,
    shutdown: &Shutdown,
    held: &mut Held,
) -> Result<Report, HandOver> {
    let Some(proxy) = running.proxy.as_ref().filter(|_| running.is_proxy_alone()) else {
        return Err(HandOver::Before(anyhow!(
            "only a proxy is upgraded in place, and this daemon runs other roles too, whose sessions live in the \
             process: restart it when its sessions have ended, or run the proxy as a daemon of its own"
        )));
    };
    if std::process::id() == 1 {
        return Err(HandOver::Before(anyhow!(
            "this is the first process of its container, which ends when it ends: start a new container instead"
        )));
    }
    let listeners = proxy.listeners().context("the listeners cannot be handed over");
    let listeners = listeners.map_err(HandOver::Before)?;
    let mut successor = Successor::start().await.map_err(HandOver::Before)?;
    successor.give_listeners(listeners).await.map_err(HandOver::Before)?;
    proxy.replaced();
    health.draining();
    shutdown.drain();
    proxy.close_audit();
    if let Some(shipping) = &running.shipping {
        shipping.stop().await;
    }
    if let Some(task) = held.diag_tcp.take() {
        task.abort();
        // Its address is free when it has ended, by us or by itself.
        drop(task.await);
    }
    drop(held.lock.take());
    let kept = successor.release().await.map_err(HandOver::Amid)?;
    notify(&[sd_notify::NotifyState::MainPid(successor.pid())]);
    successor.give_streams(proxy, kept).await.map_err(HandOver::Amid)
}

/// Waits for what could not be handed over, for `most` at the longest, and says so on a socket of its own.
async fn linger(
    config: &Config,
    most: Duration,
    diag: &Diag,
    running: Running,
    health: &Health,
    shutdown: &Shutdown,
    signals: &mut Signals,
) {
    let beside = diag::lingering_socket(&config.data_dir, std::process::id());
    if let Err(error) = diag.listen_socket(&beside) {
        warn!(error = format!("{error:#}"), "`postern status` will not show this process");
    }
    // Connections that were about to say what they want, and whoever asked for the upgrade.
    let last_words = tokio::time::sleep(LAST_WORDS_WITHIN.min(most));
    tokio::select! {
        () = async { tokio::join!(running.idle(), last_words); } => info!("nothing is left here"),
        () = tokio::time::sleep(most) => {
            warn!(waited = ?most, "connections that could not be handed over are ended");
        }
        () = signals.stop() => {}
        () = keep_telling(most, &running, health) => {}
    }
    stop(running, shutdown).await;
    remove_socket(&beside);
}

/// Keeps what `postern status` says of a process that lingers. Does not end.
async fn keep_telling(most: Duration, running: &Running, health: &Health) {
    const TELL_EVERY: Duration = Duration::from_secs(1);
    let begun = tokio::time::Instant::now();
    loop {
        health.lingers(running.streams(), most.saturating_sub(begun.elapsed()));
        tokio::time::sleep(TELL_EVERY).await;
    }
}

/// Mistakes of the configuration, or of the machine, that would keep a proxy from starting, or make it another's.
fn check_before_taking_over(config: &Config) -> anyhow::Result<()> {
    if config.roles() != [HostRole::Proxy] {
        let roles: Vec<&str> = config.roles().into_iter().map(HostRole::as_str).collect();
        anyhow::bail!(
            "the configuration asks for {} now; only a proxy by itself is upgraded in place: restart the daemon",
            roles.join(", ")
        );
    }
    // The old process has its folder, and nobody else has ours.
    if lock(&config.data_dir).is_ok() {
        anyhow::bail!(
            "data_dir is {} now, which is not the running daemon's: restart the daemon",
            config.data_dir.display()
        );
    }
    if let Some(section) = &config.proxy {
        relay::Ladder::probe(section.data_plane)?;
        proxy::check_keypairs(&section.https_keypairs)?;
    }
    Ok(())
}

/// No new sessions, then none at all.
async fn drain(
    config: &Config,
    running: Running,
    health: &Health,
    shutdown: &Shutdown,
    signals: &mut Signals,
) {
    health.draining();
    notify(&[sd_notify::NotifyState::Stopping]);
    info!(timeout = ?config.drain_timeout, "draining: no new sessions; a second signal ends those that run");
    shutdown.drain();
    tokio::select! {
        () = running.idle() => info!("all sessions have ended"),
        () = tokio::time::sleep(config.drain_timeout) => warn!("sessions are still open after the drain timeout"),
        () = signals.stop() => warn!("second signal"),
    }
    stop(running, shutdown).await;
    info!("stopped");
}

async fn stop(running: Running, shutdown: &Shutdown) {
    shutdown.stop();
    if tokio::time::timeout(STOP_WITHIN, running.finished()).await.is_err() {
        warn!("some tasks did not end in time");
    }
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "systemd could not be told");
    }
}

fn remove_socket(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        warn!(%error, path = %path.display(), "the status socket stays behind");
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Stop,
    Upgrade,
}

/// SIGTERM, SIGINT and SIGUSR2.
#[derive(Debug)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    upgrade: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.upgrade.recv() => Signal::Upgrade,
        }
    }

    /// The next one that is no upgrade.
    async fn stop(&mut self) {
        while self.next().await != Signal::Stop {}
    }
}
