//! The kernel programs that capture sessions: each is taken by every kernel that is tested, LSM programs included.

use std::error::Error;

use aya::programs::{Program, ProgramError};
use aya::{Btf, EbpfLoader};

crate::tests![every_program_is_taken];

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/capture.bpf.o");

fn every_program_is_taken() {
    let btf = Btf::from_sys_fs().unwrap();
    let mut loader = EbpfLoader::new();
    let mut ebpf = loader.btf(Some(&btf)).allow_unsupported_maps().load(OBJECT).unwrap();
    let mut failed = Vec::new();
    for (name, program) in ebpf.programs_mut().filter(|(name, _)| !capture::stands_in(name)) {
        let target = capture::hook_of(name);
        let done = if let Program::BtfTracePoint(hook) = program {
            hook.load(target, &btf).and_then(|()| hook.attach()).map(drop)
        } else if let Program::Lsm(hook) = program {
            hook.load(target, &btf).and_then(|()| hook.attach()).map(drop)
        } else {
            panic!("{name}: of a type that nobody loads");
        };
        // A hook that this kernel has not.
        if let Err(error) = done
            && !error.to_string().contains("unknown BTF type")
        {
            failed.push(format!("{name}: {}", reason(&error)));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join(" ;; "));
}

/// The end of what the verifier says, which is where it says why.
fn reason(error: &ProgramError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    let start = text.len().saturating_sub(330);
    let start = (start..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    text[start..].replace('\n', " | ")
}
