//! `postern configure`: prints a configuration file to start from. What it prints is read back by `config` in a test.

use std::path::PathBuf;

use anyhow::Context;
use proto::id::{ClusterName, NodeName};
use proto::resource::HostRole;

use crate::config::{WEB_PORT, host_port};

#[derive(Debug, clap::Args)]
pub(crate) struct ConfigureArgs {
    /// Roles that the file enables.
    #[arg(short, long, value_delimiter = ',', default_value = "auth,proxy,node", value_parser = crate::parse_role)]
    roles: Vec<HostRole>,
    /// Name of the cluster (auth).
    #[arg(long)]
    cluster_name: Option<ClusterName>,
    /// host:port that clients use (proxy).
    #[arg(long, value_name = "HOST:PORT", value_parser = public_address)]
    public_addr: Option<String>,
    /// Name of this machine in the cluster.
    #[arg(long)]
    nodename: Option<NodeName>,
    /// Where state is kept.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// File that holds the join token.
    #[arg(long, value_name = "FILE")]
    token: Option<String>,
    /// A proxy of the cluster to join through.
    #[arg(long, value_name = "HOST:PORT")]
    proxy: Option<String>,
    /// Auth of the cluster to join.
    #[arg(long, value_name = "HOST:PORT")]
    auth_server: Option<String>,
    /// Pin of the cluster's host authority, as `tctl status` prints it.
    #[arg(long, value_name = "sha256:HEX", value_parser = crate::config::pin)]
    ca_pin: Option<String>,
    /// Where to write: stdout, or a path (an existing file is not overwritten).
    #[arg(short, long, default_value = "stdout")]
    output: String,
}

/// Prints or writes the file.
pub(crate) fn run(args: &ConfigureArgs) -> anyhow::Result<()> {
    let text = file_text(args);
    if args.output == "stdout" {
        return Ok(crate::output::print(&text)?);
    }
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&args.output)
        .with_context(|| format!("cannot write {}", args.output))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", args.output))?;
    eprintln!("Wrote {}. Start with: postern start -c {}", args.output, args.output);
    Ok(())
}

fn public_address(text: &str) -> Result<String, String> {
    host_port(text, WEB_PORT)
}

fn line(out: &mut String, indent: usize, key: &str, value: Option<&str>, example: &str) {
    let pad = " ".repeat(indent);
    match value {
        Some(value) => out.push_str(&format!("{pad}{key}: {value}\n")),
        None => out.push_str(&format!("{pad}# {key}: {example}\n")),
    }
}

fn file_text(args: &ConfigureArgs) -> String {
    let has = |role: HostRole| if args.roles.contains(&role) { "yes" } else { "no" };
    let data_dir = args.data_dir.as_ref().map(|path| path.display().to_string());
    let mut out = String::from("# All keys: docs/reference/config.md\npostern:\n");
    line(&mut out, 2, "nodename", args.nodename.as_ref().map(NodeName::as_str), "bastion-1");
    line(&mut out, 2, "data_dir", data_dir.as_deref(), "/var/lib/postern");
    line(&mut out, 2, "auth_token", args.token.as_deref(), "/etc/postern.token");
    line(&mut out, 2, "auth_server", args.auth_server.as_deref(), "auth.example.com:3025");
    line(&mut out, 2, "proxy_server", args.proxy.as_deref(), "proxy.example.com:3080");
    line(&mut out, 2, "ca_pin", args.ca_pin.as_deref(), "sha256:0000…");
    line(&mut out, 2, "diag_addr", None, "127.0.0.1:3000");
    out.push_str("  log:\n    severity: info\n    format:\n      output: text\n");
    out.push_str("  auth_service:\n");
    line(&mut out, 4, "enabled", Some(has(HostRole::Auth)), "");
    let cluster = args.cluster_name.as_ref().map(ClusterName::as_str);
    line(&mut out, 4, "cluster_name", cluster, "example.com");
    line(&mut out, 4, "listen_addr", None, "0.0.0.0:3025");
    out.push_str("  proxy_service:\n");
    line(&mut out, 4, "enabled", Some(has(HostRole::Proxy)), "");
    line(&mut out, 4, "web_listen_addr", None, "0.0.0.0:3080");
    line(&mut out, 4, "public_addr", args.public_addr.as_deref(), "proxy.example.com:3080");
    line(&mut out, 4, "listen_addr", None, "0.0.0.0:3023   # for ssh -J; off to switch off");
    out.push_str("  ssh_service:\n");
    line(&mut out, 4, "enabled", Some(has(HostRole::Node)), "");
    line(&mut out, 4, "labels", None, "{env: dev, team: web}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Wrapper {
        #[command(flatten)]
        args: ConfigureArgs,
    }

    #[test]
    fn what_is_printed_can_be_read() {
        let line =
            "x --roles=proxy,auth --cluster-name=c.example.com --public-addr=p.example.com:443";
        let text = file_text(&Wrapper::parse_from(line.split(' ')).args);
        let file = std::env::temp_dir().join(format!("postern-configure-{}", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let config = crate::config::load(Some(&file), crate::config::Flags::default(), "h");
        std::fs::remove_file(&file).unwrap();
        let config = config.unwrap();
        assert!(config.node.is_none());
        assert_eq!(config.proxy.unwrap().public_addr, ["p.example.com:443"]);
    }
}
