//! SFTP server (version 3, draft-ietf-secsh-filexfer-02), run by our own binary as a child with the target user's rights:
//! the kernel decides what may be read and written. Speaks on standard input and output, tells each operation that
//! changes or opens something to the parent before it answers the client. Single-threaded and blocking.
//! Not `russh-sftp`: that one wants a runtime in the child and refuses file names that are not UTF-8.
//!
//! - [`wire`]: packets from bytes and to bytes
//! - [`attributes`]: file attributes
//! - [`server`]: requests and their answers

mod attributes;
mod server;
mod wire;

use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use proto::event::{Outcome, SftpAction};
use serde::{Deserialize, Serialize};

/// The hidden subcommand that the parent calls.
pub(crate) const SUBCOMMAND: &str = "sftp-server";
/// Number of the descriptor for reports.
pub(crate) const REPORT_FD_VARIABLE: &str = "POSTERN_SFTP_REPORT_FD";
/// Set when the parent acknowledges each report.
pub(crate) const STRICT_VARIABLE: &str = "POSTERN_SFTP_STRICT";
/// Two paths of 4 KiB, escaped, fit.
pub(crate) const REPORT_BYTES_MAX: usize = 64 * 1024;

/// One operation, as told to the parent: a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    pub(crate) action: SftpAction,
    pub(crate) path: String,
    pub(crate) working_directory: String,
    pub(crate) target_path: String,
    pub(crate) flags: String,
    pub(crate) outcome: Outcome,
}

/// Where reports go.
trait Reporter {
    /// Returns once the report counts as told.
    fn report(&mut self, report: &Report) -> io::Result<()>;
}

struct ToParent {
    stream: UnixStream,
    strict: bool,
}

impl Reporter for ToParent {
    fn report(&mut self, report: &Report) -> io::Result<()> {
        let mut line = serde_json::to_vec(report).map_err(io::Error::other)?;
        line.push(b'\n');
        self.stream.write_all(&line)?;
        if self.strict {
            let mut acknowledged = [0];
            self.stream.read_exact(&mut acknowledged)?;
        }
        Ok(())
    }
}

/// The subcommand. Runs until standard input ends.
pub fn main() -> ExitCode {
    // From here on other processes of the same user can't trace this one and silence its reports. Between exec and this
    // line they can: who has a shell there can copy files without any server, so little is lost.
    let hidden =
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let served = hidden.map_err(io::Error::from).and_then(|()| run());
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error goes to the client.
            drop(writeln!(io::stderr(), "sftp: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let number = std::env::var(REPORT_FD_VARIABLE).ok().and_then(|text| text.parse().ok());
    let number = number.ok_or_else(|| io::Error::other("to be started by `postern` only"))?;
    let stream = UnixStream::from(crate::sys::child::inherited(number)?);
    let strict = std::env::var_os(STRICT_VARIABLE).is_some();
    let input = BufReader::with_capacity(PIPE_BYTES, io::stdin().lock());
    let home = std::env::current_dir()?;
    server::Server::new(ToParent { stream, strict }, home).serve(input, io::stdout().lock())
}

/// As much as a pipe holds.
const PIPE_BYTES: usize = 64 * 1024;
