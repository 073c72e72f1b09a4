//! Before a login: whom to believe, what the proxy says of its cluster, and gRPC to auth without a certificate.
//! `login` and `invite` start here. What is learnt under a pin (or the kept authority) is worth as much as that.

use std::sync::Arc;
use std::time::Duration;

use net::auth_client::{self, MESSAGE_BYTES_MAX, Route};
use net::dial::DialError;
use net::ping::{self, Ping, PingError};
use net::tls::{self, TlsError, Trust};
use proto::id::ClusterName;
use proto::rpc::sign_in_client::SignInClient;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::address::ProxyAddress;
use crate::flags::TrustArgs;
use crate::home::Home;
use crate::profile::{Profile, ProxyTrust};
use crate::signed_in::roots;
use cli::failure::{Failure, Fallible as _};

/// A request with a deadline: every wait ends.
pub(crate) fn call<M>(message: M) -> tonic::Request<M> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(ANSWER_WITHIN);
    request
}

/// A proxy that has proved itself as far as was asked, and its cluster.
#[derive(Debug)]
pub(crate) struct FirstContact {
    pub(crate) proxy: ProxyAddress,
    pub(crate) cluster: ClusterName,
    pub(crate) ping: Ping,
    pub(crate) proxy_trust: ProxyTrust,
}

impl FirstContact {
    /// # Errors
    /// The proxy does not answer, does not prove itself, or says nonsense.
    pub(crate) async fn make(
        home: &Home,
        proxy: ProxyAddress,
        args: &TrustArgs,
    ) -> Result<Self, Failure> {
        let trust = trust(home, &proxy, args)?;
        if args.insecure {
            eprintln!(
                "WARNING: --insecure: {proxy} is not checked; whoever answers there gets what you type."
            );
        }
        let ping = ping::ping(&proxy.to_string(), &trust)
            .await
            .map_err(|error| no_contact(error, &trust))?;
        let cluster = ClusterName::parse(ping.cluster_name.as_str())
            .map_err(|_| Failure::new("the proxy's answer names no cluster"))?;
        let proxy_trust = match trust {
            Trust::Platform => ProxyTrust::Platform,
            Trust::DangerousAnyone | Trust::HostAuthority(_) | Trust::Pin(_) => {
                ProxyTrust::HostAuthority
            }
        };
        Ok(Self { proxy, cluster, ping, proxy_trust })
    }

    /// Sign-in at auth: TLS goes end to end, checked against the authority that the ping named.
    ///
    /// # Errors
    /// The ping named none.
    pub(crate) fn sign_in(&self) -> Result<SignInClient<Channel>, Failure> {
        let trust = Trust::HostAuthority(roots(&self.ping.host_ca_pem)?);
        let route = Route::Proxy(self.proxy.to_string());
        // The receiver keeps its last value when the sender is gone.
        let (_sender, nobody) = watch::channel(None);
        let channel = auth_client::channel(&route, &self.cluster, &trust, nobody)?;
        Ok(SignInClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }
}

/// The pin first; then the authority kept from the last login; else what the operating system trusts.
fn trust(home: &Home, proxy: &ProxyAddress, args: &TrustArgs) -> Result<Trust, Failure> {
    if args.insecure {
        return Ok(Trust::DangerousAnyone);
    }
    if let Some(pin) = &args.ca_pin {
        let trust = Trust::Pin(pin.clone());
        return match tls::client_config(&trust, None, &[]) {
            Err(TlsError::Trust(detail)) => Err(Failure::usage(detail)),
            Err(error @ TlsError::Credentials(_)) => Err(error.into()),
            Ok(_) => Ok(trust),
        };
    }
    let _lock = home.lock_shared()?;
    match home.profile(proxy.host())? {
        Some(profile) if is_of(&profile, proxy, ProxyTrust::HostAuthority) => {
            let files = home.files(proxy.host(), &profile.user, &profile.cluster);
            let pem =
                std::fs::read_to_string(&files.authorities).doing(files.authorities.display())?;
            Ok(Trust::HostAuthority(Arc::clone(&roots(&[pem])?)))
        }
        Some(_) | None => Ok(Trust::Platform),
    }
}

/// Only a certificate that is not believed has to do with pins; a dead address has not.
fn no_contact(error: PingError, trust: &Trust) -> Failure {
    let unknown = tls::is_unknown_authority(&error);
    let pinned = matches!(trust, Trust::Pin(_));
    match &error {
        _ if unknown && pinned => {
            Failure::new("this proxy does not belong to the cluster with that pin")
                .hint("Compare with what `tctl status` prints on the auth host.")
        }
        _ if unknown => Failure::from(error)
            .hint("If this is the right proxy, pass --ca-pin (`tctl status` prints it)."),
        PingError::Dial(DialError::Connect { .. } | DialError::TimedOut { .. }) => {
            Failure::from(error).hint("Check the address, and that the proxy runs.")
        }
        PingError::Answer(_) | PingError::Dial(_) => error.into(),
    }
}

/// Another port at the same host is another proxy: its authority was never seen.
fn is_of(profile: &Profile, proxy: &ProxyAddress, trust: ProxyTrust) -> bool {
    profile.proxy_trust == trust && profile.web_proxy_addr.parse().as_ref() == Ok(proxy)
}

/// Auth answers in milliseconds; password hashing behind others in its queue takes longest.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::{CertificateError, Error};

    use super::*;

    fn pinned(pin: &str) -> TrustArgs {
        TrustArgs { ca_pin: Some(pin.to_owned()), insecure: false }
    }

    #[test]
    fn a_malformed_pin_is_wrong_use() {
        let dir = tempfile::tempdir().unwrap();
        let (home, proxy) = (Home::at(dir.path()), "p".parse().unwrap());
        let failure = trust(&home, &proxy, &pinned("sha256:12")).unwrap_err();
        assert_eq!(failure.exit_code(), cli::failure::EXIT_USAGE);
        assert!(failure.message().starts_with("a CA pin is sha256:"), "{}", failure.message());
        let good = format!("sha256:{}", "0".repeat(64));
        assert!(trust(&home, &proxy, &pinned(&good)).is_ok());
    }

    #[test]
    fn only_an_unknown_authority_has_to_do_with_pins() {
        let text = |error: PingError, trust: &Trust| no_contact(error, trust).text();
        let unknown = || {
            let why = Error::InvalidCertificate(CertificateError::UnknownIssuer);
            let source = io::Error::new(io::ErrorKind::InvalidData, why);
            PingError::Dial(DialError::Tls { address: "p:1".into(), source })
        };
        let refused = || {
            let source = io::Error::from(io::ErrorKind::ConnectionRefused);
            PingError::Dial(DialError::Connect { address: "p:1".into(), source })
        };
        let pin = Trust::Pin("sha256:00".into());
        assert!(text(unknown(), &pin).contains("the cluster with that pin"));
        assert!(!text(unknown(), &pin).contains("--ca-pin"));
        assert!(text(unknown(), &Trust::Platform).contains("--ca-pin"));
        assert!(!text(refused(), &pin).contains("pin"));
        assert!(!text(refused(), &Trust::Platform).contains("pin"));
    }
}
