//! Machines come and stay: a join token for a first certificate, the certificate for each next one. The host id is
//! given by auth and never changes; what a certificate may say is checked here and in `pki`. Called by `service::join`.

use std::sync::Arc;

use pki::HostIdentity;
use pki::authority::Validity;
use pki::claims::HostClaims;
use proto::event::{Body, CertCreate, InstanceJoin, Outcome};
use proto::id::{ClusterName, HostId, NodeName};
use proto::resource::{HostRole, LockTarget};
use proto::rpc::{HostCertificates, RegisterRequest, RenewRequest, SignHostRequest};
use time::OffsetDateTime;
use tracing::info;

use crate::ca::Ca;
use crate::clock::Clock;
use crate::fault::Fault;
use crate::hostnames::{Holder, Hostnames};
use crate::log::Log;
use crate::snapshot::Snapshots;
use crate::tokens::Tokens;

/// What joining needs.
#[derive(Debug)]
pub(crate) struct Joining {
    pub(crate) ca: Arc<Ca>,
    pub(crate) clock: Clock,
    pub(crate) cluster: ClusterName,
    pub(crate) hostnames: Arc<Hostnames>,
    pub(crate) log: Log,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) tokens: Arc<Tokens>,
}

/// What goes into a machine's certificates.
struct Wanted<'a> {
    claims: HostClaims,
    principals: &'a [String],
    ssh: &'a str,
    tls: &'a [u8],
}

impl Wanted<'_> {
    fn holder(&self, role: HostRole) -> Holder<'_> {
        Holder {
            host_id: &self.claims.host_id,
            nodename: &self.claims.nodename,
            role,
            ssh_public_key: self.ssh,
            tls_public_key: self.tls,
        }
    }
}

impl Joining {
    /// A token for certificates.
    pub(crate) async fn register(
        &self,
        request: RegisterRequest,
        from: &str,
    ) -> Result<HostCertificates, Fault> {
        let host_id = HostId::from_random(net::random16());
        let joined = self.try_register(&request, &host_id).await;
        let outcome = match &joined {
            Ok(_) => Outcome::ok(),
            Err(fault) => Outcome::failed(fault.to_string()),
        };
        let join = InstanceJoin {
            node_name: shortened(&request.nodename),
            host_id: if outcome.success { host_id.to_string() } else { String::new() },
            role: shortened(&request.role),
            method: "token".into(),
            addr_remote: from.to_owned(),
            outcome,
        };
        match joined {
            Ok((certificates, issued)) => {
                self.log.record([join.into(), issued]).await?;
                info!(%host_id, nodename = request.nodename, role = request.role, "a machine joined");
                Ok(certificates)
            }
            Err(fault) => {
                self.log.record([join.into()]).await?;
                Err(fault)
            }
        }
    }

    async fn try_register(
        &self,
        request: &RegisterRequest,
        host_id: &HostId,
    ) -> Result<(HostCertificates, Body), Fault> {
        let role = match request.role.as_str() {
            "node" => HostRole::Node,
            "proxy" => HostRole::Proxy,
            _ => return Err(Fault::Invalid("a machine joins as node or as proxy".into())),
        };
        let accepted = self.tokens.accept(&request.token, role).await?;
        let nodename = NodeName::parse(&*request.nodename)
            .map_err(|error| Fault::Invalid(error.to_string()))?;
        let wanted = Wanted {
            claims: HostClaims {
                cluster: self.cluster.clone(),
                host_id: host_id.clone(),
                nodename,
                roles: vec![role],
            },
            principals: &request.principals,
            ssh: &request.ssh_public_key,
            tls: &request.tls_public_key,
        };
        // Signed before the name is held and the token used up: bad keys or names cost the machine neither.
        let issued = self.issue(&wanted, HOST_SECONDS)?;
        let holder = wanted.holder(role);
        self.hostnames.claim(holder, &request.principals, issued.0.valid_until).await?;
        self.tokens.use_up(accepted).await?;
        Ok(issued)
    }

    /// Fresh certificates for the same machine.
    pub(crate) async fn renew(
        &self,
        host: &HostIdentity,
        request: &RenewRequest,
    ) -> Result<HostCertificates, Fault> {
        self.refuse_locked(host.host_id())?;
        let [role] = host.roles() else {
            return Err(Fault::Denied("this certificate is not one that renews itself".into()));
        };
        if host.valid_until().saturating_sub(self.clock.now()) > HOST_SECONDS {
            return Err(Fault::Denied("this certificate is not one that renews itself".into()));
        }
        let wanted = Wanted {
            claims: HostClaims {
                cluster: self.cluster.clone(),
                host_id: host.host_id().clone(),
                nodename: host.nodename().clone(),
                roles: vec![*role],
            },
            principals: &request.principals,
            ssh: &request.ssh_public_key,
            tls: &request.tls_public_key,
        };
        let (certificates, issued) = self.issue(&wanted, HOST_SECONDS)?;
        let holder = wanted.holder(*role);
        self.hostnames.claim(holder, &request.principals, certificates.valid_until).await?;
        self.log.record([issued]).await?;
        Ok(certificates)
    }

    /// Certificates for a server that does not join, such as a stock sshd: for the local administrator only, who could
    /// read the authority's key as well.
    pub(crate) async fn sign(&self, request: &SignHostRequest) -> Result<HostCertificates, Fault> {
        let Some((first, others)) = request.principals.split_first() else {
            return Err(Fault::Invalid("which names? pass at least one".into()));
        };
        let nodename =
            NodeName::parse(&**first).map_err(|error| Fault::Invalid(error.to_string()))?;
        let seconds = match request.ttl_seconds {
            0 => HOST_SECONDS,
            seconds => i64::try_from(seconds).unwrap_or(i64::MAX).min(SIGNED_SECONDS_MAX),
        };
        let wanted = Wanted {
            claims: HostClaims {
                cluster: self.cluster.clone(),
                host_id: HostId::from_random(net::random16()),
                nodename,
                roles: vec![HostRole::Node],
            },
            principals: others,
            ssh: &request.ssh_public_key,
            tls: &request.tls_public_key,
        };
        let (certificates, issued) = self.issue(&wanted, seconds)?;
        self.log.record([issued]).await?;
        Ok(certificates)
    }

    fn issue(&self, wanted: &Wanted<'_>, seconds: i64) -> Result<(HostCertificates, Body), Fault> {
        let now = self.clock.now();
        let not_after = now.saturating_add(seconds);
        let validity = Validity { not_before: now, not_after };
        let certificates = self.ca.issue_host(
            &wanted.claims,
            wanted.principals,
            wanted.ssh,
            wanted.tls,
            validity,
        )?;
        let expires = OffsetDateTime::from_unix_timestamp(not_after)
            .map_err(|error| Fault::Internal(error.to_string()))?;
        let user = wanted.claims.host_id.to_string();
        let event = CertCreate { cert_type: "host".into(), user, expires };
        Ok((certificates, event.into()))
    }

    /// A locked machine keeps what it has until that expires, and gets nothing new.
    fn refuse_locked(&self, host: &HostId) -> Result<(), Fault> {
        let now = self.clock.now();
        let current = self.snapshots.current();
        let locked = current.policy.snapshot().locks.iter().any(|lock| {
            let in_force = lock.metadata.expires.is_none_or(|end| end.unix_timestamp() > now);
            in_force && matches!(&lock.spec.target, LockTarget::Node(node) if node == host)
        });
        if locked { Err(Fault::Denied("this machine is locked".into())) } else { Ok(()) }
    }
}

/// What a caller without any proof sent, short enough for an event.
fn shortened(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// Life of a machine's certificates. They renew themselves at half of it, so auth may be away for three days.
const HOST_SECONDS: i64 = 7 * 24 * 3600;
/// Longest life of a certificate signed by hand.
const SIGNED_SECONDS_MAX: i64 = 366 * 24 * 3600;
const TEXT_CHARS_MAX: usize = 256;
