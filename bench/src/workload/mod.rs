//! What is measured. A workload starts its contenders and knows how to take one sample of each; who goes when is
//! [`crate::run`]'s, what it has to come to is [`crate::goal`]'s.
//!
//! - [`bulk`]: `l4-bulk`, `l4-bulk-hot`, `tls-bulk`
//! - [`connections`]: `plain-conn`, `tls-conn`, `mtls-conn`
//! - [`latency`]: the row of that name
//! - [`idle`]: `idle-plain`, `idle-tls`
//! - [`growth`]: the row of that name
//! - [`ssh_bulk`]: `ssh-jump`, `ssh-jump-tls`, `ssh-jump-host`, `tsh-bulk`
//! - [`ssh_sessions`]: `ssh-session-cpu`, `ssh-idle-memory`
//! - [`capture`]: the row of that name

mod bulk;
mod capture;
mod connections;
mod growth;
mod idle;
mod latency;
mod ssh_bulk;
mod ssh_sessions;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;

use crate::certificate::Certificates;
use crate::metric::Sample;
use crate::peer::{OURS, PEERS, Peer, Places, Running, Work};
use crate::program::Program;
use crate::site::cluster::{Cluster, LazyCluster};
use crate::upstream::Upstream;

/// What every workload needs.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) dir: PathBuf,
    pub(crate) places: Places,
    pub(crate) certificates: Certificates,
    pub(crate) upstream: Upstream,
    pub(crate) effort: Effort,
    pub(crate) cluster: LazyCluster,
}

impl Bench {
    /// The cluster that all SSH workloads share.
    fn cluster(&self) -> Result<&Cluster> {
        self.cluster.get(&self.places.programs, &self.dir)
    }
}

/// How much is done for one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    Full,
    /// To see that it works.
    Quick,
}

impl Effort {
    pub(crate) fn choose<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

/// One who is measured.
pub(crate) struct Contender<'b> {
    pub(crate) name: String,
    /// The rung of our data plane.
    pub(crate) rung: Option<String>,
    pub(crate) sample: Take<'b>,
}

/// Takes one sample.
type Take<'b> = Box<dyn FnMut() -> Result<Sample> + 'b>;

/// What was started, and what could not be.
pub(crate) struct Contest<'b> {
    pub(crate) contenders: Vec<Contender<'b>>,
    /// Names, and why they do not take part.
    pub(crate) absent: Vec<(String, String)>,
    /// Programs that have to run meanwhile.
    helpers: Vec<Program>,
}

impl<'b> Contest<'b> {
    fn empty() -> Self {
        Self { contenders: Vec::new(), absent: Vec::new(), helpers: Vec::new() }
    }

    /// Adds ours, or why it is not there.
    fn ours(&mut self, start: impl FnOnce() -> Result<Take<'b>>) {
        let name = OURS.to_owned();
        match start() {
            Ok(sample) => self.contenders.push(Contender { name, rung: None, sample }),
            Err(error) => self.absent.push((name, format!("{error:#}"))),
        }
    }
}

/// A row family of the report.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// For people, in one line.
    pub(crate) about: &'static str,
    pub(crate) open: for<'b> fn(&'b Bench) -> Result<Contest<'b>>,
}

/// In the order of the report.
pub(crate) const WORKLOADS: &[Workload] = &[
    Workload { name: "l4-bulk", about: "plain relay, 4 connections, one way", open: bulk::plain },
    Workload {
        name: "l4-bulk-hot",
        about: "the same, of bytes that the caches hold: the best case for copying",
        open: bulk::plain_hot,
    },
    Workload { name: "tls-bulk", about: "TLS 1.3 ended, 4 connections, one way", open: bulk::tls },
    Workload {
        name: "tls-conn",
        about: "new TLS 1.3 connections, upstream included",
        open: connections::tls,
    },
    Workload {
        name: "mtls-conn",
        about: "the same with a client certificate; ours also decides by policy",
        open: connections::tls_with_clients,
    },
    Workload {
        name: "plain-conn",
        about: "new plain connections, upstream included",
        open: connections::plain,
    },
    Workload {
        name: "latency",
        about: "64 B messages there and back at 10,000 per second, open loop",
        open: latency::open,
    },
    Workload { name: "idle-plain", about: "memory per idle plain connection", open: idle::plain },
    Workload { name: "idle-tls", about: "memory per idle TLS connection", open: idle::tls },
    Workload {
        name: "ssh-jump",
        about: "SSH past a bastion, tsh proxy ssh: bytes from a node to a client",
        open: ssh_bulk::past_bastion,
    },
    Workload {
        name: "ssh-jump-tls",
        about: "the same with TLS kept around SSH",
        open: ssh_bulk::past_bastion_in_tls,
    },
    Workload {
        name: "ssh-jump-host",
        about: "the same with ssh -J, which ends SSH at the bastion",
        open: ssh_bulk::past_jump_host,
    },
    Workload {
        name: "tsh-bulk",
        about: "tsh ssh through bastion and tunnel to a node, by wall clock",
        open: ssh_bulk::whole_way,
    },
    Workload {
        name: "ssh-session-cpu",
        about: "CPU of a new SSH session on the node, shell included",
        open: ssh_sessions::cpu,
    },
    Workload {
        name: "ssh-idle-memory",
        about: "memory of an idle SSH session on the node, shell not included",
        open: ssh_sessions::memory,
    },
    Workload {
        name: "growth",
        about: "CPU per byte with as many connections as fit, by that with ten",
        open: growth::open,
    },
    Workload {
        name: "capture",
        about: "what it costs to tell what a session does; Tier B where the kernel has no BPF LSM",
        open: capture::open,
    },
];

/// Starts every peer that does such work; `sample` measures one.
fn peers<'b>(
    bench: &'b Bench,
    work: Work,
    sample: impl Fn(&Running) -> Result<Sample> + Copy + 'b,
) -> Contest<'b> {
    peers_before(bench, bench.upstream.addr(), work, sample)
}

/// As [`peers`], before another upstream.
fn peers_before<'b>(
    bench: &'b Bench,
    upstream: SocketAddr,
    work: Work,
    sample: impl Fn(&Running) -> Result<Sample> + Copy + 'b,
) -> Contest<'b> {
    let mut contest = Contest::empty();
    for peer in PEERS.iter().filter(|peer| peer.does(work)) {
        match start(bench, peer, work, upstream) {
            Ok(running) => contest.contenders.push(Contender {
                name: peer.name.to_owned(),
                rung: running.rung(),
                sample: Box::new(move || sample(&running)),
            }),
            Err(error) => contest.absent.push((peer.name.to_owned(), format!("{error:#}"))),
        }
    }
    contest
}

/// As [`peers`], for what needs a fresh process each time.
fn fresh_peers<'b>(
    bench: &'b Bench,
    work: Work,
    sample: impl Fn(&Running) -> Result<Sample> + Copy + 'b,
) -> Contest<'b> {
    let mut contest = Contest::empty();
    for peer in PEERS.iter().filter(|peer| peer.does(work)) {
        match start(bench, peer, work, bench.upstream.addr()) {
            Ok(running) => contest.contenders.push(Contender {
                name: peer.name.to_owned(),
                rung: running.rung(),
                sample: Box::new(move || sample(&start(bench, peer, work, bench.upstream.addr())?)),
            }),
            Err(error) => contest.absent.push((peer.name.to_owned(), format!("{error:#}"))),
        }
    }
    contest
}

fn start(bench: &Bench, peer: &Peer, work: Work, upstream: SocketAddr) -> Result<Running> {
    peer.start(work, upstream, &bench.certificates, &bench.places, &bench.dir)
}

/// After the load has ended: what the peer still does for it is part of its cost.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(50);

/// Runs the load; CPU seconds that the peer spent on it.
fn cpu_of<T>(pid: u32, load: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let before = crate::measure::cpu_seconds(pid);
    let done = load()?;
    std::thread::sleep(SETTLE);
    Ok((crate::measure::cpu_seconds(pid) - before, done))
}
