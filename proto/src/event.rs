//! Audit events: typed values whose JSON has the established names, codes and fields, one object per line.
//! Built by whoever acts, made an [`Event`] by a spool that gives id, time and index. See docs/reference/events.md.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::id::{ClusterName, HostId, Login, NodeName, SessionId, UserName};
use crate::resource::Labels;

/// One event as stored and shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Index within its session; 0 outside sessions.
    pub ei: u64,
    pub code: String,
    /// UTC, milliseconds.
    #[serde(with = "rfc3339_millis")]
    pub time: OffsetDateTime,
    /// UUID.
    pub uid: String,
    pub cluster_name: ClusterName,
    #[serde(flatten)]
    pub body: Body,
}

impl Event {
    /// Completes a body. `uid` is sixteen random bytes.
    pub fn new(
        body: Body,
        ei: u64,
        time: OffsetDateTime,
        uid: [u8; 16],
        cluster_name: ClusterName,
    ) -> Self {
        let code = body.code().to_owned();
        Self { ei, code, time, uid: crate::id::uuid_text(uid), cluster_name, body }
    }

    /// The established name, `session.start`.
    pub fn name(&self) -> &'static str {
        self.body.name()
    }
}

/// Whether the thing that the event tells of worked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub success: bool,
    /// Why not, for the operator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

impl Outcome {
    /// It worked.
    pub fn ok() -> Self {
        Self { success: true, error: String::new() }
    }

    /// It did not, because of `error`.
    pub fn failed(error: impl Into<String>) -> Self {
        Self { success: false, error: error.into() }
    }
}

/// Who acts on what, in every event of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub sid: SessionId,
    /// Always `default`: kept for rules that look for it.
    pub namespace: String,
    pub user: UserName,
    pub login: Login,
    pub server_id: HostId,
    pub server_hostname: NodeName,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub server_labels: Labels,
    pub server_version: String,
    #[serde(rename = "addr.remote")]
    pub addr_remote: String,
    /// `ssh`.
    pub proto: String,
}

/// Who administers, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// A user of the cluster, or `local-admin` for the auth host's administrator.
    pub user: String,
    #[serde(rename = "addr.remote", default, skip_serializing_if = "String::is_empty")]
    pub addr_remote: String,
}

/// Declares the event types: variant, established name, fields.
macro_rules! bodies {
    ($($(#[$doc:meta])* $variant:ident = $name:literal { $($(#[$meta:meta])* $field:ident : $type:ty,)* })*) => {
        /// What happened. The JSON field `event` holds the established name.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "event")]
        pub enum Body {
            $($(#[$doc])* #[serde(rename = $name)] $variant($variant),)*
        }

        impl Body {
            /// The established name, `session.start`.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)* }
            }
        }

        /// All names, in the order of the reference.
        pub const NAMES: &[&str] = &[$($name,)*];

        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
            pub struct $variant { $($(#[$meta])* pub $field: $type,)* }

            impl From<$variant> for Body {
                fn from(body: $variant) -> Self { Self::$variant(body) }
            }
        )*
    };
}

bodies! {
    /// An SSH authentication that failed before any session: bad certificate, unknown login.
    Auth = "auth" {
        user: String,
        login: String,
        server_id: HostId,
        #[serde(rename = "addr.remote")] addr_remote: String,
        #[serde(flatten)] outcome: Outcome,
    }
    /// A certificate was signed.
    CertCreate = "cert.create" {
        cert_type: String,
        user: String,
        #[serde(with = "time::serde::rfc3339")] expires: OffsetDateTime,
    }
    /// A connection was ended from this side: lock, expiry, idleness. One in each session that ran on it.
    ClientDisconnect = "client.disconnect" {
        #[serde(flatten)] session: Session,
        reason: String,
    }
    /// A command ran, or could not.
    Exec = "exec" {
        #[serde(flatten)] session: Session,
        command: String,
        #[serde(rename = "exitCode")] exit_code: String,
        #[serde(rename = "exitError", default, skip_serializing_if = "String::is_empty")] exit_error: String,
    }
    /// A machine joined the cluster, or was refused.
    InstanceJoin = "instance.join" {
        node_name: String,
        host_id: String,
        role: String,
        method: String,
        #[serde(rename = "addr.remote")] addr_remote: String,
        #[serde(flatten)] outcome: Outcome,
    }
    /// A join token was made. Its text is a secret and not here.
    JoinTokenCreate = "join_token.create" {
        #[serde(flatten)] actor: Actor,
        /// First eight characters of the token's SHA-256, to tell tokens apart.
        name: String,
        roles: Vec<String>,
        #[serde(with = "time::serde::rfc3339")] expires: OffsetDateTime,
    }
    /// A lock came into force.
    LockCreated = "lock.created" {
        #[serde(flatten)] actor: Actor,
        name: String,
        target: String,
    }
    /// A lock was lifted.
    LockDeleted = "lock.deleted" {
        #[serde(flatten)] actor: Actor,
        name: String,
    }
    /// A second factor was enrolled.
    MfaAdd = "mfa.add" {
        user: UserName,
        mfa_device_name: String,
        mfa_device_type: String,
    }
    /// A forwarded connection opened, closed or failed.
    Port = "port" {
        #[serde(flatten)] session: Session,
        addr: String,
        phase: PortPhase,
        #[serde(flatten)] outcome: Outcome,
    }
    /// An invite or a reset was issued. Its token is a secret and not here.
    ResetPasswordTokenCreate = "reset_password_token.create" {
        #[serde(flatten)] actor: Actor,
        name: UserName,
        #[serde(with = "time::serde::rfc3339")] expires: OffsetDateTime,
    }
    /// The terminal's size changed.
    Resize = "resize" {
        #[serde(flatten)] session: Session,
        /// `width:height` in cells.
        size: String,
    }
    /// A role was made.
    RoleCreated = "role.created" { #[serde(flatten)] actor: Actor, name: String, }
    /// A role was removed.
    RoleDeleted = "role.deleted" { #[serde(flatten)] actor: Actor, name: String, }
    /// A role was replaced.
    RoleUpdated = "role.updated" { #[serde(flatten)] actor: Actor, name: String, }
    /// A program was executed in a session, as the kernel saw it.
    SessionCommand = "session.command" {
        #[serde(flatten)] session: Session,
        /// The process and its parent, as the host numbers them.
        pid: u32,
        ppid: u32,
        /// The file's name.
        program: String,
        /// From the root of the mount namespace; an interpreter's for a script. `memfd:NAME` for what is in no folder.
        path: String,
        /// Without the first, which is the program's own name for itself.
        argv: Vec<String>,
        /// Bytes of the arguments that are not here.
        #[serde(default, skip_serializing_if = "is_zero")] argv_missing: u32,
        cwd: String,
        /// Real and effective user.
        ruid: u32,
        euid: u32,
        /// `major:minor:inode:links` of the file; no links: it was deleted, or never had a name.
        file: String,
        /// A script: `path` is its interpreter.
        #[serde(default, skip_serializing_if = "is_false")] script: bool,
        /// `path` or `cwd` is only the end of what it was.
        #[serde(default, skip_serializing_if = "is_false")] path_cut: bool,
        /// Of execve(2): 0.
        return_code: i32,
    }
    /// A process of a session has ended.
    SessionCommandExit = "session.command.exit" {
        #[serde(flatten)] session: Session,
        pid: u32,
        /// As a shell has it: 128 and the signal for one that was killed.
        exit_code: i32,
        /// 0 for none.
        #[serde(default, skip_serializing_if = "is_no_signal")] signal: i32,
    }
    /// Bytes that a session moved.
    SessionData = "session.data" {
        #[serde(flatten)] session: Session,
        /// To the user.
        tx: u64,
        /// From the user.
        rx: u64,
    }
    /// A session is over.
    SessionEnd = "session.end" {
        #[serde(flatten)] session: Session,
        interactive: bool,
        participants: Vec<UserName>,
        /// `node`, or `off` when nothing was recorded.
        session_recording: String,
        enhanced_recording: bool,
        /// True when the recording was cut at its size limit or by a crash.
        recording_truncated: bool,
        #[serde(with = "time::serde::rfc3339")] session_start: OffsetDateTime,
        #[serde(with = "time::serde::rfc3339")] session_stop: OffsetDateTime,
    }
    /// The kernel had no room for what a session did.
    SessionLoss = "session.loss" {
        #[serde(flatten)] session: Session,
        /// `record` for records; `task` for processes that could not be followed.
        class: String,
        count: u64,
        /// The first and the last record, in the kernel's count.
        first: u64,
        last: u64,
    }
    /// Somebody watched or fetched a recording.
    SessionRecordingAccess = "session.recording.access" {
        #[serde(flatten)] actor: Actor,
        sid: SessionId,
    }
    /// A session was refused by role, lock or limit.
    SessionRejected = "session.rejected" {
        user: String,
        login: String,
        server_id: HostId,
        server_hostname: NodeName,
        #[serde(rename = "addr.remote")] addr_remote: String,
        reason: String,
    }
    /// A shell, a command or a subsystem begins.
    SessionStart = "session.start" {
        #[serde(flatten)] session: Session,
        interactive: bool,
        user_roles: Vec<String>,
        /// `width:height` in cells; empty without a terminal.
        #[serde(default, skip_serializing_if = "String::is_empty")] size: String,
        #[serde(default, skip_serializing_if = "String::is_empty")] initial_command: String,
    }
    /// A recording is complete at auth.
    SessionUpload = "session.upload" {
        sid: SessionId,
        url: String,
        bytes: u64,
        sha256: String,
    }
    /// A file operation over SFTP.
    Sftp = "sftp" {
        #[serde(flatten)] session: Session,
        action: SftpAction,
        path: String,
        working_directory: String,
        #[serde(default, skip_serializing_if = "String::is_empty")] target_path: String,
        #[serde(default, skip_serializing_if = "String::is_empty")] flags: String,
        #[serde(flatten)] outcome: Outcome,
    }
    /// A subsystem such as `sftp` was asked for.
    Subsystem = "subsystem" {
        #[serde(flatten)] session: Session,
        name: String,
        #[serde(rename = "exitError", default, skip_serializing_if = "String::is_empty")] exit_error: String,
    }
    /// A user was made.
    UserCreate = "user.create" { #[serde(flatten)] actor: Actor, name: UserName, roles: Vec<String>, }
    /// A user was removed.
    UserDelete = "user.delete" { #[serde(flatten)] actor: Actor, name: UserName, }
    /// A sign-in, good or bad.
    UserLogin = "user.login" {
        /// As typed.
        user: String,
        /// `local`.
        method: String,
        #[serde(rename = "addr.remote")] addr_remote: String,
        #[serde(flatten)] outcome: Outcome,
    }
    /// A password was set.
    UserPasswordChange = "user.password_change" { user: UserName, }
    /// A user's roles or traits changed.
    UserUpdate = "user.update" { #[serde(flatten)] actor: Actor, name: UserName, roles: Vec<String>, }
}

/// Where in its life a forwarded connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortPhase {
    Start,
    Stop,
}

/// Which SFTP request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SftpAction {
    /// Role forbids file copy.
    Disallowed,
    Link,
    Mkdir,
    Open,
    Opendir,
    Readdir,
    Remove,
    Rename,
    Rmdir,
    Setstat,
    Symlink,
}

impl Body {
    /// The established code: the last letter is I (done), W (refused), E (failed), S (stopped).
    pub fn code(&self) -> &'static str {
        match self {
            Self::Auth(_) => "T3007W",
            Self::CertCreate(_) => "TC000I",
            Self::ClientDisconnect(_) => "T3006I",
            Self::Exec(e) => pick(e.exit_error.is_empty(), "T3002I", "T3002E"),
            Self::InstanceJoin(e) => pick(e.outcome.success, "TJ002I", "TJ002E"),
            Self::JoinTokenCreate(_) => "TJT00I",
            Self::LockCreated(_) => "TLK00I",
            Self::LockDeleted(_) => "TLK01I",
            Self::MfaAdd(_) => "T1006I",
            Self::Port(e) => match (e.outcome.success, e.phase) {
                (false, _) => "T3003E",
                (true, PortPhase::Start) => "T3003I",
                (true, PortPhase::Stop) => "T3003S",
            },
            Self::ResetPasswordTokenCreate(_) => "T6000I",
            Self::Resize(_) => "T2002I",
            Self::RoleCreated(_) => "T9000I",
            Self::RoleDeleted(_) => "T9001I",
            Self::RoleUpdated(_) => "T9002I",
            Self::SessionCommand(_) => "T4000I",
            Self::SessionCommandExit(_) => "TSC00I",
            Self::SessionData(_) => "T2006I",
            Self::SessionEnd(_) => "T2004I",
            Self::SessionLoss(_) => "TSL00W",
            Self::SessionRecordingAccess(_) => "T2012I",
            Self::SessionRejected(_) => "T1006W",
            Self::SessionStart(_) => "T2000I",
            Self::SessionUpload(_) => "T2005I",
            Self::Sftp(e) => sftp_code(e),
            Self::Subsystem(e) => pick(e.exit_error.is_empty(), "T3001I", "T3001E"),
            Self::UserCreate(_) => "T1002I",
            Self::UserDelete(_) => "T1004I",
            Self::UserLogin(e) => pick(e.outcome.success, "T1000I", "T1000W"),
            Self::UserPasswordChange(_) => "T1005I",
            Self::UserUpdate(_) => "T1003I",
        }
    }

    /// The session it belongs to, if any.
    pub fn session_id(&self) -> Option<&SessionId> {
        match self {
            Self::ClientDisconnect(ClientDisconnect { session, .. })
            | Self::Exec(Exec { session, .. })
            | Self::Port(Port { session, .. })
            | Self::Resize(Resize { session, .. })
            | Self::SessionCommand(SessionCommand { session, .. })
            | Self::SessionCommandExit(SessionCommandExit { session, .. })
            | Self::SessionData(SessionData { session, .. })
            | Self::SessionEnd(SessionEnd { session, .. })
            | Self::SessionLoss(SessionLoss { session, .. })
            | Self::SessionStart(SessionStart { session, .. })
            | Self::Sftp(Sftp { session, .. })
            | Self::Subsystem(Subsystem { session, .. }) => Some(&session.sid),
            Self::SessionRecordingAccess(e) => Some(&e.sid),
            Self::SessionUpload(e) => Some(&e.sid),
            Self::Auth(_)
            | Self::CertCreate(_)
            | Self::InstanceJoin(_)
            | Self::JoinTokenCreate(_)
            | Self::LockCreated(_)
            | Self::LockDeleted(_)
            | Self::MfaAdd(_)
            | Self::ResetPasswordTokenCreate(_)
            | Self::RoleCreated(_)
            | Self::RoleDeleted(_)
            | Self::RoleUpdated(_)
            | Self::SessionRejected(_)
            | Self::UserCreate(_)
            | Self::UserDelete(_)
            | Self::UserLogin(_)
            | Self::UserPasswordChange(_)
            | Self::UserUpdate(_) => None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_no_signal(value: &i32) -> bool {
    *value == 0
}

fn pick(good: bool, yes: &'static str, no: &'static str) -> &'static str {
    if good { yes } else { no }
}

fn sftp_code(event: &Sftp) -> &'static str {
    let (good, bad) = match event.action {
        SftpAction::Disallowed => return "TS020E",
        SftpAction::Link => ("TS019I", "TS019E"),
        SftpAction::Mkdir => ("TS012I", "TS012E"),
        SftpAction::Open => ("TS001I", "TS001E"),
        SftpAction::Opendir => ("TS009I", "TS009E"),
        SftpAction::Readdir => ("TS010I", "TS010E"),
        SftpAction::Remove => ("TS011I", "TS011E"),
        SftpAction::Rename => ("TS016I", "TS016E"),
        SftpAction::Rmdir => ("TS013I", "TS013E"),
        SftpAction::Setstat => ("TS007I", "TS007E"),
        SftpAction::Symlink => ("TS018I", "TS018E"),
    };
    pick(event.outcome.success, good, bad)
}

/// RFC 3339 in UTC with exactly three digits of a second: sorts as text.
mod rfc3339_millis {
    use serde::{Deserialize, Deserializer, Serializer};
    use time::format_description::BorrowedFormatItem;
    use time::format_description::well_known::Rfc3339;
    use time::macros::format_description;
    use time::{OffsetDateTime, UtcOffset};

    const FORMAT: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

    pub(super) fn serialize<S: Serializer>(
        time: &OffsetDateTime,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let text =
            time.to_offset(UtcOffset::UTC).format(&FORMAT).map_err(serde::ser::Error::custom)?;
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<OffsetDateTime, D::Error> {
        let text = String::deserialize(from)?;
        OffsetDateTime::parse(&text, &Rfc3339).map_err(serde::de::Error::custom)
    }
}
