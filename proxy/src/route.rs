//! Where a ClientHello's names lead. Pure. Next on the path: [`crate::handshake`], or the relay to auth at once.

use proto::id::ClusterName;
use proto::preamble::{ALPN_HTTP, ALPN_SSH, ALPN_STREAM, ALPN_TUNNEL, SNI_AUTH_LABEL};

use crate::sniff::Hello;

/// Which way a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Relayed untouched: TLS ends at auth.
    Auth,
    /// Ends here, with a client certificate; ALPN says what follows.
    Peer,
    /// None of ours.
    Refused,
    /// Browsers, and clients before sign-in.
    Web,
}

/// The way of a connection that says `hello`. The server name is looked at first: whoever wants auth never meets us.
pub(crate) fn route(hello: &Hello, cluster: &ClusterName) -> Route {
    if hello.sni.as_deref().is_some_and(|name| is_auth(name, cluster)) {
        return Route::Auth;
    }
    let offers = |name: &[u8]| hello.alpn.iter().any(|offered| offered == name);
    if PEER_ALPN.iter().any(|name| offers(name)) {
        Route::Peer
    } else if hello.alpn.is_empty() || offers(ALPN_HTTP) {
        Route::Web
    } else {
        Route::Refused
    }
}

fn is_auth(name: &str, cluster: &ClusterName) -> bool {
    let of = |suffix: &str| {
        name.split_once('.').is_some_and(|(label, rest)| {
            label.eq_ignore_ascii_case(SNI_AUTH_LABEL) && rest.eq_ignore_ascii_case(suffix)
        })
    };
    of(cluster.as_str()) || of(JOIN_SUFFIX)
}

/// What [`Route::Peer`] covers.
pub(crate) const PEER_ALPN: [&[u8]; 3] = [ALPN_SSH, ALPN_TUNNEL, ALPN_STREAM];
/// Whoever joins with a token does not know the cluster's name yet.
const JOIN_SUFFIX: &str = "postern.local";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_where_they_should() {
        fn check(sni: &str, alpn: &[&str], expect: Route) {
            let hello = Hello {
                sni: (!sni.is_empty()).then(|| sni.to_owned()),
                alpn: alpn.iter().map(|name| name.as_bytes().to_vec()).collect(),
            };
            let cluster = "Example.com".parse().unwrap();
            assert_eq!(route(&hello, &cluster), expect, "{sni} {alpn:?}");
        }
        check("auth.example.com", &["h2"], Route::Auth);
        check("AUTH.EXAMPLE.COM", &["postern-ssh"], Route::Auth);
        check("auth.postern.local", &[], Route::Auth);
        check("auth.example.org", &["h2"], Route::Refused);
        check("xauth.example.com", &["h2"], Route::Refused);
        check("auth.x.example.com", &["http/1.1"], Route::Web);
        check("proxy.example.com", &["postern-ssh"], Route::Peer);
        check("", &["postern-tunnel"], Route::Peer);
        check("", &["postern-stream", "http/1.1"], Route::Peer);
        check("", &[], Route::Web);
        check("x", &["h2", "http/1.1"], Route::Web);
        check("x", &["postern-unknown"], Route::Refused);
        check("x", &["postern-ssh2"], Route::Refused);
    }
}
