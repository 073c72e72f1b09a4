//! The cluster's four authorities: user and host, each SSH and TLS. Made at first start, kept as 0600 files in the
//! private folder `ca/`, used through `pki::authority`. Who may have a certificate is decided by [`crate::sign_in`] and
//! [`crate::join`]; here is only the way to the keys, and how long what they sign lives.

use std::path::{Path, PathBuf};

use pki::authority::{AuthorityError, AuthorityKind, SshAuthority, TlsAuthority, Validity};
use pki::claims::{HostClaims, UserClaims};
use proto::id::ClusterName;
use proto::rpc::{HostCertificates, TrustBundle};
use proto::snapshot::Authorities;
use zeroize::Zeroizing;

use crate::fault::Fault;

/// All four, and the public halves in the forms in which they are asked for.
#[derive(Debug)]
pub(crate) struct Ca {
    cluster: ClusterName,
    host_ssh: SshAuthority,
    host_tls: TlsAuthority,
    user_ssh: SshAuthority,
    user_tls: TlsAuthority,
    authorities: Authorities,
    pin: String,
}

/// Why there are no authorities.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: {source}")]
    Material {
        path: PathBuf,
        #[source]
        source: AuthorityError,
    },
    #[error("the authorities in {path} are incomplete: restore the folder from a backup")]
    Incomplete { path: PathBuf },
    #[error("{0}")]
    Unusable(String),
}

impl Ca {
    /// Loads the authorities; makes them when the folder does not exist. The folder appears whole or not at all, so half
    /// a set means damage, and is never completed with new keys.
    pub(crate) fn open(dir: &Path, cluster: &ClusterName, now: i64) -> Result<Self, CaError> {
        if !dir.exists() {
            generate(dir, cluster, now)?;
        }
        Self::load(dir, cluster)
    }

    fn load(dir: &Path, cluster: &ClusterName) -> Result<Self, CaError> {
        net::file::private_dir(dir)
            .map_err(|source| CaError::File { path: dir.to_owned(), source })?;
        let ssh = |kind: AuthorityKind| {
            let path = dir.join(ssh_file(kind));
            let key = Zeroizing::new(read(dir, &path)?);
            SshAuthority::load(kind, &key).map_err(|source| CaError::Material { path, source })
        };
        let tls = |kind: AuthorityKind| {
            let path = dir.join(tls_key_file(kind));
            let key = Zeroizing::new(read(dir, &path)?);
            let certificate = read(dir, &dir.join(tls_certificate_file(kind)))?;
            TlsAuthority::load(kind, &key, &certificate)
                .map_err(|source| CaError::Material { path, source })
        };
        let (host_ssh, user_ssh) = (ssh(AuthorityKind::Host)?, ssh(AuthorityKind::User)?);
        let (host_tls, user_tls) = (tls(AuthorityKind::Host)?, tls(AuthorityKind::User)?);
        let line = |authority: &SshAuthority| {
            authority.public_key().to_openssh().map_err(|e| CaError::Unusable(e.to_string()))
        };
        let authorities = Authorities {
            host_tls: vec![host_tls.certificate_pem().to_owned()],
            user_tls: vec![user_tls.certificate_pem().to_owned()],
            host_ssh: vec![line(&host_ssh)?],
            user_ssh: vec![line(&user_ssh)?],
        };
        let pin = pki::verify::ca_pin(host_tls.certificate_pem()).map_err(CaError::Unusable)?;
        let cluster = cluster.clone();
        Ok(Self { cluster, host_ssh, host_tls, user_ssh, user_tls, authorities, pin })
    }

    /// Public halves.
    pub(crate) fn authorities(&self) -> &Authorities {
        &self.authorities
    }

    /// Public halves as answers carry them.
    pub(crate) fn trust(&self) -> TrustBundle {
        TrustBundle {
            host_tls_ca_pem: self.authorities.host_tls.clone(),
            user_tls_ca_pem: self.authorities.user_tls.clone(),
            host_ssh_ca: self.authorities.host_ssh.clone(),
            user_ssh_ca: self.authorities.user_ssh.clone(),
        }
    }

    /// Pin of the host TLS authority.
    pub(crate) fn pin(&self) -> &str {
        &self.pin
    }

    pub(crate) fn host_tls(&self) -> &TlsAuthority {
        &self.host_tls
    }

    /// Both certificates of a machine.
    pub(crate) fn issue_host(
        &self,
        claims: &HostClaims,
        names: &[String],
        ssh_public_key: &str,
        tls_public_key: &[u8],
        validity: Validity,
    ) -> Result<HostCertificates, Fault> {
        Ok(HostCertificates {
            host_id: claims.host_id.to_string(),
            cluster: self.cluster.to_string(),
            ssh_certificate: self.host_ssh.issue_host(claims, names, ssh_public_key, validity)?,
            tls_certificate_pem: self.host_tls.issue_host(
                claims,
                names,
                tls_public_key,
                validity,
            )?,
            trust: Some(self.trust()),
            valid_until: validity.not_after,
        })
    }

    /// Both certificates of a person: SSH, then TLS. Without logins there is no SSH certificate, and its text is empty:
    /// a certificate without principals would be good for all of them.
    pub(crate) fn issue_user(
        &self,
        claims: &UserClaims,
        ssh_public_key: &str,
        tls_public_key: &[u8],
        validity: Validity,
    ) -> Result<(String, String), Fault> {
        let ssh = if claims.logins.is_empty() {
            String::new()
        } else {
            self.user_ssh.issue_user(claims, ssh_public_key, validity)?
        };
        Ok((ssh, self.user_tls.issue_user(claims, tls_public_key, validity)?))
    }

    /// What `tctl status` shows.
    pub(crate) fn describe(&self) -> Vec<proto::rpc::Authority> {
        let tls = |kind: &str, authority: &TlsAuthority| proto::rpc::Authority {
            kind: kind.into(),
            protocol: "tls".into(),
            algorithm: "ECDSA P-256".into(),
            fingerprint: pki::verify::ca_pin(authority.certificate_pem()).unwrap_or_default(),
            valid_until: authority.valid_until(),
        };
        let ssh = |kind: &str, line: Option<&String>| proto::rpc::Authority {
            kind: kind.into(),
            protocol: "ssh".into(),
            algorithm: "Ed25519".into(),
            fingerprint: line.map(|line| ssh_fingerprint(line)).unwrap_or_default(),
            valid_until: 0,
        };
        vec![
            ssh("host", self.authorities.host_ssh.first()),
            tls("host", &self.host_tls),
            ssh("user", self.authorities.user_ssh.first()),
            tls("user", &self.user_tls),
        ]
    }
}

/// `SHA256:<base64>` as OpenSSH prints it, of a one-line public key.
fn ssh_fingerprint(line: &str) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
    use sha2::Digest as _;
    let blob = line.split(' ').nth(1).and_then(|blob| STANDARD.decode(blob).ok());
    blob.map(|blob| format!("SHA256:{}", STANDARD_NO_PAD.encode(sha2::Sha256::digest(blob))))
        .unwrap_or_default()
}

/// Makes all keys in a folder beside, then renames it into place.
fn generate(dir: &Path, cluster: &ClusterName, now: i64) -> Result<(), CaError> {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let draft = dir.with_file_name(name);
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| CaError::File { path, source }
    };
    if draft.exists() {
        std::fs::remove_dir_all(&draft).map_err(file(&draft))?;
    }
    net::file::private_dir(&draft).map_err(file(&draft))?;
    let write = |name: String, text: &str| {
        let path = draft.join(name);
        net::file::write_private(&path, text.as_bytes()).map_err(file(&path))
    };
    let material = |source| CaError::Material { path: dir.to_owned(), source };
    for kind in [AuthorityKind::Host, AuthorityKind::User] {
        write(ssh_file(kind), &SshAuthority::generate(kind).map_err(material)?)?;
        let (key, certificate) = TlsAuthority::generate(kind, cluster, now).map_err(material)?;
        write(tls_key_file(kind), &key)?;
        write(tls_certificate_file(kind), &certificate)?;
    }
    std::fs::rename(&draft, dir).map_err(file(dir))?;
    let parent = dir.parent().unwrap_or(dir);
    std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(file(parent))
}

fn read(dir: &Path, path: &Path) -> Result<String, CaError> {
    std::fs::read_to_string(path).map_err(|source| {
        if source.kind() == std::io::ErrorKind::NotFound {
            CaError::Incomplete { path: dir.to_owned() }
        } else {
            CaError::File { path: path.to_owned(), source }
        }
    })
}

fn ssh_file(kind: AuthorityKind) -> String {
    format!("{}-ssh.key", kind.as_str())
}

fn tls_key_file(kind: AuthorityKind) -> String {
    format!("{}-tls.key", kind.as_str())
}

fn tls_certificate_file(kind: AuthorityKind) -> String {
    format!("{}-tls.pem", kind.as_str())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn authorities_are_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca");
        let cluster = ClusterName::parse("example.com").unwrap();
        let first = Ca::open(&path, &cluster, 1_800_000_000).unwrap();
        let again = Ca::open(&path, &cluster, 1_900_000_000).unwrap();
        assert_eq!(first.authorities(), again.authorities());
        assert!(first.pin().starts_with("sha256:"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
        for file in std::fs::read_dir(&path).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(first.describe().iter().all(|a| !a.fingerprint.is_empty()));
        std::fs::remove_file(path.join("user-ssh.key")).unwrap();
        let damaged = Ca::open(&path, &cluster, 1_800_000_000);
        assert!(matches!(damaged, Err(CaError::Incomplete { .. })), "{damaged:?}");
    }
}
