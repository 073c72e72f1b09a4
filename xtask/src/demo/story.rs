//! The steps of the demo, in the order in which a person would take them. Each one checks what it claims.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::cluster::{CLUSTER, Cluster, NODE, USER, until};
use super::narrator::{Narrator, Notes};
use super::terminal::{self, COLUMNS, ROWS};
use crate::totp;

/// What the demo's user may do: sessions on nodes with `env: demo`, as the logins that the user has but one.
const ROLE: &str = "kind: role
version: v7
metadata:
  name: demo
spec:
  options:
    enhanced_recording: [command, disk, network]
  allow:
    logins: ['{{internal.logins}}']
    node_labels: {env: demo}
  deny:
    logins: [nobody]
";

/// Said in the interactive shell, looked for in the recording. The shell computes the last word, so that finding it
/// proves that the command ran, not only that it was typed.
const SPOKEN: &str = "echo \"recorded: $((6*7))\"";
const HEARD: &str = "recorded: 42";

/// Bytes of the file that is copied.
const FILE_BYTES: usize = 1 << 20;

/// Tells it all.
pub(super) fn tell(cluster: &mut Cluster, narrator: &mut Narrator) -> Result<()> {
    set_up(cluster, narrator)?;
    sign_in(cluster, narrator)?;
    open_sessions(cluster, narrator)?;
    copy_files(cluster, narrator)?;
    look_back(cluster, narrator)
}

fn set_up(cluster: &mut Cluster, narrator: &mut Narrator) -> Result<()> {
    narrator.step(
        "Auth and proxy are up; the authorities were made at this first start",
        |notes| {
            cluster.start_bastion(notes)?;
            let status = cluster.tctl_json(notes, &["status"])?;
            let pin = status
                .pointer("/ca_pins/0")
                .and_then(Value::as_str)
                .context("no ca_pins in tctl status")?;
            cluster.ca_pin = pin.to_owned();
            notes.output(pin);
            Ok(())
        },
    )?;
    narrator.step(
        "A node that nothing can dial joined with a one-time secret and holds its tunnel",
        |notes| {
            let token = cluster.tctl_json(notes, &["tokens", "add", "--type=node"])?;
            let token = text_of(&token, "token")?;
            let file = cluster.write("node.token", token)?;
            cluster.start_node(notes, &file)
        },
    )?;
    narrator.step("A role says who may log in where", |notes| {
        let file = cluster.write("role.yaml", ROLE)?;
        let said = cluster
            .run(notes, &["tctl", "--data-dir", &cluster.file("bastion"), "create", "-f", &file])?;
        notes.output(&said);
        Ok(())
    })
}

fn sign_in(cluster: &mut Cluster, narrator: &mut Narrator) -> Result<()> {
    let invite = narrator.step("A user was invited", |notes| {
        let logins = format!("--logins={},nobody", cluster.login);
        let invite = cluster.tctl_json(notes, &["users", "add", USER, "--roles=demo", &logins])?;
        Ok(text_of(&invite, "token")?.to_owned())
    })?;
    narrator.step(
        "The user chose a password and enrolled a second factor, in the terminal",
        |notes| accept_invite(cluster, notes, &invite),
    )?;
    narrator.step(
        "The user signed in with password and one-time code; the certificates live for hours",
        |notes| {
            let code = totp::fresh_code(&cluster.dir().join("otp-secret"))?;
            let (proxy, user) = (format!("--proxy={}", cluster.proxy()), format!("--user={USER}"));
            let words = ["tsh", "login", &proxy, &user, &format!("--ca-pin={}", cluster.ca_pin)];
            cluster.run_with(notes, &words, &format!("{}\n{code}\n", cluster.password))?;
            let said = cluster.run(notes, &["tsh", "status"])?;
            notes.output(&said);
            ensure!(said.contains(USER), "tsh status does not name the user");
            Ok(())
        },
    )
}

/// Token, password and code go through a pipe; none of them is on any command line.
fn accept_invite(cluster: &Cluster, notes: &mut Notes, invite: &str) -> Result<()> {
    let (proxy, pin) =
        (format!("--proxy={}", cluster.proxy()), format!("--ca-pin={}", cluster.ca_pin));
    let mut tsh = cluster.dialog(notes, &["tsh", "invite", &proxy, &pin])?;
    tsh.say(&format!("{invite}\n{}\n", cluster.password));
    let secret = tsh.wait_for("the second factor's secret", |said| {
        // Only a whole line: the rest may not have arrived yet.
        let (_, rest) = said.split_once("TOTP secret: ")?;
        Some(rest.split_once('\n')?.0.trim().to_owned())
    })?;
    cluster.write("otp-secret", &format!("{secret}\n"))?;
    let code = totp::fresh_code(&cluster.dir().join("otp-secret"))?;
    tsh.say(&format!("{code}\n"));
    let finished = tsh.finish()?;
    if !finished.status.success() {
        // What it said holds the secret of a cluster that is about to go away.
        bail!("tsh invite ended with {} and said:\n{}", finished.status, finished.said());
    }
    Ok(())
}

fn open_sessions(cluster: &Cluster, narrator: &mut Narrator) -> Result<()> {
    narrator.step("The user sees the nodes that the role allows", |notes| {
        let said = cluster.run(notes, &["tsh", "ls"])?;
        notes.output(&said);
        ensure!(said.contains(NODE), "tsh ls does not list the node");
        Ok(())
    })?;
    narrator.step("A command, through proxy and reverse tunnel", |notes| {
        let said = cluster.run(notes, &["tsh", "ssh", &cluster.at_node(), "--", "id; hostname"])?;
        notes.output(&said);
        ensure!(
            said.contains(&format!("({})", cluster.login)),
            "id does not name {}",
            cluster.login
        );
        Ok(())
    })?;
    narrator.step("An interactive shell with tsh, in a real terminal", |notes| {
        converse(cluster, notes, &["tsh", "ssh", &cluster.at_node()])
    })?;
    let config = cluster.file("ssh_config");
    narrator.step("The stock ssh client, with what tsh config prints", |notes| {
        let text = cluster.run(notes, &["tsh", "config"])?;
        fs::write(&config, text)?;
        let said =
            cluster.run(notes, &["ssh", "-F", &config, &cluster.at_node_for_ssh(), "id -un"])?;
        notes.output(&said);
        ensure!(said.trim() == cluster.login, "id says {said:?}");
        Ok(())
    })?;
    narrator.step("An interactive shell with the stock ssh client", |notes| {
        converse(cluster, notes, &["ssh", "-F", &config, &cluster.at_node_for_ssh()])
    })?;
    narrator.step("The stock ssh client through the jump host", |notes| {
        let jump = format!("{USER}@127.0.0.1:{}", cluster.jump_port);
        let words =
            ["ssh", "-F", &config, "-J", &jump, &cluster.at_node_for_ssh(), "echo jumped; exit 7"];
        let finished = cluster.attempt(notes, &words, "")?;
        notes.output(&finished.said());
        ensure!(finished.stdout.trim() == "jumped", "it said:\n{}", finished.said());
        ensure!(finished.status.code() == Some(7), "the exit status is {}, not 7", finished.status);
        Ok(())
    })?;
    narrator.step("A login that the role denies is refused", |notes| {
        let finished =
            cluster.attempt(notes, &["tsh", "ssh", &format!("nobody@{NODE}"), "id"], "")?;
        notes.output(&finished.said());
        ensure!(!finished.status.success(), "it was let in");
        Ok(())
    })
}

/// A shell in a terminal: its size arrives, what is typed runs.
fn converse(cluster: &Cluster, notes: &mut Notes, words: &[&str]) -> Result<()> {
    let shown = terminal::interactive(&cluster.noted(notes, words)?, &["tty; stty size", SPOKEN])?;
    notes.output(&shown);
    for expected in [&format!("{ROWS} {COLUMNS}"), HEARD] {
        ensure!(shown.contains(expected), "{expected:?} is not on the screen:\n{shown}");
    }
    Ok(())
}

fn copy_files(cluster: &Cluster, narrator: &mut Narrator) -> Result<()> {
    let config = cluster.file("ssh_config");
    narrator.step(
        "A file there and back, byte for byte, with tsh scp and with the stock scp",
        |notes| {
            let bytes: Vec<u8> = super::random_hex(FILE_BYTES / 2)?.into_bytes();
            let source = cluster.file("files/source");
            fs::write(&source, &bytes)?;
            let there = cluster.file("files/there");
            let back = cluster.file("files/back");
            cluster
                .run(notes, &["tsh", "scp", &source, &format!("{}:{there}", cluster.at_node())])?;
            let from = format!("{}:{there}", cluster.at_node_for_ssh());
            cluster.run(notes, &["scp", "-q", "-F", &config, &from, &back])?;
            ensure!(fs::read(&there)? == bytes, "the file differs after the way there");
            ensure!(fs::read(&back)? == bytes, "the file differs after the way back");
            notes.output(&format!("{FILE_BYTES} bytes, identical"));
            Ok(())
        },
    )
}

/// Events that the steps so far must have left, and how many at least.
const EXPECTED_EVENTS: &[(&str, usize)] = &[
    ("user.create", 1),
    ("join_token.create", 1),
    ("role.created", 1),
    ("instance.join", 1),
    ("user.login", 1),
    ("session.start", 5),
    ("exec", 3),
    ("auth", 1),
    ("sftp", 2),
    ("session.end", 5),
    ("session.upload", 2),
];

/// The events of the steps so far; the session of an interactive one.
fn events_left(cluster: &Cluster, notes: &mut Notes) -> Result<String> {
    let data = cluster.file("bastion");
    // Not the programs, of which a login shell alone starts a hundred.
    let names: Vec<&str> = EXPECTED_EVENTS.iter().map(|(name, _)| *name).collect();
    let types = names.join(",");
    let ls = ["tctl", "--data-dir", &data, "events", "ls"];
    let words = [&ls[..], &["--type", &types, "--limit", "1000", "--format", "json"]].concat();
    let mut silent = Notes::default();
    // Nodes deliver from their spool: the last events are on their way.
    let mut missing = String::new();
    let events = until("events", || {
        let events = events(&cluster.run(&mut silent, &words)?)?;
        missing = missing_events(&events);
        Ok(missing.is_empty().then_some(events))
    })
    .map_err(|error| error.context(format!("missing: {missing}")))?;
    cluster.noted(notes, &words)?;
    for (name, count) in tally(&events) {
        notes.output(&format!("{count:>4}  {name}"));
    }
    let latest = cluster.run(notes, &[&ls[..], &["--limit", "12"]].concat())?;
    notes.output(&latest);
    let programs = ["--type", "session.command", "--limit", "3", "--format", "json"];
    // Empty where the kernel, or a node without root, cannot tell.
    let programs = cluster.run(notes, &[&ls[..], &programs].concat())?;
    notes.output(&programs);
    let interactive = |e: &&Value| e["event"] == "session.end" && e["interactive"] == true;
    let sid = events.iter().find(interactive).and_then(|e| e["sid"].as_str());
    Ok(sid.context("no interactive session has ended")?.to_owned())
}

fn look_back(cluster: &Cluster, narrator: &mut Narrator) -> Result<()> {
    let sid =
        narrator.step("Every step left its audit event", |notes| events_left(cluster, notes))?;
    narrator.step("The shell was recorded as a text file, and replays", |notes| {
        let list = cluster.run(notes, &["tsh", "recordings", "ls"])?;
        notes.output(&list);
        ensure!(list.contains(&sid), "tsh recordings ls does not list {sid}");
        let replay = cluster.run(notes, &["tsh", "play", "--format", "text", &sid])?;
        notes.output(&replay);
        ensure!(replay.contains(HEARD), "{HEARD:?} is not in the replay:\n{replay}");
        Ok(())
    })?;
    narrator.step("What the shell ran, from the kernel", |notes| see_tree(cluster, notes, &sid))?;
    narrator.step("The daemons say how they are", |notes| {
        for name in ["bastion", "node"] {
            let said =
                cluster.run(notes, &["postern", "status", "--data-dir", &cluster.file(name)])?;
            notes.output(&said);
            ensure!(said.contains(CLUSTER), "the status does not name the cluster");
            let is_proxy = name == "bastion";
            ensure!(!is_proxy || said.contains("data plane "), "the status does not name the rung");
        }
        Ok(())
    })
}

/// The tree of a session, with what was typed into it; where the kernel, or a node without root, cannot tell, it says so.
fn see_tree(cluster: &Cluster, notes: &mut Notes, sid: &str) -> Result<()> {
    let data = cluster.file("bastion");
    let words = ["tctl", "--data-dir", &data, "session", "tree", sid];
    let mut silent = Notes::default();
    let tree = until("the programs in the tree", || {
        let tree = cluster.run(&mut silent, &words)?;
        let is_there = tree.contains("/stty size") || tree.contains("NOT CAPTURED");
        Ok(is_there.then_some(tree))
    })?;
    cluster.noted(notes, &words)?;
    // A login shell's start files are many programs: the head, and what was typed.
    let typed = |line: &&str| line.contains("/stty size") || line.ends_with("/tty");
    let head = tree.lines().take(TREE_LINES_SHOWN);
    notes.output(
        &head
            .chain(tree.lines().skip(TREE_LINES_SHOWN).filter(typed))
            .collect::<Vec<_>>()
            .join("\n"),
    );
    ensure!(tree.starts_with(&format!("session {sid} of {USER} ")), "the tree is of another");
    let status = cluster.run(notes, &["tctl", "--data-dir", &data, "capture", "status", NODE])?;
    notes.output(&status);
    ensure!(status.starts_with(NODE), "the status does not name the node");
    Ok(())
}

/// The head of a tree, and its first processes.
const TREE_LINES_SHOWN: usize = 12;

fn text_of<'v>(value: &'v Value, key: &str) -> Result<&'v str> {
    value.get(key).and_then(Value::as_str).with_context(|| format!("no {key} in the answer"))
}

/// One JSON object per line.
fn events(text: &str) -> Result<Vec<Value>> {
    let line = |line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"));
    text.lines().map(line).collect()
}

fn tally(events: &[Value]) -> BTreeMap<&str, usize> {
    let mut tally = BTreeMap::new();
    for name in events.iter().filter_map(|event| event["event"].as_str()) {
        *tally.entry(name).or_insert(0) += 1;
    }
    tally
}

/// For people: `exec (1 of 3)`.
fn missing_events(events: &[Value]) -> String {
    let tally = tally(events);
    let missing: Vec<String> = EXPECTED_EVENTS
        .iter()
        .map(|(name, wanted)| (name, tally.get(name).copied().unwrap_or(0), wanted))
        .filter(|(_, found, wanted)| found < wanted)
        .map(|(name, found, wanted)| format!("{name} ({found} of {wanted})"))
        .collect();
    missing.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_events_are_named() {
        let one = events("{\"event\":\"exec\"}\n{\"event\":\"user.login\"}\n").unwrap();
        let missing = missing_events(&one);
        assert!(missing.contains("exec (1 of 3)"), "{missing}");
        assert!(!missing.contains("user.login"), "{missing}");
        let all: Vec<Value> = EXPECTED_EVENTS
            .iter()
            .flat_map(|(name, count)| {
                std::iter::repeat_n(serde_json::json!({ "event": name }), *count)
            })
            .collect();
        assert_eq!(missing_events(&all), "");
        assert!(events("not json\n").is_err());
    }
}
