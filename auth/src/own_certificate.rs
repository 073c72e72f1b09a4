//! Auth's own server certificate: signed by its own host authority, never stored, renewed at half of its life.

use std::sync::Arc;

use arc_swap::ArcSwap;
use net::shutdown::Shutdown;
use pki::authority::Validity;
use pki::claims::HostClaims;
use pki::keys::KeyPairs;
use proto::id::{ClusterName, HostId, NodeName};
use proto::preamble::SNI_AUTH_LABEL;
use proto::resource::HostRole;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{error, info};

use crate::ca::Ca;
use crate::clock::Clock;
use crate::fault::Fault;
use crate::hostnames::INTERNAL;

/// The newest certificate; asked at each handshake.
#[derive(Debug)]
pub(crate) struct OwnCertificate {
    ca: Arc<Ca>,
    clock: Clock,
    claims: HostClaims,
    names: Vec<String>,
    current: ArcSwap<CertifiedKey>,
}

impl OwnCertificate {
    /// `names` beside `auth.<cluster>` and `auth.postern.local`.
    pub(crate) fn issue(
        ca: Arc<Ca>,
        clock: Clock,
        cluster: &ClusterName,
        names: &[String],
    ) -> Result<Self, Fault> {
        let nodename =
            NodeName::parse(SNI_AUTH_LABEL).map_err(|error| Fault::Internal(error.to_string()))?;
        let claims = HostClaims {
            cluster: cluster.clone(),
            host_id: HostId::from_random(net::random16()),
            nodename,
            roles: vec![HostRole::Auth],
        };
        let mut all = vec![format!("{SNI_AUTH_LABEL}.{INTERNAL}")];
        all.extend_from_slice(names);
        let first = sign(&ca, &clock, &claims, &all)?;
        Ok(Self { ca, clock, claims, names: all, current: ArcSwap::from(first) })
    }

    /// Renews until `shutdown` stops.
    pub(crate) async fn keep_fresh(&self, shutdown: &Shutdown) {
        let mut wait = RENEW_AFTER;
        loop {
            tokio::select! {
                () = shutdown.stopped() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = match sign(&self.ca, &self.clock, &self.claims, &self.names) {
                Ok(fresh) => {
                    self.current.store(fresh);
                    info!("auth's own certificate is renewed");
                    RENEW_AFTER
                }
                Err(fault) => {
                    error!(error = %fault, "auth's own certificate cannot be renewed");
                    RETRY_AFTER
                }
            };
        }
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn sign(
    ca: &Ca,
    clock: &Clock,
    claims: &HostClaims,
    names: &[String],
) -> Result<Arc<CertifiedKey>, Fault> {
    let keys = KeyPairs::generate().map_err(|error| Fault::Internal(error.to_string()))?;
    let now = clock.now();
    let validity = Validity { not_before: now, not_after: now.saturating_add(LIFE_SECONDS) };
    let certificate = ca.host_tls().issue_host(claims, names, &keys.tls_spki(), validity)?;
    net::tls::certified_key(&certificate, &keys).map_err(|error| Fault::Internal(error.to_string()))
}

const LIFE_SECONDS: i64 = 7 * 24 * 3600;
const RENEW_AFTER: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600 / 2);
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(60);
