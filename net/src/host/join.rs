//! The first contact with a cluster: a token for certificates, under a pin or a public certificate.

use std::sync::Arc;
use std::time::Duration;

use pki::keys::KeyPairs;
use proto::id::ClusterName;
use proto::rpc::RegisterRequest;
use proto::rpc::join_client::JoinClient;
use rustls::RootCertStore;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::stored::Stored;
use super::{CALL_WITHIN, HostError, HostSettings, UNKNOWN_CLUSTER};
use crate::auth_client::{self, Route, explain};
use crate::backoff::Backoff;
use crate::dial::DialError;
use crate::ping::{self, Ping, PingError};
use crate::tls::{self, Trust};

/// Registers, and keeps trying while auth cannot be reached.
pub(super) async fn join(
    settings: &HostSettings,
    token: &Zeroizing<String>,
) -> Result<Stored, HostError> {
    let keys = KeyPairs::generate().map_err(|error| HostError::Refused(error.to_string()))?;
    let mut backoff = Backoff::new(JOIN_WAIT_FIRST, JOIN_WAIT_MAX);
    loop {
        match try_join(settings, token, &keys).await {
            Err(HostError::Unreachable(detail)) => {
                tracing::warn!("cannot join yet, trying again: {detail}");
                backoff.wait().await;
            }
            outcome => return outcome,
        }
    }
}

pub(super) async fn try_join(
    settings: &HostSettings,
    token: &Zeroizing<String>,
    keys: &KeyPairs,
) -> Result<Stored, HostError> {
    let (cluster, trust) = first_trust(settings).await?;
    let (_, no_certificate) = watch::channel(None);
    let channel = auth_client::channel(&settings.route, &cluster, &trust, no_certificate)
        .map_err(|error| HostError::Refused(error.to_string()))?;
    let request = RegisterRequest {
        token: token.to_string(),
        role: settings.role.as_str().into(),
        nodename: settings.nodename.to_string(),
        ssh_public_key: keys.ssh_public_line(),
        tls_public_key: keys.tls_spki(),
        principals: settings.principals.clone(),
    };
    let answer = timeout(CALL_WITHIN, JoinClient::new(channel).register(request))
        .await
        .map_err(|_| HostError::Unreachable("no answer in time".into()))?
        .map_err(|status| match tls::is_unknown_authority(&status) {
            true => HostError::WrongPin,
            false => sorted(&status),
        })?
        .into_inner();
    if matches!(settings.route, Route::Proxy(_)) && answer.cluster != cluster.as_str() {
        return Err(HostError::Refused("auth is of another cluster than the proxy".into()));
    }
    Stored::new(settings, keys, answer)
}

/// The cluster's name as far as it is known, and whom to believe to be its auth.
async fn first_trust(settings: &HostSettings) -> Result<(ClusterName, Trust), HostError> {
    let pin = settings.ca_pin.as_ref().map(|pin| Trust::Pin(pin.clone()));
    if let Some(trust) = &pin {
        // A pin that cannot be read will not get better by trying again.
        tls::client_config(trust, None, &[])
            .map_err(|error| HostError::Refused(error.to_string()))?;
    }
    match (&settings.route, pin) {
        (Route::Direct(_), Some(trust)) => {
            let cluster = ClusterName::parse(UNKNOWN_CLUSTER)
                .map_err(|error| HostError::Refused(error.to_string()))?;
            Ok((cluster, trust))
        }
        (Route::Direct(_), None) => Err(HostError::NoTrust),
        (Route::Proxy(proxy), Some(trust)) => {
            let ping =
                pinned_ping(proxy, &trust).await.map_err(
                    |error| match tls::is_unknown_authority(&error) {
                        true => HostError::WrongPin,
                        false => unreachable(error),
                    },
                )?;
            Ok((cluster_of(&ping)?, trust))
        }
        (Route::Proxy(proxy), None) => {
            let ping = ping::ping(proxy, &Trust::Platform).await.map_err(|error| match error {
                PingError::Dial(DialError::Tls { .. }) => HostError::NoTrust,
                PingError::Dial(_) | PingError::Answer(_) => unreachable(error),
            })?;
            Ok((cluster_of(&ping)?, Trust::HostAuthority(Arc::new(roots_of(&ping)?))))
        }
        (Route::Socket(_), _) => {
            Err(HostError::Refused("a machine joins over the network, not over a socket".into()))
        }
    }
}

/// The proxy may show a public certificate instead of the cluster's. Then the operating system's trust says whether it is
/// the proxy that was meant, and the pin, now and again at the call to auth, whether the cluster is.
async fn pinned_ping(proxy: &str, trust: &Trust) -> Result<Ping, PingError> {
    match ping::ping(proxy, trust).await {
        Err(PingError::Dial(first @ DialError::Tls { .. })) => {
            let mut answer =
                ping::ping(proxy, &Trust::Platform).await.map_err(|_| PingError::Dial(first))?;
            if let Trust::Pin(pin) = trust {
                ping::keep_pinned(&mut answer, pin)?;
            }
            Ok(answer)
        }
        outcome => outcome,
    }
}

fn cluster_of(ping: &Ping) -> Result<ClusterName, HostError> {
    ClusterName::parse(&*ping.cluster_name)
        .map_err(|error| HostError::Unreachable(error.to_string()))
}

fn roots_of(ping: &Ping) -> Result<RootCertStore, HostError> {
    let unusable = || HostError::Unreachable("the proxy's answer holds no usable authority".into());
    let mut roots = RootCertStore::empty();
    for pem in &ping.host_ca_pem {
        for certificate in tls::certificates(pem).map_err(|_| unusable())? {
            roots.add(certificate).map_err(|_| unusable())?;
        }
    }
    if roots.is_empty() { Err(unusable()) } else { Ok(roots) }
}

fn unreachable(error: PingError) -> HostError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    HostError::Unreachable(text)
}

/// Auth's no is final; everything else may pass.
fn sorted(status: &Status) -> HostError {
    let refused = matches!(
        status.code(),
        Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
    );
    let text = explain(status);
    if refused { HostError::Refused(text) } else { HostError::Unreachable(text) }
}

const JOIN_WAIT_FIRST: Duration = Duration::from_millis(500);
/// Whoever installs a machine watches it join.
const JOIN_WAIT_MAX: Duration = Duration::from_secs(15);
