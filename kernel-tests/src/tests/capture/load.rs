//! The kernel programs that capture sessions: each is taken by every kernel that has its hook. How many instructions the
//! verifier looked at is printed for `cargo xtask kernel-test`, which knows how many it were: a program that comes near a
//! kernel's limit should not surprise anybody.

use std::error::Error;

use aya::programs::{Program, ProgramError};
use aya::{Btf, EbpfLoader};
use serde_json::json;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/capture.bpf.o");

/// Those that stand in for LSM programs are loaded, too, so that their count is known; where these are taken, nobody needs them.
pub(super) fn every_program_is_taken_or_has_no_hook() {
    if !rustix::process::geteuid().is_root() {
        return crate::not_here("only root loads kernel programs");
    }
    let btf = Btf::from_sys_fs().unwrap();
    let mut loader = EbpfLoader::new();
    let mut ebpf = loader.btf(Some(&btf)).allow_unsupported_maps().load(OBJECT).unwrap();
    let mut programs: Vec<_> = ebpf.programs_mut().collect();
    programs.sort_by_key(|(name, _)| *name);
    let (mut taken, mut refused) = (0, Vec::new());
    for (name, program) in programs {
        crate::at(name);
        let (instructions, note) = match load(name, program, &btf) {
            Ok(instructions) => (Some(instructions), String::new()),
            Err(error) if text(&error).contains("unknown BTF type") => {
                (None, "no such hook".to_owned())
            }
            Err(error) => {
                refused.push(format!("{name}: {}", last_words(&error)));
                (None, "refused".to_owned())
            }
        };
        taken += usize::from(instructions.is_some());
        println!(
            "program {}",
            json!({ "program": name, "instructions": instructions, "note": note })
        );
    }
    assert!(taken > 0, "no program is taken");
    // Elsewhere a kernel may refuse a whole type.
    assert!(refused.is_empty() || !super::stage::is_guest(), "{}", refused.join(" ;; "));
}

/// Loads, and attaches what is in use; how many instructions the verifier looked at.
fn load(name: &str, program: &mut Program, btf: &Btf) -> Result<u32, ProgramError> {
    let (hook_name, is_used) = (capture::hook_of(name), !capture::stands_in(name));
    if let Program::BtfTracePoint(hook) = program {
        hook.load(hook_name, btf)?;
        if is_used {
            hook.attach()?;
        }
    } else if let Program::Lsm(hook) = program {
        hook.load(hook_name, btf)?;
        hook.attach()?;
    } else if let Program::FExit(hook) = program {
        hook.load(hook_name, btf)?;
        hook.attach()?;
    } else {
        panic!("of a type that nobody loads");
    }
    Ok(program.info()?.verified_instruction_count().unwrap_or_default())
}

/// The error and what it came from.
fn text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The end of what the verifier says, which is where it says why.
fn last_words(error: &dyn Error) -> String {
    const LENGTH: usize = 330;
    let text = text(error);
    let start = text.len().saturating_sub(LENGTH);
    let start = (start..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    text[start..].replace('\n', " | ")
}
