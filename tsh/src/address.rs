//! Where a proxy is: `host[:port]` as people write it. The host names files under `~/.tsh`, so its alphabet is checked.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// The proxy's port unless written otherwise.
const PORT: u16 = 3080;
/// Longest DNS name (RFC 1035, section 2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// A proxy's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProxyAddress {
    host: String,
    port: u16,
}

impl ProxyAddress {
    /// Name or address without brackets; also the name of the profile.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }
}

impl fmt::Display for ProxyAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(out, "[{}]:{}", self.host, self.port)
        } else {
            write!(out, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for ProxyAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a proxy address: write host[:port]");
        let rest = text.strip_prefix("https://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(bracketed) => bracketed
                .split_once(']')
                .map(|(host, tail)| (host, tail.strip_prefix(':')))
                .filter(|(_, port)| port.is_some() || rest.ends_with(']'))
                .ok_or_else(bad)?,
            None if rest.parse::<Ipv6Addr>().is_ok() => (rest, None),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = port.map_or(Ok(PORT), |port| port.parse().map_err(|_| bad()))?;
        if port == 0 || !is_host(host) {
            return Err(bad());
        }
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }
}

/// A DNS name or an IP address. Never `.`, `..`, or anything with a slash.
pub(crate) fn is_host(text: &str) -> bool {
    let name = !text.is_empty()
        && text.len() <= HOST_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        && !text.contains("..");
    name || text.parse::<Ipv6Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        fn check(text: &str, expect: Option<&str>) {
            let got = text.parse::<ProxyAddress>().ok().map(|a| a.to_string());
            assert_eq!(got.as_deref(), expect, "{text:?}");
        }
        check("proxy.example.com", Some("proxy.example.com:3080"));
        check("Proxy.example.com:443", Some("proxy.example.com:443"));
        check("https://p:443/", Some("p:443"));
        check("127.0.0.1:3080", Some("127.0.0.1:3080"));
        check("::1", Some("[::1]:3080"));
        check("[::1]", Some("[::1]:3080"));
        check("[::1]:99", Some("[::1]:99"));
        check("[::1]x", None);
        check("", None);
        check("..", None);
        check("../x", None);
        check("a/b", None);
        check("-oProxyCommand=x", None);
        check("p:0", None);
        check("p:70000", None);
        check("a b", None);
    }
}
