//! Users, roles, tokens, locks and nodes as data: `kind, version, metadata, spec`, the shape that people know.
//! Unknown keys are errors everywhere: a role option that is not understood must not be ignored.
//! Meaning (matching, templates, deny first) lives in the `policy` crate.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::capture_rules::CaptureRules;
use crate::id::{HostId, Login, NodeName, RoleName, UserName};

/// Label names to values, as a node carries them.
pub type Labels = BTreeMap<String, String>;
/// Trait names to values, as a user carries them. `logins` fills `{{internal.logins}}`.
pub type Traits = BTreeMap<String, Vec<String>>;

/// A named thing in auth's store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource<S> {
    pub kind: String,
    pub version: String,
    pub metadata: Metadata,
    pub spec: S,
}

/// What every resource has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// RFC 3339; after it the resource is as good as gone.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub expires: Option<time::OffsetDateTime>,
    /// The store's revision; given back on update, it must still be current.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

pub type Role = Resource<RoleSpec>;
pub type User = Resource<UserSpec>;
pub type Token = Resource<TokenSpec>;
pub type Lock = Resource<LockSpec>;
pub type Node = Resource<NodeSpec>;

pub const KIND_ROLE: &str = "role";
pub const KIND_USER: &str = "user";
pub const KIND_TOKEN: &str = "token";
pub const KIND_LOCK: &str = "lock";
pub const KIND_NODE: &str = "node";

/// Versions that this build understands; any other is refused.
pub const ROLE_VERSION: &str = "v7";
pub const USER_VERSION: &str = "v2";
pub const TOKEN_VERSION: &str = "v2";
pub const LOCK_VERSION: &str = "v2";
pub const NODE_VERSION: &str = "v2";

/// What a role says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoleSpec {
    pub options: RoleOptions,
    pub allow: Conditions,
    pub deny: Conditions,
}

/// Options; over several roles the strictest wins, or any yes for the permissions (see `policy`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoleOptions {
    /// Longest life of a certificate; shortest over the roles. Absent: 12 h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_session_ttl: Option<Span>,
    /// `-L`, `-D`; yes if any role says so. Absent in all: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_forwarding: Option<bool>,
    /// `-A`; yes if any role says so. Absent in all: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_agent: Option<bool>,
    /// scp, sftp; no if any role says no. Absent in all: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_file_copy: Option<bool>,
    /// A session without traffic for so long is ended; shortest over the roles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_idle_timeout: Option<Span>,
    /// End sessions when the certificate expires; yes if any role says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disconnect_expired_cert: Option<bool>,
    /// Most sessions at once per connection; lowest over the roles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<u32>,
    /// What is taken down from the kernel beside the recording; all that any role names. Absent in all: command and network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enhanced_recording: Option<Vec<EnhancedRecording>>,
    /// What sessions must not do, kept by the kernel; all that any role names, and the strictest mode. Absent in all: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture_rules: Option<CaptureRules>,
    /// What happens when a recording cannot be written; strictest over the roles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_session: Option<RecordSession>,
}

/// A kind of what the kernel tells of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnhancedRecording {
    /// Programs and their ends, rights, the kernel, other processes.
    Command,
    /// Files.
    Disk,
    /// Connections, listeners, datagrams, questions for names.
    Network,
}

/// `record_session`, by service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    deny_unknown_fields,
    default,
    expecting = "modes by service, such as record_session: {default: strict}"
)]
pub struct RecordSession {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<RecordMode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh: Option<RecordMode>,
}

/// Whether a session may go on when its recording fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordMode {
    BestEffort,
    Strict,
}

/// The allow or the deny half of a role.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Conditions {
    /// Unix logins; literals or templates such as `{{internal.logins}}`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logins: Vec<String>,
    /// Label name to accepted values: literal, `*`, or `^regexp$`. `'*': '*'` matches every node.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: BTreeMap<String, OneOrMany>,
    /// What the holder may administer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// Resource kinds (`user role token node lock event session *`) and verbs (`list create read update delete *`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub resources: Vec<String>,
    pub verbs: Vec<String>,
}

/// YAML's `key: value` and `key: [a, b]` alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    /// All values.
    pub fn values(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// A person. Secrets (password hash, second factor) are not part of the resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserSpec {
    #[serde(default)]
    pub roles: Vec<RoleName>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub traits: Traits,
    #[serde(default)]
    pub status: UserStatus,
}

/// Read-only state of a user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserStatus {
    /// False until the invite is accepted.
    pub enrolled: bool,
    /// Unix seconds until which sign-in is refused after too many failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_until: Option<i64>,
}

/// A join token. The token's text is the resource's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenSpec {
    pub roles: Vec<HostRole>,
    #[serde(default = "join_method_token")]
    pub join_method: String,
}

fn join_method_token() -> String {
    "token".into()
}

/// What a joined machine may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostRole {
    Auth,
    Node,
    Proxy,
}

impl HostRole {
    /// The name used in configuration, tokens and certificates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Node => "node",
            Self::Proxy => "proxy",
        }
    }
}

/// Keeps a target out at once: a user, a role, a login, a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockSpec {
    pub target: LockTarget,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Exactly one of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockTarget {
    Login(Login),
    Node(HostId),
    Role(RoleName),
    User(UserName),
}

/// A machine as auth last heard of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    pub hostname: NodeName,
    pub role: HostRole,
    pub app_version: String,
    /// Unix seconds.
    pub last_seen: i64,
    #[serde(default)]
    pub policy_revision: u64,
    /// Proxies only: where people reach it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
}

/// A length of time written as people write it: `30m`, `12h`, `1h30m`, `7d`, `90s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// Parses `12h`, `1h30m`, `90s`, `7d`.
    ///
    /// # Errors
    /// No number, no unit, an unknown unit, or more than 100 years.
    pub fn parse(text: &str) -> Result<Self, String> {
        const SECONDS_MAX: u64 = 100 * 365 * 24 * 3600;
        let bad = || format!("{text:?} is not a length of time such as 30m, 12h, 1h30m or 7d");
        let mut total: u64 = 0;
        let mut digits = String::new();
        for c in text.chars() {
            if c.is_ascii_digit() {
                digits.push(c);
                continue;
            }
            let unit = match c {
                's' => 1,
                'm' => 60,
                'h' => 3600,
                'd' => 86400,
                _ => return Err(bad()),
            };
            let number: u64 = digits.parse().map_err(|_| bad())?;
            digits.clear();
            total = number.checked_mul(unit).and_then(|n| n.checked_add(total)).ok_or_else(bad)?;
        }
        if !digits.is_empty() || text.is_empty() || total > SECONDS_MAX {
            return Err(bad());
        }
        Ok(Self(Duration::from_secs(total)))
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        if seconds == 0 {
            return out.write_str("0s");
        }
        for (unit, letter, wrap) in [(3600, 'h', u64::MAX), (60, 'm', 60), (1, 's', 60)] {
            let count = (seconds / unit) % wrap;
            if count > 0 {
                write!(out, "{count}{letter}")?;
            }
        }
        Ok(())
    }
}

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_and_print() {
        fn check(text: &str, expect: Result<&str, ()>) {
            let got = Span::parse(text).map(|s| s.to_string()).map_err(|_| ());
            assert_eq!(got.as_deref(), expect.as_ref().map(|s| *s), "{text}");
        }
        check("12h", Ok("12h"));
        check("90s", Ok("1m30s"));
        check("7d", Ok("168h"));
        check("1h30m", Ok("1h30m"));
        check("30", Err(()));
        check("", Err(()));
        check("h", Err(()));
        check("99999999999999999999h", Err(()));
        check("5w", Err(()));
    }

    #[test]
    fn unknown_role_option_is_an_error() {
        let json = r#"{"kind":"role","version":"v7","metadata":{"name":"x"},
            "spec":{"options":{"pin_source_ip":true}}}"#;
        assert!(serde_json::from_str::<Role>(json).is_err());
    }
}
