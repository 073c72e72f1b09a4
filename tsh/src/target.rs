//! Which host, as which account: `[user@]host`, where the host is a name, `name.<cluster>`, or a host id.

use proto::id::{ClusterName, Login, NodeName};
use proto::preamble::LoginAt;

use crate::signed_in::SignedIn;
use cli::failure::Failure;

/// A host as the proxy knows it and as its certificate must name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host(String);

impl Host {
    /// # Errors
    /// Not a name or an id.
    pub(crate) fn parse(text: &str, cluster: &ClusterName) -> Result<Self, Failure> {
        let suffix = format!(".{cluster}");
        let name = text.strip_suffix(suffix.as_str()).unwrap_or(text);
        match NodeName::parse(name) {
            Ok(name) => Ok(Self(name.to_string())),
            Err(error) => Err(Failure::usage(error.to_string())),
        }
    }
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a session goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) login: Login,
    pub(crate) host: Host,
}

impl Target {
    /// The account is the one in `text`, else `--login`, else the local user's if allowed, else the only one.
    ///
    /// # Errors
    /// No host, or no account can be told.
    pub(crate) fn choose(
        text: &str,
        flag: Option<&str>,
        signed_in: &SignedIn,
    ) -> Result<Self, Failure> {
        let local = std::env::var("USER").ok();
        choose(text, flag, local.as_deref(), &signed_in.logins(), &signed_in.cluster)
    }
}

fn choose(
    text: &str,
    flag: Option<&str>,
    local: Option<&str>,
    allowed: &[Login],
    cluster: &ClusterName,
) -> Result<Target, Failure> {
    let at = LoginAt::parse(text).map_err(Failure::usage)?;
    let host = Host::parse(&at.host, cluster)?;
    let login = match (at.login, flag) {
        (Some(login), _) => login,
        (None, Some(flag)) => Login::parse(flag).map_err(|e| Failure::usage(e.to_string()))?,
        (None, None) => default_login(local, allowed)?,
    };
    Ok(Target { login, host })
}

fn default_login(local: Option<&str>, allowed: &[Login]) -> Result<Login, Failure> {
    if let Some(login) = allowed.iter().find(|login| Some(login.as_str()) == local) {
        return Ok(login.clone());
    }
    match allowed {
        [only] => Ok(only.clone()),
        [] => Err(Failure::new("your roles grant no login")),
        many => {
            let list: Vec<&str> = many.iter().map(Login::as_str).collect();
            Err(Failure::usage("which login?")
                .hint(format!("Write LOGIN@HOST; yours are {}.", list.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, flag: Option<&str>, local: Option<&str>, allowed: &[&str]) -> String {
        let allowed: Vec<Login> = allowed.iter().map(|l| l.parse().unwrap()).collect();
        match choose(text, flag, local, &allowed, &"demo.io".parse().unwrap()) {
            Ok(target) => format!("{}@{}", target.login, target.host.as_str()),
            Err(failure) => failure.message().to_owned(),
        }
    }

    #[test]
    fn accounts_and_hosts() {
        assert_eq!(check("root@web1", Some("x"), Some("y"), &["y"]), "root@web1");
        assert_eq!(check("web1", Some("x"), Some("y"), &["y"]), "x@web1");
        assert_eq!(check("web1", None, Some("y"), &["x", "y"]), "y@web1");
        assert_eq!(check("web1", None, Some("z"), &["x"]), "x@web1");
        assert_eq!(check("web1", None, Some("z"), &["x", "y"]), "which login?");
        assert_eq!(check("web1", None, None, &[]), "your roles grant no login");
        assert_eq!(check("r@web1.demo.io", None, None, &[]), "r@web1");
        assert_eq!(check("r@web1.other.io", None, None, &[]), "r@web1.other.io");
        assert!(check("r@-oX", None, None, &[]).contains("node name"));
        assert!(check("r@a/b", None, None, &[]).contains("node name"));
        assert!(check("r@", None, None, &[]).contains("host"));
    }
}
