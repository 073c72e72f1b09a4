//! A Postern cluster on loopback: a bastion (auth and proxy in one process, the usual small set-up) and a node behind
//! it, each a process of its own, and a user who has signed in.

use std::cell::{OnceCell, RefCell};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::client;
use super::{enrolment, without_start_files};
use crate::program::{Core, Program, free_address, repin};

/// What cluster, node and user are called.
const NAME: &str = "bench";
pub(super) const USER: &str = "bench";
const NODE: &str = "bench-node";

/// The user may do what the bench does.
const ROLE: &str = "kind: role
version: v7
metadata:
  name: bench
spec:
  allow:
    logins: ['{{internal.logins}}']
    node_labels: {env: bench}
";

/// The cluster that a run of the bench has, once something needs it.
#[derive(Debug, Default)]
pub(crate) struct LazyCluster(OnceCell<std::result::Result<Cluster, String>>);

impl LazyCluster {
    /// Starts it at the first call; every later call gives the same, or the same error.
    pub(crate) fn get(&self, programs: &Path, dir: &Path) -> Result<&Cluster> {
        let started = self.0.get_or_init(|| {
            Cluster::start(programs, &dir.join("cluster")).map_err(|error| format!("{error:#}"))
        });
        started.as_ref().map_err(|error| anyhow!("no cluster: {error}"))
    }
}

/// It runs. Dropped: it is gone.
#[derive(Debug)]
pub(crate) struct Cluster {
    dir: PathBuf,
    programs: PathBuf,
    login: String,
    web: SocketAddr,
    jump: SocketAddr,
    pin: String,
    bastion: Program,
    node: RefCell<Option<Program>>,
    node_diag: SocketAddr,
}

/// Which part is measured. The rest runs with the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Bastion,
    /// Wall clock, of everything.
    Everything,
    Node,
}

impl Cluster {
    fn start(programs: &Path, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("tsh"))?;
        let [web, jump, auth, diag, node_diag] = addresses()?;
        let config = format!(
            "postern:
  nodename: bastion
  data_dir: {dir}/bastion
  auth_service:
    enabled: yes
    cluster_name: {NAME}
    listen_addr: {auth}
  proxy_service:
    enabled: yes
    web_listen_addr: {web}
    public_addr: {web}
    listen_addr: {jump}
  ssh_service:
    enabled: no
",
            dir = dir.display(),
        );
        let config = write_secret(&dir.join("bastion.yaml"), &config)?;
        let mut command = Command::new(programs.join("postern"));
        command.args(["start", "-c"]).arg(&config).arg(format!("--diag-addr={diag}"));
        let bastion = start_daemon("bastion", &command, dir, diag)?;
        let mut cluster = Self {
            dir: dir.to_path_buf(),
            programs: programs.to_path_buf(),
            login: our_account()?,
            web,
            jump,
            pin: String::new(),
            bastion,
            node: RefCell::default(),
            node_diag,
        };
        let status = cluster.tctl(&["status", "--format=json"])?;
        cluster.pin = text(&status, "/ca_pins/0")?;
        let token = cluster.tctl(&["tokens", "add", "--type=node", "--format=json"])?;
        write_secret(&dir.join("node.token"), &text(&token, "/token")?)?;
        cluster.restart_node()?;
        let role = write_secret(&dir.join("role.yaml"), ROLE)?;
        let mut create = cluster.command("tctl");
        create.arg("--data-dir").arg(dir.join("bastion")).args(["create", "-f"]).arg(role);
        client::run(&create, "")?;
        enrolment::sign_in(&cluster).context("signing in")?;
        let config = client::run(cluster.command("tsh").arg("config"), "")?;
        write_secret(&dir.join("ssh_config"), &config)?;
        let words = ["-F".into(), dir.join("ssh_config").into_os_string()];
        let mut probe = cluster.command("ssh");
        probe.args(words).arg(cluster.destination()).arg("true");
        client::run(&probe, "").context("the first session")?;
        Ok(cluster)
    }

    /// Ends the node, if there is one, and starts it. The first time it joins; then it is known.
    pub(crate) fn restart_node(&self) -> Result<()> {
        drop(self.node.take());
        let mut command = Command::new(self.programs.join("postern"));
        command.args(["start", "--roles=node", "--labels=env=bench"]);
        command.args([
            format!("--token={}", self.dir.join("node.token").display()),
            format!("--proxy={}", self.web),
            format!("--ca-pin={}", self.pin),
            format!("--nodename={NODE}"),
            format!("--data-dir={}", self.dir.join("node").display()),
            format!("--diag-addr={}", self.node_diag),
        ]);
        let command = without_start_files(&command);
        let node = start_daemon("node", &command, &self.dir, self.node_diag)?;
        self.node.replace(Some(node));
        Ok(())
    }

    /// `tctl … --format=json`.
    pub(super) fn tctl(&self, words: &[&str]) -> Result<Value> {
        let mut command = self.command("tctl");
        command.arg("--data-dir").arg(self.dir.join("bastion")).args(words);
        let said = client::run(&command, "")?;
        serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))
    }

    /// A client in the cluster user's surroundings: ours by name, or one of the system.
    pub(crate) fn command(&self, program: &str) -> Command {
        let ours = self.programs.join(program);
        let mut command = Command::new(if ours.exists() { ours } else { program.into() });
        for (name, _) in std::env::vars_os() {
            let shown = name.to_string_lossy();
            if ["TELEPORT_", "POSTERN_"].iter().any(|prefix| shown.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.env_remove("SSH_AUTH_SOCK").env("TELEPORT_HOME", self.dir.join("tsh"));
        command.env("LC_ALL", "C.UTF-8").current_dir(&self.dir);
        command
    }

    pub(super) fn login(&self) -> &str {
        &self.login
    }

    /// Of the one public address.
    pub(super) fn proxy_words(&self) -> [String; 2] {
        [format!("--proxy={}", self.web), format!("--ca-pin={}", self.pin)]
    }

    /// What OpenSSH is told to connect to.
    pub(crate) fn destination(&self) -> String {
        format!("{}@{NODE}.{NAME}", self.login)
    }

    /// What `tsh ssh` is told to connect to.
    pub(crate) fn tsh_destination(&self) -> String {
        format!("{}@{NODE}", self.login)
    }

    /// `ssh` with what `tsh config` says.
    pub(crate) fn ssh(&self) -> Command {
        let mut ssh = self.command("ssh");
        ssh.arg("-F").arg(self.dir.join("ssh_config"));
        ssh
    }

    /// What `ssh -o ProxyCommand=` takes for TLS to stay around the session.
    pub(crate) fn proxy_command_with_tls(&self) -> String {
        let tsh = self.programs.join("tsh");
        format!("{} proxy ssh --tls-always --cluster={NAME} %r@{NODE}", tsh.display())
    }

    /// What `ssh -J` takes.
    pub(crate) fn jump(&self) -> String {
        format!("{USER}@{}", self.jump)
    }

    /// The process of the part that is measured, alone on its core.
    pub(crate) fn measure(&self, part: Part) -> Result<u32> {
        let node = self.node.borrow();
        let node = node.as_ref().context("no node")?;
        let (bastion_core, node_core) = match part {
            Part::Bastion => (Core::Measured, Core::Load),
            Part::Everything => (Core::Any, Core::Any),
            Part::Node => (Core::Load, Core::Measured),
        };
        repin(self.bastion.pid(), bastion_core)?;
        repin(node.pid(), node_core)?;
        Ok(match part {
            Part::Bastion | Part::Everything => self.bastion.pid(),
            Part::Node => node.pid(),
        })
    }

    /// Where auth writes what happened.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.dir.join("bastion/auth/log/events.log")
    }

    /// Waits until the node has handed over every recording: what a session leaves behind is no cost of the next one.
    pub(crate) fn wait_for_uploads(&self) -> Result<()> {
        let recordings = self.dir.join("node/node/recordings");
        let deadline = Instant::now() + UPLOADED_WITHIN;
        while fs::read_dir(&recordings)?.next().is_some() {
            ensure!(Instant::now() < deadline, "recordings stay in {}", recordings.display());
            std::thread::sleep(UPLOAD_POLL);
        }
        Ok(())
    }
}

/// A daemon, once it says that it is ready.
fn start_daemon(name: &str, command: &Command, dir: &Path, diag: SocketAddr) -> Result<Program> {
    let log = dir.join(format!("{name}.log"));
    let mut program = Program::start(name, Core::Load, command, log)?;
    program.wait_until("readiness", || ready(diag))?;
    Ok(program)
}

/// Whether `/readyz` says yes.
fn ready(diag: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(diag)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// All different.
fn addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    let mut addresses = Vec::new();
    while addresses.len() < N {
        let address = free_address()?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.try_into().map_err(|_| anyhow!("as many as were asked for"))
}

/// The account that we run as, whose shell the sessions open: works without root, too.
fn our_account() -> Result<String> {
    let said = client::run(&crate::program::command("id", ["-un"]), "")?;
    let name = said.trim().to_owned();
    ensure!(!name.is_empty(), "this account has no name");
    Ok(name)
}

/// A file that only we may read.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<PathBuf> {
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut file = opened.with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(path.to_path_buf())
}

pub(super) fn text(value: &Value, pointer: &str) -> Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    Ok(found.with_context(|| format!("no {pointer} in the answer"))?.to_owned())
}

/// A session's recording, 100 MB at most, takes below a second.
const UPLOADED_WITHIN: Duration = Duration::from_secs(60);
const UPLOAD_POLL: Duration = Duration::from_millis(50);
