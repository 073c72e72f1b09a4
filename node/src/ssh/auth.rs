//! Sign-in: a certificate whose key the client has proved to hold becomes an admitted person, or a refusal with its
//! event. Who it is says `pki`; whether they may says `admit`; here is the order of the questions.
//!
//! Refused people read why in a keyboard-interactive round that asks nothing: SSH has no other message between a
//! refused key and the end of the connection.

use std::sync::atomic::Ordering;

use pki::IdentityError;
use proto::event;
use proto::id::Login;
use russh::keys::Certificate;

use crate::account::{self, Serves};
use crate::admit;
use crate::ssh::connection::{Admitted, Connection};

/// A refusal: what the user reads.
#[derive(Debug)]
pub(crate) enum Refused {
    /// This certificate is not good here; another one may be.
    Certificate(&'static str),
    /// The person is known and may not.
    Person(String),
}

impl Refused {
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Certificate(text) => (*text).to_owned(),
            Self::Person(text) => text.clone(),
        }
    }
}

/// What is said when no certificate was acceptable: russh refuses expired ones before we see them.
pub(crate) const NO_CERTIFICATE: &str =
    "access denied: no valid certificate of this cluster (run `tsh login`, then try again)";

/// What the holder of an otherwise good certificate reads. Says nothing of which accounts exist: none was looked up.
pub(crate) const NOT_THIS_LOGIN: &str =
    "access denied: your certificate is not for this login (see `tsh status` for your logins)";

/// Signs in.
pub(crate) async fn sign_in(
    connection: &Connection,
    login: &str,
    certificate: &Certificate,
) -> Result<Admitted, Refused> {
    let node = &connection.node;
    let client = &connection.client;
    let Ok(login) = Login::parse(login) else {
        fail(connection, certificate.key_id(), login, "not a login's form").await;
        return Err(Refused::Certificate(NO_CERTIFICATE));
    };
    let verifier = node.policy.borrow().clone();
    let verified = verifier.verifier.ssh_user(certificate, &login, client.ip, net::unix_now());
    let identity = match verified {
        Ok(identity) => identity,
        Err(error) => {
            let claimed = certificate.key_id();
            fail(connection, claimed, login.as_str(), &error.to_string()).await;
            // The login is asked about last, when all else has held.
            let wrong_login = matches!(error, IdentityError::Principal(_));
            let text = if wrong_login { NOT_THIS_LOGIN } else { NO_CERTIFICATE };
            return Err(Refused::Certificate(text));
        }
    };
    let session = match admit::admit(node, &identity, &login, client) {
        Ok(session) => session,
        Err(denial) => {
            let reason = denial.to_string();
            reject(connection, identity.user().as_str(), &login, &reason).await;
            return Err(Refused::Person(denial.client_message().to_owned()));
        }
    };
    if let Serves::OnlyOwnUser(own) = &node.serves
        && own != login.as_str()
    {
        reject(connection, identity.user().as_str(), &login, "the node runs without root").await;
        let text = format!("access denied: this node runs without root and serves only {own}");
        return Err(Refused::Person(text));
    }
    match account::find(login.to_string()).await {
        Ok(Some(account)) => Ok(Admitted { identity, login, account, session }),
        found => {
            let reason = match found {
                Err(error) => format!("the account cannot be looked up: {error}"),
                Ok(_) => "the node has no such account".to_owned(),
            };
            reject(connection, identity.user().as_str(), &login, &reason).await;
            // The same words as for a role that forbids it: what exists here is not told.
            let reason = policy::Reason::NoLogin(login);
            Err(Refused::Person(policy::Denial { reason }.client_message().to_owned()))
        }
    }
}

/// After a connection on which somebody tried and no event tells of it: certificates that russh itself refused, or none.
pub(crate) async fn note_silent_failure(connection: &Connection) {
    let login = connection.failures.login();
    let told = connection.failures.told.load(Ordering::Relaxed);
    if connection.admitted().is_some() || told || login.is_empty() {
        return;
    }
    fail(
        connection,
        "",
        &login,
        "no certificate that is valid now was offered: expired, not yet valid, or none",
    )
    .await;
}

async fn fail(connection: &Connection, user: &str, login: &str, reason: &str) {
    connection.failures.told.store(true, Ordering::Relaxed);
    let node = &connection.node;
    let event = event::Auth {
        user: printable(user),
        login: printable(login),
        server_id: node.facts.host_id.clone(),
        addr_remote: connection.client.text.clone(),
        outcome: event::Outcome::failed(reason),
    };
    record(connection, event.into()).await;
}

/// Makes the event of a person who is known and may not.
pub(crate) async fn reject(connection: &Connection, user: &str, login: &Login, reason: &str) {
    connection.failures.told.store(true, Ordering::Relaxed);
    let node = &connection.node;
    let event = event::SessionRejected {
        user: user.to_owned(),
        login: login.to_string(),
        server_id: node.facts.host_id.clone(),
        server_hostname: node.facts.nodename.clone(),
        addr_remote: connection.client.text.clone(),
        reason: reason.to_owned(),
    };
    record(connection, event.into()).await;
}

/// Makes the event of a subsystem that this node does not have.
pub(crate) async fn refuse_subsystem(connection: &Connection, name: &str) {
    let Some(admitted) = connection.admitted() else { return };
    let event = event::Subsystem {
        session: admitted.session.facts(),
        name: printable(name),
        exit_error: "no such subsystem".to_owned(),
    };
    // Logged inside; refused either way.
    drop(admitted.session.record_outcome(event).await);
}

async fn record(connection: &Connection, body: event::Body) {
    let name = body.name();
    if let Err(error) = connection.node.audit.record(body, 0).await {
        tracing::error!(event = name, %error, "an audit event was lost; access was refused");
    }
}

/// Text from a peer that proved nothing: short, and without control characters.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(CLAIMED_CHARS_MAX).collect()
}

/// Longer than any name of ours.
const CLAIMED_CHARS_MAX: usize = 128;
