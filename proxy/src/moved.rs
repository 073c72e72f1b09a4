//! Streams that another process had before: who they belong to, so that locks still cut them and counts are right.
//! What is needed of a stream travels with it as a [`Tag`]; who the user is follows from their certificate again, since
//! nothing else makes an identity. Filled in by [`crate::carry`] and [`crate::door`].

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use pki::Identity;
use proto::id::{HostId, NodeName};
use proto::resource::Labels;
use relay::upgrade::Moved;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::Core;
use crate::carry::until_locked;
use crate::listen::Source;
use crate::register::Facts;

/// What a stream is, for the process that goes on with it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Tag {
    Auth {
        from: SocketAddr,
    },
    User {
        /// Base64 of DER, the user's certificate first.
        chain: Vec<String>,
        /// When the chain was good; Unix seconds.
        as_of: i64,
        host_id: HostId,
        nodename: NodeName,
        labels: Labels,
    },
}

impl Tag {
    pub(crate) fn of_user(chain: &[CertificateDer<'_>], facts: &Facts) -> Self {
        Self::User {
            chain: chain.iter().map(|certificate| STANDARD.encode(certificate)).collect(),
            as_of: net::unix_now(),
            host_id: facts.host_id.clone(),
            nodename: facts.nodename.clone(),
            labels: facts.labels.clone(),
        }
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        // Strings and numbers only: nothing that cannot be written.
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

/// Goes on with a stream until its end. One whose user is not known any more is closed: no lock could reach it.
pub(crate) async fn adopt(core: &Core, moved: Moved) {
    match serde_json::from_slice(moved.tag()) {
        Ok(Tag::Auth { from }) => adopt_auth(core, from, moved).await,
        Ok(Tag::User { chain, as_of, host_id, nodename, labels }) => {
            let facts = Facts { host_id, nodename, labels, draining: false };
            adopt_user(core, &chain, as_of, &facts, moved).await;
        }
        Err(error) => warn!(%error, "a stream from the old process belongs to nobody"),
    }
}

async fn adopt_auth(core: &Core, from: SocketAddr, moved: Moved) {
    let limits = &core.config.limits;
    let _places = (
        core.auth_sources.enter(&Source::of(from), limits.auth_streams_per_source_max),
        Arc::clone(&core.auth_streams).try_acquire_owned().ok(),
    );
    let outcome = core.relay.adopt(core.relay.next_id(), moved).await;
    debug!(%from, end = ?outcome.end, "a connection to auth ended");
}

async fn adopt_user(core: &Core, chain: &[String], as_of: i64, facts: &Facts, moved: Moved) {
    let certificates: Result<Vec<CertificateDer<'static>>, _> =
        chain.iter().map(|text| STANDARD.decode(text).map(CertificateDer::from)).collect();
    // Expiry is the node's to judge; that the authority is still one of ours is not.
    let identity = certificates.map_err(|error| error.to_string()).and_then(|chain| {
        core.policy.current().verifier.tls_peer(&chain, as_of).map_err(|error| error.to_string())
    });
    let user = match identity {
        Ok(Identity::User(user)) => user,
        Ok(Identity::Host(_)) => return warn!("a stream from the old process is no user's"),
        Err(error) => return warn!(error, "a stream's user is not known any more"),
    };
    let _place = core.users.enter(user.user(), core.config.limits.streams_per_user_max);
    let _counted = core.streams.token();
    let id = core.relay.next_id();
    until_locked(core, &user, facts, id, core.relay.adopt(id, moved)).await;
}
