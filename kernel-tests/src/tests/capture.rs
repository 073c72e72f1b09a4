//! The kernel programs that capture sessions: each is taken by every kernel that is tested, LSM programs included.

use aya::programs::Program;
use aya::{Btf, EbpfLoader};

crate::tests![every_program_is_taken];

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/capture.bpf.o");

fn every_program_is_taken() {
    let btf = Btf::from_sys_fs().unwrap();
    let mut loader = EbpfLoader::new();
    let mut ebpf = loader.btf(Some(&btf)).allow_unsupported_maps().load(OBJECT).unwrap();
    let mut programs = 0;
    for (name, program) in ebpf.programs_mut() {
        crate::at(name);
        if let Program::BtfTracePoint(hook) = program {
            hook.load(name, &btf).unwrap();
            hook.attach().unwrap();
        } else if let Program::Lsm(hook) = program {
            hook.load(name, &btf).unwrap();
            hook.attach().unwrap();
        } else {
            panic!("of a type that nobody loads");
        }
        programs += 1;
    }
    assert_eq!(programs, 4, "what is in the object");
}
