//! What of an event follows from its type: the established code, and the session that it belongs to.

use super::*;

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
            Self::SessionCapture(_) => "TSP00I",
            Self::SessionCommand(_) => "T4000I",
            Self::SessionCommandExit(_) => "TSC00I",
            Self::SessionData(_) => "T2006I",
            Self::SessionDelegation(_) => "TSG00W",
            Self::SessionDenied(_) => "TSE00W",
            Self::SessionDetached(_) => "TSG01I",
            Self::SessionDisk(_) => "T4001I",
            Self::SessionDns(_) => "TSN00I",
            Self::SessionEnd(_) => "T2004I",
            Self::SessionKernel(_) => "TSK00W",
            Self::SessionLoss(_) => "TSL00W",
            Self::SessionNetwork(_) => "T4002I",
            Self::SessionPrivilege(_) => "TSV00I",
            Self::SessionRecordingAccess(_) => "T2012I",
            Self::SessionRejected(_) => "T1006W",
            Self::SessionStart(_) => "T2000I",
            Self::SessionTrace(_) => "TSK01W",
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

    /// The session whose event it is, with all facts; see also [`Self::session_id`].
    pub fn session(&self) -> Option<&Session> {
        match self {
            Self::ClientDisconnect(ClientDisconnect { session, .. })
            | Self::Exec(Exec { session, .. })
            | Self::Port(Port { session, .. })
            | Self::Resize(Resize { session, .. })
            | Self::SessionCapture(SessionCapture { session, .. })
            | Self::SessionCommand(SessionCommand { session, .. })
            | Self::SessionCommandExit(SessionCommandExit { session, .. })
            | Self::SessionData(SessionData { session, .. })
            | Self::SessionDelegation(SessionDelegation { session, .. })
            | Self::SessionDenied(SessionDenied { session, .. })
            | Self::SessionDetached(SessionDetached { session, .. })
            | Self::SessionDisk(SessionDisk { session, .. })
            | Self::SessionDns(SessionDns { session, .. })
            | Self::SessionEnd(SessionEnd { session, .. })
            | Self::SessionKernel(SessionKernel { session, .. })
            | Self::SessionLoss(SessionLoss { session, .. })
            | Self::SessionNetwork(SessionNetwork { session, .. })
            | Self::SessionPrivilege(SessionPrivilege { session, .. })
            | Self::SessionStart(SessionStart { session, .. })
            | Self::SessionTrace(SessionTrace { session, .. })
            | Self::Sftp(Sftp { session, .. })
            | Self::Subsystem(Subsystem { session, .. }) => Some(session),
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
            | Self::SessionRecordingAccess(_)
            | Self::SessionRejected(_)
            | Self::SessionUpload(_)
            | Self::UserCreate(_)
            | Self::UserDelete(_)
            | Self::UserLogin(_)
            | Self::UserPasswordChange(_)
            | Self::UserUpdate(_) => None,
        }
    }

    /// The session it belongs to, if any.
    pub fn session_id(&self) -> Option<&SessionId> {
        if let Self::SessionRecordingAccess(SessionRecordingAccess { sid, .. })
        | Self::SessionUpload(SessionUpload { sid, .. }) = self
        {
            return Some(sid);
        }
        self.session().map(|session| &session.sid)
    }
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
