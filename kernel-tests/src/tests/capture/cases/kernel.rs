//! Rights, the kernel itself, and the capture.

use std::fs::File;
use std::os::fd::AsFd as _;

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, capabilities, set_capabilities, set_thread_gid, set_thread_uid,
};
use rustix::time::{ClockId, clock_gettime, clock_settime};

use super::super::deed::{Deed, busybox, forked_to_end, run_true};
use super::super::stage::Scene;
use super::super::told::Found;
use super::{Case, Play};

pub(super) const CASES: &[Case] = &[
    Case {
        number: 33,
        name: "bpftool: tamper with maps and links",
        play: Play::Here(tampered),
        deed: do_tamper,
    },
    Case {
        number: 38,
        name: "module load, kexec, /dev/mem",
        play: Play::InGuest(kernel),
        deed: do_kernel,
    },
    Case {
        number: 39,
        name: "setuid, capset after exec",
        play: Play::Here(rights),
        deed: do_rights,
    },
    Case { number: 40, name: "clock set back", play: Play::InGuest(clock), deed: do_clock },
];

/// The tampering itself, and what is done behind it.
fn tampered(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let deleted = told.kernel("bpf").with("detail", "map_delete_elem").found();
    let mut found = told.afterwards(told.leader);
    found.push(deleted.or(told.kernel("tamper").found()));
    found
}

/// Looks through the kernel's maps, as bpftool does, for the one that says who is watched, and empties it.
fn do_tamper(deed: &Deed, _: &str) {
    let maps = crate::sys::bpf::map_ids().filter_map(|id| crate::sys::bpf::open_map(id).ok());
    let named = maps.filter(|map| crate::sys::bpf::name(map.as_fd()).unwrap() == "sessions");
    // A session's number is small, too; there are not many here.
    let mut deleted = 0;
    for map in named {
        deleted +=
            (0..200).filter(|key| crate::sys::bpf::delete(map.as_fd(), *key).is_ok()).count();
    }
    if deleted == 0 {
        // It is kept from us: that is what is wanted.
        deed.tell("kept", "");
    }
    deed.afterwards();
}

fn kernel(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    vec![
        told.kernel("module").found(),
        told.kernel("kexec").found(),
        told.opened("/dev/mem").found().or(told.kernel("raw").found()),
    ]
}

/// What is loaded is none, and refused after it was asked for.
fn do_kernel(deed: &Deed, _: &str) {
    let garbage = File::open(deed.file("garbage")).unwrap();
    rustix::system::init_module(b"no module", c"").unwrap_err();
    rustix::system::finit_module(&garbage, c"", 0).unwrap_err();
    crate::sys::kexec(&garbage).unwrap_err();
    // A kernel that is locked down opens it for nobody; it is asked for.
    drop(File::open("/dev/mem"));
}

fn rights(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let child = told.facts.number("child");
    let command = told.command(&busybox().display().to_string());
    vec![
        told.privilege("setuid").by(child).found(),
        told.privilege("setgid").by(child).found(),
        told.privilege("capset").by(child).found(),
        command.with("euid", USER).by_any().found(),
    ]
}

const USER: u32 = 4711;

fn do_rights(deed: &Deed, _: &str) {
    let child = forked_to_end(|| {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::SYS_TIME);
        sets.permitted.remove(CapabilitySet::SYS_TIME);
        set_capabilities(None, sets).unwrap();
        set_thread_gid(Gid::from_raw(USER)).unwrap();
        set_thread_uid(Uid::from_raw(USER)).unwrap();
        run_true(&busybox());
    });
    deed.tell("child", child);
}

/// The order of what is told is not the clock's.
fn clock(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let programs: Vec<_> =
        told.of("session.command").filter_map(|event| event["pid"].as_u64()).collect();
    let before_and_after = ["before", "after"].map(|key| u64::from(told.facts.number(key)));
    let ordered = programs.iter().filter(|pid| before_and_after.contains(pid));
    let is_ordered = ordered.copied().eq(before_and_after);
    vec![told.kernel("clock").found(), Found::whole("order of programs", is_ordered)]
}

fn do_clock(deed: &Deed, _: &str) {
    const DAY_S: i64 = 86_400;
    deed.tell("before", run_true(&busybox()));
    let mut now = clock_gettime(ClockId::Realtime);
    now.tv_sec -= DAY_S;
    clock_settime(ClockId::Realtime, now).unwrap();
    deed.tell("after", run_true(&busybox()));
    now = clock_gettime(ClockId::Realtime);
    now.tv_sec += DAY_S;
    clock_settime(ClockId::Realtime, now).unwrap();
}
