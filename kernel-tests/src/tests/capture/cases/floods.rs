//! Too much at once. What is not told has to be told as lost.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::process::Child;

use super::super::deed::{Deed, applet, busybox, finish, forked, run_true};
use super::super::stage::Scene;
use super::super::told::{Found, Told};
use super::{Case, Play};

pub(super) const CASES: &[Case] = &[
    Case {
        number: 35,
        name: "fork bomb (each told, or told as lost)",
        play: Play::Here(forks),
        deed: do_forks,
    },
    Case {
        number: 36,
        name: "flood of opens, then an exec (each told, or told as lost)",
        play: Play::Here(opens),
        deed: do_opens,
    },
    Case {
        number: 37,
        name: "exec storm, more than 400 in a burst (each told, or told as lost)",
        play: Play::Here(storm),
        deed: do_storm,
    },
];

const FORKS: usize = 24;

/// Records for which there was no room, and programs of ours that the kernel did not run.
fn lost(told: &Told) -> usize {
    usize::try_from(told.lost("control") + told.lost("program")).unwrap()
}

/// Every process has an end that is told, or told as lost.
fn forks(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let ends = told.of("session.command.exit").count();
    let expected = FORKS * FORKS + FORKS + 1;
    let lost = lost(&told);
    let what = format!("{ends} of {expected} ends, {lost} told as lost");
    vec![Found::whole(&what, ends + lost >= expected)]
}

fn do_forks(_: &Deed, _: &str) {
    let children: Vec<u32> = (0..FORKS)
        .map(|_| {
            forked(|| {
                let children: Vec<u32> = (0..FORKS).map(|_| forked(|| {})).collect();
                for child in children {
                    crate::sys::process::wait(child).unwrap();
                }
            })
        })
        .collect();
    for child in children {
        crate::sys::process::wait(child).unwrap();
    }
}

const OPENS: u64 = 20_000;

/// An open for writing is never put together with others: each is told of, or counted as lost.
fn opens(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let path = scene.text("flooded");
    let events = told.of("session.disk").filter(|event| event["path"] == path.as_str());
    // One that stands for others says for how many.
    let known: u64 = events.map(|event| event["times"].as_u64().unwrap_or(1)).sum();
    let known = known + told.lost("file");
    vec![
        told.command(&busybox().display().to_string()).by(told.facts.number("after")).found(),
        Found::whole(&format!("{} of {OPENS} opens", known.min(OPENS)), known >= OPENS),
    ]
}

fn do_opens(deed: &Deed, _: &str) {
    let path = deed.file("flooded");
    for _ in 1..OPENS {
        drop(OpenOptions::new().write(true).open(&path).unwrap());
    }
    deed.tell("after", run_true(&busybox()));
}

const STORM: usize = 450;

fn storm(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let busybox = busybox().display().to_string();
    let programs = told.of("session.command").filter(|event| event["path"] == busybox.as_str());
    let programs: BTreeSet<u64> = programs.filter_map(|event| event["pid"].as_u64()).collect();
    let (count, lost) = (programs.len(), lost(&told));
    let what = format!("{count} of {STORM} programs, {lost} told as lost");
    vec![Found::whole(&what, count + lost >= STORM)]
}

/// Many at a time: the next begin before the ones before have ended.
fn do_storm(_: &Deed, _: &str) {
    const AT_ONCE: usize = 50;
    for _ in 0..STORM / AT_ONCE {
        let start = |_| applet(&busybox(), "true").spawn().unwrap();
        let mut children: Vec<Child> = (0..AT_ONCE).map(start).collect();
        children.iter_mut().for_each(finish);
    }
}
