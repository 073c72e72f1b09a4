//! A user's stream: reads where it wants to go, dials, answers, and leaves TLS or keeps it. The client hears yes only
//! after the node has said yes. Called by [`crate::serve`]; next on the path: [`crate::dial`].

use std::net::SocketAddr;
use std::time::Duration;

use net::frame::{self, FrameIoError};
use pki::UserIdentity;
use proto::preamble::{Dial, Inner, Refusal, Reply, VERSION};
use relay::tls::TlsStream;
use tokio::time::Instant;

use crate::Core;
use crate::carry::{carry, leg};
use crate::dial::{Ask, dial};
use crate::listen::Admission;

/// Why a stream ended before it began, other than by a refusal that the user was told of.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("the request could not be read or answered")]
    Frame(#[from] FrameIoError),
    #[error("the client sent more than its request before the answer")]
    TooEarly,
}

/// Serves one stream. `deadline` is for the request.
pub(crate) async fn serve(
    core: &Core,
    mut tls: TlsStream,
    identity: UserIdentity,
    from: SocketAddr,
    deadline: Instant,
    admission: Option<Admission>,
) -> Result<(), UserError> {
    let within = deadline.saturating_duration_since(Instant::now());
    let request: Dial = frame::read(&mut tls, within).await?;
    drop(admission);
    if let Err((reason, message)) = check(core, &request) {
        return refuse(&mut tls, reason, message).await;
    }
    let inner = strictest(core.config.inner, request.inner);
    let trace = trace(&request.trace);
    let ask = Ask { identity: &identity, target: &request.target, from, inner, trace: &trace };
    let dialed = match dial(core, &ask).await {
        Ok(dialed) => dialed,
        Err(refused) => {
            let message = refused.client_message(&request.target);
            return refuse(&mut tls, refused.reason(), message).await;
        }
    };
    frame::write(&mut tls, &Reply::Ok { inner }, REPLY_WITHIN).await?;
    let chain = tls.peer_certificates().to_vec();
    let client = leg(tls, inner).map_err(|_| UserError::TooEarly)?;
    carry(core, &identity, &chain, client, dialed).await;
    Ok(())
}

fn check(core: &Core, request: &Dial) -> Result<(), (Refusal, String)> {
    if request.version != VERSION {
        let theirs = request.version;
        return Err((
            Refusal::Version,
            format!("the proxy speaks protocol version {VERSION}, not {theirs}: update tsh"),
        ));
    }
    if request.cluster != core.cluster {
        return Err((Refusal::NoTarget, "the proxy belongs to another cluster".to_owned()));
    }
    Ok(())
}

async fn refuse(tls: &mut TlsStream, reason: Refusal, message: String) -> Result<(), UserError> {
    frame::write(tls, &Reply::Refused { reason, message }, REPLY_WITHIN).await?;
    // Without close_notify the client could take the end for an attack.
    let closed = tokio::time::timeout(REPLY_WITHIN, tokio::io::AsyncWriteExt::shutdown(tls)).await;
    closed.map_err(|_| FrameIoError::TimedOut(REPLY_WITHIN))?.map_err(FrameIoError::Io)?;
    Ok(())
}

/// TLS stays when either side insists.
fn strictest(ours: Inner, theirs: Inner) -> Inner {
    match (ours, theirs) {
        (Inner::Plain, Inner::Plain) => Inner::Plain,
        (Inner::Plain | Inner::Tls, Inner::Tls) | (Inner::Tls, Inner::Plain) => Inner::Tls,
    }
}

/// The client's trace id if it is one, else a new one: it will stand in other machines' logs.
fn trace(given: &str) -> String {
    if given.len() == TRACE_DIGITS && given.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        given.to_owned()
    } else {
        new_trace()
    }
}

/// A trace id for a client that brings none.
pub(crate) fn new_trace() -> String {
    format!("{:032x}", u128::from_be_bytes(net::random16()))
}

/// One record into an empty socket buffer.
const REPLY_WITHIN: Duration = Duration::from_secs(5);
/// See [`Dial::trace`].
const TRACE_DIGITS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_well_formed_whatever_comes() {
        let good = "0123456789abcdef0123456789abcdef";
        assert_eq!(trace(good), good);
        for bad in ["", "0123", "g123456789abcdef0123456789abcdef", &"0".repeat(33)] {
            let new = trace(bad);
            assert_ne!(new, bad);
            assert_eq!(trace(&new), new);
        }
    }

    #[test]
    fn either_side_keeps_tls() {
        assert_eq!(strictest(Inner::Plain, Inner::Plain), Inner::Plain);
        assert_eq!(strictest(Inner::Plain, Inner::Tls), Inner::Tls);
        assert_eq!(strictest(Inner::Tls, Inner::Plain), Inner::Tls);
        assert_eq!(strictest(Inner::Tls, Inner::Tls), Inner::Tls);
    }
}
