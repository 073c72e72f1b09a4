//! A cluster on loopback, as an operator would set it up: one process with auth and proxy, one with a node that joined
//! with a token, users with a password and a second factor.

use std::collections::HashMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::run::{Background, Run, program, until};

pub(crate) const CLUSTER: &str = "e2e.example.com";
pub(crate) const NODE: &str = "web-1";
const PASSWORD: &str = "correct horse battery";

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    pub(crate) web: u16,
    pub(crate) jump: u16,
    pub(crate) pin: String,
    auth: u16,
    auth_dir: String,
    processes: Mutex<HashMap<String, Background>>,
    users: Mutex<HashMap<String, User>>,
}

/// Somebody who has signed in.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    secret: String,
    last_step: u64,
}

/// The cluster that most tests share; its processes end with this one.
pub(crate) fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let cluster = Cluster::start();
        cluster.access_all();
        cluster
    })
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Spawns from a thread that outlives every test: the kernel ties "die with the parent" to the parent's thread.
fn spawn_tied(command: Command) -> Background {
    type Job = (Command, mpsc::Sender<Background>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (to, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in jobs {
                reply.send(Background { child: command.spawn().unwrap() }).unwrap();
            }
        });
        Mutex::new(to)
    });
    let (to, child) = mpsc::channel();
    spawner.lock().unwrap().send((command, to)).unwrap();
    child.recv().unwrap()
}

impl Cluster {
    /// Only a folder and ports.
    pub(crate) fn empty() -> Self {
        Self {
            dir: tempfile::Builder::new().prefix("postern-e2e-").tempdir().unwrap(),
            web: free_port(),
            jump: free_port(),
            auth: free_port(),
            pin: String::new(),
            auth_dir: "bastion".into(),
            processes: Mutex::default(),
            users: Mutex::default(),
        }
    }

    /// Auth and proxy in one process, then a node that joins with a token.
    pub(crate) fn start() -> Self {
        let mut cluster = Self::empty();
        cluster.write_config("bastion", &["auth", "proxy"]);
        cluster.start_bastion();
        cluster.finish_start();
        cluster
    }

    /// Auth, proxy and node, each in a process of its own.
    pub(crate) fn start_apart() -> Self {
        let mut cluster = Self::empty();
        cluster.auth_dir = "auth".into();
        cluster.write_config("auth", &["auth"]);
        cluster.write_config("proxy", &["proxy"]);
        cluster.start_auth();
        let token = cluster.json(&["tokens", "add", "--type=proxy", "--format", "json"]);
        let file = cluster.path().join("proxy.token");
        fs::write(&file, token["token"].as_str().unwrap()).unwrap();
        let pin = cluster.json(&["status", "--format", "json"])["ca_pins"][0]
            .as_str()
            .unwrap()
            .to_owned();
        let config = cluster.path().join("proxy.yaml");
        // Where the upgrade of a proxy looks for its program.
        std::os::unix::fs::symlink(program("postern"), cluster.program_of("proxy")).unwrap();
        cluster.spawn(
            "proxy",
            &[],
            &[
                "start",
                "-c",
                config.to_str().unwrap(),
                "--token",
                file.to_str().unwrap(),
                "--ca-pin",
                &pin,
            ],
        );
        cluster.wait_ready("proxy");
        cluster.finish_start();
        cluster
    }

    fn finish_start(&mut self) {
        self.learn_pin();
        self.start_node(NODE, "env=prod,team=web");
    }

    /// Asks auth for its pin.
    pub(crate) fn learn_pin(&mut self) {
        let status = self.json(&["status", "--format", "json"]);
        self.pin = status["ca_pins"][0].as_str().unwrap().to_owned();
    }

    /// The daemon `name`, which runs auth, keeps its state elsewhere than in the cluster's folder.
    pub(crate) fn keep_state_in(&mut self, name: &str, data: &Path) {
        std::os::unix::fs::symlink(data, self.path().join(name)).unwrap();
        self.auth_dir = name.into();
    }

    fn write_config(&self, name: &str, roles: &[&str]) {
        let on = |role: &str| if roles.contains(&role) { "yes" } else { "no" };
        let (dir, web, jump, auth) = (self.path().display(), self.web, self.jump, self.auth);
        let server = if roles.contains(&"auth") {
            String::new()
        } else {
            format!("  auth_server: 127.0.0.1:{auth}\n")
        };
        let config = format!(
            "postern:\n  nodename: {name}-1\n  data_dir: {dir}/{name}\n{server}  auth_service:\n    enabled: {}\n    cluster_name: {CLUSTER}\n    listen_addr: 127.0.0.1:{auth}\n  proxy_service:\n    enabled: {}\n    web_listen_addr: 127.0.0.1:{web}\n    public_addr: localhost:{web}\n    listen_addr: 127.0.0.1:{jump}\n  ssh_service:\n    enabled: no\n",
            on("auth"),
            on("proxy"),
        );
        fs::write(self.path().join(format!("{name}.yaml")), config).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn proxy(&self) -> String {
        format!("localhost:{}", self.web)
    }

    /// Starts a daemon with a name for [`Self::kill`]; its log is `<name>.log`.
    pub(crate) fn spawn(&self, name: &str, wrapper: &[&str], args: &[&str]) {
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.log_path(name)).unwrap();
        let mut words: Vec<String> = wrapper.iter().map(ToString::to_string).collect();
        words.extend(["setpriv".into(), "--pdeathsig".into(), "KILL".into()]);
        let own = self.program_of(name);
        let program = if own.exists() { own } else { program("postern") };
        words.push(program.display().to_string());
        words.extend(args.iter().map(ToString::to_string));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stderr(log).stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null()).env_remove("SSH_AUTH_SOCK");
        self.processes.lock().unwrap().insert(name.into(), spawn_tied(command));
    }

    /// A daemon is started from here, if there is something.
    pub(crate) fn program_of(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.program"))
    }

    pub(crate) fn log_path(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.log"))
    }

    pub(crate) fn start_bastion(&self) {
        self.start_daemon("bastion");
    }

    pub(crate) fn start_auth(&self) {
        self.start_daemon("auth");
    }

    fn start_daemon(&self, name: &str) {
        let config = self.path().join(format!("{name}.yaml"));
        self.spawn(name, &[], &["start", "-c", config.to_str().unwrap()]);
        self.wait_ready(name);
    }

    /// Joins (or restarts) a node.
    pub(crate) fn start_node(&self, name: &str, labels: &str) {
        let token = self.path().join(format!("{name}.token"));
        if !token.exists() {
            let answer = self.json(&["tokens", "add", "--type=node", "--format", "json"]);
            fs::write(&token, answer["token"].as_str().unwrap()).unwrap();
        }
        let (proxy, dir) = (self.proxy(), self.path().join(name));
        self.spawn(
            name,
            &[],
            &[
                "start",
                "--roles=node",
                "--token",
                token.to_str().unwrap(),
                "--proxy",
                &proxy,
                "--ca-pin",
                &self.pin,
                "--nodename",
                name,
                "--labels",
                labels,
                "--data-dir",
                dir.to_str().unwrap(),
            ],
        );
        self.wait_ready(name);
    }

    /// Waits until a daemon says that it is ready.
    pub(crate) fn wait_ready(&self, name: &str) {
        let dir = self.path().join(name);
        until(&format!("{name} to be ready (its log: {})", self.log_path(name).display()), || {
            let status =
                Run::new(program("postern")).arg("status").arg("--data-dir").arg(&dir).wait();
            (status.code == 0).then_some(())
        });
    }

    /// kill -9.
    pub(crate) fn kill(&self, name: &str) {
        drop(self.processes.lock().unwrap().remove(name).unwrap());
    }

    /// A signal, by name, as `kill` knows it.
    pub(crate) fn signal(&self, name: &str, signal: &str) {
        let pid = self.processes.lock().unwrap()[name].child.id().to_string();
        Run::new("kill").args([signal, &pid]).wait().good();
    }

    /// A process that a daemon has put in its place is no child of ours; its configuration is in our folder.
    fn end_successors(&self) {
        let ours = self.path().display().to_string();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains(&ours) {
                let pid = process.file_name();
                // It may be gone by now.
                let _gone = Command::new("kill").arg("-KILL").arg(pid).status();
            }
        }
    }

    pub(crate) fn tctl(&self) -> Run {
        Run::new(program("tctl")).arg("--data-dir").arg(self.path().join(&self.auth_dir))
    }

    /// What `tctl … --format json` prints.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.tctl().args(args).wait().good().text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// Creates or replaces a role; allow and deny as JSON (which YAML includes).
    /// The role `access-all`: every node, as the user's own logins.
    pub(crate) fn access_all(&self) {
        let allow = r#"{"logins": ["{{internal.logins}}"], "node_labels": {"*": "*"}}"#;
        self.role("access-all", allow, "{}");
    }

    pub(crate) fn role(&self, name: &str, allow: &str, deny: &str) {
        self.role_with(name, allow, deny, "{}");
    }

    pub(crate) fn role_with(&self, name: &str, allow: &str, deny: &str, options: &str) {
        let yaml = format!(
            "kind: role\nversion: v7\nmetadata:\n  name: {name}\nspec:\n  options: {options}\n  allow: {allow}\n  deny: {deny}\n"
        );
        self.tctl().args(["create", "-f", "-"]).input(yaml).wait().good();
    }

    /// Invites a user, accepts the invite in the terminal's stead, signs in. The node is told of new roles meanwhile.
    pub(crate) fn user(&self, name: &str, roles: &str, logins: &str) -> User {
        if let Some(user) = self.users.lock().unwrap().get(name) {
            return user.clone();
        }
        let invite = self.json(&[
            "users", "add", name, "--roles", roles, "--logins", logins, "--format", "json",
        ]);
        let mut user = self.accept(name, invite["token"].as_str().unwrap());
        self.login(&mut user, &[]);
        self.users.lock().unwrap().insert(name.into(), user.clone());
        user
    }

    /// As [`Self::user`], with tsh run by a wrapper such as `ip netns exec`, against a proxy elsewhere.
    pub(crate) fn user_in(
        &self,
        wrapper: &[&str],
        proxy: &str,
        pin: &str,
        name: &str,
        roles: &str,
        logins: &str,
    ) -> User {
        let invite = self.json(&[
            "users", "add", name, "--roles", roles, "--logins", logins, "--format", "json",
        ]);
        let mut user = self.accept_in(wrapper, proxy, pin, name, invite["token"].as_str().unwrap());
        let input = format!("{PASSWORD}\n{}\n", user.code());
        Run::new(wrapper[0])
            .args(&wrapper[1..])
            .arg(program("tsh"))
            .env("TELEPORT_HOME", &user.home)
            .args(["login", "--proxy", proxy, "--user", name, "--ca-pin", pin])
            .input(input)
            .wait()
            .good();
        user
    }

    /// Finishes an invite.
    pub(crate) fn accept(&self, name: &str, token: &str) -> User {
        self.accept_in(&["env"], &self.proxy(), &self.pin, name, token)
    }

    fn accept_in(&self, wrapper: &[&str], proxy: &str, pin: &str, name: &str, token: &str) -> User {
        let home = self.path().join(format!("home-{name}"));
        let mut tsh = Run::new(wrapper[0])
            .args(&wrapper[1..])
            .arg(program("tsh"))
            .env("TELEPORT_HOME", &home)
            .args(["invite", "--proxy", proxy, "--ca-pin", pin])
            .spawn();
        tsh.say(&format!("{token}\n{PASSWORD}\n"));
        let said = tsh.hear("otpauth://");
        let secret =
            said.split("TOTP secret: ").nth(1).and_then(|rest| rest.split_whitespace().next());
        let secret = secret.expect("the secret is printed").to_owned();
        let mut user = User { name: name.into(), home, secret, last_step: 0 };
        let code = user.code();
        tsh.say(&format!("{code}\n"));
        assert_eq!(tsh.finish(), 0);
        user
    }

    /// Signs in.
    #[track_caller]
    pub(crate) fn login(&self, user: &mut User, more: &[&str]) {
        let input = format!("{PASSWORD}\n{}\n", user.code());
        self.login_with(user, more, &input).good();
    }

    pub(crate) fn login_with(&self, user: &User, more: &[&str], input: &str) -> crate::run::Output {
        self.tsh(user)
            .args(["login", "--proxy", &self.proxy(), "--user", &user.name, "--ca-pin", &self.pin])
            .args(more)
            .input(input)
            .wait()
    }

    pub(crate) fn tsh(&self, user: &User) -> Run {
        Run::new(program("tsh")).env("TELEPORT_HOME", &user.home)
    }

    /// `ssh -F <what tsh config prints>`, ready for more arguments. Also for scp, sftp, rsync's `-e`.
    pub(crate) fn openssh(&self, program: &str, user: &User) -> Run {
        Run::new(program).env("TELEPORT_HOME", &user.home).arg("-F").arg(self.ssh_config(user))
    }

    pub(crate) fn ssh_config(&self, user: &User) -> PathBuf {
        let path = user.home.join("ssh_config");
        fs::write(&path, self.tsh(user).arg("config").wait().good().stdout).unwrap();
        path
    }

    /// What `ssh -J` needs besides the jump address: the certificate and the authority, for both hops.
    pub(crate) fn jump_config(&self, user: &User) -> PathBuf {
        let config = fs::read_to_string(self.ssh_config(user)).unwrap();
        let mut text = "Host *\n  IdentitiesOnly yes\n  StrictHostKeyChecking yes\n".to_owned();
        for key in ["UserKnownHostsFile", "IdentityFile", "CertificateFile"] {
            let line = config.lines().find(|line| line.trim().starts_with(key)).unwrap();
            text.push_str(&format!("{line}\n"));
        }
        let path = user.home.join("jump_config");
        fs::write(&path, text).unwrap();
        path
    }

    /// Events that match, newest last; each a JSON object.
    #[track_caller]
    pub(crate) fn events(&self, args: &[&str]) -> Vec<serde_json::Value> {
        let limit: &[&str] = if args.contains(&"--limit") { &[] } else { &["--limit", "1000"] };
        let ls = self.tctl().args(["events", "ls", "--format", "json"]);
        let output = ls.args(limit).args(args).wait();
        output.good().text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for an event of a type that fits.
    #[track_caller]
    pub(crate) fn event(
        &self,
        name: &str,
        fits: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        until(&format!("a {name} event"), || {
            self.events(&["--type", name]).into_iter().rev().find(|event| fits(event))
        })
    }
}

impl Drop for Cluster {
    /// Ends what no test has started: successors of daemons. A failed test shows what the daemons said last.
    fn drop(&mut self) {
        const LINES: usize = 40;
        self.end_successors();
        if !thread::panicking() {
            return;
        }
        for name in self.processes.lock().unwrap().keys() {
            let log = fs::read_to_string(self.log_path(name)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- {name}:\n{}", lines[lines.len().saturating_sub(LINES)..].join("\n"));
        }
    }
}

/// `user@node.cluster`.
pub(crate) fn at(login: &str) -> String {
    format!("{login}@{NODE}.{CLUSTER}")
}

impl User {
    /// A one-time code that was not used before. Auth takes the step before, the present and the next one, each once:
    /// three codes can be had without waiting.
    pub(crate) fn code(&mut self) -> String {
        const STEP_SECONDS: u64 = 30;
        let step = until("a fresh one-time code", || {
            let now =
                SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / STEP_SECONDS;
            let next = (self.last_step + 1).max(now - 1);
            (next <= now + 1).then_some(next)
        });
        self.last_step = step;
        let secret = totp_rs::Secret::try_from_base32(&self.secret).unwrap();
        let totp = totp_rs::Builder::new().with_secret(secret).build().unwrap();
        totp.generate(step * STEP_SECONDS).to_string()
    }

    /// What a sign-in asks for.
    pub(crate) fn password(&self) -> &'static str {
        PASSWORD
    }
}
