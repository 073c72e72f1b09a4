//! Ours: the relay with as little before it as possible (`bench/src/bin/door.rs`), one worker, on the best rung that the
//! kernel offers.

use std::process::Command;

use anyhow::{Result, ensure};

use super::{Job, Places, Work};
use crate::program::{self, version_line};

fn words(job: &Job<'_>) -> Vec<String> {
    let mut words = vec![
        format!("--listen={}", job.listen),
        format!("--upstream={}", job.upstream),
        "--workers=1".to_owned(),
    ];
    if job.work != Work::Plain {
        words.push(format!("--cert={}", job.certificates.server_chain.display()));
        words.push(format!("--key={}", job.certificates.server_key.display()));
    }
    if job.work == Work::TlsWithClients {
        words.push(format!("--client-ca={}", job.certificates.client_authority.display()));
        words.push(format!("--policy={}", job.certificates.snapshot.display()));
    }
    words
}

pub(super) fn command(job: &Job<'_>) -> Result<Command> {
    let program = job.places.programs.join("door");
    ensure!(program.is_file(), "{} is missing; build it first", program.display());
    Ok(program::command(program, words(job)))
}

pub(super) fn version(places: &Places) -> Option<String> {
    version_line(&places.programs.join("door"), &["--version"])
}

/// From the line that it begins with.
pub(super) fn rung(said: &str) -> Option<String> {
    said.lines().find_map(|line| line.strip_prefix("rung: ")).map(str::to_owned)
}
