//! The relay with as little before it as possible, to be measured beside other proxies: accepts, ends TLS or not, asks
//! the policy or not, dials one upstream and relays. What a cluster's proxy does with a connection, less the cluster.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use pki::known::KnownClients;
use pki::{Identity, Verifier};
use policy::{Decision, Policy, Request, decide};
use proto::id::HostId;
use proto::resource::Labels;
use proto::snapshot::Snapshot;
use relay::tls::Established;
use relay::{DataPlane, Given, Limits, Next, OpeningFault, Outcome, Place, Relay, Service};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Relays every connection to one upstream.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    upstream: SocketAddr,
    /// Certificate chain and key: TLS ends here.
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    #[arg(long)]
    key: Option<PathBuf>,
    /// Clients must show a certificate of this authority, which must be a user's whom the policy lets through.
    #[arg(long, requires = "policy", requires = "cert")]
    client_ca: Option<PathBuf>,
    /// A policy snapshot, as JSON.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// auto, uring-ktls, uring or epoll.
    #[arg(long, default_value = "auto")]
    data_plane: DataPlane,
    #[arg(long)]
    workers: Option<usize>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ERROR: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let relay = Relay::start(relay::Settings {
        streams_max: 64 * 1024,
        workers: arguments.workers,
        data_plane: arguments.data_plane,
    })?;
    let door: Arc<dyn Service> = Arc::new(Door {
        upstream: arguments.upstream,
        tls: tls(arguments)?,
        gate: gate(arguments)?,
        host_id: HostId::from_random([1; 16]),
        labels: Labels::from([("env".to_owned(), "dev".to_owned())]),
    });
    println!("rung: {} ({})", relay.ladder().rung(), relay.ladder().why());
    relay.listen(arguments.listen, &door).context("cannot listen")?;
    loop {
        std::thread::park();
    }
}

fn tls(arguments: &Arguments) -> Result<Option<Arc<ServerConfig>>> {
    let (Some(chain), Some(key)) = (&arguments.cert, &arguments.key) else { return Ok(None) };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match &arguments.client_ca {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(authority)?)?;
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(Arc::new(KnownClients::new(verifier)))
        }
    };
    let chain = CertificateDer::pem_file_iter(chain)?.collect::<Result<Vec<_>, _>>()?;
    let mut config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    // As the other proxies are told: every handshake is a full one.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.enable_secret_extraction = true;
    Ok(Some(Arc::new(config)))
}

fn gate(arguments: &Arguments) -> Result<Option<(Verifier, Policy)>> {
    let Some(file) = &arguments.policy else { return Ok(None) };
    let snapshot: Snapshot = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let verifier = Verifier::new(&snapshot.cluster, &snapshot.authorities)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(Some((verifier, Policy::new(snapshot)?)))
}

struct Door {
    upstream: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    gate: Option<(Verifier, Policy)>,
    host_id: HostId,
    labels: Labels,
}

impl Door {
    fn dial(&self) -> Next {
        let limits = Limits { idle_timeout: Some(Duration::from_secs(3600)) };
        Next::Dial { to: self.upstream, limits, place: None, tag: bytes::Bytes::new() }
    }

    /// The same check that a cluster's proxy makes: whose certificate, and may they reach the node.
    fn permits(&self, peer: &Established) -> bool {
        let Some((verifier, policy)) = &self.gate else { return true };
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let Ok(Identity::User(user)) = verifier.tls_peer(&peer.certificates, now) else {
            return false;
        };
        let request = Request::ReachNode { host_id: &self.host_id, labels: &self.labels };
        matches!(decide(policy, &user, &request, now), Decision::Permit(_))
    }
}

impl Service for Door {
    fn admit(&self, _from: SocketAddr) -> Option<Place> {
        Some(Box::new(()))
    }
    fn route(&self, _from: SocketAddr, opening: &[u8]) -> Next {
        match &self.tls {
            None => self.dial(),
            Some(_) if opening.is_empty() => Next::More,
            Some(config) => Next::Terminate(Arc::clone(config)),
        }
    }
    fn established(&self, _from: SocketAddr, peer: &Established) -> Next {
        if self.permits(peer) { self.dial() } else { Next::Refuse(bytes::Bytes::new()) }
    }
    fn give(&self, _given: Given) {}
    fn failed(&self, from: SocketAddr, fault: &OpeningFault) {
        eprintln!("{from}: {fault}");
    }
    fn ended(&self, _from: SocketAddr, _outcome: &Outcome) {}
    fn within(&self) -> Duration {
        Duration::from_secs(10)
    }
}
