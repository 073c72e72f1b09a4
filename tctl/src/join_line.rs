//! The proxy in lines that people copy.

use cli::output::plain;

/// A proxy's address for a command to be copied; a stand-in while auth knows of no proxy.
pub(crate) fn proxy_or_blank(address: &str) -> String {
    if address.is_empty() { "PROXY:PORT".into() } else { plain(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_proxy_is_a_blank_to_fill_in() {
        assert_eq!(proxy_or_blank(""), "PROXY:PORT");
        assert_eq!(proxy_or_blank("a:1"), "a:1");
    }
}
