//! HAProxy, as it comes and with buffers of 256 KiB. Stock moves plain bytes with splice where it thinks that it pays;
//! with large buffers, copying is cheaper for it than splicing.

use std::process::Command;

use anyhow::{Context, Result};

use super::{Job, Places, Work};
use crate::certificate::{GROUP, SUITE};
use crate::program::{self, find, version_line};

pub(super) fn stock(job: &Job<'_>) -> Result<Command> {
    configured(job, "", "  option splice-auto\n")
}

pub(super) fn tuned(job: &Job<'_>) -> Result<Command> {
    configured(job, "  tune.bufsize 262144\n", "")
}

pub(super) fn version(_: &Places) -> Option<String> {
    version_line(&find("haproxy")?, &["-v"])
}

fn configured(job: &Job<'_>, global: &str, defaults: &str) -> Result<Command> {
    let certificates = job.certificates;
    let tls = format!(
        " ssl crt {} ssl-min-ver TLSv1.3 ciphersuites {SUITE} curves {GROUP} no-tls-tickets",
        certificates.server_both.display()
    );
    let tls = match job.work {
        Work::Plain => String::new(),
        Work::Tls => tls,
        Work::TlsWithClients => {
            format!("{tls} ca-file {} verify required", certificates.client_authority.display())
        }
    };
    // Left to itself, it allows fewer connections than `growth` opens.
    let text = format!(
        "global
  nbthread 1
  maxconn {most}
  tune.ssl.cachesize 0
{global}
defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
{defaults}
frontend front
  bind {listen}{tls}
  maxconn 10000
  default_backend back

backend back
  fullconn 20000
  server upstream {upstream}
",
        most = super::connections_max() + 50,
        listen = job.listen,
        upstream = job.upstream,
    );
    let file = job.write("haproxy.cfg", &text)?;
    let haproxy = find("haproxy").context("haproxy is missing")?;
    // In the foreground, one process.
    let mut command = program::command(haproxy, ["-db".into(), "-f".into(), file.into_os_string()]);
    command.env("OPENSSL_CONF", &certificates.openssl);
    Ok(command)
}
