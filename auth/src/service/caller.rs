//! Who calls, and may they? The connection's proof (a verified certificate, or the kernel's word about the other end of
//! the local socket) becomes a [`Caller`] here and nowhere else.

use std::net::SocketAddr;
use std::sync::Arc;

use pki::{HostIdentity, Identity, UserIdentity};
use policy::decide::standing;
use policy::{Decision, Request as Question, decide};
use proto::event::Actor;
use proto::id::UserName;
use proto::resource::HostRole;
use tonic::{Request, Status};
use tracing::info;

use crate::clock::Clock;
use crate::fault::Fault;
use crate::limits::CallLimit;
use crate::snapshot::Snapshots;

/// What a connection has proven. Put beside each request by the server.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// None on the local socket.
    pub(crate) from: Option<SocketAddr>,
    pub(crate) proof: Proof,
}

/// See [`Peer`].
#[derive(Debug, Clone)]
pub(crate) enum Proof {
    /// No client certificate.
    Anonymous,
    Certificate(Arc<Identity>),
    /// Root or our own user, on the local socket.
    LocalAdmin,
}

/// Who calls.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    LocalAdmin,
    User { identity: Box<UserIdentity>, from: String },
}

impl Caller {
    /// For the event of what they do.
    pub(crate) fn actor(&self) -> Actor {
        match self {
            Self::LocalAdmin => local_admin(),
            Self::User { identity, from } => {
                Actor { user: identity.user().to_string(), addr_remote: from.clone() }
            }
        }
    }

    pub(crate) fn user(&self) -> Option<&UserName> {
        match self {
            Self::LocalAdmin => None,
            Self::User { identity, .. } => Some(identity.user()),
        }
    }
}

/// The auth host's administrator, and auth itself.
pub(crate) fn local_admin() -> Actor {
    Actor { user: "local-admin".into(), addr_remote: String::new() }
}

/// Asks who calls and whether they may.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) clock: Clock,
    pub(crate) limit: CallLimit,
    pub(crate) snapshots: Arc<Snapshots>,
}

impl Gate {
    /// Anybody, within the limits. Gives the address for events.
    pub(crate) fn anybody<T>(&self, request: &Request<T>) -> Result<String, Fault> {
        match peer(request)?.from {
            Some(from) => {
                self.limit.take(from.ip())?;
                Ok(from.to_string())
            }
            None => Ok(String::new()),
        }
    }

    /// A machine of the cluster.
    pub(crate) fn host<T>(&self, request: &Request<T>) -> Result<HostIdentity, Fault> {
        let Proof::Certificate(identity) = &peer(request)?.proof else {
            return Err(Fault::Unproven("this needs a machine's certificate"));
        };
        match &**identity {
            Identity::Host(host) if host.valid_until() > self.clock.now() => Ok(host.clone()),
            Identity::Host(_) => Err(Fault::Unproven(EXPIRED)),
            Identity::User(_) => Err(Fault::Denied("this is for machines only".into())),
        }
    }

    /// A node of the cluster.
    pub(crate) fn node<T>(&self, request: &Request<T>) -> Result<HostIdentity, Fault> {
        let host = self.host(request)?;
        if host.has_role(HostRole::Node) {
            return Ok(host);
        }
        Err(Fault::Denied("this is for nodes only".into()))
    }

    /// The auth host's administrator, and nobody else.
    pub(crate) fn local_admin<T>(&self, request: &Request<T>) -> Result<Caller, Fault> {
        match peer(request)?.proof {
            Proof::LocalAdmin => Ok(Caller::LocalAdmin),
            Proof::Anonymous | Proof::Certificate(_) => Err(Fault::Denied(
                "this is for the administrator of the auth host only: run it there as root".into(),
            )),
        }
    }

    /// A person who is not locked, whatever they may.
    pub(crate) fn person<T>(&self, request: &Request<T>) -> Result<Caller, Fault> {
        let peer = peer(request)?;
        match &peer.proof {
            Proof::LocalAdmin => Ok(Caller::LocalAdmin),
            Proof::Anonymous => Err(Fault::Unproven(UNPROVEN)),
            Proof::Certificate(identity) => match &**identity {
                Identity::User(user) if user.valid_until() > self.clock.now() => {
                    self.refuse_locked(user)?;
                    let from = peer.from.map(|from| from.to_string()).unwrap_or_default();
                    Ok(Caller::User { identity: Box::new(user.clone()), from })
                }
                Identity::User(_) => Err(Fault::Unproven(EXPIRED)),
                Identity::Host(_) => Err(Fault::Denied("this is for people only".into())),
            },
        }
    }

    /// A lock ends what needs no role, too: one's own recordings.
    fn refuse_locked(&self, user: &UserIdentity) -> Result<(), Fault> {
        standing(&self.snapshots.current().policy, user, self.clock.now()).map_err(|denial| {
            info!(user = %user.user(), reason = %denial, "denied");
            Fault::Denied("access denied: you or one of your roles is locked".into())
        })
    }

    /// A person who may do `verb` on `resource`.
    pub(crate) fn administrator<T>(
        &self,
        request: &Request<T>,
        resource: &str,
        verb: &str,
    ) -> Result<Caller, Fault> {
        let caller = self.person(request)?;
        self.check(&caller, resource, verb)?;
        Ok(caller)
    }

    /// Whether the caller may (still) do `verb` on `resource`.
    pub(crate) fn check(&self, caller: &Caller, resource: &str, verb: &str) -> Result<(), Fault> {
        let Caller::User { identity, .. } = caller else { return Ok(()) };
        let question = Question::Administer { resource, verb };
        match decide(&self.snapshots.current().policy, identity, &question, self.clock.now()) {
            Decision::Permit(_) => Ok(()),
            Decision::Denial(denial) => {
                info!(user = %identity.user(), resource, verb, reason = %denial, "denied");
                Err(Fault::Denied(format!(
                    "access denied: your roles do not allow to {verb} {resource}"
                )))
            }
        }
    }

    /// The same where no is no denial, but less of an answer.
    pub(crate) fn may(&self, caller: &Caller, resource: &str, verb: &str) -> bool {
        let Caller::User { identity, .. } = caller else { return true };
        let question = Question::Administer { resource, verb };
        let policy = &self.snapshots.current().policy;
        matches!(decide(policy, identity, &question, self.clock.now()), Decision::Permit(_))
    }
}

/// Turns callers without any proof away before their message is read: only what signs in and joins is for them, and only
/// there messages are short. Stands before all other services; the gate's questions follow.
pub(crate) fn proven(request: Request<()>) -> Result<Request<()>, Status> {
    match peer(&request)?.proof {
        Proof::Anonymous => Err(Fault::Unproven(UNPROVEN).into()),
        Proof::Certificate(_) | Proof::LocalAdmin => Ok(request),
    }
}

fn peer<T>(request: &Request<T>) -> Result<&Peer, Fault> {
    request.extensions().get().ok_or_else(|| Fault::Internal("a request without a peer".into()))
}

const EXPIRED: &str = "the certificate has expired";
const UNPROVEN: &str = "sign in first: run `tsh login`";
