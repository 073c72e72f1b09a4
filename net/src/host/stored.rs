//! The identity as a file: `identity.json`, 0600, keys and certificates of one generation. Checked completely when it is
//! made from auth's answer and again when it is read: a certificate that does not fit its key or names another machine
//! is told at start, not at the first handshake.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pki::keys::KeyPairs;
use pki::{HostIdentity, Identity, Verifier};
use proto::id::{ClusterName, HostId, NodeName};
use proto::resource::HostRole;
use proto::rpc::{HostCertificates, TrustBundle};
use proto::snapshot::Authorities;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{HostCredentials, HostError, HostSettings};
use crate::{file, tls};

/// What the file holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    format: u32,
    host_id: HostId,
    cluster: ClusterName,
    nodename: NodeName,
    role: HostRole,
    /// Unix seconds, by this machine's clock.
    issued_at: i64,
    valid_until: i64,
    /// What the certificates were asked for; other ones in the settings are a reason to renew.
    principals: Vec<String>,
    ssh_private_key: Zeroizing<String>,
    tls_private_key: Zeroizing<String>,
    ssh_certificate: String,
    tls_certificate_pem: String,
    authorities: Authorities,
}

impl Stored {
    /// From auth's answer to a request with the public halves of `keys`.
    pub(super) fn new(
        settings: &HostSettings,
        keys: &KeyPairs,
        answer: HostCertificates,
    ) -> Result<Self, HostError> {
        let bad = |error: &dyn std::fmt::Display| {
            HostError::Refused(format!("its answer cannot be used: {error}"))
        };
        let mut stored = Self {
            format: FORMAT,
            host_id: HostId::parse(answer.host_id).map_err(|e| bad(&e))?,
            cluster: ClusterName::parse(answer.cluster).map_err(|e| bad(&e))?,
            nodename: settings.nodename.clone(),
            role: settings.role,
            issued_at: crate::unix_now(),
            valid_until: answer.valid_until,
            principals: settings.principals.clone(),
            ssh_private_key: keys.ssh_pem(),
            tls_private_key: keys.tls_pem(),
            ssh_certificate: answer.ssh_certificate,
            tls_certificate_pem: answer.tls_certificate_pem,
            authorities: authorities(answer.trust.unwrap_or_default()),
        };
        let identity = stored.identity(stored.issued_at).map_err(|e| bad(&e))?;
        stored.nodename = identity.nodename().clone();
        stored.valid_until = stored.valid_until.min(identity.valid_until());
        tls::certified_key(&stored.tls_certificate_pem, keys).map_err(|e| bad(&e))?;
        Ok(stored)
    }

    /// What `dir` holds, if anything. Makes the folder.
    pub(super) fn load(dir: &Path, role: HostRole) -> Result<Option<Self>, HostError> {
        let failed = |path: &Path, source| HostError::File { path: path.into(), source };
        file::private_dir(dir).map_err(|source| failed(dir, source))?;
        let path = dir.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(&path, source)),
        };
        // serde_json's own text would quote what it found, and that may be a key.
        let stored: Self = serde_json::from_slice(&text).map_err(|error| {
            damaged(dir, format!("line {}, column {}", error.line(), error.column()))
        })?;
        if stored.format != FORMAT {
            return Err(damaged(dir, "it was written by a newer version"));
        }
        if stored.role != role {
            return Err(damaged(dir, format!("it belongs to a {}", stored.role.as_str())));
        }
        Ok(Some(stored))
    }

    pub(super) fn save(&self, dir: &Path) -> Result<(), HostError> {
        let path = dir.join(FILE);
        let failed = |source| HostError::File { path: path.clone(), source };
        let text = Zeroizing::new(
            serde_json::to_vec_pretty(self).map_err(|error| failed(io::Error::other(error)))?,
        );
        file::write_private(&path, &text).map_err(failed)
    }

    /// Ready to be used.
    pub(super) fn credentials(&self, dir: &Path) -> Result<HostCredentials, HostError> {
        let keys = KeyPairs::from_pem(&self.ssh_private_key, &self.tls_private_key)
            .map_err(|error| damaged(dir, error))?;
        let tls = tls::certified_key(&self.tls_certificate_pem, &keys)
            .map_err(|error| damaged(dir, error))?;
        self.identity(self.issued_at).map_err(|error| damaged(dir, error))?;
        Ok(HostCredentials {
            host_id: self.host_id.clone(),
            cluster: self.cluster.clone(),
            nodename: self.nodename.clone(),
            keys,
            ssh_certificate: self.ssh_certificate.clone(),
            tls,
            authorities: self.authorities.clone(),
            valid_until: self.valid_until,
        })
    }

    pub(super) fn host_id(&self) -> &HostId {
        &self.host_id
    }

    pub(super) fn valid_until(&self) -> i64 {
        self.valid_until
    }

    /// How long until half of the life is over, less up to a tenth of the life, so that machines that joined together
    /// do not come back together. At once when the certificates should have other `principals`.
    pub(super) fn renewal_due_in(
        &self,
        principals: &[String],
        now: i64,
        random: [u8; 8],
    ) -> Duration {
        if principals != self.principals {
            return RENEWAL_PAUSE_MIN;
        }
        let life_s = u64::try_from(self.valid_until.saturating_sub(self.issued_at)).unwrap_or(0);
        let age_s = u64::try_from(now.saturating_sub(self.issued_at)).unwrap_or(0);
        let jitter_s = u64::from_ne_bytes(random) % (life_s / 10).max(1);
        Duration::from_secs((life_s / 2).saturating_sub(jitter_s).saturating_sub(age_s))
            .max(RENEWAL_PAUSE_MIN)
    }

    /// Who the certificate says we are. It was good at `at`; whether it has expired since is asked elsewhere.
    fn identity(&self, at: i64) -> Result<HostIdentity, String> {
        let verifier = Verifier::new(&self.cluster, &self.authorities)?;
        let chain =
            tls::certificates(&self.tls_certificate_pem).map_err(|error| error.to_string())?;
        match verifier.tls_peer(&chain, at).map_err(|error| error.to_string())? {
            Identity::Host(host) if *host.host_id() != self.host_id => {
                Err("the certificate is another machine's".into())
            }
            Identity::Host(host) if !host.has_role(self.role) => {
                Err(format!("the certificate is not for a {}", self.role.as_str()))
            }
            Identity::Host(host) => Ok(host),
            Identity::User(_) => Err("the certificate is a person's".into()),
        }
    }
}

/// Whether there is an identity that has not expired, or one that cannot be read.
pub(super) fn is_usable(dir: &Path, now: i64) -> bool {
    match std::fs::read(dir.join(FILE)).map(Zeroizing::new) {
        Ok(text) => serde_json::from_slice::<Stored>(&text).map_or(true, |it| it.valid_until > now),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

pub(super) fn damaged(dir: &Path, detail: impl std::fmt::Display) -> HostError {
    HostError::Damaged { path: PathBuf::from(dir), detail: detail.to_string() }
}

fn authorities(trust: TrustBundle) -> Authorities {
    Authorities {
        host_tls: trust.host_tls_ca_pem,
        user_tls: trust.user_tls_ca_pem,
        host_ssh: trust.host_ssh_ca,
        user_ssh: trust.user_ssh_ca,
    }
}

const FILE: &str = "identity.json";
const FORMAT: u32 = 1;
/// A certificate with next to no life, or a clock that jumps, must not make a machine renew in a loop.
const RENEWAL_PAUSE_MIN: Duration = Duration::from_secs(1);
