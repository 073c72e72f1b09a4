//! `~/.tsh/<proxyhost>.yaml`: which proxy, who, and what login said of them. Keys that other programs write are
//! ignored; the certificates beside it stay the truth about time and logins.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A profile, with the established keys first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Profile {
    /// `host:port`.
    pub(crate) web_proxy_addr: String,
    /// `host:port` of the SSH jump listener; empty when there is none.
    #[serde(default)]
    pub(crate) ssh_proxy_addr: String,
    pub(crate) user: String,
    pub(crate) cluster: String,
    #[serde(default)]
    pub(crate) tls_routing_enabled: bool,
    #[serde(default)]
    pub(crate) auth_connector: String,
    /// Ours: how the proxy proves itself.
    #[serde(default)]
    pub(crate) proxy_trust: ProxyTrust,
    /// Ours: for `tsh status`.
    #[serde(default)]
    pub(crate) roles: Vec<String>,
    #[serde(default)]
    pub(crate) traits: BTreeMap<String, Vec<String>>,
}

/// Whose certificate the proxy shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProxyTrust {
    /// The cluster's host authority, kept in `cas/<cluster>.pem`.
    #[default]
    HostAuthority,
    /// One that the operating system trusts.
    Platform,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_read_back_and_unknown_keys_are_ignored() {
        let profile = Profile {
            web_proxy_addr: "p:3080".into(),
            ssh_proxy_addr: "p:3023".into(),
            user: "alice@example.com".into(),
            cluster: "demo".into(),
            tls_routing_enabled: true,
            auth_connector: "local".into(),
            proxy_trust: ProxyTrust::HostAuthority,
            roles: vec!["access".into()],
            traits: [("logins".to_owned(), vec!["root".to_owned()])].into(),
        };
        let text = serde_saphyr::to_string(&profile).unwrap();
        insta::assert_snapshot!(text);
        let read: Profile = serde_saphyr::from_str(&(text + "load_all_cas: false\n")).unwrap();
        assert_eq!(read, profile);
    }
}
