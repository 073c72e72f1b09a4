//! What `--keep` leaves in the demo's folder besides the cluster: `env` to source, `bin/postern-otp` for codes, and
//! `stop`, which ends the daemons and removes the folder. Nothing of it needs cargo.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};

use super::cluster::{CLUSTER, Cluster, NODE, USER};
use crate::process::quote;

/// Writes the files.
pub(super) fn write(cluster: &Cluster) -> Result<()> {
    let xtask = std::env::current_exe().context("the path of this program")?;
    let otp = format!(
        "#!/bin/sh\n# Prints a one-time code that the cluster has not seen yet; may wait half a minute for one.\nexec {} otp --secret-file {}\n",
        quote(&xtask.display().to_string()),
        quote(&cluster.file("otp-secret")),
    );
    cluster.write("env", &environment(cluster))?;
    executable(cluster, "bin/postern-otp", &otp)?;
    executable(cluster, "stop", &stop_script(&cluster.file(""), cluster.pids()))
}

fn executable(cluster: &Cluster, name: &str, text: &str) -> Result<()> {
    let path = cluster.write(name, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    Ok(())
}

/// For a POSIX shell.
fn environment(cluster: &Cluster) -> String {
    let bastion = cluster.file("bastion");
    let variables = [
        ("POSTERN_DEMO_DIR", cluster.dir().display().to_string()),
        // tctl and postern status look here.
        ("POSTERN_DATA_DIR", bastion.clone()),
        ("POSTERN_NODE_DATA_DIR", cluster.file("node")),
        ("POSTERN_RECORDINGS_DIR", format!("{bastion}/auth/recordings")),
        ("POSTERN_CLUSTER", CLUSTER.to_owned()),
        ("POSTERN_CA_PIN", cluster.ca_pin.clone()),
        ("POSTERN_PROXY", cluster.proxy()),
        ("POSTERN_JUMP", format!("127.0.0.1:{}", cluster.jump_port)),
        ("POSTERN_DIAG", format!("127.0.0.1:{}", cluster.diag_port)),
        ("POSTERN_NODE_DIAG", format!("127.0.0.1:{}", cluster.node_diag_port)),
        ("POSTERN_SSH_CONFIG", cluster.file("ssh_config")),
        ("POSTERN_DEMO_NODE", NODE.to_owned()),
        ("POSTERN_DEMO_LOGIN", cluster.login.clone()),
        ("POSTERN_DEMO_USER", USER.to_owned()),
        ("POSTERN_DEMO_PASSWORD", cluster.password.clone()),
        ("POSTERN_DEMO_OTP", cluster.file("bin/postern-otp")),
        ("TELEPORT_HOME", cluster.file("tsh")),
        ("TELEPORT_PROXY", cluster.proxy()),
        ("TELEPORT_USER", USER.to_owned()),
        ("TELEPORT_LOGIN", cluster.login.clone()),
    ];
    let mut text = String::from("# Source this: . env\n");
    text.push_str(&format!("export PATH={}:\"$PATH\"\n", quote(&cluster.file("bin"))));
    for (name, value) in variables {
        text.push_str(&format!("export {name}={}\n", quote(&value)));
    }
    text
}

/// Ends the daemons, if these processes still are they, and removes the folder.
fn stop_script(dir: &str, pids: &[u32]) -> String {
    let dir = quote(dir.trim_end_matches('/'));
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    format!(
        r#"#!/bin/sh
# Ends the demo's daemons and removes its folder.
dir={dir}
alive() {{
  for pid in {pids}; do
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$dir/" && printf '%s ' "$pid"
  done
}}
ask() {{ for pid in $(alive); do kill "$1" "$pid" 2>/dev/null; done; }}
ask -TERM
tries=0
while [ -n "$(alive)" ]; do
  tries=$((tries + 1))
  # The second request ends open sessions too.
  if [ "$tries" = 30 ]; then ask -TERM; fi
  if [ "$tries" = 100 ]; then ask -KILL; fi
  sleep 0.1
done
cd / && rm -rf "$dir"
"#,
        pids = pids.join(" "),
    )
}

/// What the developer reads at the end.
pub(super) fn instructions(cluster: &Cluster) -> String {
    let dir = cluster.dir().display();
    let (node, login) = (cluster.at_node(), cluster.at_node_for_ssh());
    format!(
        r#"
The cluster stays up. In any shell:

    . {dir}/env                                   # PATH, addresses, TELEPORT_HOME, POSTERN_DATA_DIR
    tsh ssh {node}                              # signed in already
    ssh -F "$POSTERN_SSH_CONFIG" {login}
    tctl events tail                              # in another shell: watch what happens
    tsh recordings ls; tsh play SESSION

To sign in again as the demo's user:

    printf '%s\n' "$POSTERN_DEMO_PASSWORD" "$(postern-otp)" | tsh login --ca-pin="$POSTERN_CA_PIN"

To stop it and remove everything:

    {dir}/stop
"#
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process;

    #[test]
    fn the_stop_script_ends_only_what_is_ours() {
        let dir = std::env::temp_dir().join(format!("xtask-stop-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let (found, sleep) = process::output(Command::new("which").arg("sleep")).unwrap();
        assert!(found);
        std::os::unix::fs::symlink(sleep.trim(), dir.join("daemon")).unwrap();
        let mut ours = Command::new(dir.join("daemon")).arg("600").spawn().unwrap();
        let mut other = Command::new("sleep").arg("600").spawn().unwrap();
        let script = stop_script(&dir.display().to_string(), &[ours.id(), other.id()]);
        // The process is ours to wait for; until then its entry, without a command line, stays.
        let status = Command::new("sh").args(["-c", &script]).status().unwrap();
        assert!(status.success());
        assert!(!dir.exists());
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none(), "another process was ended");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
