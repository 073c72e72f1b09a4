//! A session that floods with files and processes, and another beside it: of that, nothing is lost.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::path::Path;

use super::super::deed::{busybox, run_true};
use super::{Room, command};
use crate::sys::process::{fork, wait};

const PROGRAMS: usize = 1000;
/// Less than this is no flood, on an emulated machine either.
const FLOOD_MIN: u64 = 10_000;
const STOP: &str = "stop";

pub(super) fn a_flood_is_nobody_elses_loss() {
    let Some(room) = Room::open("fairness") else { return };
    let flood = room.begin(1, command("flood", &room.folder));
    let bystander = room.begin(2, command("bystander", &room.folder));
    let told = bystander.end(&room.stage);
    fs::write(room.folder.join(STOP), "").unwrap();
    let flood = flood.end(&room.stage);
    let path = busybox().display().to_string();
    let pids = |event: &str, field: &str, value: &str| -> BTreeSet<u64> {
        let events = told.of(event).filter(|event| event[field] == value);
        events.filter_map(|event| event["pid"].as_u64()).collect()
    };
    let programs = pids("session.command", "path", &path);
    assert_eq!(programs.len(), PROGRAMS, "programs told, and {} lost", told.lost());
    let ends = pids("session.command.exit", "program", "busybox");
    assert!(programs.is_subset(&ends), "{} ends", ends.len());
    let of_classes = told.of("session.loss").filter(|loss| loss["class"] != "program");
    assert_eq!(of_classes.collect::<Vec<_>>(), Vec::<&serde_json::Value>::new());
    let records: u64 = ["control", "file"].into_iter().map(|class| flood.in_all(class)).sum();
    assert!(records > FLOOD_MIN, "a flood of {records} records");
}

/// Programs, one after the other.
pub(super) fn bystander() {
    for _ in 0..PROGRAMS {
        run_true(&busybox());
    }
}

/// Files in one process, processes in another, until it is enough.
pub(super) fn flood(folder: &Path) {
    let is_over = || folder.join(STOP).exists();
    let flooded = folder.join("flooded");
    fs::write(&flooded, "").unwrap();
    let Some(forks) = fork().unwrap() else {
        while !is_over() {
            let children = (0..20).map(|_| match fork().unwrap() {
                Some(child) => child,
                None => std::process::exit(0),
            });
            for child in children.collect::<Vec<_>>() {
                wait(child).unwrap();
            }
        }
        std::process::exit(0)
    };
    while !is_over() {
        for _ in 0..200 {
            drop(OpenOptions::new().write(true).open(&flooded).unwrap());
        }
    }
    assert_eq!(wait(forks).unwrap(), 0);
}
