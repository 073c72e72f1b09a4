//! The report as JSON: a header with the environment, the workloads with every raw sample, and the rows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::environment::Environment;

/// Raised when the meaning of a field changes.
const FORMAT: u32 = 1;

/// The whole report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Document {
    format: u32,
    pub(crate) environment: Environment,
    pub(crate) workloads: Vec<Measured>,
    pub(crate) rows: Vec<Row>,
}

/// One workload, as it was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) measured_at: String,
    pub(crate) commit: String,
    /// `quick` figures show that it works, no more.
    pub(crate) quick: bool,
    /// Of our data plane, where there is one.
    pub(crate) rung: Option<String>,
    /// Cores that others kept busy during a sample, at worst.
    pub(crate) others_busy_max: f64,
    pub(crate) load_average_max: f64,
    /// First the one that the drawing shows.
    pub(crate) metrics: Vec<MetricNote>,
    /// In the order of the contest: ours first.
    pub(crate) contenders: Vec<Contender>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MetricNote {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) more_is_better: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Contender {
    pub(crate) name: String,
    /// Why it was taken out, or did not take part.
    pub(crate) failed: Option<String>,
    /// By metric, one per round.
    pub(crate) samples: BTreeMap<String, Vec<f64>>,
}

/// Ours against one peer, or against a bound of its own (no peer).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) metric: String,
    pub(crate) unit: String,
    pub(crate) peer: Option<String>,
    /// Medians.
    pub(crate) ours: Option<f64>,
    pub(crate) theirs: Option<f64>,
    /// How many times better ours is: of the medians.
    pub(crate) ratio: Option<f64>,
    pub(crate) goal: Option<String>,
    pub(crate) pass: Option<bool>,
    pub(crate) pairs: usize,
    /// Of the ratio, round by round; where there is no peer, of ours.
    pub(crate) min: Option<f64>,
    pub(crate) max: Option<f64>,
}

impl Document {
    pub(crate) fn new(environment: Environment) -> Self {
        Self { format: FORMAT, environment, workloads: Vec::new(), rows: Vec::new() }
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let document: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no report of this bench", path.display()))?;
        ensure!(
            document.format == FORMAT,
            "{} has format {}, and this bench reads {FORMAT}",
            path.display(),
            document.format
        );
        Ok(document)
    }

    pub(crate) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Takes a workload in, in the place of what was there of the same name.
    pub(crate) fn put(&mut self, measured: Measured, rows: Vec<Row>, order: &[&str]) {
        self.workloads.retain(|old| old.name != measured.name);
        self.rows.retain(|old| old.workload != measured.name);
        self.workloads.push(measured);
        self.rows.extend(rows);
        let place = |name: &str| order.iter().position(|known| *known == name);
        self.workloads.sort_by_key(|measured| place(&measured.name));
        self.rows.sort_by_key(|row| place(&row.workload));
    }
}

/// The middle; of an even number, the mean of the two there.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some(f64::midpoint(lower, upper))
}

/// Smallest and largest.
pub(crate) fn range(values: &[f64]) -> Option<(f64, f64)> {
    let min = values.iter().copied().min_by(f64::total_cmp)?;
    let max = values.iter().copied().max_by(f64::total_cmp)?;
    Some((min, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(range(&[2.0, 1.0, 3.0]), Some((1.0, 3.0)));
    }
}
