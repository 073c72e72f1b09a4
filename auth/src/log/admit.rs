//! Which events a host may send. A host speaks for itself only: of sessions on it, and of attempts to enter it. That
//! somebody signed in or that a role was changed is for auth alone to say, so a stolen node cannot forge that.

use pki::HostIdentity;
use proto::event::{Auth, Body, Event, SessionRejected};
use proto::id::{ClusterName, HostId};
use proto::resource::HostRole;
use serde::Deserialize as _;
use serde_json::Value;

use super::EVENT_BYTES_MAX;
use super::writer::OWN_SOURCE;

/// An event as it will stand in the file, and what the index needs of it.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// JSON without line break.
    pub(super) text: String,
    pub(super) uid: String,
    pub(super) time_ms: i64,
    pub(super) name: String,
    pub(super) user: String,
    pub(super) sid: String,
}

/// Checks an event from a host. Fields that this version does not know are kept.
pub(super) fn admit(
    host: &HostIdentity,
    cluster: &ClusterName,
    json: &[u8],
) -> Result<Line, String> {
    if json.len() > EVENT_BYTES_MAX {
        return Err("too long".into());
    }
    let value: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let event = Event::deserialize(&value).map_err(|error| error.to_string())?;
    if event.cluster_name != *cluster {
        return Err("of another cluster".into());
    }
    if event.code != event.body.code() {
        return Err("its code does not belong to it".into());
    }
    if event.uid.len() != UID_BYTES {
        return Err("its uid is none".into());
    }
    match server_of(&event.body) {
        Some(server) if server == host.host_id() => {}
        Some(_) => return Err("about another host".into()),
        None => return Err("not for a host to say".into()),
    }
    let of_session = event.body.session_id().is_some();
    if of_session && !host.has_role(HostRole::Node) {
        return Err("of a session, by a host that is no node".into());
    }
    Ok(line(&event, &value))
}

/// What is written and indexed of an event whose JSON is `value`.
pub(super) fn line(event: &Event, value: &Value) -> Line {
    let text_of = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let time_ms = event.time.unix_timestamp_nanos() / 1_000_000;
    Line {
        text: value.to_string(),
        uid: event.uid.clone(),
        time_ms: i64::try_from(time_ms).unwrap_or(i64::MAX),
        name: event.name().to_owned(),
        user: text_of("user").to_owned(),
        sid: event.body.session_id().map(ToString::to_string).unwrap_or_default(),
    }
}

/// As [`line`], from a line of the file; and who had sent it.
pub(super) fn reread(text: &[u8]) -> Result<(String, Line), String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let event = Event::deserialize(&value).map_err(|error| error.to_string())?;
    let source = server_of(&event.body).map_or(OWN_SOURCE, HostId::as_str);
    Ok((source.to_owned(), line(&event, &value)))
}

/// The host that an event tells of, for those that hosts send.
fn server_of(body: &Body) -> Option<&HostId> {
    if let Body::Auth(Auth { server_id, .. })
    | Body::SessionRejected(SessionRejected { server_id, .. }) = body
    {
        return Some(server_id);
    }
    body.session().map(|session| &session.server_id)
}

/// Length of UUID text.
const UID_BYTES: usize = 36;
