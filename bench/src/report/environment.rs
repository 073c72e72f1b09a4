//! Where and with what it was measured: a figure without this is worth nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::peer::{PEERS, Places};
use crate::program::{find, version_line};

/// The header of a report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) machine: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    /// Whether the kernel can take TLS over from us or a peer.
    pub(crate) kernel_tls: bool,
    pub(crate) open_files_max: Option<u64>,
    /// Of everything that takes part.
    pub(crate) versions: BTreeMap<String, String>,
}

impl Environment {
    pub(crate) fn look(places: &Places) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, rest)| rest.trim().to_owned())
        };
        let cpus = read("/proc/cpuinfo");
        let memory = after(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kilobytes: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        let product = read("/sys/class/dmi/id/product_name");
        Self {
            date: now(),
            commit: commit(),
            machine: match product.trim() {
                "" => "unknown, or a virtual machine that does not say".to_owned(),
                name => name.to_owned(),
            },
            cpu: after(&cpus, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: cpus.lines().filter(|line| line.starts_with("processor")).count(),
            memory_mib: kilobytes / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            kernel_tls: read("/proc/sys/net/ipv4/tcp_available_ulp")
                .split_whitespace()
                .any(|name| name == "tls"),
            open_files_max: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            versions: versions(places),
        }
    }
}

/// For people and sorting, in UTC.
pub(crate) fn now() -> String {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}

/// What was built, as git names it. The report itself may have changed: every run writes it.
pub(crate) fn commit() -> String {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
        git.output().ok()
    };
    let said = git(&["describe", "--always", "--exclude=*"])
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .filter(|name| !name.is_empty());
    let Some(name) = said else { return "unknown".to_owned() };
    let unchanged = ["diff", "--quiet", "HEAD", "--", ":(top)", ":(top,exclude)bench/report"];
    let clean = git(&unchanged).is_some_and(|output| output.status.success());
    if clean { name } else { format!("{name}-dirty") }
}

fn versions(places: &Places) -> BTreeMap<String, String> {
    let mut versions: BTreeMap<String, String> = PEERS
        .iter()
        .filter_map(|peer| Some((peer.name.to_owned(), peer.version(places)?)))
        .collect();
    let mut add = |name: &str, program: Option<&Path>, argument: &str| {
        if let Some(said) = program.and_then(|program| version_line(program, &[argument])) {
            versions.insert(name.to_owned(), said);
        }
    };
    add("ssh", find("ssh").as_deref(), "-V");
    add("openssl", find("openssl").as_deref(), "version");
    for name in ["postern", "tsh"] {
        add(&format!("{name} (program)"), Some(&places.programs.join(name)), "--version");
    }
    versions
}
