//! Arguments whose memory is taken away by another thread while the kernel reads them: what is told is what the program got.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{Room, command};
use crate::sys::exec::{Vanish, vanishing};
use crate::sys::process::{fork, wait};

/// For each way of vanishing.
const TRIES: usize = 40;

pub(super) fn arguments_are_told_as_the_program_got_them() {
    let Some(room) = Room::open("argv") else { return };
    let told = room.begin(1, command("argv", &room.folder)).end(&room.stage);
    let mut got = BTreeMap::new();
    for entry in fs::read_dir(&room.folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if let Some(number) = name.strip_prefix("witness-") {
            got.insert(number.to_owned(), fs::read_to_string(&path).unwrap());
        }
    }
    assert!(!got.is_empty(), "no program was started");
    let mut said = BTreeMap::new();
    for event in told.of("session.command") {
        let argv: Vec<&str> =
            event["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let failed = event["return_code"].as_i64().unwrap_or_default();
        if let ["fault", "witness", _, number, argument] = argv.as_slice()
            && failed == 0
        {
            assert!(event["argv_missing"].is_null(), "{event}");
            said.insert((*number).to_owned(), (*argument).to_owned());
        } else if failed != 0 {
            // Arguments that could not be read are no program.
            assert_eq!(failed, -i64::from(libc::EFAULT), "{event}");
        }
    }
    assert_eq!(said, got);
    assert_eq!(told.lost(), 0);
}

/// Each try is a process: one that fails has a thread too many.
pub(super) fn deed(folder: &Path) {
    let program = std::env::current_exe().unwrap();
    let folder = folder.to_str().unwrap();
    for (way, vanish) in [Vanish::Emptied, Vanish::Forbidden].into_iter().enumerate() {
        for number in 0..TRIES {
            let number = (way * TRIES + number).to_string();
            let Some(child) = fork().unwrap() else {
                let words = ["kernel-tests", "fault", "witness", folder, &number];
                vanishing(&program, &words, vanish);
                // It was not there when the kernel looked: that can be.
                std::process::exit(0)
            };
            assert_eq!(wait(child).unwrap(), 0);
        }
    }
}

/// The program: writes down what it got.
pub(super) fn witness(folder: &Path, number: &str, argument: &str) {
    fs::write(folder.join(format!("witness-{number}")), argument).unwrap();
}
