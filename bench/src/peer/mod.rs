//! What is measured, ours and theirs: how each is told to do the same job. One file per program, each with a function
//! that gives the command for a [`Job`], and one that says the version.
//!
//! Alike for all: one worker, TLS 1.3 with TLS_AES_128_GCM_SHA256 and X25519, the same certificate, no tickets and no
//! session cache, no access log, no limit that the load would run into.

mod door;
mod envoy;
mod haproxy;
mod hitch;
mod nginx;
mod stunnel;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::certificate::Certificates;
use crate::load::stream::Target;
use crate::program::{Core, Program, free_address};

/// What a peer is to do with a connection before it joins it to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Nothing.
    Plain,
    /// End TLS.
    Tls,
    /// End TLS, and insist on a client's certificate.
    TlsWithClients,
}

/// A peer's orders.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) work: Work,
    pub(crate) listen: SocketAddr,
    pub(crate) upstream: SocketAddr,
    pub(crate) certificates: &'a Certificates,
    /// The peer's own, for its configuration.
    pub(crate) dir: &'a Path,
    pub(crate) places: &'a Places,
}

impl Job<'_> {
    /// Writes a file into the peer's folder.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// Where programs are that are not on the path.
#[derive(Debug)]
pub(crate) struct Places {
    /// Ours.
    pub(crate) programs: PathBuf,
    pub(crate) envoy: PathBuf,
}

/// A program that takes part.
pub(crate) struct Peer {
    /// As the report calls it.
    pub(crate) name: &'static str,
    works: &'static [Work],
    command: fn(&Job<'_>) -> Result<Command>,
    version: fn(&Places) -> Option<String>,
}

/// What the report calls us.
pub(crate) const OURS: &str = "postern";

const ALL: &[Work] = &[Work::Plain, Work::Tls, Work::TlsWithClients];
const TLS: &[Work] = &[Work::Tls];

/// Ours first.
pub(crate) const PEERS: &[Peer] = &[
    Peer { name: OURS, works: ALL, command: door::command, version: door::version },
    Peer { name: "haproxy", works: ALL, command: haproxy::stock, version: haproxy::version },
    Peer { name: "haproxy-256k", works: ALL, command: haproxy::tuned, version: haproxy::version },
    Peer { name: "nginx", works: ALL, command: nginx::command, version: nginx::version },
    Peer { name: "envoy", works: ALL, command: envoy::command, version: envoy::version },
    Peer { name: "stunnel", works: TLS, command: stunnel::command, version: stunnel::version },
    Peer { name: "hitch", works: TLS, command: hitch::command, version: hitch::version },
];

impl Peer {
    pub(crate) fn does(&self, work: Work) -> bool {
        self.works.contains(&work)
    }

    pub(crate) fn version(&self, places: &Places) -> Option<String> {
        (self.version)(places)
    }

    /// Starts it, and waits until it listens.
    pub(crate) fn start(
        &self,
        work: Work,
        upstream: SocketAddr,
        certificates: &Certificates,
        places: &Places,
        dir: &Path,
    ) -> Result<Running> {
        let listen = free_address()?;
        let dir = dir.join(format!("{}-{}", self.name, listen.port()));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let job = Job { work, listen, upstream, certificates, dir: &dir, places };
        let command = (self.command)(&job)?;
        let mut program = Program::start(self.name, Core::Measured, &command, dir.join("log"))?;
        program.wait_listening(listen)?;
        let tls = match work {
            Work::Plain => None,
            Work::Tls => Some(certificates.client.clone()),
            Work::TlsWithClients => Some(certificates.client_with_certificate.clone()),
        };
        Ok(Running { program, target: Target { addr: listen, tls } })
    }
}

/// What `growth` is about; fewer where the limit on open files is too low for that.
const CONNECTIONS_WANTED: u64 = 10_000;
/// Open files that a peer needs beside those of its connections.
const SPARE_FILES: u64 = 500;

/// Connections that every peer can hold: two files each, and HAProxy keeps a pipe, two more, for every four.
pub(crate) fn connections_max() -> u64 {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    (files.unwrap_or(u64::MAX).saturating_sub(SPARE_FILES) / 5 * 2).min(CONNECTIONS_WANTED)
}

/// A peer at work. Dropped: it is gone.
#[derive(Debug)]
pub(crate) struct Running {
    program: Program,
    pub(crate) target: Target,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// The rung of the data plane that ours reported when it started.
    pub(crate) fn rung(&self) -> Option<String> {
        door::rung(&self.program.said())
    }
}
