//! What is known of a session recording beside its bytes.

use serde::{Deserialize, Serialize};

use crate::id::{HostId, Login, NodeName, SessionId, UserName};

/// One line of `tsh recordings ls`; also stored beside the recording at auth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub sid: SessionId,
    pub user: UserName,
    pub login: Login,
    pub server_id: HostId,
    pub server_hostname: NodeName,
    #[serde(with = "time::serde::rfc3339")]
    pub session_start: time::OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub session_stop: time::OffsetDateTime,
    pub interactive: bool,
    /// The command of an exec session.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// True when the recording was cut at its size limit or by a crash.
    #[serde(default)]
    pub truncated: bool,
    /// Bytes of the asciicast file.
    pub length: u64,
}
