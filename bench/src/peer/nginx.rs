//! nginx with its stream module. Its buffer per direction is 16 KiB, which it calls right for most; its log of errors is
//! what we see when it does not start.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Job, Places, Work};
use crate::certificate::{GROUP, SUITE};
use crate::program::{self, find, version_line};

/// Where Debian's `libnginx-mod-stream` puts it.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub(super) fn command(job: &Job<'_>) -> Result<Command> {
    ensure!(Path::new(STREAM_MODULE).is_file(), "{STREAM_MODULE} is missing");
    let certificates = job.certificates;
    let tls = format!(
        "    ssl_certificate {};
    ssl_certificate_key {};
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites {SUITE};
    ssl_ecdh_curve {GROUP};
    ssl_session_tickets off;
    ssl_session_cache off;
",
        certificates.server_chain.display(),
        certificates.server_key.display(),
    );
    let (ssl, settings) = match job.work {
        Work::Plain => ("", String::new()),
        Work::Tls => (" ssl", tls),
        Work::TlsWithClients => {
            let authority = certificates.client_authority.display();
            let insist = "    ssl_verify_client on;\n";
            (" ssl", format!("{tls}    ssl_client_certificate {authority};\n{insist}"))
        }
    };
    let text = format!(
        "load_module {STREAM_MODULE};
daemon off;
master_process off;
worker_processes 1;
error_log stderr error;
pid {dir}/pid;
events {{
  worker_connections 20000;
}}
stream {{
  server {{
    listen {listen}{ssl} backlog=4096;
{settings}    proxy_pass {upstream};
    proxy_timeout 1h;
  }}
}}
",
        dir = job.dir.display(),
        listen = job.listen,
        upstream = job.upstream,
    );
    let file = job.write("nginx.conf", &text)?;
    let nginx = find("nginx").context("nginx is missing")?;
    let words = ["-e".into(), "stderr".into(), "-c".into(), file.into_os_string()];
    let mut command = program::command(nginx, words);
    command.env("OPENSSL_CONF", &certificates.openssl);
    Ok(command)
}

pub(super) fn version(_: &Places) -> Option<String> {
    version_line(&find("nginx")?, &["-v"])
}
