//! stunnel, which many put before a database. A thread per connection is how it works.

use std::process::Command;

use anyhow::{Context, Result};

use super::{Job, Places};
use crate::certificate::{GROUP, SUITE};
use crate::program::{self, find, version_line};

pub(super) fn command(job: &Job<'_>) -> Result<Command> {
    let text = format!(
        "foreground = yes
pid =
debug = err
[front]
accept = {listen}
connect = {upstream}
cert = {chain}
key = {key}
sslVersionMin = TLSv1.3
ciphersuites = {SUITE}
curves = {GROUP}
options = NO_TICKET
sessionCacheSize = 1
sessionResume = no
TIMEOUTidle = 3600
",
        listen = job.listen,
        upstream = job.upstream,
        chain = job.certificates.server_chain.display(),
        key = job.certificates.server_key.display(),
    );
    let file = job.write("stunnel.conf", &text)?;
    let stunnel = find("stunnel4").context("stunnel4 is missing")?;
    let mut command = program::command(stunnel, [file]);
    command.env("OPENSSL_CONF", &job.certificates.openssl);
    Ok(command)
}

pub(super) fn version(_: &Places) -> Option<String> {
    let said = version_line(&find("stunnel4")?, &["-version"])?;
    Some(said.trim_start_matches("[ ] ").to_owned())
}
