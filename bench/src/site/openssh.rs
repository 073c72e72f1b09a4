//! OpenSSH's server on a port of its own, with its own keys; and the client that gets in. Nothing of the machine's own
//! configuration is used, except that PAM, where it is asked for, is the system's.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::client;
use super::cluster::write_secret;
use super::without_start_files;
use crate::program::{Core, Program, command, find, free_address};

/// Whether each session also goes through PAM, as Debian ships it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pam {
    Left,
    Used,
}

/// A running server. Dropped: it is gone; its sessions end with their clients.
#[derive(Debug)]
pub(crate) struct Server {
    dir: PathBuf,
    addr: SocketAddr,
    program: Program,
}

/// What sshd wants to have before it starts as root; a service of Debian's makes it.
const PRIVILEGE_SEPARATION_DIR: &str = "/run/sshd";

impl Server {
    pub(crate) fn start(core: Core, pam: Pam, parent: &Path) -> Result<Self> {
        let addr = free_address()?;
        let dir = parent.join(format!("sshd-{}", addr.port()));
        fs::create_dir(&dir)?;
        for key in ["host_key", "user_key"] {
            let file = dir.join(key);
            let mut keygen = command("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f"]);
            client::run(keygen.arg(&file), "")?;
        }
        fs::copy(dir.join("user_key.pub"), dir.join("authorized_keys"))?;
        let host_key = fs::read_to_string(dir.join("host_key.pub"))?;
        write_secret(&dir.join("known_hosts"), &format!("* {host_key}"))?;
        if rustix::process::geteuid().is_root() && !Path::new(PRIVILEGE_SEPARATION_DIR).exists() {
            fs::create_dir(PRIVILEGE_SEPARATION_DIR).context(PRIVILEGE_SEPARATION_DIR)?;
        }
        // The rest is as OpenSSH has it, but for limits that are meant for strangers.
        let config = format!(
            "ListenAddress {addr}
HostKey {dir}/host_key
PidFile none
AuthorizedKeysFile {dir}/authorized_keys
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM {pam}
PrintMotd no
MaxStartups 1000
LogLevel ERROR
",
            dir = dir.display(),
            pam = match pam {
                Pam::Left => "no",
                Pam::Used => "yes",
            },
        );
        let config = write_secret(&dir.join("sshd_config"), &config)?;
        let sshd = find("sshd").context("sshd is missing")?;
        let mut command = command(sshd, ["-D", "-e", "-f"]);
        command.arg(config);
        let mut program =
            Program::start("sshd", core, &without_start_files(&command), dir.join("log"))?;
        program.wait_listening(addr)?;
        Ok(Self { dir, addr, program })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Only to be kept running.
    pub(crate) fn into_program(self) -> Program {
        self.program
    }

    /// `ssh` that trusts the server and gets in; the destination is still to be added.
    pub(crate) fn ssh(&self) -> Command {
        let mut ssh = command("ssh", self.words());
        ssh.env_remove("SSH_AUTH_SOCK");
        ssh
    }

    /// The same as one line for `ProxyCommand`, which makes the server a jump host.
    pub(crate) fn jump_command(&self, cipher: Option<&str>) -> String {
        let mut words = vec!["ssh".to_owned()];
        words.extend(self.words());
        words.extend(cipher.map(|cipher| format!("-c{cipher}")));
        words.extend(["-W".to_owned(), "%h:%p".to_owned(), "127.0.0.1".to_owned()]);
        words.join(" ")
    }

    fn words(&self) -> Vec<String> {
        let dir = self.dir.display();
        vec![
            "-F".to_owned(),
            "none".to_owned(),
            "-oBatchMode=yes".to_owned(),
            format!("-i{dir}/user_key"),
            "-oIdentitiesOnly=yes".to_owned(),
            format!("-oUserKnownHostsFile={dir}/known_hosts"),
            "-oGlobalKnownHostsFile=none".to_owned(),
            format!("-p{}", self.addr.port()),
        ]
    }
}
