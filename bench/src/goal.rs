//! What the bench has to show: for each workload and metric, how much ours may cost at most, and how much better than
//! which peer it has to be. Data only; [`crate::report`] judges.

use crate::metric::{
    ADDED_P50, ADDED_P99, BUILD, CPU_GROWTH, CPU_PER_CONNECTION, CPU_PER_EVENT, CPU_PER_GB,
    CPU_PER_SESSION, KERNEL_CONNECT, KERNEL_FOLDED, KERNEL_OPEN, KERNEL_OUTSIDE, KERNEL_PROCESS,
    LOST_BURST, LOST_DURABLE, LOST_SUSTAINED, Metric, RATE_BURST, RATE_SUSTAINED, RESIDENT_MEMORY,
    SILENT, TOLD_P99, USER_MEMORY, WALL_RATE,
};

/// One line of the goals.
#[derive(Debug)]
pub(crate) struct Goal {
    pub(crate) workload: &'static str,
    pub(crate) metric: Metric,
    /// For ours alone.
    pub(crate) bound: Option<Bound>,
    /// Peers, and by which factor ours has to be better than each.
    pub(crate) against: &'static [(&'static str, f64)],
}

/// A limit in the metric's unit.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

const fn goal(
    workload: &'static str,
    metric: Metric,
    at_most: f64,
    against: &'static [(&'static str, f64)],
) -> Goal {
    Goal { workload, metric, bound: Some(Bound::AtMost(at_most)), against }
}

/// What is lost at a rate says nothing where the rate was not reached.
const fn reaches(workload: &'static str, metric: Metric, at_least: f64) -> Goal {
    Goal { workload, metric, bound: Some(Bound::AtLeast(at_least)), against: &[] }
}

const fn ratio_only(
    workload: &'static str,
    metric: Metric,
    against: &'static [(&'static str, f64)],
) -> Goal {
    Goal { workload, metric, bound: None, against }
}

pub(crate) const GOALS: &[Goal] = &[
    goal(
        "l4-bulk",
        CPU_PER_GB,
        0.46,
        &[("haproxy", 1.5), ("haproxy-256k", 1.25), ("nginx", 1.5), ("envoy", 1.5)],
    ),
    goal(
        "tls-bulk",
        CPU_PER_GB,
        0.78,
        &[
            ("haproxy-256k", 1.25),
            ("nginx", 1.6),
            ("envoy", 1.05),
            ("stunnel", 1.8),
            ("hitch", 1.8),
        ],
    ),
    goal(
        "tls-conn",
        CPU_PER_CONNECTION,
        210.0,
        &[("haproxy", 1.6), ("nginx", 1.9), ("envoy", 1.35)],
    ),
    goal("mtls-conn", CPU_PER_CONNECTION, 320.0, &[("haproxy", 1.3), ("envoy", 1.3)]),
    // Parity: what the kernel does is nearly all of it. 0.95 allows for noise.
    goal("plain-conn", CPU_PER_CONNECTION, 48.0, &[("haproxy", 0.95), ("nginx", 0.95)]),
    goal("latency", ADDED_P50, 10.0, &[]),
    ratio_only("latency", ADDED_P99, &[("haproxy", 1.0)]),
    goal("idle-plain", USER_MEMORY, 2.0, &[("haproxy", 4.0), ("envoy", 4.0)]),
    goal("idle-tls", USER_MEMORY, 12.0, &[("haproxy", 4.0), ("envoy", 4.0)]),
    goal("ssh-jump", CPU_PER_GB, 0.46, &[("sshd-aes128", 2.0), ("sshd-default", 3.0)]),
    // With TLS kept around SSH; and the jump listener, which ends SSH as sshd does.
    goal("ssh-jump-tls", CPU_PER_GB, 0.80, &[]),
    ratio_only("ssh-jump-host", CPU_PER_GB, &[("sshd-default", 1.0)]),
    ratio_only("tsh-bulk", WALL_RATE, &[("sshd", 0.9)]),
    goal("ssh-session-cpu", CPU_PER_SESSION, 20.0, &[("sshd", 4.0)]),
    goal("ssh-idle-memory", USER_MEMORY, 512.0, &[("sshd", 3.0)]),
    goal("growth", CPU_GROWTH, 1.2, &[]),
    goal("capture", KERNEL_PROCESS, 8.0, &[]),
    goal("capture", KERNEL_OPEN, 1.2, &[]),
    goal("capture", KERNEL_FOLDED, 0.25, &[]),
    goal("capture", KERNEL_CONNECT, 1.0, &[]),
    goal("capture", KERNEL_OUTSIDE, 40.0, &[]),
    // A hundredth less: sleeping and counting are not exact.
    reaches("capture", RATE_SUSTAINED, 49_500.0),
    goal("capture", LOST_SUSTAINED, 0.0, &[]),
    goal("capture", LOST_DURABLE, 0.0, &[]),
    reaches("capture", RATE_BURST, 198_000.0),
    goal("capture", LOST_BURST, 0.0, &[]),
    goal("capture", SILENT, 0.0, &[]),
    goal("capture", CPU_PER_EVENT, 1.5, &[]),
    goal("capture", RESIDENT_MEMORY, 48.0, &[]),
    goal("capture", BUILD, 1.01, &[]),
    goal("capture", TOLD_P99, 250.0, &[]),
];
