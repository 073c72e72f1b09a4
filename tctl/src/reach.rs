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

/// A channel to auth: through the local socket if `--data-dir` was given or auth runs here, else by `tsh login`.
///
/// # Errors
/// Neither way is there.
pub(crate) fn channel(global: &Global) -> Result<Channel, Failure> {
    let given = global.data_dir.clone().filter(|dir| !dir.as_os_str().is_empty());
    let data_dir = given.clone().or_else(default_data_dir);
    let socket = data_dir.map(|dir| dir.join(SOCKET));
    match &socket {
        Some(path) if is_socket(path)? => return Ok(auth_client::socket_channel(path.clone())),
        Some(path) if given.is_some() && global.proxy.is_none() => {
            return Err(Failure::new(format!("no auth service listens at {}", path.display()))
                .hint("Is `postern` running with the auth role and this data folder?"));
        }
        Some(_) | None => {}
    }
    match by_login(global.proxy.as_deref())? {
        Some(channel) => Ok(channel),
        None => Err(Failure::new("no auth service on this machine, and not logged in")
            .hint("Pass --data-dir on the auth machine, or run `tsh login` first.")),
    }
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

/// Where `postern` keeps its data unless told otherwise.
fn default_data_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/postern"));
    }
    let state = std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty());
    let state = state.map(PathBuf::from).or_else(|| Some(home_dir()?.join(".local/state")));
    Some(state?.join("postern"))
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

fn by_login(proxy: Option<&str>) -> Result<Option<Channel>, Failure> {
    let chosen = std::env::var_os("TELEPORT_HOME").filter(|dir| !dir.is_empty());
    let Some(tsh) = chosen.map(PathBuf::from).or_else(|| Some(home_dir()?.join(".tsh"))) else {
        return Ok(None);
    };
    let host = match proxy {
        Some(proxy) => host_of(proxy).to_owned(),
        None => match fs::read_to_string(tsh.join("current-profile")) {
            Ok(name) => name.trim().to_owned(),
            Err(_) => return Ok(None),
        },
    };
    if host.is_empty() || host.contains('/') || host.starts_with('.') {
        return Err(Failure::usage(format!("{host:?} is not a proxy's name")));
    }
    let again = || format!("Run `tsh login --proxy={host}`.");
    let text = match fs::read_to_string(tsh.join(format!("{host}.yaml"))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.doing(tsh.display())?,
    };
    let profile: Profile = serde_saphyr::from_str(&text).doing(tsh.display()).hint(again())?;
    remote(&tsh.join("keys").join(&host), &profile).map(Some).hint(again())
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
    let certificate = tls::certified_key(&read(format!("{user}.crt"))?, &keys)?;
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

/// `host` of `host[:port]`, IPv6 in brackets or bare.
fn host_of(address: &str) -> &str {
    let address = address.strip_prefix("https://").unwrap_or(address);
    if let Some(rest) = address.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(host, _)| host);
    }
    match address.split_once(':') {
        Some((host, port)) if !port.contains(':') => host,
        _ => address,
    }
}

/// Below the data folder.
const SOCKET: &str = "auth/admin.sock";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_addresses() {
        assert_eq!(host_of("p:3080"), "p");
        assert_eq!(host_of("https://p"), "p");
        assert_eq!(host_of("[::1]:3080"), "::1");
        assert_eq!(host_of("::1"), "::1");
    }

    #[test]
    fn a_data_folder_without_auth_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let global = Global { data_dir: Some(dir.path().to_owned()), proxy: None };
        let failure = channel(&global).unwrap_err();
        assert!(failure.text().contains("admin.sock"), "{}", failure.text());
    }
}
