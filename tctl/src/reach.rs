//! The way to auth: its local administration socket, where the kernel says who we are, or a `tsh login` from elsewhere,
//! where the certificate does. TLS then runs end to end through the proxy.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use net::auth_client::{self, Route};
use net::tls::{self, Trust};
use pki::keys::KeyPairs;
use proto::id::{ClusterName, UserName};
use rustls::RootCertStore;
use serde::Deserialize;
use tokio::sync::watch;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::flags::Global;
use cli::failure::{Failure, Fallible as _};
use cli::output::plain;

/// A channel to auth: by the `tsh login` that `--proxy` names, else through the local socket if `--data-dir` was given
/// or auth runs here, else by the login that the environment names or the active one.
///
/// # Errors
/// The way is not there.
pub(crate) fn channel(global: &Global) -> Result<Channel, Failure> {
    if let Some(proxy) = &global.proxy {
        return by_login(Some(proxy));
    }
    let given = global.data_dir.clone().filter(|dir| !dir.as_os_str().is_empty());
    let data_dir = given.clone().or_else(net::file::default_data_dir);
    let socket = data_dir.map(|dir| dir.join(SOCKET));
    match &socket {
        Some(path) if is_socket(path)? => return Ok(auth_client::socket_channel(path.clone())),
        Some(path) if given.is_some() => {
            return Err(Failure::new(format!("no auth service listens at {}", path.display()))
                .hint("Is `postern` running with the auth role and this data folder?"));
        }
        Some(_) | None => {}
    }
    let proxy = std::env::var("TELEPORT_PROXY").ok().filter(|proxy| !proxy.is_empty());
    by_login(proxy.as_deref())
}

/// A socket that we may not even look at is told as such: it is auth's, and we are not its administrator.
fn is_socket(path: &Path) -> Result<bool, Failure> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.file_type().is_socket()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(error).doing(path.display()).hint("Run tctl as the user who runs postern.")
        }
        Err(_) => Ok(false),
    }
}

fn home_dir() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// The part of a `tsh` profile that is needed here. `tsh` describes the layout of its folder.
#[derive(Debug, Deserialize)]
struct Profile {
    web_proxy_addr: String,
    user: String,
    cluster: String,
}

fn by_login(proxy: Option<&str>) -> Result<Channel, Failure> {
    let nobody = || {
        Failure::new("no auth service on this machine, and not logged in")
            .hint("Pass --data-dir on the auth machine, or run `tsh login` first.")
    };
    let chosen = std::env::var_os("TELEPORT_HOME").filter(|dir| !dir.is_empty());
    let tsh = chosen.map(PathBuf::from).or_else(|| Some(home_dir()?.join(".tsh")));
    let tsh = tsh.ok_or_else(nobody)?;
    let host = match proxy {
        Some(proxy) => host_and_port(proxy).0,
        None => fs::read_to_string(tsh.join("current-profile"))
            .map(|name| name.trim().to_owned())
            .map_err(|_| nobody())?,
    };
    let (profile, certificates) = match profile_of(&tsh, &host)? {
        Some(profile) if proxy.is_none_or(|proxy| is_at(&profile, proxy)) => {
            (profile, tsh.join("keys").join(&host))
        }
        Some(_) | None => {
            let name = plain(proxy.unwrap_or(&host));
            return Err(Failure::new(format!("not logged in to {name}"))
                .hint(format!("Run `tsh login --proxy={name} --user=NAME`.")));
        }
    };
    remote(&certificates, &profile)
        .map_err(|failure| failure.hint(format!("Run `{}`.", login_line(&profile))))
}

/// The profile that lies under a proxy's host.
fn profile_of(tsh: &Path, host: &str) -> Result<Option<Profile>, Failure> {
    if host.is_empty() || host.contains('/') || host.starts_with('.') {
        return Err(Failure::usage(format!("{host:?} is not a proxy's name")));
    }
    let path = tsh.join(format!("{host}.yaml"));
    match fs::read_to_string(&path) {
        Ok(text) => {
            let again = format!("Run `tsh login --proxy={host}`.");
            serde_saphyr::from_str(&text).map(Some).doing(path.display()).hint(again)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing(path.display()),
    }
}

/// Another port at the same host is another proxy.
fn is_at(profile: &Profile, proxy: &str) -> bool {
    host_and_port(&profile.web_proxy_addr) == host_and_port(proxy)
}

fn login_line(profile: &Profile) -> String {
    format!("tsh login --proxy={} --user={}", plain(&profile.web_proxy_addr), plain(&profile.user))
}

fn remote(keys_dir: &Path, profile: &Profile) -> Result<Channel, Failure> {
    let (user, cluster): (UserName, ClusterName) =
        (profile.user.parse()?, profile.cluster.parse()?);
    let read = |name: String| {
        let path = keys_dir.join(name);
        fs::read_to_string(&path).doing(path.display())
    };
    let ssh_key = Zeroizing::new(read(user.to_string())?);
    let tls_key = Zeroizing::new(read(format!("{user}.key"))?);
    let keys = KeyPairs::from_pem(&ssh_key, &tls_key)?;
    let certificate_pem = read(format!("{user}.crt"))?;
    if valid_until(&certificate_pem)? <= net::unix_now() {
        return Err(Failure::new(format!("your certificate for {cluster} has expired")));
    }
    let certificate = tls::certified_key(&certificate_pem, &keys)?;
    let mut roots = RootCertStore::empty();
    for authority in tls::certificates(&read(format!("cas/{cluster}.pem"))?)? {
        roots.add(authority)?;
    }
    // The receiver keeps its last value when the sender is gone: this certificate never changes here.
    let (_sender, credentials) = watch::channel(Some(certificate));
    let route = Route::Proxy(profile.web_proxy_addr.clone());
    let trust = Trust::HostAuthority(Arc::new(roots));
    Ok(auth_client::channel(&route, &cluster, &trust, credentials)?)
}

/// When the first certificate ends, Unix seconds.
fn valid_until(pem: &str) -> Result<i64, Failure> {
    let bad = || Failure::new("the kept certificate cannot be read");
    let chain = tls::certificates(pem)?;
    let first = chain.first().ok_or_else(bad)?;
    let (_, certificate) = x509_parser::parse_x509_certificate(first).map_err(|_| bad())?;
    Ok(certificate.validity().not_after.timestamp())
}

/// Of `host[:port]`, IPv6 in brackets or bare, as `tsh` reads it.
fn host_and_port(address: &str) -> (String, &str) {
    let address = address.strip_prefix("https://").unwrap_or(address);
    let address = address.strip_suffix('/').unwrap_or(address);
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            rest.split_once(']').map_or((rest, None), |(host, port)| (host, port.strip_prefix(':')))
        }
        None => match address.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (address, None),
        },
    };
    (host.to_ascii_lowercase(), port.unwrap_or(PORT))
}

/// The proxy's port unless written otherwise.
const PORT: &str = "3080";
/// Below the data folder.
const SOCKET: &str = "auth/admin.sock";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_tsh_reads_them() {
        fn check(text: &str, host: &str, port: &str) {
            assert_eq!(host_and_port(text), (host.to_owned(), port), "{text:?}");
        }
        check("p:443", "p", "443");
        check("https://P/", "p", "3080");
        check("[::1]:443", "::1", "443");
        check("[::1]", "::1", "3080");
        check("::1", "::1", "3080");
    }

    #[test]
    fn another_port_is_another_proxy() {
        let dir = tempfile::tempdir().unwrap();
        let text = "web_proxy_addr: localhost:3080\nuser: alice\ncluster: demo\n";
        fs::write(dir.path().join("localhost.yaml"), text).unwrap();
        let profile = profile_of(dir.path(), "localhost").unwrap().unwrap();
        assert!(is_at(&profile, "localhost") && is_at(&profile, "localhost:3080"));
        assert!(!is_at(&profile, "localhost:9999"));
        assert_eq!(login_line(&profile), "tsh login --proxy=localhost:3080 --user=alice");
        assert!(profile_of(dir.path(), "elsewhere").unwrap().is_none());
        assert!(profile_of(dir.path(), "../x").is_err());
    }

    #[test]
    fn an_expired_login_is_told_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeyPairs::generate().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("alice", &keys.ssh_pem());
        put("alice.key", &keys.tls_pem());
        put("alice.crt", EXPIRED_PEM);
        let profile = Profile {
            web_proxy_addr: "p:3080".into(),
            user: "alice".into(),
            cluster: "demo".into(),
        };
        let failure = remote(dir.path(), &profile).unwrap_err();
        assert_eq!(failure.message(), "your certificate for demo has expired");
    }

    #[test]
    fn the_named_proxy_comes_before_the_local_socket() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("auth")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let data_dir = Some(dir.path().to_owned());
        let proxy = Some("nobody-logged-in-here.invalid:1".to_owned());
        let failure = channel(&Global { data_dir, proxy }).unwrap_err();
        assert!(failure.message().starts_with("not logged in to nobody"), "{}", failure.message());
    }

    #[test]
    fn a_data_folder_without_auth_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let global = Global { data_dir: Some(dir.path().to_owned()), proxy: None };
        let failure = channel(&global).unwrap_err();
        assert!(failure.text().contains("admin.sock"), "{}", failure.text());
    }

    /// Ended long ago; only its dates matter.
    const EXPIRED_PEM: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBGTCBwQIUTeUtCk9L9KfUuDWzsgCfSicIBnkwCgYIKoZIzj0EAwIwEDEOMAwG\n\
        A1UEAwwFYWxpY2UwHhcNMjYxMTIzMDA0MTQzWhcNMjYxMTIyMDA0MTQzWjAQMQ4w\n\
        DAYDVQQDDAVhbGljZTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABDqXmyNBuXBq\n\
        cnawbGmGgGZRqrKirR0M7932tVm4YBe5J10PsZt0GFWBT+n7ZZr8/Ficy4MAuatB\n\
        Z7CFsFPsMSwwCgYIKoZIzj0EAwIDRwAwRAIgZxgFOBpRjq3UGDO1AFBvWpJj/H59\n\
        2K8Tr+Kr3RoG+fgCIB3brP1X+tsHUSRM7HGG/L7BiOsmZAgou+QroBg0knHQ\n\
        -----END CERTIFICATE-----\n";
}
