//! `~/.tsh`: where keys, certificates and profiles lie, laid out as people know it. All files are private and written
//! whole; a lock keeps two logins, or a login and a reader, from mixing their files. What the files mean when loaded
//! is [`crate::signed_in`]'s.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use net::file;
use pki::keys::KeyPairs;
use proto::rpc::TrustBundle;
use rustix::fs::{FlockOperation, flock};

use crate::known_hosts;
use crate::profile::Profile;
use cli::failure::{Failure, Fallible as _};

/// The folder, `TELEPORT_HOME` or `~/.tsh`.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    dir: PathBuf,
    /// Chosen by the environment, so that commands in written configuration have to repeat it.
    chosen: bool,
}

/// What a login brought, ready to be kept.
#[derive(Debug)]
pub(crate) struct Login<'a> {
    pub(crate) proxy_host: &'a str,
    pub(crate) profile: &'a Profile,
    pub(crate) keys: &'a KeyPairs,
    pub(crate) ssh_certificate: &'a str,
    pub(crate) tls_certificate_pem: &'a str,
    pub(crate) trust: &'a TrustBundle,
}

/// Names of one person's files behind one proxy.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) tls_key: PathBuf,
    pub(crate) tls_certificate: PathBuf,
    pub(crate) ssh_key: PathBuf,
    pub(crate) ssh_public: PathBuf,
    pub(crate) ssh_certificate_dir: PathBuf,
    pub(crate) ssh_certificate: PathBuf,
    pub(crate) authorities_dir: PathBuf,
    pub(crate) authorities: PathBuf,
}

/// Holds the folder's lock until dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Home {
    /// # Errors
    /// Neither `TELEPORT_HOME` nor `HOME` is set.
    pub(crate) fn locate() -> Result<Self, Failure> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(dir) = set("TELEPORT_HOME") {
            let dir = std::path::absolute(dir).doing("TELEPORT_HOME")?;
            return Ok(Self { dir, chosen: true });
        }
        let home = set("HOME")
            .ok_or_else(|| Failure::new("HOME is not set").hint("Set HOME or TELEPORT_HOME."))?;
        Ok(Self { dir: PathBuf::from(home).join(".tsh"), chosen: false })
    }
    #[cfg(test)]
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), chosen: true }
    }
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
    pub(crate) fn is_chosen(&self) -> bool {
        self.chosen
    }
    pub(crate) fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }
    /// The names come from checked types ([`crate::address`], `UserName`, `ClusterName`), so they cannot leave the folder.
    pub(crate) fn files(&self, proxy_host: &str, user: &str, cluster: &str) -> Files {
        let keys = self.keys_dir(proxy_host);
        let ssh_certificate_dir = keys.join(format!("{user}-ssh"));
        let authorities_dir = keys.join("cas");
        Files {
            tls_key: keys.join(format!("{user}.key")),
            tls_certificate: keys.join(format!("{user}.crt")),
            ssh_key: keys.join(user),
            ssh_public: keys.join(format!("{user}.pub")),
            ssh_certificate: ssh_certificate_dir.join(format!("{cluster}-cert.pub")),
            ssh_certificate_dir,
            authorities: authorities_dir.join(format!("{cluster}.pem")),
            authorities_dir,
        }
    }
    fn keys_dir(&self, proxy_host: &str) -> PathBuf {
        self.dir.join("keys").join(proxy_host)
    }
    fn profile_file(&self, proxy_host: &str) -> PathBuf {
        self.dir.join(format!("{proxy_host}.yaml"))
    }

    /// For writing: alone. Makes the folder.
    ///
    /// # Errors
    /// The folder cannot be used, or another `tsh` holds the lock for too long.
    pub(crate) fn lock(&self) -> Result<Lock, Failure> {
        file::private_dir(&self.dir).doing(self.dir.display())?;
        let path = self.dir.join(LOCK_FILE);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .doing(path.display())?;
        wait_for(file, FlockOperation::NonBlockingLockExclusive)
    }
    /// For reading: beside other readers. A folder without lock file, or one that is read-only, has no writer to fear.
    ///
    /// # Errors
    /// A writer holds the lock for too long.
    pub(crate) fn lock_shared(&self) -> Result<Option<Lock>, Failure> {
        match File::open(self.dir.join(LOCK_FILE)) {
            Ok(file) => wait_for(file, FlockOperation::NonBlockingLockShared).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The active profile's proxy host.
    pub(crate) fn current(&self) -> Option<String> {
        let name = fs::read_to_string(self.dir.join("current-profile")).ok()?;
        let name = name.trim();
        crate::address::is_host(name).then(|| name.to_owned())
    }
    /// The profile of a proxy, if there is one.
    ///
    /// # Errors
    /// It cannot be read or understood.
    pub(crate) fn profile(&self, proxy_host: &str) -> Result<Option<Profile>, Failure> {
        let path = self.profile_file(proxy_host);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(serde_saphyr::from_str(&text).doing(path.display())?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing(path.display()),
        }
    }
    /// Proxy hosts with a profile, in order.
    pub(crate) fn proxy_hosts(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut hosts: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".yaml").map(str::to_owned))
            .filter(|host| crate::address::is_host(host))
            .collect();
        hosts.sort();
        hosts
    }

    /// Keeps a login and makes it the active one. The caller holds the lock.
    ///
    /// # Errors
    /// A file cannot be written, or another proxy's cluster has the same name and another authority.
    pub(crate) fn save(&self, _lock: &Lock, login: &Login<'_>) -> Result<(), Failure> {
        let known_hosts = self.known_hosts_with(login)?;
        let keys = self.keys_dir(login.proxy_host);
        let files = self.files(login.proxy_host, &login.profile.user, &login.profile.cluster);
        let dirs =
            [&self.dir.join("keys"), &keys, &files.ssh_certificate_dir, &files.authorities_dir];
        for dir in dirs {
            file::private_dir(dir).doing(dir.display())?;
        }
        let put = |path: &Path, text: &str| {
            file::write_private(path, text.as_bytes()).doing(path.display())
        };
        put(&files.authorities, &lines(&login.trust.host_tls_ca_pem))?;
        put(&files.tls_key, &login.keys.tls_pem())?;
        put(&files.tls_certificate, login.tls_certificate_pem)?;
        put(&files.ssh_key, &login.keys.ssh_pem())?;
        put(&files.ssh_public, &lines(&[login.keys.ssh_public_line()]))?;
        put(&files.ssh_certificate, &lines(&[login.ssh_certificate.to_owned()]))?;
        put(&self.known_hosts(), &known_hosts)?;
        put(&self.profile_file(login.proxy_host), &serde_saphyr::to_string(login.profile)?)?;
        put(&self.dir.join("current-profile"), &format!("{}\n", login.proxy_host))
    }

    fn known_hosts_with(&self, login: &Login<'_>) -> Result<String, Failure> {
        let (host, cluster) = (login.proxy_host, &login.profile.cluster);
        let keys = &login.trust.host_ssh_ca;
        let text = fs::read_to_string(self.known_hosts()).unwrap_or_default();
        if let Some(rival) = known_hosts::rivals(&text, host, cluster, keys).first() {
            return Err(Failure::new(format!(
                "a cluster named {cluster} with another authority is already known from {rival}"
            ))
            .hint(format!(
                "Run `tsh logout --proxy={rival}` first, or use another folder with TELEPORT_HOME."
            )));
        }
        Ok(known_hosts::replace(&text, host, cluster, keys))
    }

    /// Forgets a proxy: keys, certificates, profile, its lines in `known_hosts`. The caller holds the lock.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub(crate) fn forget(&self, _lock: &Lock, proxy_host: &str) -> Result<(), Failure> {
        let keys = self.keys_dir(proxy_host);
        gone(fs::remove_dir_all(&keys)).doing(keys.display())?;
        let profile = self.profile_file(proxy_host);
        gone(fs::remove_file(&profile)).doing(profile.display())?;
        if let Ok(text) = fs::read_to_string(self.known_hosts()) {
            let rest = known_hosts::replace(&text, proxy_host, "", &[]);
            file::write_private(&self.known_hosts(), rest.as_bytes())?;
        }
        if self.current().as_deref() == Some(proxy_host) {
            gone(fs::remove_file(self.dir.join("current-profile")))?;
        }
        Ok(())
    }
}

/// Each text on lines of its own, with one newline at its end.
fn lines(texts: &[String]) -> String {
    texts.iter().map(|text| format!("{}\n", text.trim_end())).collect()
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn wait_for(file: File, operation: FlockOperation) -> Result<Lock, Failure> {
    let until = Instant::now() + LOCK_WITHIN;
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::from(io::Error::from(error))),
        }
        if Instant::now() > until {
            return Err(Failure::new("another tsh is changing the same folder; try again"));
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

const LOCK_FILE: &str = ".lock";
/// Writers hold the lock only while they write a dozen small files.
const LOCK_WITHIN: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::profile::ProxyTrust;

    fn profile(cluster: &str) -> Profile {
        Profile {
            web_proxy_addr: "p:3080".into(),
            ssh_proxy_addr: String::new(),
            user: "alice".into(),
            cluster: cluster.into(),
            tls_routing_enabled: true,
            auth_connector: "local".into(),
            proxy_trust: ProxyTrust::HostAuthority,
            roles: vec![],
            traits: Default::default(),
        }
    }

    fn save(home: &Home, host: &str, cluster: &str, authority: &str) -> Result<(), Failure> {
        let trust = TrustBundle {
            host_tls_ca_pem: vec!["HOST CA".into()],
            host_ssh_ca: vec![format!("ssh-ed25519 {authority}")],
            ..TrustBundle::default()
        };
        let login = Login {
            proxy_host: host,
            profile: &profile(cluster),
            keys: &KeyPairs::generate().unwrap(),
            ssh_certificate: "SSH CERTIFICATE",
            tls_certificate_pem: "TLS CERTIFICATE\n",
            trust: &trust,
        };
        home.save(&home.lock().unwrap(), &login)
    }

    fn tree(dir: &Path, prefix: &str, list: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap()).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            list.push(format!("{mode:o} {name}"));
            if entry.file_type().unwrap().is_dir() {
                tree(&entry.path(), &format!("{name}/"), list);
            }
        }
    }

    #[test]
    fn the_layout_is_the_established_one_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(&dir.path().join("tsh"));
        save(&home, "p", "demo", "AAAA").unwrap();
        let mut list = vec![];
        tree(home.dir(), "", &mut list);
        insta::assert_snapshot!(list.join("\n"), @r"
        600 .lock
        600 current-profile
        700 keys
        700 keys/p
        600 keys/p/alice
        700 keys/p/alice-ssh
        600 keys/p/alice-ssh/demo-cert.pub
        600 keys/p/alice.crt
        600 keys/p/alice.key
        600 keys/p/alice.pub
        700 keys/p/cas
        600 keys/p/cas/demo.pem
        600 known_hosts
        600 p.yaml
        ");
        assert_eq!(home.current().as_deref(), Some("p"));
        assert_eq!(home.proxy_hosts(), ["p"]);
        assert_eq!(home.profile("p").unwrap(), Some(profile("demo")));
    }

    #[test]
    fn logout_leaves_no_key_and_no_trust_of_that_proxy() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        save(&home, "p", "one", "AAAA").unwrap();
        save(&home, "q", "two", "BBBB").unwrap();
        home.forget(&home.lock().unwrap(), "p").unwrap();
        assert!(!home.keys_dir("p").exists());
        assert_eq!(home.proxy_hosts(), ["q"]);
        assert_eq!(home.current().as_deref(), Some("q"));
        let known = fs::read_to_string(home.known_hosts()).unwrap();
        assert_eq!(known, "@cert-authority q,two,*.two ssh-ed25519 BBBB type=host\n");
        home.forget(&home.lock().unwrap(), "p").unwrap();
    }

    #[test]
    fn a_second_cluster_of_the_same_name_is_refused_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        save(&home, "p", "prod", "AAAA").unwrap();
        let failure = save(&home, "evil", "prod", "BBBB").unwrap_err();
        assert!(failure.text().contains("tsh logout --proxy=p"), "{}", failure.text());
        assert_eq!(home.proxy_hosts(), ["p"]);
        assert!(!home.keys_dir("evil").exists());
    }

    #[test]
    fn readers_and_writers_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        assert!(home.lock_shared().unwrap().is_none());
        let writer = home.lock().unwrap();
        let reader = File::open(home.dir().join(LOCK_FILE)).unwrap();
        assert!(flock(&reader, FlockOperation::NonBlockingLockShared).is_err());
        drop(writer);
        assert!(flock(&reader, FlockOperation::NonBlockingLockShared).is_ok());
        assert!(home.lock_shared().unwrap().is_some());
    }
}
