//! Native tools unchanged: OpenSSH's ssh, scp, sftp and agent, rsync, git, asyncssh, and our own tsh beside them.

use std::fs;

use crate::account::Account;
use crate::cluster::{CLUSTER, NODE, at, shared};
use crate::run::{Run, repository, until};

#[test]
fn commands_with_tsh_and_ssh() {
    let cluster = shared();
    let user = cluster.user("cmd", "access-all", "root,nobody");
    let out = cluster.tsh(&user).args(["ssh", &format!("root@{NODE}"), "id -un; exit 7"]).wait();
    assert_eq!((out.code, out.text().trim()), (7, "root"), "{}", out.stderr);
    let out =
        cluster.openssh("ssh", &user).args([&at("root"), "echo out; echo err >&2; exit 3"]).wait();
    assert_eq!((out.code, out.text().as_str()), (3, "out\n"), "{}", out.stderr);
    assert!(out.stderr.contains("err"));
    // Standard input reaches the command, and its end does too.
    let text = "line\n".repeat(200_000);
    let out = cluster
        .openssh("ssh", &user)
        .args([&at("root"), "wc -l"])
        .input(text.clone())
        .wait()
        .good();
    assert_eq!(out.text().trim(), "200000");
    let out = cluster
        .tsh(&user)
        .args(["ssh", &format!("root@{NODE}"), "md5sum"])
        .input(text)
        .wait()
        .good();
    assert!(out.text().starts_with(&md5(&"line\n".repeat(200_000))), "{}", out.text());
    cluster.event("exec", |e| {
        e["command"] == "id -un; exit 7" && e["exitCode"] == "7" && e["user"] == "cmd"
    });
    cluster.event("session.start", |e| {
        e["user"] == "cmd" && e["login"] == "root" && e["code"] == "T2000I"
    });
    cluster.event("session.end", |e| e["user"] == "cmd" && e["code"] == "T2004I");
}

fn md5(text: &str) -> String {
    Run::new("md5sum").input(text).wait().good().text().split(' ').next().unwrap().to_owned()
}

#[test]
fn the_user_is_switched_properly() {
    let cluster = shared();
    let user = cluster.user("switch", "access-all", "root,nobody,games");
    let script = "id -u; id -g; id -G; echo $HOME; echo $USER; echo $SHELL; grep -E '^Cap(Eff|Prm)' /proc/self/status; umask";
    let out = cluster.openssh("ssh", &user).args([&at("games"), script]).wait();
    // Debian's `games` has /usr/sbin/nologin as its shell: it says so and nothing runs.
    assert!(out.text().contains("not available"), "{out:?}");
    let account = Account::new("postern-e2e-user");
    let name = account.name.as_str();
    let user = cluster.user("switch2", "access-all", name);
    let out = cluster.openssh("ssh", &user).args([&at(name), script]).wait().good();
    let lines: Vec<_> = out.text().lines().map(str::to_owned).collect();
    let home = account.home().to_str().unwrap();
    let ids = [account.id("-u"), account.id("-g"), account.id("-G")];
    assert_eq!(lines[..3], ids);
    assert_eq!(lines[3..6], [home, name, "/bin/bash"]);
    assert!(
        lines[6].ends_with("0000000000000000") && lines[7].ends_with("0000000000000000"),
        "{lines:?}"
    );
    // sftp and scp act as the user too.
    cluster
        .openssh("sftp", &user)
        .args(["-b", "-", &at(name)])
        .input("get /etc/shadow /dev/null\n")
        .wait()
        .refused("ermission denied");
    cluster.event("sftp", |e| {
        e["path"] == "/etc/shadow" && e["success"] == false && e["login"] == name
    });
}

#[test]
fn an_interactive_shell_with_resize() {
    let cluster = shared();
    let user = cluster.user("shell", "access-all", "root");
    let config = cluster.ssh_config(&user);
    // `script` gives ssh a real terminal, and stty inside asks the node's.
    let ssh = format!("ssh -tt -F {} {}", config.display(), at("root"));
    let mut shell = Run::new("script")
        .args(["-qfec", &ssh, "/dev/null"])
        .env("TELEPORT_HOME", &user.home)
        .env("TERM", "xterm-256color")
        .spawn();
    shell.say("tty; echo $TERM; [ -t 0 ] && echo is-a-terminal\n");
    shell.hear("/dev/pts/");
    shell.hear("xterm-256color");
    shell.hear("\nis-a-terminal");
    shell.say("sleep 100\n");
    shell.say("\u{3}"); // interrupt
    shell.say("stty size; echo still-$((40+2))\n");
    shell.hear("still-42");
    shell.say("exit 5\n");
    assert_eq!(shell.finish(), 5);
    cluster.event("session.end", |e| e["user"] == "shell" && e["interactive"] == true);
}

#[test]
fn a_shell_with_tsh_ends_with_its_status() {
    let cluster = shared();
    let user = cluster.user("tshell", "access-all", "root");
    let tsh = format!("{} ssh root@{NODE}", crate::run::program("tsh").display());
    let mut shell = Run::new("script")
        .args(["-qfec", &tsh, "/dev/null"])
        .env("TELEPORT_HOME", &user.home)
        .spawn();
    shell.say("echo ready-$((1+1))\n");
    shell.hear("ready-2");
    shell.say("exit 9\n");
    assert_eq!(shell.finish(), 9);
}

#[test]
fn through_the_jump_host() {
    let cluster = shared();
    let user = cluster.user("jump", "access-all", "root");
    let path = cluster.jump_config(&user);
    let jump = format!("root@localhost:{}", cluster.jump);
    let host = format!("root@{NODE}.{CLUSTER}");
    let run = |target: &str| {
        Run::new("ssh")
            .arg("-F")
            .arg(&path)
            .args(["-J", &jump, target, "hostname; echo jumped"])
            .wait()
    };
    assert!(run(&host).good().text().contains("jumped"));
    run(&format!("root@nowhere.{CLUSTER}")).refused("");
    // The jump host is no shell, no command, no forwarding to elsewhere.
    let direct = |args: &[&str]| {
        Run::new("ssh")
            .arg("-F")
            .arg(&path)
            .args(["-p", &cluster.jump.to_string(), "root@localhost"])
            .args(args)
            .wait()
    };
    direct(&["id"]).refused("");
    direct(&["-s", "sftp"]).refused("");
}

/// The client's order of ciphers wins in SSH, and OpenSSH's begins with the one that costs most.
#[test]
fn the_jump_host_takes_the_cheapest_cipher_that_the_client_allows() {
    let cluster = shared();
    let user = cluster.user("jump-cipher", "access-all", "root");
    let path = cluster.jump_config(&user);
    let check = |ciphers: &str, expect: &str| {
        let outer = format!(
            "ssh -v -F {} {ciphers} -p {} -W %h:%p root@localhost",
            path.display(),
            cluster.jump
        );
        let done = Run::new("ssh")
            .arg("-F")
            .arg(&path)
            .args([&format!("-oProxyCommand={outer}"), &format!("root@{NODE}.{CLUSTER}")])
            .arg("head -c 3000000 /dev/zero | wc -c; cat | wc -c")
            .input(vec![b'x'; 3_000_000])
            .wait()
            .good();
        assert_eq!(done.text().matches("3000000").count(), 2, "{}", done.text());
        for way in ["server->client", "client->server"] {
            let line = format!("kex: {way} cipher: {expect} ");
            assert!(done.stderr.contains(&line), "no {line:?} in {}", done.stderr);
        }
    };
    let has_aes = fs::read_to_string("/proc/cpuinfo").unwrap().contains(" aes");
    let chacha = "chacha20-poly1305@openssh.com";
    check("", if has_aes { "aes128-gcm@openssh.com" } else { chacha });
    check(
        "-c chacha20-poly1305@openssh.com,aes256-gcm@openssh.com",
        if has_aes { "aes256-gcm@openssh.com" } else { chacha },
    );
    check("-c chacha20-poly1305@openssh.com", chacha);
    check("-c aes256-ctr", "aes256-ctr");
}

// tidy: long-function: one story, told in order
#[test]
fn files_by_scp_sftp_rsync_git_and_tsh() {
    let cluster = shared();
    let user = cluster.user("files", "access-all", "root");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let bytes: Vec<u8> = (0..5_000_000u32)
        .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 8).to_le_bytes())
        .collect();
    fs::write(path("big"), &bytes).unwrap();
    let same = |name: &str| assert!(fs::read(path(name)).unwrap() == bytes, "{name} differs");
    cluster
        .openssh("scp", &user)
        .args([&path("big"), &format!("{}:{}", at("root"), path("by-scp"))])
        .wait()
        .good();
    same("by-scp");
    cluster
        .openssh("scp", &user)
        .args(["-O", &path("big"), &format!("{}:{}", at("root"), path("by-old-scp"))])
        .wait()
        .good();
    same("by-old-scp");
    cluster
        .openssh("scp", &user)
        .args([&format!("{}:{}", at("root"), path("big")), &path("scp-back")])
        .wait()
        .good();
    same("scp-back");
    let batch = format!(
        "put {} {}\nget {} {}\nmkdir {d}/m\nrename {d}/m {d}/n\nrmdir {d}/n\nln -s /etc {d}/l\nrm {d}/l\nls {d}\n",
        path("big"),
        path("by-sftp"),
        path("big"),
        path("sftp-back"),
        d = dir.path().display()
    );
    cluster.openssh("sftp", &user).args(["-b", "-", &at("root")]).input(batch).wait().good();
    same("by-sftp");
    same("sftp-back");
    let ssh = format!("ssh -F {}", cluster.ssh_config(&user).display());
    Run::new("rsync")
        .env("TELEPORT_HOME", &user.home)
        .args(["-a", "-e", &ssh, &path("big"), &format!("{}:{}", at("root"), path("by-rsync"))])
        .wait()
        .good();
    same("by-rsync");
    cluster
        .tsh(&user)
        .args(["scp", &path("big"), &format!("root@{NODE}:{}", path("by-tsh"))])
        .wait()
        .good();
    same("by-tsh");
    cluster
        .tsh(&user)
        .args(["scp", &format!("root@{NODE}:{}", path("big")), &path("tsh-back")])
        .wait()
        .good();
    same("tsh-back");
    let clone = Run::new("git")
        .env("GIT_SSH_COMMAND", &ssh)
        .env("TELEPORT_HOME", &user.home)
        .args(["clone", "-q", "--depth", "1", "-c", "safe.directory=*"])
        .arg(format!("{}:{}", at("root"), repository().display()))
        .arg(path("clone"))
        .wait();
    clone.good();
    assert!(dir.path().join("clone/Cargo.toml").exists());
    cluster.event("sftp", |e| {
        e["path"] == path("by-sftp").as_str() && e["action"] == "open" && e["code"] == "TS001I"
    });
    cluster.event("sftp", |e| {
        e["action"] == "rename"
            && e["target_path"] == format!("{}/n", dir.path().display()).as_str()
    });
    cluster.event("exec", |e| e["command"].as_str().is_some_and(|c| c.contains("git-upload-pack")));
}

#[test]
fn ports_forwarded_by_ssh_and_tsh() {
    let cluster = shared();
    let user = cluster.user("ports", "access-all", "root");
    let web = crate::cluster::free_port();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("page"), "behind the node").unwrap();
    let _server = Run::new("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1", &web.to_string(), "-d"])
        .arg(dir.path())
        .spawn();
    let get = |args: &[&str]| {
        until("the page through the forwarded port", || {
            let out = Run::new("curl").args(["-sS", "--max-time", "5"]).args(args).wait();
            (out.code == 0).then(|| out.text())
        })
    };
    let local = crate::cluster::free_port();
    let forward = format!("{local}:127.0.0.1:{web}");
    let ssh = cluster.openssh("ssh", &user).args(["-N", "-L", &forward, &at("root")]).spawn();
    assert_eq!(get(&[&format!("http://127.0.0.1:{local}/page")]), "behind the node");
    drop(ssh);
    let socks = crate::cluster::free_port();
    let tsh = cluster
        .tsh(&user)
        .args(["ssh", "-N", "-D", &socks.to_string(), &format!("root@{NODE}")])
        .spawn();
    let through = format!("socks5h://127.0.0.1:{socks}");
    assert_eq!(get(&["-x", &through, &format!("http://127.0.0.1:{web}/page")]), "behind the node");
    drop(tsh);
    cluster.event("port", |e| {
        e["code"] == "T3003I" && e["addr"] == format!("127.0.0.1:{web}").as_str()
    });
    cluster.event("port", |e| e["code"] == "T3003S");
}

#[test]
fn the_agent_holds_the_certificate_until_logout() {
    let cluster = shared();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent");
    let _agent = Run::new("ssh-agent").args(["-D", "-a"]).arg(&socket).spawn();
    until("the agent", || socket.exists().then_some(()));
    let mut user = cluster.user("agent", "access-all", "root");
    let input = format!("{}\n{}\n", user.password(), user.code());
    cluster
        .tsh(&user)
        .env("SSH_AUTH_SOCK", &socket)
        .args([
            "login",
            "--proxy",
            &cluster.proxy(),
            "--user",
            "agent",
            "--ca-pin",
            &cluster.pin,
            "--ttl",
            "60",
        ])
        .input(input)
        .wait()
        .good();
    let list = || Run::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", &socket).wait();
    assert!(list().good().text().contains("ED25519-CERT"), "{}", list().text());
    // Only the agent's keys: no IdentityFile, no CertificateFile.
    let config = fs::read_to_string(cluster.ssh_config(&user)).unwrap();
    let without: String = config
        .lines()
        .filter(|line| {
            !line.trim().starts_with("IdentityFile") && !line.trim().starts_with("CertificateFile")
        })
        .fold(String::new(), |all, line| all + line + "\n");
    let path = user.home.join("agent_config");
    fs::write(&path, without).unwrap();
    let out = Run::new("ssh")
        .arg("-F")
        .arg(&path)
        .args(["-o", "IdentityFile=none", &at("root"), "echo by-agent"])
        .env("SSH_AUTH_SOCK", &socket)
        .env("TELEPORT_HOME", &user.home)
        .wait()
        .good();
    assert_eq!(out.text(), "by-agent\n");
    cluster.tsh(&user).env("SSH_AUTH_SOCK", &socket).arg("logout").wait().good();
    assert!(!list().text().contains("ED25519-CERT"));
    assert_ne!(cluster.tsh(&user).arg("status").wait().code, 0);
}

#[test]
fn asyncssh_with_certificate() {
    let cluster = shared();
    let user = cluster.user("pyssh", "access-all", "root");
    let config = fs::read_to_string(cluster.ssh_config(&user)).unwrap();
    let take = |key: &str| {
        config
            .lines()
            .find_map(|line| line.trim().strip_prefix(key))
            .unwrap()
            .trim()
            .trim_matches('"')
            .to_owned()
    };
    let script = r#"
import asyncio, asyncssh, sys
tsh, target, node, known, key, cert = sys.argv[1:]
async def main():
    async with asyncssh.connect(node, username="root", proxy_command=[tsh, "proxy", "ssh", "root@" + target],
                                known_hosts=known, client_keys=[(key, cert)], agent_path=None, config=None) as c:
        r = await c.run("echo from-asyncssh; exit 4")
        print(r.stdout.strip(), r.exit_status)
        async with c.start_sftp_client() as sftp:
            print(len(await sftp.listdir("/")) > 3)
asyncio.run(main())
"#;
    let python = repository().join("target/peers/venv/bin/python");
    let host = format!("{NODE}.{CLUSTER}");
    let out = Run::new(python)
        .env("TELEPORT_HOME", &user.home)
        .args(["-c", script])
        .arg(crate::run::program("tsh"))
        .args([
            format!("{host}:3022"),
            host,
            take("UserKnownHostsFile"),
            take("IdentityFile"),
            take("CertificateFile"),
        ])
        .wait()
        .good();
    assert_eq!(out.text(), "from-asyncssh 4\nTrue\n");
}

#[test]
fn the_environment_is_filtered() {
    let cluster = shared();
    let user = cluster.user("env", "access-all", "root");
    let out = cluster
        .openssh("ssh", &user)
        .args([
            "-o",
            "SetEnv=LC_MARK=kept LD_PRELOAD=/evil.so BASH_ENV=/evil PATH=/evil",
            &at("root"),
            "env",
        ])
        .wait()
        .good()
        .text();
    assert!(out.contains("LC_MARK=kept"), "{out}");
    assert!(!out.contains("evil"), "{out}");
}

#[test]
fn signals_and_a_closed_connection_end_the_command() {
    let cluster = shared();
    let user = cluster.user("sig", "access-all", "root");
    let mut ssh =
        cluster.openssh("ssh", &user).args([&at("root"), "echo started; exec sleep 4242"]).spawn();
    ssh.hear("started");
    let alive = || Run::new("pgrep").args(["-f", "^sleep 4242$"]).wait().code == 0;
    // The shell says so before it becomes the other program.
    until("the command to run", || alive().then_some(()));
    drop(ssh);
    until("the command to end with its connection", || (!alive()).then_some(()));
}
