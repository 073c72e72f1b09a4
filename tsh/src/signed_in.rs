//! A login as loaded from `~/.tsh`: who, with which keys and certificates, whom to trust. Everything that talks to the
//! cluster after login starts here and needs no question to the proxy first. Writing is [`crate::home`]'s.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use net::auth_client::{self, Route};
use net::tls::{self, Trust};
use pki::Verifier;
use pki::keys::KeyPairs;
use proto::id::{ClusterName, Login, UserName};
use proto::snapshot::Authorities;
use russh::keys::Certificate;
use rustls::RootCertStore;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::address::ProxyAddress;
use crate::home::{Files, Home};
use crate::known_hosts;
use crate::profile::{Profile, ProxyTrust};
use cli::failure::{Failure, Fallible as _};
use cli::output::plain;

/// A usable or an expired login.
#[derive(Debug)]
pub(crate) struct SignedIn {
    pub(crate) profile: Profile,
    pub(crate) proxy: ProxyAddress,
    pub(crate) cluster: ClusterName,
    pub(crate) user: UserName,
    pub(crate) files: Files,
    pub(crate) keys: KeyPairs,
    pub(crate) ssh_certificate: Certificate,
    tls_certificate_pem: String,
    authorities: Authorities,
}

impl SignedIn {
    /// The login behind `proxy`, or the active one; refused when it has expired.
    ///
    /// # Errors
    /// Not logged in, expired, or damaged files; each says what to do.
    pub(crate) fn load(home: &Home, proxy: Option<&ProxyAddress>) -> Result<Self, Failure> {
        let host = match proxy {
            Some(proxy) => proxy.host().to_owned(),
            None => home.current().ok_or_else(|| not_logged_in(None))?,
        };
        let name = proxy.map_or_else(|| host.clone(), ToString::to_string);
        let signed_in = Self::load_any(home, &host)?
            // Another port at the same host is another proxy.
            .filter(|signed_in| proxy.is_none_or(|proxy| *proxy == signed_in.proxy))
            .ok_or_else(|| not_logged_in(Some(&name)))?;
        if signed_in.has_expired(net::unix_now()) {
            return Err(Failure::new(format!(
                "your certificate for {} has expired",
                signed_in.profile.cluster
            ))
            .hint(signed_in.login_hint()));
        }
        Ok(signed_in)
    }

    /// The login behind a proxy host, expired or not.
    ///
    /// # Errors
    /// Files are missing or damaged.
    pub(crate) fn load_any(home: &Home, proxy_host: &str) -> Result<Option<Self>, Failure> {
        let _lock = home.lock_shared()?;
        let Some(profile) = home.profile(proxy_host)? else { return Ok(None) };
        let again = format!("Run `tsh login --proxy={}` again.", plain(&profile.web_proxy_addr));
        Self::assemble(home, proxy_host, profile).map(Some).hint(again)
    }

    fn assemble(home: &Home, proxy_host: &str, profile: Profile) -> Result<Self, Failure> {
        let proxy: ProxyAddress = profile.web_proxy_addr.parse().map_err(Failure::new)?;
        let (cluster, user): (ClusterName, UserName) =
            (profile.cluster.parse()?, profile.user.parse()?);
        let files = home.files(proxy_host, user.as_str(), cluster.as_str());
        let ssh_key = zeroize::Zeroizing::new(read(&files.ssh_key)?);
        let tls_key = zeroize::Zeroizing::new(read(&files.tls_key)?);
        let known = fs::read_to_string(home.known_hosts()).unwrap_or_default();
        let authorities = Authorities {
            host_tls: certificates_in(&read(&files.authorities)?),
            host_ssh: known_hosts::keys_of(&known, proxy_host, cluster.as_str()),
            ..Authorities::default()
        };
        Ok(Self {
            keys: KeyPairs::from_pem(&ssh_key, &tls_key)?,
            ssh_certificate: Certificate::from_openssh(read(&files.ssh_certificate)?.trim())
                .doing(files.ssh_certificate.display())?,
            tls_certificate_pem: read(&files.tls_certificate)?,
            authorities,
            profile,
            proxy,
            cluster,
            user,
            files,
        })
    }

    /// Unix seconds.
    pub(crate) fn valid_until(&self) -> i64 {
        i64::try_from(self.ssh_certificate.valid_before()).unwrap_or(i64::MAX)
    }
    pub(crate) fn has_expired(&self, now: i64) -> bool {
        self.valid_until() <= now
    }
    /// The command that makes it valid again.
    pub(crate) fn login_hint(&self) -> String {
        format!("Run `tsh login --proxy={} --user={}`.", self.proxy, self.user)
    }
    /// Unix accounts that the certificate is good for.
    pub(crate) fn logins(&self) -> Vec<Login> {
        let principals = self.ssh_certificate.valid_principals().iter();
        principals.filter_map(|name| Login::parse(name.as_str()).ok()).collect()
    }

    /// gRPC to auth through the proxy, as this person.
    ///
    /// # Errors
    /// Damaged certificates.
    pub(crate) fn auth(&self) -> Result<Channel, Failure> {
        let trust = Trust::HostAuthority(self.host_roots()?);
        let route = Route::Proxy(self.proxy.to_string());
        let credentials = tls::certified_key(&self.tls_certificate_pem, &self.keys)?;
        // The receiver keeps its last value when the sender is gone: this certificate never changes here.
        let (_sender, credentials) = watch::channel(Some(credentials));
        Ok(auth_client::channel(&route, &self.cluster, &trust, credentials)?)
    }
    /// TLS settings towards the proxy, as this person.
    ///
    /// # Errors
    /// Damaged certificates.
    pub(crate) fn tls(&self, alpn: &[&[u8]]) -> Result<Arc<rustls::ClientConfig>, Failure> {
        let trust = match self.profile.proxy_trust {
            ProxyTrust::HostAuthority => Trust::HostAuthority(self.host_roots()?),
            ProxyTrust::Platform => Trust::Platform,
        };
        let credentials = tls::certified_key(&self.tls_certificate_pem, &self.keys)?;
        Ok(tls::client_config(&trust, Some(credentials), alpn)?)
    }
    /// Checks what hosts say of themselves, against this cluster's host authority only.
    ///
    /// # Errors
    /// No authority is known.
    pub(crate) fn verifier(&self) -> Result<Verifier, Failure> {
        if self.authorities.host_ssh.is_empty() {
            return Err(
                Failure::new("no SSH authority of the cluster is known").hint(self.login_hint())
            );
        }
        Verifier::new(&self.cluster, &self.authorities).map_err(Failure::new)
    }
    /// The host authority, for TLS.
    ///
    /// # Errors
    /// No or damaged certificates.
    pub(crate) fn host_roots(&self) -> Result<Arc<RootCertStore>, Failure> {
        roots(&self.authorities.host_tls)
    }
}

/// A root store of PEM certificates; never an empty one.
///
/// # Errors
/// None in it, or damaged.
pub(crate) fn roots(pems: &[String]) -> Result<Arc<RootCertStore>, Failure> {
    let mut roots = RootCertStore::empty();
    for pem in pems {
        for certificate in tls::certificates(pem)? {
            roots.add(certificate)?;
        }
    }
    if roots.is_empty() {
        return Err(Failure::new("no host authority of the cluster is known"));
    }
    Ok(Arc::new(roots))
}

fn not_logged_in(proxy: Option<&str>) -> Failure {
    match proxy {
        Some(proxy) => Failure::new(format!("not logged in to {proxy}"))
            .hint(format!("Run `tsh login --proxy={proxy} --user=NAME`.")),
        None => {
            Failure::new("not logged in").hint("Run `tsh login --proxy=HOST:PORT --user=NAME`.")
        }
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).doing(path.display())
}

/// The PEM blocks of a file, one by one.
fn certificates_in(text: &str) -> Vec<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    text.split(BEGIN).skip(1).map(|rest| format!("{BEGIN}{rest}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let text = SignedIn::load(&home, None).unwrap_err().text();
        assert!(text.contains("not logged in") && text.contains("tsh login --proxy="), "{text}");
        let text = SignedIn::load(&home, Some(&"p".parse().unwrap())).unwrap_err().text();
        assert!(text.contains("tsh login --proxy=p"), "{text}");
    }

    #[test]
    fn an_empty_trust_store_is_refused() {
        assert!(roots(&[]).is_err());
        assert_eq!(certificates_in("x").len(), 0);
        assert_eq!(
            certificates_in("-----BEGIN CERTIFICATE-----\na\n-----BEGIN CERTIFICATE-----\nb").len(),
            2
        );
    }
}
