//! What the roles say of themselves, for readiness and status. Written by `start`, read by `diag`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// State of one role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RoleHealth {
    pub(crate) ready: bool,
    /// For people: what it listens on, or what it waits for.
    pub(crate) detail: String,
}

/// A process that an upgrade has replaced, and that still has what could not be handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lingering {
    pub(crate) pid: u32,
    pub(crate) streams: usize,
    /// Then it ends them.
    pub(crate) left_s: u64,
}

/// State of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) cluster: String,
    pub(crate) nodename: String,
    pub(crate) draining: bool,
    pub(crate) ready: bool,
    pub(crate) roles: BTreeMap<String, RoleHealth>,
    /// What the kernel tells a node of sessions; empty without a node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) capture: String,
    /// A process says it of itself; whoever asks for the status puts them together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) lingering: Vec<Lingering>,
}

/// Shared by everybody who writes or reads it.
#[derive(Debug)]
pub(crate) struct Health {
    report: Mutex<Report>,
}

impl Health {
    /// Roles are listed as waiting from the beginning, so that readiness is not claimed too early.
    pub(crate) fn new(nodename: &str, roles: &[&str]) -> Self {
        let waiting = RoleHealth { ready: false, detail: "starting".into() };
        let roles = roles.iter().map(|role| ((*role).to_owned(), waiting.clone())).collect();
        let report = Report {
            version: proto::VERSION.into(),
            pid: std::process::id(),
            cluster: String::new(),
            nodename: nodename.into(),
            draining: false,
            ready: false,
            roles,
            capture: String::new(),
            lingering: Vec::new(),
        };
        Self { report: Mutex::new(report) }
    }

    fn change(&self, change: impl FnOnce(&mut Report)) {
        let mut report = self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut report);
        report.ready = !report.draining && report.roles.values().all(|role| role.ready);
    }

    pub(crate) fn role(&self, role: &str, ready: bool, detail: impl Into<String>) {
        let health = RoleHealth { ready, detail: detail.into() };
        self.change(|report| {
            report.roles.insert(role.to_owned(), health);
        });
    }

    pub(crate) fn cluster(&self, cluster: &str) {
        self.change(|report| report.cluster = cluster.to_owned());
    }

    pub(crate) fn capture(&self, capture: String) {
        self.change(|report| report.capture = capture);
    }

    pub(crate) fn draining(&self) {
        self.change(|report| report.draining = true);
    }

    /// A new process serves; this one has so many streams left, and so much time for them.
    pub(crate) fn lingers(&self, streams: usize, left: Duration) {
        self.change(|report| {
            report.lingering = vec![Lingering { pid: report.pid, streams, left_s: left.as_secs() }];
        });
    }

    pub(crate) fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_every_role_is_and_nothing_drains() {
        let health = Health::new("n", &["auth", "node"]);
        assert!(!health.report().ready);
        health.role("auth", true, "");
        assert!(!health.report().ready);
        health.role("node", true, "");
        assert!(health.report().ready);
        health.draining();
        assert!(!health.report().ready);
    }
}
