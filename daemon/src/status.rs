//! `postern status`: asks the daemon on this machine over its local socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use crate::diag::SOCKET;
use crate::health::Report;

/// A local daemon answers at once or not at all.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Where the daemon keeps its state.
    #[arg(long, value_name = "DIR", env = "POSTERN_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// text or json.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    format: String,
}

/// Prints the state; exit status 0 when ready, 1 when not ready or not running.
pub(crate) fn run(args: &StatusArgs) -> ExitCode {
    match ask(args).and_then(|report| print(&report, &args.format).map(|()| report)) {
        Ok(report) if report.ready => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ERROR: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ask(args: &StatusArgs) -> anyhow::Result<Report> {
    let (head, body) = request(args.data_dir.clone(), "GET /status", ANSWER_WITHIN)?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("the daemon answered {}", head.lines().next().unwrap_or_default());
    }
    serde_json::from_str(&body).context("the daemon's answer")
}

/// Head and body of the daemon's answer on its local socket.
pub(crate) fn request(
    data_dir: Option<PathBuf>,
    what: &str,
    within: Duration,
) -> anyhow::Result<(String, String)> {
    let data_dir = data_dir.or_else(net::file::default_data_dir);
    let path = data_dir.context("there is no home to look in: pass --data-dir")?.join(SOCKET);
    let mut socket = UnixStream::connect(&path).map_err(|error| {
        let path = path.display();
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            anyhow!("{path} is not yours to ask: run this as root or as the daemon's user")
        } else {
            anyhow!("no daemon answers on {path}: start one with `postern start`")
        }
    })?;
    socket.set_read_timeout(Some(within))?;
    let head = format!("{what} HTTP/1.1\r\nhost: local\r\nconnection: close\r\n\r\n");
    socket.write_all(head.as_bytes())?;
    let mut answer = String::new();
    socket.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).context("the daemon's answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| anyhow!("no HTTP answer"))?;
    Ok((head.to_owned(), body.to_owned()))
}

fn print(report: &Report, format: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if format == "json" {
        writeln!(out, "{}", serde_json::to_string_pretty(report)?)?;
        return Ok(());
    }
    let state = match (report.draining, report.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    writeln!(out, "postern {} (pid {}) is {state}", report.version, report.pid)?;
    writeln!(out, "  cluster   {}", report.cluster)?;
    writeln!(out, "  nodename  {}", report.nodename)?;
    for (role, health) in &report.roles {
        let mark = if health.ready { "ready" } else { "waiting" };
        writeln!(out, "  {role:<9} {mark}: {}", health.detail)?;
    }
    Ok(())
}
