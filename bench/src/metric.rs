//! What is measured, in which unit, and which way is better.

/// One kind of figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
    /// It only says what was done.
    Neither,
}

const fn less(name: &'static str, unit: &'static str) -> Metric {
    Metric { name, unit, better: Better::Less }
}

const fn more(name: &'static str, unit: &'static str) -> Metric {
    Metric { name, unit, better: Better::More }
}

/// Of the whole peer process, its threads and children. A GB is 10^9 bytes.
pub(crate) const CPU_PER_GB: Metric = less("cpu_per_gb", "CPU-s/GB");
pub(crate) const CPU_PER_CONNECTION: Metric = less("cpu_per_connection", "us");
pub(crate) const CPU_PER_SESSION: Metric = less("cpu_per_session", "ms");
/// CPU per byte with many connections, by that with few.
pub(crate) const CPU_GROWTH: Metric = less("cpu_growth", "x");
/// How many `many` was.
pub(crate) const CONNECTIONS: Metric =
    Metric { name: "connections_many", unit: "1", better: Better::Neither };
pub(crate) const CPU_PER_GB_FEW: Metric = less("cpu_per_gb_few", "CPU-s/GB");
pub(crate) const CPU_PER_GB_MANY: Metric = less("cpu_per_gb_many", "CPU-s/GB");
pub(crate) const WALL_RATE: Metric = more("wall_rate", "GB/s");
pub(crate) const CONNECTION_RATE: Metric = more("connection_rate", "1/s");
/// What the peer adds to the same load sent straight to the upstream.
pub(crate) const ADDED_P50: Metric = less("added_p50", "us");
pub(crate) const ADDED_P99: Metric = less("added_p99", "us");
pub(crate) const ADDED_P999: Metric = less("added_p99.9", "us");
/// Through the peer, all in.
pub(crate) const P50: Metric = less("p50", "us");
pub(crate) const P99: Metric = less("p99", "us");
pub(crate) const P999: Metric = less("p99.9", "us");
/// Proportional set size per connection or session; the kernel's own memory is not in it.
pub(crate) const USER_MEMORY: Metric = less("user_memory", "KiB");
/// Of the process while it holds the connections.
pub(crate) const PROCESS_MEMORY: Metric = less("process_memory", "MiB");

/// In the kernel, by BPF statistics, in a session: a process from fork to exit, by what tells of it; with every system call
/// that it made.
pub(crate) const KERNEL_PROCESS: Metric = less("kernel_process", "us");
pub(crate) const KERNEL_PROCESS_ALL: Metric = less("kernel_process_all", "us");
pub(crate) const KERNEL_OPEN: Metric = less("kernel_open", "us");
/// A repetition that is only counted.
pub(crate) const KERNEL_FOLDED: Metric = less("kernel_folded", "us");
/// A connection and its end; both its ends are on this machine.
pub(crate) const KERNEL_CONNECT: Metric = less("kernel_connect", "us");
/// Outside of sessions: the dearest program, each time that it is passed; and any system call.
pub(crate) const KERNEL_OUTSIDE: Metric = less("kernel_outside", "ns");
pub(crate) const KERNEL_OUTSIDE_CALL: Metric = less("kernel_outside_call", "ns");
/// What the programs add to the same system call by the CPU that it takes, statistics off.
pub(crate) const OUTSIDE_CALL: Metric = less("added_outside_call", "ns");
/// What of these is the statistics' own, at most: a program that returns at once.
pub(crate) const KERNEL_FLOOR: Metric = less("kernel_floor", "ns");
/// A system call in a session that nothing is told of.
pub(crate) const KERNEL_INSIDE_CALL: Metric = less("kernel_inside_call", "ns");
pub(crate) const LOST_SUSTAINED: Metric = less("lost_sustained", "1");
pub(crate) const LOST_BURST: Metric = less("lost_burst", "1");
/// The same rate, where each event goes to the node's spool and is synced to the disk before its record counts as done with.
pub(crate) const LOST_DURABLE: Metric = less("lost_durable", "1");
pub(crate) const CPU_PER_EVENT_DURABLE: Metric = less("cpu_per_event_durable", "us");
/// Lost, and nothing told of it.
pub(crate) const SILENT: Metric = less("silently_lost", "1");
pub(crate) const RATE_SUSTAINED: Metric =
    Metric { name: "rate_sustained", unit: "1/s", better: Better::Neither };
pub(crate) const RATE_BURST: Metric =
    Metric { name: "rate_burst", unit: "1/s", better: Better::Neither };
pub(crate) const CPU_PER_EVENT: Metric = less("cpu_per_event", "us");
pub(crate) const CPU_PER_EVENT_BURST: Metric = less("cpu_per_event_burst", "us");
/// All resident pages at most, those of the kernel's rings included (proportional: they are mapped twice); and ours alone.
pub(crate) const RESIDENT_MEMORY: Metric = less("resident_memory", "MiB");
pub(crate) const ANONYMOUS_MEMORY: Metric = less("anonymous_memory", "MiB");
/// CPU of a build in a session, by that of the same outside with nothing loaded.
pub(crate) const BUILD: Metric = less("build", "x");
/// The same outside, by the same outside: what of it is noise.
pub(crate) const BUILD_NOISE: Metric =
    Metric { name: "build_noise", unit: "x", better: Better::Neither };
/// From the deed to the audit log.
pub(crate) const TOLD_P50: Metric = less("told_p50", "ms");
pub(crate) const TOLD_P99: Metric = less("told_p99", "ms");
/// CPU that being watched adds to whoever does it; and of the daemon that watches, for each of what it told.
pub(crate) const ADDED_EXEC: Metric = less("added_exec", "us");
pub(crate) const ADDED_OPEN: Metric = less("added_open", "us");
pub(crate) const ADDED_CONNECT: Metric = less("added_connect", "us");
pub(crate) const DAEMON_CPU: Metric = less("daemon_cpu", "us");
/// What it says that it has lost of them.
pub(crate) const LOST_MEANWHILE: Metric = less("lost_meanwhile", "1");

/// One measurement's figures.
pub(crate) type Sample = Vec<(Metric, f64)>;
