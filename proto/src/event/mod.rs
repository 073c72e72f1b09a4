//! Audit events: typed values whose JSON has the established names, codes and fields, one object per line.
//! Built by whoever acts, made an [`Event`] by a spool that gives id, time and index. See docs/reference/events.md.

mod code;
mod happened;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub use self::happened::Happened;
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
    /// Completes what happened. `uid` is sixteen random bytes.
    pub fn new(
        Happened { time, body }: Happened,
        ei: u64,
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
    /// The last process of a session has ended: what the kernel told of it, all in all.
    SessionCapture = "session.capture" {
        #[serde(flatten)] session: Session,
        /// `A`: the kernel asked before things happened; `B`: it told of them.
        tier: String,
        /// Records of programs and their rights, of files, of the network.
        control: u64,
        file: u64,
        network: u64,
        /// Repetitions that were counted and not told one by one.
        folded: u64,
        /// Records that were lost; each loss is a `session.loss`, too.
        lost: u64,
    }
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
        #[serde(default, skip_serializing_if = "is_default")] argv_missing: u32,
        cwd: String,
        /// Real and effective user.
        ruid: u32,
        euid: u32,
        /// `major:minor:inode:links` of the file; no links: it was deleted, or never had a name.
        file: String,
        /// Its permissions, the set-user and set-group bits among them; and whose it is.
        #[serde(default, skip_serializing_if = "is_default")] mode: u32,
        #[serde(default, skip_serializing_if = "is_default")] owner_uid: u32,
        #[serde(default, skip_serializing_if = "is_default")] owner_gid: u32,
        /// A script: `path` is its interpreter.
        #[serde(default, skip_serializing_if = "is_default")] script: bool,
        /// `path` or `cwd` is only the end of what it was.
        #[serde(default, skip_serializing_if = "is_default")] path_cut: bool,
        /// Of the file, in hex; absent where it could not be read any more.
        #[serde(default, skip_serializing_if = "String::is_empty")] sha256: String,
        /// Of execve(2): 0, or the negative error of one that failed.
        return_code: i32,
    }
    /// A process of a session has ended.
    SessionCommandExit = "session.command.exit" {
        #[serde(flatten)] session: Session,
        pid: u32,
        ppid: u32,
        program: String,
        /// As a shell has it: 128 and the signal for one that was killed.
        exit_code: i32,
        /// 0 for none.
        #[serde(default, skip_serializing_if = "is_default")] signal: i32,
    }
    /// Bytes that a session moved.
    SessionData = "session.data" {
        #[serde(flatten)] session: Session,
        /// To the user.
        tx: u64,
        /// From the user.
        rx: u64,
    }
    /// A session had something done by a process that is not its own, or one of another session.
    SessionDelegation = "session.delegation" {
        #[serde(flatten)] session: Session,
        pid: u32,
        program: String,
        /// How: `systemd`, `container`, `cron`, `at`, `ssh`; `file` for a program that the session wrote; `ptrace`; `helper` of the kernel's.
        via: String,
        /// What leads there: a socket, a file.
        path: String,
        /// The other process; 0 where there is none yet.
        target_pid: u32,
        #[serde(default, skip_serializing_if = "String::is_empty")] target_program: String,
        /// The other's session, where it is of one.
        #[serde(default, skip_serializing_if = "String::is_empty")] target_sid: String,
    }
    /// A session did what a rule of its roles is about, or tried to.
    SessionDenied = "session.denied" {
        #[serde(flatten)] session: Session,
        pid: u32,
        program: String,
        /// `exec`, `open`, `connect` and others; see the reference.
        op: String,
        /// Of a file or a socket.
        #[serde(default, skip_serializing_if = "String::is_empty")] path: String,
        #[serde(default, skip_serializing_if = "String::is_empty")] dst_addr: String,
        #[serde(default, skip_serializing_if = "is_default")] dst_port: u16,
        /// The other process.
        #[serde(default, skip_serializing_if = "is_default")] target_pid: u32,
        /// As the role has it; `contain: ` and what for.
        rule: String,
        /// `audit`: it happened; `deny`: it was refused; `kill`: and the process was killed.
        mode: String,
        /// More than one: so many of the same since the last event of it.
        #[serde(default, skip_serializing_if = "is_default")] times: u64,
        /// What the program got: 0 where it happened.
        return_code: i32,
    }
    /// A session is over, and processes of it go on.
    SessionDetached = "session.detached" {
        #[serde(flatten)] session: Session,
        /// Tasks that live.
        tasks: u64,
    }
    /// A file was opened or changed in a session.
    SessionDisk = "session.disk" {
        #[serde(flatten)] session: Session,
        pid: u32,
        program: String,
        /// `open`, `create`, `write` and others; see the reference.
        op: String,
        path: String,
        /// The other name of a rename or a link, what a symbolic link says, what is mounted.
        #[serde(default, skip_serializing_if = "String::is_empty")] target_path: String,
        /// Of open(2), mount(2) and renameat2(2).
        flags: u32,
        /// Of chmod(2), and of what is made.
        #[serde(default, skip_serializing_if = "is_default")] mode: u32,
        /// `major:minor:inode:links`; absent where it is not known.
        #[serde(default, skip_serializing_if = "String::is_empty")] file: String,
        /// More than one: so many of the same since the last event of it.
        #[serde(default, skip_serializing_if = "is_default")] times: u64,
        /// Who says so: `lsm`, `tp`, `uring`, or `syscall` for what is only what the program asked for.
        prov: String,
        #[serde(default, skip_serializing_if = "is_default")] path_cut: bool,
        /// 0, or the negative error; what is told before it happens has 0.
        return_code: i32,
    }
    /// A name was asked for in a session, or answered.
    SessionDns = "session.dns" {
        #[serde(flatten)] session: Session,
        pid: u32,
        program: String,
        name: String,
        /// `A`, `AAAA`, `TXT`, or `TYPE` and a number.
        qtype: String,
        /// Whom.
        dst_addr: String,
        dst_port: u16,
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
    /// A session changed or watched the kernel itself, or tried to.
    SessionKernel = "session.kernel" {
        #[serde(flatten)] session: Session,
        pid: u32,
        program: String,
        /// `module`, `bpf`, `kexec`, `perf`, `clock` and others; see the reference.
        op: String,
        #[serde(default, skip_serializing_if = "String::is_empty")] detail: String,
        prov: String,
        return_code: i32,
    }
    /// The kernel had no room for what a session did.
    SessionLoss = "session.loss" {
        #[serde(flatten)] session: Session,
        /// `control`, `file` or `network` for records; `task` for processes that could not be followed;
        /// `rules` for rules that cannot be kept.
        class: String,
        /// `ring`: it was full; `budget`: the session has too much on its way.
        #[serde(default, skip_serializing_if = "String::is_empty")] reason: String,
        count: u64,
        /// The first and the last record, in the kernel's count.
        first: u64,
        last: u64,
    }
    /// A session talked to somebody, or listened.
    SessionNetwork = "session.network" {
        #[serde(flatten)] session: Session,
        pid: u32,
        program: String,
        /// `connect`, `accept`, `listen`, `bind`, `send`, `close`, `socket`.
        op: String,
        /// `tcp`, `udp`, `unix`, `vsock`, `raw`, `packet`, or a number.
        protocol: String,
        #[serde(default, skip_serializing_if = "String::is_empty")] src_addr: String,
        #[serde(default, skip_serializing_if = "is_default")] src_port: u16,
        /// An address, or the path of a socket; `@name` for an abstract one.
        dst_addr: String,
        dst_port: u32,
        /// 4 or 6; 0 for what is not IP.
        version: u8,
        /// The established fields: 0 for connect, and 0 for allowed, 1 for denied.
        operation: u8,
        action: u8,
        /// Bytes sent and received, of a connection that is closed.
        #[serde(default, skip_serializing_if = "is_default")] tx: u64,
        #[serde(default, skip_serializing_if = "is_default")] rx: u64,
        #[serde(default, skip_serializing_if = "is_default")] times: u64,
        prov: String,
        return_code: i32,
    }
    /// A process of a session took or gave up rights.
    SessionPrivilege = "session.privilege" {
        #[serde(flatten)] session: Session,
        pid: u32,
        program: String,
        /// `setuid`, `setgid`, `capset`, `userns`, `loginuid` and others; see the reference.
        op: String,
        from: String,
        to: String,
        prov: String,
        return_code: i32,
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
        /// What the kernel tells of it: `A` or `B` (see `session.capture`), empty for nothing.
        #[serde(default, skip_serializing_if = "String::is_empty")] capture: String,
    }
    /// A process of a session reached into one that is not its child.
    SessionTrace = "session.trace" {
        #[serde(flatten)] session: Session,
        pid: u32,
        program: String,
        /// `ptrace`, `memory`, `signal`, `descriptor`.
        op: String,
        target_pid: u32,
        #[serde(default, skip_serializing_if = "String::is_empty")] target_program: String,
        #[serde(default, skip_serializing_if = "String::is_empty")] target_sid: String,
        #[serde(default, skip_serializing_if = "String::is_empty")] detail: String,
        prov: String,
        return_code: i32,
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

/// What the kernel tells of a session, and the session's own begin and end: what is shown beside a recording.
pub const CAPTURED: &[&str] = &[
    "session.start",
    "session.command",
    "session.command.exit",
    "session.delegation",
    "session.denied",
    "session.detached",
    "session.disk",
    "session.dns",
    "session.kernel",
    "session.loss",
    "session.network",
    "session.privilege",
    "session.trace",
    "session.capture",
    "session.end",
];

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

/// For fields that are left out where there is nothing to say.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
