//! The kernel programs that capture sessions: each is taken by every kernel that has its hook. How many instructions the
//! verifier looked at is printed for `cargo xtask kernel-test`, which knows how many it were: a program that comes near a
//! kernel's limit should not surprise anybody.

use aya::programs::{Program, ProgramError};
use aya::{Btf, EbpfLoader};
use serde_json::json;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/capture.bpf.o");

pub(super) fn every_program_is_taken_or_has_no_hook() {
    if !rustix::process::geteuid().is_root() {
        return crate::not_here("only root loads kernel programs");
    }
    let btf = Btf::from_sys_fs().unwrap();
    let mut loader = EbpfLoader::new();
    let mut ebpf = loader.btf(Some(&btf)).allow_unsupported_maps().load(OBJECT).unwrap();
    let mut programs: Vec<_> = ebpf.programs_mut().collect();
    programs.sort_by_key(|(name, _)| *name);
    let mut taken = 0;
    for (name, program) in programs {
        crate::at(name);
        let (instructions, note) = match load(name, program, &btf) {
            Ok(instructions) => (Some(instructions), String::new()),
            Err(ProgramError::Btf(_)) => (None, "no such hook".to_owned()),
            Err(error) => (None, refusal(&error)),
        };
        taken += usize::from(instructions.is_some());
        println!(
            "program {}",
            json!({ "program": name, "instructions": instructions, "note": note })
        );
    }
    assert!(taken > 0, "no program is taken");
}

/// Loads and attaches; how many instructions the verifier looked at.
fn load(name: &str, program: &mut Program, btf: &Btf) -> Result<u32, ProgramError> {
    if let Program::BtfTracePoint(hook) = program {
        hook.load(name, btf)?;
        hook.attach()?;
    } else if let Program::Lsm(hook) = program {
        hook.load(name, btf)?;
        hook.attach()?;
    } else {
        panic!("of a type that nobody loads");
    }
    Ok(program.info()?.verified_instruction_count().unwrap_or_default())
}

/// The error and what it came from, without what the verifier says.
fn refusal(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text.lines().next().unwrap_or_default().to_owned()
}
