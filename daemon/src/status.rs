//! `postern status`: asks the daemon on this machine over its local socket.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use crate::diag;
use crate::health::{Lingering, Report};
use crate::output;

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
    let data_dir = data_dir_of(args.data_dir.clone())?;
    let mut report = report_of(connect(&diag::socket(&data_dir))?)?;
    report.lingering = lingering(&data_dir);
    Ok(report)
}

fn report_of(socket: UnixStream) -> anyhow::Result<Report> {
    let (head, body) = exchange(socket, "GET /status", ANSWER_WITHIN)?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("the daemon answered {}", head.lines().next().unwrap_or_default());
    }
    serde_json::from_str(&body).context("the daemon's answer")
}

/// What the processes say that upgrades have replaced and that still have streams. One that does not answer is about to end, or was killed.
fn lingering(data_dir: &Path) -> Vec<Lingering> {
    let mut found: Vec<Lingering> = Vec::new();
    for entry in std::fs::read_dir(data_dir).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(diag::LINGERING_PREFIX) {
            continue;
        }
        match UnixStream::connect(entry.path()) {
            Ok(socket) => found.extend(report_of(socket).into_iter().flat_map(|r| r.lingering)),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                // Left behind; another `postern status` may be quicker.
                drop(std::fs::remove_file(entry.path()));
            }
            Err(_) => {}
        }
    }
    found.retain(|process| process.streams > 0);
    found.sort_by_key(|process| process.left_s);
    found
}

fn data_dir_of(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let data_dir = given.or_else(net::file::default_data_dir);
    data_dir.context("there is no home to look in: pass --data-dir")
}

fn connect(path: &Path) -> anyhow::Result<UnixStream> {
    UnixStream::connect(path).map_err(|error| {
        let path = path.display();
        if error.kind() == ErrorKind::PermissionDenied {
            anyhow!("{path} is not yours to ask: run this as root or as the daemon's user")
        } else {
            anyhow!("no daemon answers on {path}: start one with `postern start`")
        }
    })
}

/// Head and body of the daemon's answer on its local socket.
pub(crate) fn request(
    data_dir: Option<PathBuf>,
    what: &str,
    within: Duration,
) -> anyhow::Result<(String, String)> {
    exchange(connect(&diag::socket(&data_dir_of(data_dir)?))?, what, within)
}

fn exchange(
    mut socket: UnixStream,
    what: &str,
    within: Duration,
) -> anyhow::Result<(String, String)> {
    socket.set_read_timeout(Some(within))?;
    let head = format!("{what} HTTP/1.1\r\nhost: local\r\nconnection: close\r\n\r\n");
    socket.write_all(head.as_bytes())?;
    let mut answer = String::new();
    socket.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).context("the daemon's answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| anyhow!("no HTTP answer"))?;
    Ok((head.to_owned(), body.to_owned()))
}

fn print(report: &Report, format: &str) -> anyhow::Result<()> {
    let text = match format {
        "json" => format!("{}\n", serde_json::to_string_pretty(report)?),
        _ => report.to_string(),
    };
    Ok(output::print(&text)?)
}

/// For people.
impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (self.draining, self.ready) {
            (true, _) => "draining",
            (false, true) => "ready",
            (false, false) => "not ready",
        };
        writeln!(out, "postern {} (pid {}) is {state}", self.version, self.pid)?;
        writeln!(out, "  cluster   {}", self.cluster)?;
        writeln!(out, "  nodename  {}", self.nodename)?;
        for (role, health) in &self.roles {
            let mark = if health.ready { "ready" } else { "waiting" };
            writeln!(out, "  {role:<9} {mark}: {}", health.detail)?;
        }
        if !self.capture.is_empty() {
            writeln!(out, "  capture   {}", self.capture)?;
        }
        for Lingering { pid, streams, left_s } in &self.lingering {
            let (streams, left) = (output::streams(*streams), output::span(*left_s));
            writeln!(out, "  upgraded  pid {pid} still has {streams}, for {left} at most")?;
        }
        Ok(())
    }
}
