//! Auth's own server certificate: signed by its own host authority, never stored, renewed at half of its life, and when the
//! clock has been set to a time at which it is not good.

use std::sync::Arc;

use arc_swap::ArcSwap;
use net::shutdown::Shutdown;
use pki::authority::{CLOCK_BEHIND_SECONDS, Validity};
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
    /// The first one, Unix seconds.
    issued_at: i64,
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
        let issued_at = clock.now();
        let first = sign(&ca, &clock, &claims, &all)?;
        Ok(Self { ca, clock, claims, names: all, current: ArcSwap::from(first), issued_at })
    }

    /// Renews until `shutdown` stops.
    pub(crate) async fn keep_fresh(&self, shutdown: &Shutdown) {
        let mut issued_at = self.issued_at;
        loop {
            tokio::select! {
                () = shutdown.stopped() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let now = self.clock.now();
            if !is_due(issued_at, now) {
                continue;
            }
            match sign(&self.ca, &self.clock, &self.claims, &self.names) {
                Ok(fresh) => {
                    self.current.store(fresh);
                    issued_at = now;
                    info!("auth's own certificate is renewed");
                }
                Err(fault) => {
                    error!(error = %fault, "auth's own certificate cannot be renewed");
                }
            }
        }
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// Certificates reach back a little for clocks that are behind, so small steps back need nothing.
fn is_due(issued_at: i64, now: i64) -> bool {
    let age = now.saturating_sub(issued_at);
    !(-CLOCK_BEHIND_SECONDS..RENEW_AFTER_SECONDS).contains(&age)
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
const RENEW_AFTER_SECONDS: i64 = LIFE_SECONDS / 2;
/// Waiting is measured by another clock, which stands still while the machine sleeps and does not jump: a machine that
/// boots in 1970 has the right time a minute later.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_at_half_of_its_life_and_when_the_clock_was_set() {
        let issued_at = 1_800_000_000;
        for (now, expect) in [
            (issued_at, false),
            (issued_at + RENEW_AFTER_SECONDS - 1, false),
            (issued_at + RENEW_AFTER_SECONDS, true),
            (issued_at + 10 * LIFE_SECONDS, true),
            (issued_at - 1, false),
            (issued_at - 3600, true),
        ] {
            assert_eq!(is_due(issued_at, now), expect, "{}", now - issued_at);
        }
    }
}
