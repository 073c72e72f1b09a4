//! The demo's cluster: one daemon with auth and proxy, one with a node, each with its folder, ports and log below the
//! demo's folder; and running the clients against them. What is run in which order is [`super::story`]'s.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::janitor::Janitor;
use super::narrator::Notes;
use crate::process::{self, Dialog, Finished};
use crate::test::PROGRAMS;

/// What the cluster, its node and its user are called.
pub(super) const CLUSTER: &str = "demo";
pub(super) const NODE: &str = "demo-node";
pub(super) const USER: &str = "demo";

/// A client command; far more than any needs, less than patience.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// A daemon's start, or the arrival of what is on its way.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(30);
/// Between looks at something that is on its way.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The folder, the ports, the processes. Dropped: all of it is gone, unless it was left running.
#[derive(Debug)]
pub(super) struct Cluster {
    dir: PathBuf,
    janitor: Janitor,
    /// The Unix account whose shell the demo opens: ours, which works without root too.
    pub(super) login: String,
    pub(super) password: String,
    pub(super) ca_pin: String,
    pub(super) web_port: u16,
    pub(super) jump_port: u16,
    pub(super) diag_port: u16,
    pub(super) node_diag_port: u16,
    auth_port: u16,
    pids: Vec<u32>,
}

impl Cluster {
    /// Folders, ports and names; nothing runs yet.
    pub(super) fn new(dir: PathBuf, programs: PathBuf) -> Result<Self> {
        let janitor = Janitor::start(&dir)?;
        for name in ["bin", "log", "tsh", "files"] {
            fs::create_dir(dir.join(name))?;
        }
        for name in PROGRAMS {
            let program = programs.join(name);
            ensure!(program.is_file(), "{} is missing; build it first", program.display());
            symlink(program, dir.join("bin").join(name))?;
        }
        let (known, login) = process::output(Command::new("id").arg("-un"))?;
        ensure!(known, "this account has no name: {login}");
        let [web_port, jump_port, auth_port, diag_port, node_diag_port] = free_ports()?;
        Ok(Self {
            dir,
            janitor,
            login: login.trim().to_owned(),
            password: super::random_hex(12)?,
            ca_pin: String::new(),
            web_port,
            jump_port,
            auth_port,
            diag_port,
            node_diag_port,
            pids: Vec::new(),
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Nothing is ended or removed when we go.
    pub(super) fn leave_running(&self) -> Result<()> {
        self.janitor.keep()
    }

    pub(super) fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// The one public address.
    pub(super) fn proxy(&self) -> String {
        format!("127.0.0.1:{}", self.web_port)
    }

    /// `login@node`, as `tsh` takes it.
    pub(super) fn at_node(&self) -> String {
        format!("{}@{NODE}", self.login)
    }

    /// `login@node.cluster`, as OpenSSH takes it.
    pub(super) fn at_node_for_ssh(&self) -> String {
        format!("{}@{NODE}.{CLUSTER}", self.login)
    }

    /// Writes a file that only we may read.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.dir.join(name);
        let opened =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let mut file = opened.with_context(|| format!("cannot write {}", path.display()))?;
        file.write_all(text.as_bytes())?;
        Ok(path.display().to_string())
    }

    /// Auth and proxy, one process.
    pub(super) fn start_bastion(&mut self, notes: &mut Notes) -> Result<()> {
        let dir = self.dir.display();
        let config = format!(
            "postern:
  nodename: bastion
  data_dir: {dir}/bastion
  auth_service:
    enabled: yes
    cluster_name: {CLUSTER}
    listen_addr: 127.0.0.1:{auth}
  proxy_service:
    enabled: yes
    web_listen_addr: 127.0.0.1:{web}
    public_addr: 127.0.0.1:{web}
    listen_addr: 127.0.0.1:{jump}
  ssh_service:
    enabled: no
",
            auth = self.auth_port,
            web = self.web_port,
            jump = self.jump_port,
        );
        let config = self.write("bastion.yaml", &config)?;
        let diag = format!("--diag-addr=127.0.0.1:{}", self.diag_port);
        self.start(notes, "bastion", &["-c", &config, &diag], self.diag_port)
    }

    /// A node, joining with the token in a file.
    pub(super) fn start_node(&mut self, notes: &mut Notes, token_file: &str) -> Result<()> {
        let (proxy, pin) =
            (format!("--proxy={}", self.proxy()), format!("--ca-pin={}", self.ca_pin));
        let (token, data) =
            (format!("--token={token_file}"), format!("--data-dir={}", self.file("node")));
        let (name, diag) = (
            format!("--nodename={NODE}"),
            format!("--diag-addr=127.0.0.1:{}", self.node_diag_port),
        );
        let words =
            ["--roles=node", &token, &proxy, &pin, &name, "--labels=env=demo", &data, &diag];
        self.start(notes, "node", &words, self.node_diag_port)
    }

    fn start(&mut self, notes: &mut Notes, name: &str, words: &[&str], diag: u16) -> Result<()> {
        let log = File::create(self.dir.join("log").join(format!("{name}.log")))?;
        let mut postern = self.command("postern");
        postern.arg("start").args(words);
        notes.command(&process::line(&postern));
        postern.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C is for us; the daemons are ended by the janitor.
        let mut child = postern.process_group(0).spawn().context("cannot run postern")?;
        self.janitor.watch(child.id())?;
        self.pids.push(child.id());
        until(&format!("{name} to be ready"), || {
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended with {status}");
            }
            Ok(ready(diag).then_some(()))
        })
    }

    /// A program in the demo's surroundings: ours from the build, the others from the system. Nothing of the person's
    /// own: no agent, no profile, no variable that our programs read.
    pub(super) fn command(&self, program: &str) -> Command {
        let path = self.dir.join("bin").join(program);
        let mut command = Command::new(if path.exists() { path } else { program.into() });
        for (name, _) in std::env::vars_os() {
            let ours = name.to_string_lossy();
            if ours.starts_with("TELEPORT_")
                || ours.starts_with("POSTERN_")
                || ours == "SSH_AUTH_SOCK"
            {
                command.env_remove(name);
            }
        }
        command.env("TELEPORT_HOME", self.dir.join("tsh")).env("LC_ALL", "C.UTF-8");
        command.env("TERM", "xterm").current_dir(&self.dir);
        command
    }

    /// Runs a client command; how it ended is the caller's to judge. `input` is typed, and shown to nobody.
    pub(super) fn attempt(
        &self,
        notes: &mut Notes,
        words: &[&str],
        input: &str,
    ) -> Result<Finished> {
        let command = self.noted(notes, words)?;
        let mut dialog = Dialog::start(command, COMMAND_LIMIT)?;
        dialog.say(input);
        dialog.finish()
    }

    /// Runs a client command that has to succeed, and gives its standard output.
    pub(super) fn run(&self, notes: &mut Notes, words: &[&str]) -> Result<String> {
        self.run_with(notes, words, "")
    }

    /// As [`Self::run`], with input.
    pub(super) fn run_with(
        &self,
        notes: &mut Notes,
        words: &[&str],
        input: &str,
    ) -> Result<String> {
        let finished = self.attempt(notes, words, input)?;
        if !finished.status.success() {
            bail!("it ended with {} and said:\n{}", finished.status, finished.said());
        }
        Ok(finished.stdout)
    }

    /// `tctl … --format json`.
    pub(super) fn tctl_json(&self, notes: &mut Notes, words: &[&str]) -> Result<serde_json::Value> {
        let data = self.file("bastion");
        let text = self
            .run(notes, &[&["tctl", "--data-dir", &data], words, &["--format", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// A dialogue with a client command.
    pub(super) fn dialog(&self, notes: &mut Notes, words: &[&str]) -> Result<Dialog> {
        Dialog::start(self.noted(notes, words)?, COMMAND_LIMIT)
    }

    /// A client command, noted down, ready to run.
    pub(super) fn noted(&self, notes: &mut Notes, words: &[&str]) -> Result<Command> {
        let (program, arguments) = words.split_first().context("no command")?;
        let mut command = self.command(program);
        command.args(arguments);
        notes.command(&process::line(&command));
        Ok(command)
    }

    /// The ends of the daemons' logs.
    pub(super) fn logs(&self) -> Vec<(String, String)> {
        let tail = |name: &str| {
            let path = self.dir.join("log").join(name);
            let text = fs::read_to_string(&path).ok()?;
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(LOG_LINES_SHOWN);
            Some((path.display().to_string(), lines.get(from..)?.join("\n")))
        };
        ["bastion.log", "node.log"].into_iter().filter_map(tail).collect()
    }
}

/// Of each daemon's log, when something failed.
const LOG_LINES_SHOWN: usize = 20;

/// Ports that were free a moment ago, all different.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut ports = [0; N];
    let mut held = Vec::new();
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// Whether `/readyz` says yes.
fn ready(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// Waits until `look` gives something.
pub(super) fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(started.elapsed() < ARRIVAL_LIMIT, "waited {ARRIVAL_LIMIT:?} in vain for {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}
