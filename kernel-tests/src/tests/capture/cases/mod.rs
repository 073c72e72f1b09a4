//! The 45 ways to get out of sight: each a deed that a process really does, and what is to be told of it.
//!
//! - [`session`]: out of the session (1 to 5, 44)
//! - [`programs`]: programs under other names, with other arguments (6 to 12, 25, 26, 42)
//! - [`uring`]: without system calls (13 to 15)
//! - [`network`]: what is no TCP connection (16 to 20)
//! - [`files`]: what is no open, or another path (21 to 24)
//! - [`others`]: through other processes (27, 28, 43)
//! - [`brokers`]: through services, the kernel and other sessions (29 to 31, 45)
//! - [`agents`]: the node itself (32, 34, 41)
//! - [`kernel`]: rights, the kernel, and the capture itself (33, 38 to 40)
//! - [`floods`]: too much at once (35 to 37)

mod agents;
mod brokers;
mod files;
mod floods;
mod kernel;
mod network;
mod others;
mod programs;
mod session;
mod uring;

use super::deed::Deed;
use super::stage::Scene;
use super::told::Found;

/// One way.
pub(super) struct Case {
    pub(super) number: u8,
    pub(super) name: &'static str,
    /// What happens around the deed, and what is to be found of it.
    pub(super) play: Play,
    /// What a process does, by the name of its part.
    pub(super) deed: fn(&Deed, &str),
}

pub(super) enum Play {
    /// It changes nothing outside of its own folders.
    Here(fn(&Scene<'_>) -> Vec<Found>),
    /// It changes the machine.
    InGuest(fn(&Scene<'_>) -> Vec<Found>),
}

/// All of them, by number.
pub(super) fn all() -> impl Iterator<Item = &'static Case> {
    const FILES: [&[Case]; 10] = [
        session::CASES,
        programs::CASES,
        uring::CASES,
        network::CASES,
        files::CASES,
        others::CASES,
        brokers::CASES,
        agents::CASES,
        kernel::CASES,
        floods::CASES,
    ];
    (1..=COUNT).filter_map(|number| FILES.into_iter().flatten().find(|case| case.number == number))
}

const COUNT: u8 = 45;

/// No case is missing and none is there twice.
const _: () = assert!(
    session::CASES.len()
        + programs::CASES.len()
        + uring::CASES.len()
        + network::CASES.len()
        + files::CASES.len()
        + others::CASES.len()
        + brokers::CASES.len()
        + agents::CASES.len()
        + kernel::CASES.len()
        + floods::CASES.len()
        == COUNT as usize
);
