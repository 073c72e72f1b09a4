//! One session that is watched, and the sink that counts what is told of it.

use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use capture::{Capture, Sink, Wanted, Watch};
use futures::future::BoxFuture;
use net::spool::Spool;
use proto::event::{self, Body, Happened};

/// What was told.
#[derive(Debug)]
pub(crate) struct Counted {
    facts: event::Session,
    /// All events.
    pub(crate) told: AtomicU64,
    /// Openings of the file of which each is told. Not of others: a program opens its libraries, too.
    pub(crate) opened: AtomicU64,
    /// Records of which `session.loss` tells.
    pub(crate) lost: AtomicU64,
    /// The last task has ended, and all of it was told.
    over: AtomicU64,
    /// Where events go that are to be durable.
    spool: Option<Spool>,
    next_ei: AtomicU64,
    /// Events that could not be made so.
    pub(crate) failed: AtomicU64,
}

impl Counted {
    fn new(spool: Option<Spool>) -> Result<Arc<Self>> {
        let (told, opened, lost, over, next_ei, failed) = Default::default();
        let facts = serde_json::from_str(FACTS)?;
        Ok(Arc::new(Self { facts, told, opened, lost, over, spool, next_ei, failed }))
    }

    /// Waits until nothing of the session can come any more.
    pub(crate) async fn over(&self) -> Result<()> {
        let started = Instant::now();
        while self.over.load(Ordering::Acquire) == 0 {
            ensure!(started.elapsed() < OVER_WITHIN, "the session is not over");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Sink for Counted {
    fn facts(&self) -> event::Session {
        self.facts.clone()
    }

    fn record(&self, happened: Vec<Happened>) -> BoxFuture<'_, bool> {
        happened.iter().for_each(|happened| self.count(&happened.body));
        let Some(spool) = &self.spool else { return Box::pin(std::future::ready(true)) };
        let count = u64::try_from(happened.len()).unwrap_or_default();
        let first = self.next_ei.fetch_add(count, Ordering::Relaxed);
        Box::pin(async move {
            let written = match spool.batch(happened.into_iter().zip(first..)) {
                Ok(batch) => spool.write(&batch).await,
                Err(error) => Err(error),
            };
            if let Err(error) = &written {
                // Once: of every batch it would be more than whoever started us reads.
                if self.failed.fetch_add(count, Ordering::Relaxed) == 0 {
                    eprintln!("ERROR: events are not durable: {error}");
                }
            }
            written.is_ok()
        })
    }
}

impl Counted {
    fn count(&self, body: &Body) {
        self.told.fetch_add(1, Ordering::Relaxed);
        if let Body::SessionDisk(disk) = body
            && disk.op == "open"
            && disk.path.ends_with("/secret")
        {
            self.opened.fetch_add(1, Ordering::Relaxed);
        } else if let Body::SessionLoss(loss) = body {
            self.lost.fetch_add(loss.count, Ordering::Relaxed);
        } else if let Body::SessionCapture(_) = body {
            self.over.store(1, Ordering::Release);
        }
    }
}

/// Programs in the kernel, and a session that waits for its first process.
pub(crate) struct Watched {
    /// Dropped: the programs are gone.
    pub(crate) _capture: Capture,
    pub(crate) counted: Arc<Counted>,
    watch: Watch,
}

impl Watched {
    pub(crate) fn begin(spool: Option<Spool>) -> Result<Self> {
        let capture = load()?;
        let counted = Counted::new(spool)?;
        let sink: Arc<dyn Sink> = Arc::clone(&counted) as Arc<dyn Sink>;
        let rules = serde_json::from_str("{}")?;
        let wanted = Wanted { command: true, disk: true, network: true, strict: false, rules };
        let watch = capture.watch(&sink, wanted)?.context("nothing is captured")?;
        Ok(Self { _capture: capture, counted, watch })
    }

    /// Starts the session's first process. To be called once.
    pub(crate) fn spawn(&mut self, command: &mut Command) -> Result<Child> {
        Ok(self.watch.spawn(command)?)
    }
}

/// Loads the programs.
pub(crate) fn load() -> Result<Capture> {
    // Nothing outlives us, so that nothing is restored.
    let counted = Counted::new(None)?;
    let capture = Capture::start(None, &move |_| Arc::clone(&counted) as Arc<dyn Sink>);
    if let Some(error) = capture.failure() {
        bail!("nothing is captured: {error}");
    }
    Ok(capture)
}

/// As long as those of a real session are.
const FACTS: &str = r#"{"sid":"01010101-0101-4101-8101-010101010101","namespace":"default","user":"alice",
    "login":"root","server_id":"02020202-0202-4202-8202-020202020202","server_hostname":"db-1",
    "server_version":"0.1.0","addr.remote":"192.0.2.7:50022","proto":"ssh"}"#;
/// Writers may be behind by then.
const OVER_WITHIN: Duration = Duration::from_secs(20);
