//! Capture: the kernel programs load, and sessions that do what is often missed are told of. Each deed is a process of its
//! own in a session of its own: this program again, as `kernel-tests deed NUMBER PART FOLDER`.
//!
//! - [`load`]: every program of the object, with what the kernel's verifier had to do for it
//! - [`agent`]: a node that can die
//! - [`stage`]: the real capture, sessions on it, and processes outside of them
//! - [`deed`]: what a deed has at hand
//! - [`told`]: what was told of a session, and whether that is enough
//! - [`faults`]: bad input, floods, a node that is stopped
//! - [`cases`]: the deeds, and what is to be told of each
//!
//! What comes of them is printed for `cargo xtask kernel-test`, which knows what was seen before and keeps the table.

mod agent;
pub(crate) mod cases;
mod deed;
pub(crate) mod faults;
mod load;
mod stage;
mod told;

use serde_json::json;

use self::cases::{Case, Play};
use self::stage::{Scene, Stage};
use self::told::Verdict;

pub(crate) use self::agent::run as run_agent;
pub(crate) use self::deed::run as run_deed;
pub(crate) use self::faults::run as run_fault;

crate::tests![every_program_is_taken_or_has_no_hook, bypasses];

use self::load::every_program_is_taken_or_has_no_hook;

/// Each case is played, and a line says what was told of it. Whether that is enough is for who knows what it was before; a
/// deed that cannot be done is a mistake of ours.
fn bypasses() {
    if !rustix::process::geteuid().is_root() {
        return crate::not_here("only root loads kernel programs");
    }
    stage::prepare();
    let stage = Stage::new();
    let Some(tier) = stage.tier() else {
        return crate::not_here("this kernel captures nothing");
    };
    let mut failures = Vec::new();
    for case in cases::all() {
        crate::at(format!("{} {}", case.number, case.name));
        let before = stage.passed_over();
        let mut verdict = play(&stage, case);
        if verdict.attributed == Some(false) {
            // A machine that is busy with other things may have been too slow for a wait of ours: said in the note.
            let second = play(&stage, case);
            if second.attributed == Some(true) {
                verdict = second;
                verdict.explain("on the second try");
            }
        }
        let passed_over = stage.passed_over() - before;
        if passed_over > 0 && verdict.attributed != Some(true) {
            verdict.explain(&format!("programs that the kernel passed over: {passed_over}"));
        }
        if let Some(mistake) = &verdict.mistake {
            failures.push(format!("{} {}: {mistake}", case.number, case.name));
        }
        let line = json!({
            "tier": tier.name(), "case": case.number, "name": case.name,
            "seen": verdict.seen, "attributed": verdict.attributed, "note": verdict.note,
        });
        println!("case {line}");
    }
    assert!(failures.is_empty(), "{}", failures.join("; "));
}

fn play(stage: &Stage, case: &'static Case) -> Verdict {
    match case.play {
        Play::InGuest(_) if !stage::is_guest() => {
            Verdict::not_played("only in a virtual machine: it would change this one")
        }
        Play::InGuest(play) | Play::Here(play) => {
            let scene = Scene::new(stage, case);
            let found = play(&scene);
            Verdict::of(&found, &scene.impossible(), &scene.mistakes())
        }
    }
}
