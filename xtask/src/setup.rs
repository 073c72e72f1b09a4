//! Installs what a command needs and is missing, and says nothing when nothing is. Debian packages by apt-get, Python
//! peers into virtual environments below the build folder, cargo-deny by cargo. Does not touch services: nothing here
//! uses a system-wide one, and those of new packages are not started. Run by the other commands before their own work.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{kernel_test, process};

/// Arguments of `cargo xtask setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The command to prepare for; all of them where it is left out.
    #[arg(long = "for", value_enum)]
    purpose: Option<Purpose>,
}

/// What to prepare for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Purpose {
    Bench,
    Check,
    Demo,
    Ebpf,
    KernelTest,
    Test,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let purposes = match options.purpose {
        Some(purpose) => vec![purpose],
        None => {
            vec![
                Purpose::Demo,
                Purpose::Test,
                Purpose::KernelTest,
                Purpose::Ebpf,
                Purpose::Check,
                Purpose::Bench,
            ]
        }
    };
    purposes.into_iter().try_for_each(prepare)
}

/// Makes sure that everything `purpose` needs is there.
pub(crate) fn prepare(purpose: Purpose) -> Result<()> {
    match purpose {
        Purpose::Bench => {
            packages(DEMO)?;
            packages(BENCH)?;
            python_packages("bench-requirements.txt", &bench_environment())
        }
        Purpose::Check => {
            toolchain_components()?;
            cargo_deny()
        }
        Purpose::Demo => packages(DEMO),
        Purpose::Ebpf => packages(EBPF),
        Purpose::KernelTest => {
            kernel_test_packages()?;
            kernel_test::fetch(kernel_test::Wanted::ALL)
        }
        Purpose::Test => {
            packages(DEMO)?;
            packages(TEST)?;
            python_packages("requirements.txt", &python_environment())
        }
    }
}

/// What kernel tests need, whichever kernels they run on.
pub(crate) fn kernel_test_packages() -> Result<()> {
    packages(KERNEL_TEST)
}

/// A Debian package, and how to see that what we need of it is there, packaged or not.
struct Package {
    name: &'static str,
    probe: Probe,
}

enum Probe {
    /// This file.
    File(&'static str),
    /// All of these programs.
    Programs(&'static [&'static str]),
    /// Debian's own Python can make virtual environments.
    PythonVenv,
}

const DEMO: &[Package] = &[
    Package {
        name: "openssh-client",
        probe: Probe::Programs(&["ssh", "scp", "sftp", "ssh-agent"]),
    },
    // In Debian's base system; the demo's terminals come from it.
    Package { name: "bsdutils", probe: Probe::Programs(&["script"]) },
];

const BENCH: &[Package] = &[
    Package { name: "auditd", probe: Probe::Programs(&["auditctl", "auditd"]) },
    Package { name: "bpftrace", probe: Probe::Programs(&["bpftrace"]) },
    // What is built inside a session and outside.
    Package { name: "gcc", probe: Probe::Programs(&["gcc"]) },
    Package { name: "haproxy", probe: Probe::Programs(&["haproxy"]) },
    Package { name: "hitch", probe: Probe::Programs(&["hitch"]) },
    // For checking our load generators.
    Package { name: "iperf3", probe: Probe::Programs(&["iperf3"]) },
    Package {
        name: "libnginx-mod-stream",
        probe: Probe::File("/usr/lib/nginx/modules/ngx_stream_module.so"),
    },
    Package { name: "make", probe: Probe::Programs(&["make"]) },
    Package { name: "nginx", probe: Probe::Programs(&["nginx"]) },
    Package { name: "openssh-server", probe: Probe::Programs(&["sshd"]) },
    Package { name: "python3-venv", probe: Probe::PythonVenv },
    Package { name: "stunnel4", probe: Probe::Programs(&["stunnel4"]) },
    // In Debian's base system: chrt, setpriv, taskset.
    Package { name: "util-linux", probe: Probe::Programs(&["chrt", "setpriv", "taskset"]) },
    Package { name: "wrk", probe: Probe::Programs(&["wrk"]) },
];

const EBPF: &[Package] = &[
    Package { name: "clang-19", probe: Probe::Programs(&["clang-19"]) },
    Package { name: "libbpf-dev", probe: Probe::File("/usr/include/bpf/bpf_helpers.h") },
    Package { name: "llvm-19", probe: Probe::Programs(&["llvm-strip-19"]) },
];

const KERNEL_TEST: &[Package] = &[
    // The guest's shell and modprobe.
    Package { name: "busybox-static", probe: Probe::Programs(&["busybox"]) },
    Package { name: "kmod", probe: Probe::Programs(&["depmod"]) },
    // The tests' peer, inside the guest.
    Package { name: "openssl", probe: Probe::Programs(&["openssl"]) },
    Package { name: "qemu-system-x86", probe: Probe::Programs(&["qemu-system-x86_64"]) },
    // Debian's kernels have compressed modules.
    Package { name: "xz-utils", probe: Probe::Programs(&["xz"]) },
];

const TEST: &[Package] = &[
    Package { name: "asciinema", probe: Probe::Programs(&["asciinema"]) },
    Package { name: "curl", probe: Probe::Programs(&["curl"]) },
    Package { name: "git", probe: Probe::Programs(&["git"]) },
    // Network namespaces: two hosts on one machine.
    Package { name: "iproute2", probe: Probe::Programs(&["ip"]) },
    // Address translation between them.
    Package { name: "nftables", probe: Probe::Programs(&["nft"]) },
    // For comparison only; Postern needs no sshd.
    Package { name: "openssh-server", probe: Probe::Programs(&["sshd"]) },
    Package { name: "procps", probe: Probe::Programs(&["pgrep"]) },
    Package { name: "python3-venv", probe: Probe::PythonVenv },
    Package { name: "rsync", probe: Probe::Programs(&["rsync"]) },
];

/// The distribution's Python, whatever else is on the path: packages for it come from the distribution.
const PYTHON: &str = "/usr/bin/python3";

fn packages(wanted: &[Package]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().filter(|p| !present(&p.probe)).map(|p| p.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: installing {}", missing.join(", "));
    if find_program("apt-get").is_none() {
        bail!(
            "there is no apt-get here; install what these Debian packages hold, then run this again: {}",
            missing.join(" ")
        );
    }
    let prefix = privilege(&missing)?;
    apt(prefix, &["update", "-qq"])?;
    let mut arguments = vec!["install", "-qq", "-y", "--no-install-recommends"];
    arguments.extend(&missing);
    let installed = without_services(prefix, || apt(prefix, &arguments))?;
    installed?;
    match wanted.iter().find(|p| !present(&p.probe)) {
        None => Ok(()),
        Some(package) => {
            bail!("{} is installed, but what is needed of it is not there", package.name)
        }
    }
}

fn present(probe: &Probe) -> bool {
    match probe {
        Probe::File(path) => Path::new(path).is_file(),
        Probe::Programs(names) => names.iter().all(|name| find_program(name).is_some()),
        Probe::PythonVenv => {
            process::output(Command::new(PYTHON).args(["-c", "import ensurepip, venv"]))
                .is_ok_and(|(success, _)| success)
        }
    }
}

/// On the path, or where Debian keeps what an ordinary user's path leaves out.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// What has to stand before a command that needs root.
fn privilege(missing: &[&str]) -> Result<&'static [&'static str]> {
    if is_root() {
        return Ok(&[]);
    }
    let sudo = find_program("sudo").is_some()
        && process::output(Command::new("sudo").args(["-n", "true"])).is_ok_and(|(yes, _)| yes);
    if sudo {
        return Ok(&["sudo", "-n"]);
    }
    bail!(
        "installing packages needs root, and sudo asks for a password here. Run this, then try again:\n  \
         sudo apt-get update && sudo apt-get install -y --no-install-recommends {}",
        missing.join(" ")
    )
}

/// Whether we run as root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

fn apt(prefix: &[&str], arguments: &[&str]) -> Result<()> {
    let words = [prefix, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"], arguments].concat();
    let (program, rest) = words.split_first().context("no command")?;
    // Quiet unless it fails: dpkg's chatter hides what matters.
    let (success, said) = process::output(Command::new(program).args(rest))?;
    if !success {
        bail!("{} failed:\n{}", words.join(" "), said.trim_end());
    }
    Ok(())
}

/// What Debian's packages ask before they start a service that they bring.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs something without starting the services in it. A policy that the machine has already is its own business.
fn without_services<T>(prefix: &[&str], install: impl FnOnce() -> T) -> Result<T> {
    if Path::new(SERVICE_POLICY).exists() {
        return Ok(install());
    }
    let run = |script: &str| {
        let words = [prefix, &["sh", "-c", script]].concat();
        let (program, rest) = words.split_first().context("no command")?;
        captured(Command::new(program).args(rest))
    };
    // 101: action forbidden.
    run(&format!(
        "printf '#!/bin/sh\\nexit 101\\n' >{SERVICE_POLICY} && chmod 755 {SERVICE_POLICY}"
    ))?;
    let installed = install();
    run(&format!("rm {SERVICE_POLICY}"))?;
    Ok(installed)
}

/// Where the tests find the Python peers.
pub(crate) fn python_environment() -> PathBuf {
    crate::target_dir().join("peers/venv")
}

fn bench_environment() -> PathBuf {
    crate::target_dir().join("peers/bench-venv")
}

/// Where the bench finds Envoy.
pub(crate) fn envoy() -> PathBuf {
    bench_environment().join("bin/envoy")
}

/// Makes a virtual environment with what a list in `xtask/peers` pins.
fn python_packages(list: &str, environment: &Path) -> Result<()> {
    let list = crate::root().join("xtask/peers").join(list);
    let wanted =
        fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let stamp = environment.join("installed-requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    let pinned: Vec<&str> =
        wanted.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
    println!("setup: installing {} into {}", pinned.join(", "), environment.display());
    let mut venv = Command::new(PYTHON);
    venv.args(["-m", "venv", "--clear"]).arg(environment);
    captured(&mut venv)?;
    let mut pip = Command::new(environment.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]);
    pip.arg(&list);
    captured(&mut pip)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Insists on success; what the program says is shown only when it fails.
fn captured(command: &mut Command) -> Result<()> {
    let (success, said) = process::output(command)?;
    if !success {
        bail!("{} failed:\n{}", process::line(command), said.trim_end());
    }
    Ok(())
}

/// rustfmt and clippy belong to the toolchain; rustup is the developer's, so it is named, not run.
fn toolchain_components() -> Result<()> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let there = process::output(crate::cargo().args([subcommand, "--version"]));
        if !there.is_ok_and(|(success, _)| success) {
            bail!("cargo {subcommand} is missing; run: rustup component add {component}");
        }
    }
    Ok(())
}

/// The version whose database layout and report `check` knows.
const CARGO_DENY_VERSION: &str = "0.20.2";

fn cargo_deny() -> Result<()> {
    let there = process::output(crate::cargo().args(["deny", "--version"]));
    let right = |said: &str| said.trim() == format!("cargo-deny {CARGO_DENY_VERSION}");
    if there.is_ok_and(|(success, said)| success && right(&said)) {
        return Ok(());
    }
    println!("setup: installing cargo-deny {CARGO_DENY_VERSION}; this takes some minutes, once");
    let mut install = crate::cargo();
    install.args(["install", "cargo-deny", "--locked", "--version", CARGO_DENY_VERSION]);
    // Not in the workspace's build folder: cargo install has its own, and takes it away.
    install.current_dir(Path::new("/")).env_remove("CARGO_TARGET_DIR");
    process::quiet(install.arg("--quiet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_or_not() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
        assert!(present(&Probe::Programs(&["sh"])));
        assert!(!present(&Probe::Programs(&["sh", "no-such-program-anywhere"])));
    }

    #[test]
    fn python_peers_are_pinned() {
        for list in ["requirements.txt", "bench-requirements.txt"] {
            let path = crate::root().join("xtask/peers").join(list);
            let list = fs::read_to_string(path).unwrap();
            let pins: Vec<&str> =
                list.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
            assert!(!pins.is_empty());
            assert!(pins.iter().all(|pin| pin.contains("==")), "{pins:?}");
        }
    }
}
