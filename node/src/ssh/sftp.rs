//! The parent's half of file transfer: what the SFTP server tells of its operations becomes events of the session.
//! The server itself is [`crate::sftp`], in a process with the user's rights; the bytes are [`super::relay`]'s.

use proto::event;

use crate::recorder::RecordError;
use crate::session::Session;
use crate::sftp::{REPORT_BYTES_MAX, Report};
use crate::ssh::fd::Endpoint;

/// Records reports until the server is gone. Each is acknowledged once it is durable; strict sessions' servers wait for
/// that before they answer the client.
///
/// # Errors
/// A strict session's report could not be kept. Other sessions go on; the loss is logged.
pub(crate) async fn record_reports(
    session: &Session,
    reports: Option<Endpoint>,
) -> Result<(), RecordError> {
    let Some(reports) = reports else { return Ok(()) };
    let mut line: Vec<u8> = Vec::new();
    loop {
        let bytes = match reports.read().await {
            Ok(bytes) if bytes.is_empty() => return Ok(()),
            Ok(bytes) => bytes,
            // The other end is gone.
            Err(_) => return Ok(()),
        };
        for byte in bytes {
            if byte != b'\n' {
                line.push(byte);
            } else {
                keep(session, &line).await?;
                line.clear();
                if session.is_strict() && reports.write(ACKNOWLEDGED).await.is_err() {
                    return Ok(());
                }
            }
            if line.len() > REPORT_BYTES_MAX {
                return broken(session, "a report of an SFTP server is too long");
            }
        }
    }
}

async fn keep(session: &Session, line: &[u8]) -> Result<(), RecordError> {
    let Ok(report) = serde_json::from_slice::<Report>(line) else {
        return broken(session, "a report of an SFTP server is not readable");
    };
    let event = event::Sftp {
        session: session.facts(),
        action: report.action,
        path: report.path,
        working_directory: report.working_directory,
        target_path: report.target_path,
        flags: report.flags,
        outcome: report.outcome,
    };
    match session.record_outcome(event).await {
        Err(error) if session.is_strict() => Err(RecordError::Write(error.to_string())),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn broken(session: &Session, what: &str) -> Result<(), RecordError> {
    tracing::error!(session = %session.id(), "{what}");
    if session.is_strict() { Err(RecordError::Write(what.to_owned())) } else { Ok(()) }
}

const ACKNOWLEDGED: &[u8] = b"\n";
