//! hitch, which only ends TLS.

use std::process::Command;

use anyhow::{Context, Result};

use super::{Job, Places};
use crate::certificate::{GROUP, SUITE};
use crate::program::{self, find, version_line};

pub(super) fn command(job: &Job<'_>) -> Result<Command> {
    let text = format!(
        "frontend = \"[{front}]:{front_port}\"
backend = \"[{back}]:{back_port}\"
pem-file = \"{both}\"
tls-protos = TLSv1.3
ciphersuites = \"{SUITE}\"
ecdh-curve = \"{GROUP}\"
workers = 1
backlog = 4096
daemon = off
user = \"nobody\"
group = \"nogroup\"
ocsp-dir = \"\"
quiet = on
",
        front = job.listen.ip(),
        front_port = job.listen.port(),
        back = job.upstream.ip(),
        back_port = job.upstream.port(),
        both = job.certificates.server_both.display(),
    );
    let file = job.write("hitch.conf", &text)?;
    let hitch = find("hitch").context("hitch is missing")?;
    let mut command = program::command(hitch, ["--config".into(), file.into_os_string()]);
    command.env("OPENSSL_CONF", &job.certificates.openssl);
    Ok(command)
}

pub(super) fn version(_: &Places) -> Option<String> {
    version_line(&find("hitch")?, &["--version"])
}
