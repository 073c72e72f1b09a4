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

/// One measurement's figures.
pub(crate) type Sample = Vec<(Metric, f64)>;
