//! The node itself: killed, unpinned, followed by another.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use super::super::agent::{AGAIN, BEGIN, OTHER};
use super::super::deed::{Deed, until};
use super::super::stage::Scene;
use super::super::told::Found;
use super::{Case, Play};

pub(super) const CASES: &[Case] = &[
    Case {
        number: 32,
        name: "kill -9 or SIGSTOP of the agent",
        play: Play::Here(killed),
        deed: do_kill,
    },
    Case {
        number: 34,
        name: "umount or unlink in bpffs",
        play: Play::Here(unpinned),
        deed: do_unpin,
    },
    Case {
        number: 41,
        name: "agent upgrade during a session",
        play: Play::Here(upgraded),
        deed: do_go_on,
    },
];

/// The session stops its node, lets it go on, and kills it: what it does then is told by the next one.
fn killed(scene: &Scene<'_>) -> Vec<Found> {
    let mut agent = scene.agent("agent", &[BEGIN]);
    fs::write(scene.path("pid"), format!("{}\n", agent.pid())).unwrap();
    agent.killed();
    scene.fact("after-pid");
    let next = scene.agent("next", &[]);
    let told = scene.told_by(&agent, next);
    let mut found = told.afterwards(told.leader);
    found.push(told.trace("signal", agent.pid()).found());
    found
}

fn do_kill(deed: &Deed, _: &str) {
    let number = || {
        let text = fs::read_to_string(deed.path("pid")).ok()?;
        text.strip_suffix('\n')?.parse().ok().and_then(Pid::from_raw)
    };
    until("number of the node", || number().is_some());
    let node = number().unwrap();
    crate::sys::process::queue_signal(node.as_raw_pid(), libc::SIGSTOP).unwrap();
    deed.program("stopped");
    kill_process(node, Signal::CONT).unwrap();
    kill_process(node, Signal::KILL).unwrap();
    deed.afterwards();
}

/// The session removes what holds the programs: that is told, and the node holds them, too.
fn unpinned(scene: &Scene<'_>) -> Vec<Found> {
    let agent = scene.agent("agent", &[BEGIN]);
    fs::write(scene.path("go"), "").unwrap();
    let pin = scene.fact("pin");
    let told = scene.told_by_one(agent);
    let mut found = told.afterwards(told.leader);
    found.push(told.disk(&["unlink"], &pin).found());
    found
}

fn do_unpin(deed: &Deed, _: &str) {
    until("word to begin", || deed.path("go").exists());
    let pins = Path::new("/sys/fs/bpf/postern-kernel-tests-34");
    deed.tell("pin", pins.join("link_sched_process_exec").display());
    fs::remove_dir_all(pins).unwrap();
    deed.afterwards();
}

/// The node ends, another comes with other programs: what the session does between is told by that, once, and so is what
/// another session does when the programs have been replaced.
fn upgraded(scene: &Scene<'_>) -> Vec<Found> {
    let mut agent = scene.agent("agent", &[BEGIN]);
    scene.fact("waiting");
    agent.kill();
    fs::write(scene.path("go"), "").unwrap();
    scene.fact("after-pid");
    let next = scene.agent("next", &[OTHER]);
    fs::write(scene.path("end"), "").unwrap();
    let stayed = next.fact("behind") == "true";
    let told = scene.told_by(&agent, next);
    let program = told.facts.number("after-pid");
    let times = told.of("session.command").filter(|event| event["pid"] == program).count();
    let losses = told.of("session.loss").filter(|loss| loss["class"] == "task").count();
    let replaced = scene.said("next", "behind-still") == "false";
    let again = scene.told_again();
    let mut found = told.afterwards(told.leader);
    found.extend(again.afterwards(again.leader));
    found.push(Found::whole("programs that stay while a session runs", stayed));
    found.push(Found::whole("a program once", times == 1));
    found.push(Found::whole("a session that is not lost", losses == 0));
    found.push(Found::whole("programs that are replaced", replaced));
    found
}

fn do_go_on(deed: &Deed, part: &str) {
    if part == AGAIN {
        deed.tell_pid("pid");
        deed.afterwards();
        return;
    }
    deed.tell("waiting", "");
    until("word to go on", || deed.path("go").exists());
    deed.afterwards();
    until("word to end", || deed.path("end").exists());
}
