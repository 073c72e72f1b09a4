//! Out of the session: by the audit session's id, control groups, process groups, the logout, namespaces.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{getppid, setsid};

use super::super::deed::{Deed, applet, busybox, finish, forked, forked_to_end, until};
use super::super::stage::{Scene, cgroups};
use super::super::told::Found;
use super::{Case, Play};
use crate::sys::process::{enter, unshare};

pub(super) const CASES: &[Case] = &[
    Case { number: 1, name: "loginuid rewrite", play: Play::Here(loginuid), deed: do_loginuid },
    Case { number: 2, name: "cgroup move", play: Play::Here(cgroup), deed: do_cgroup },
    Case { number: 3, name: "setsid and double fork", play: Play::Here(daemon), deed: do_daemon },
    Case { number: 4, name: "nohup after logout", play: Play::Here(nohup), deed: do_nohup },
    Case {
        number: 5,
        name: "unshare, nsenter, PID namespace",
        play: Play::Here(spaces),
        deed: do_spaces,
    },
    Case {
        number: 44,
        name: "mount namespace with a private /proc",
        play: Play::Here(private_proc),
        deed: do_private_proc,
    },
];

fn loginuid(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let path = format!("/proc/{}/loginuid", told.leader);
    let mut found = told.afterwards(told.leader);
    found.push(told.opened(&path).found());
    found
}

fn do_loginuid(deed: &Deed, _: &str) {
    if let Err(error) = fs::write("/proc/self/loginuid", "0") {
        deed.impossible(format!("a loginuid: {error}"));
    }
    deed.afterwards();
}

fn cgroup(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let group = cgroups().join(GROUP);
    let procs = group.join("cgroup.procs");
    let mut found = told.afterwards(told.leader);
    found.push(told.disk(&["mkdir"], group.to_str().unwrap()).found());
    found.push(told.opened(procs.to_str().unwrap()).found());
    // It is empty only when the kernel has done with the last process.
    until("an empty group", || fs::remove_dir(&group).is_ok());
    found
}

const GROUP: &str = "postern-bypass";

fn do_cgroup(deed: &Deed, _: &str) {
    let group = cgroups().join(GROUP);
    fs::create_dir(&group).unwrap();
    fs::write(group.join("cgroup.procs"), "0").unwrap();
    deed.afterwards();
}

fn daemon(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    told.afterwards(told.facts.number("daemon"))
}

fn do_daemon(deed: &Deed, _: &str) {
    forked_to_end(|| {
        setsid().unwrap();
        forked(|| {
            deed.tell_pid("daemon");
            deed.afterwards();
        });
    });
}

fn nohup(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let mut found = told.afterwards(told.facts.number("left"));
    found.push(told.detached());
    found
}

fn do_nohup(deed: &Deed, _: &str) {
    let leader = rustix::process::getpid();
    forked(|| {
        deed.tell_pid("left");
        until("orphan", || getppid() != Some(leader));
        // Until the session's end has been told.
        thread::sleep(Duration::from_millis(600));
        deed.afterwards();
    });
}

/// A process' number is another in the new namespace: what it starts is known by its parent.
fn spaces(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let child = told.facts.number("child");
    let program = told.facts.text("after-program");
    vec![
        told.opened(&told.facts.text("after-file")).by(child).found(),
        told.command(&program).with("ppid", child).by_any().found(),
        told.privilege("namespace").found(),
    ]
}

fn do_spaces(deed: &Deed, _: &str) {
    let outside = File::open("/proc/self/ns/uts").unwrap();
    unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWPID)
        .unwrap();
    enter(outside.as_fd()).unwrap();
    let child = forked(|| deed.afterwards());
    deed.tell("child", child);
    assert_eq!(crate::sys::process::wait(child).unwrap(), 0);
}

fn private_proc(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let child = told.facts.number("child");
    vec![
        told.opened(&told.facts.text("after-file")).by(child).found(),
        told.command(&busybox().display().to_string()).with("ppid", child).by_any().found(),
        told.disk(&["mount"], "/proc").by(child).found(),
    ]
}

fn do_private_proc(deed: &Deed, _: &str) {
    unshare(libc::CLONE_NEWNS | libc::CLONE_NEWPID).unwrap();
    let child = forked(|| {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount("proc", "/proc", "proc", MountFlags::empty(), c"hidepid=2").unwrap();
        let file = deed.file("after");
        drop(File::open(&file).unwrap());
        deed.tell("after-file", file.display());
        finish(&mut applet(&busybox(), "true").spawn().unwrap());
    });
    deed.tell("child", child);
    assert_eq!(crate::sys::process::wait(child).unwrap(), 0);
}
