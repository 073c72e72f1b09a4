//! The proxy and auth in lines that people copy.

use std::net::SocketAddr;

use cli::output::plain;

/// A proxy's address for a command to be copied; a stand-in while auth knows of no proxy.
pub(crate) fn proxy_or_blank(address: &str) -> String {
    if address.is_empty() { "PROXY:PORT".into() } else { plain(address) }
}

/// Auth's address for a command on another machine; a stand-in for one that means that machine itself.
pub(crate) fn auth_or_blank(address: &str) -> String {
    let numeric = address.parse::<SocketAddr>().map(|address| address.ip());
    let local = numeric.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified());
    if address.is_empty() || local || address.starts_with("localhost:") {
        "AUTH:PORT".into()
    } else {
        plain(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_proxy_is_a_blank_to_fill_in() {
        assert_eq!(proxy_or_blank(""), "PROXY:PORT");
        assert_eq!(proxy_or_blank("a:1"), "a:1");
    }

    #[test]
    fn an_address_of_this_machine_alone_is_a_blank_as_well() {
        for local in ["", "127.0.0.1:3025", "[::1]:3025", "0.0.0.0:3025", "localhost:3025"] {
            assert_eq!(auth_or_blank(local), "AUTH:PORT", "{local:?}");
        }
        assert_eq!(auth_or_blank("auth.example.com:3025"), "auth.example.com:3025");
        assert_eq!(auth_or_blank("10.0.0.1:3025"), "10.0.0.1:3025");
    }
}
