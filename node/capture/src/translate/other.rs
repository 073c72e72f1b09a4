//! Rights that are taken or given up, the kernel itself, and other processes.

use ebpf_abi::{Header, Kernel, Rights, Trace, kernel, rights, trace, via};
use proto::event::{self, Body as Event};

use super::{Context, comm, prov, text};

pub(super) fn rights(
    context: &Context<'_>,
    header: &Header,
    program: String,
    record: &Rights,
) -> Event {
    let (op, show): (_, fn(u64) -> String) = match record.op {
        rights::SETUID => ("setuid", pair),
        rights::SETGID => ("setgid", pair),
        rights::SETGROUPS => ("setgroups", count),
        rights::CAPSET => ("capset", hex),
        rights::USERNS => ("userns", hex),
        rights::NAMESPACE => ("namespace", hex),
        rights::SETFSUID => ("setfsuid", count),
        rights::SETFSGID => ("setfsgid", count),
        _ => ("unknown", hex),
    };
    event::SessionPrivilege {
        session: context.session.clone(),
        pid: header.tgid,
        program,
        op: op.to_owned(),
        from: show(record.old),
        to: show(record.new),
        prov: prov(header.prov),
        return_code: record.result,
    }
    .into()
}

/// Real and effective, `1000:0`.
fn pair(ids: u64) -> String {
    if ids == NOT_KNOWN {
        return String::new();
    }
    format!("{}:{}", ids >> 32, ids & 0xffff_ffff)
}

/// At the end of a system call, what was before.
const NOT_KNOWN: u64 = u64::MAX;

fn count(number: u64) -> String {
    if number == NOT_KNOWN { String::new() } else { number.to_string() }
}

fn hex(set: u64) -> String {
    if set == NOT_KNOWN {
        return String::new();
    }
    format!("{set:#x}")
}

pub(super) fn kernel(
    context: &Context<'_>,
    header: &Header,
    program: String,
    record: &Kernel,
    name: &[u8],
) -> Event {
    let op = match record.op {
        kernel::MODULE => "module",
        kernel::BPF => "bpf",
        kernel::KEXEC => "kexec",
        kernel::PERF => "perf",
        kernel::CLOCK => "clock",
        kernel::RAW => "raw",
        kernel::URING => "io_uring",
        kernel::SECCOMP_NOTIFY => "seccomp_notify",
        kernel::TAMPER => "tamper",
        _ => "unknown",
    };
    let detail = match (record.op, name) {
        (kernel::BPF, []) => bpf_command(record.code),
        (_, name) => text(name),
    };
    event::SessionKernel {
        session: context.session.clone(),
        pid: header.tgid,
        program,
        op: op.to_owned(),
        detail,
        prov: prov(header.prov),
        return_code: record.result,
    }
    .into()
}

/// Of bpf(2), as its header names them.
fn bpf_command(code: u32) -> String {
    const NAMES: [&str; 36] = [
        "map_create",
        "map_lookup_elem",
        "map_update_elem",
        "map_delete_elem",
        "map_get_next_key",
        "prog_load",
        "obj_pin",
        "obj_get",
        "prog_attach",
        "prog_detach",
        "prog_test_run",
        "prog_get_next_id",
        "map_get_next_id",
        "prog_get_fd_by_id",
        "map_get_fd_by_id",
        "obj_get_info_by_fd",
        "prog_query",
        "raw_tracepoint_open",
        "btf_load",
        "btf_get_fd_by_id",
        "task_fd_query",
        "map_lookup_and_delete_elem",
        "map_freeze",
        "btf_get_next_id",
        "map_lookup_batch",
        "map_lookup_and_delete_batch",
        "map_update_batch",
        "map_delete_batch",
        "link_create",
        "link_update",
        "link_get_fd_by_id",
        "link_get_next_id",
        "enable_stats",
        "iter_create",
        "link_detach",
        "prog_bind_map",
    ];
    let name = usize::try_from(code).ok().and_then(|code| NAMES.get(code));
    name.map_or_else(|| code.to_string(), ToString::to_string)
}

pub(super) fn trace(
    context: &Context<'_>,
    header: &Header,
    program: String,
    record: &Trace,
    name: &[u8],
) -> Vec<Event> {
    let session = context.session.clone();
    let (pid, target_pid) = (header.tgid, record.other);
    let target_program = comm(&record.other_comm);
    let sid = context.other.cloned();
    let target_sid = sid.map(|sid| sid.to_string()).unwrap_or_default();
    let op = match record.op {
        trace::DELEGATE => {
            let via = match record.via {
                via::FILE => "file",
                via::PTRACE => "ptrace",
                via::HELPER => "helper",
                via::SOCKET => "socket",
                _ => "unknown",
            };
            let (via, path) = (via.to_owned(), text(name));
            let delegation = event::SessionDelegation {
                session,
                pid,
                program,
                via,
                path,
                target_pid,
                target_program,
                target_sid,
            };
            return vec![delegation.into()];
        }
        trace::PTRACE => "ptrace",
        trace::MEMORY => "memory",
        trace::SIGNAL => "signal",
        trace::DESCRIPTOR => "descriptor",
        _ => "unknown",
    };
    let reached = event::SessionTrace {
        session,
        pid,
        program,
        op: op.to_owned(),
        target_pid,
        target_program,
        target_sid,
        detail: match record.op {
            trace::SIGNAL => record.code.to_string(),
            _ => text(name),
        },
        prov: prov(header.prov),
        return_code: record.result,
    };
    // Who is debugged does what the debugger wants.
    let mastered = matches!(record.op, trace::PTRACE | trace::MEMORY)
        && record.result == 0
        && reached.target_sid != reached.session.sid.to_string();
    let delegation = mastered.then(|| delegation(&reached, "ptrace"));
    std::iter::once(reached.into()).chain(delegation).collect()
}

fn delegation(reached: &event::SessionTrace, via: &str) -> Event {
    event::SessionDelegation {
        session: reached.session.clone(),
        pid: reached.pid,
        program: reached.program.clone(),
        via: via.to_owned(),
        path: String::new(),
        target_pid: reached.target_pid,
        target_program: reached.target_program.clone(),
        target_sid: reached.target_sid.clone(),
    }
    .into()
}

/// Another's memory, opened as a file.
pub(super) fn memory(disk: &event::SessionDisk) -> Option<Event> {
    let of = disk.path.strip_prefix("/proc/")?.strip_suffix("/mem")?;
    // Of one of its threads, too.
    let pid: u32 = of.split_once("/task/").map_or(of, |(pid, _)| pid).parse().ok()?;
    if disk.op != "open" || pid == disk.pid {
        return None;
    }
    let reached = event::SessionTrace {
        session: disk.session.clone(),
        pid: disk.pid,
        program: disk.program.clone(),
        op: "memory".to_owned(),
        target_pid: pid,
        target_program: String::new(),
        target_sid: String::new(),
        detail: String::new(),
        prov: disk.prov.clone(),
        return_code: disk.return_code,
    };
    Some(reached.into())
}
