//! This report against an older one: what became better, what became worse, beyond what noise explains.

use super::document::{Document, Row};
use super::figure;
use super::markdown::table;

/// Less than this is noise on a shared machine.
const NOISE: f64 = 0.10;

/// A table of what both reports measured of ours, and of our ratio to each peer.
pub(crate) fn compare(old: &Document, new: &Document) -> String {
    let mut lines = Vec::new();
    for row in &new.rows {
        let same = |other: &&Row| {
            other.workload == row.workload && other.metric == row.metric && other.peer == row.peer
        };
        let Some(before) = old.rows.iter().find(same) else { continue };
        let (what, then, now, more_is_better) = match row.peer {
            // The ratio already says how many times better ours is.
            Some(_) => ("ratio", before.ratio, row.ratio, true),
            None => ("ours", before.ours, row.ours, more_is_better(new, row)),
        };
        let Some((then, now)) = then.zip(now) else { continue };
        lines.push(vec![
            row.workload.clone(),
            row.metric.clone(),
            row.peer.clone().unwrap_or_default(),
            what.to_owned(),
            figure(then),
            figure(now),
            format!("{:+.1} %", (now / then - 1.0) * 100.0),
            verdict(then, now, more_is_better).to_owned(),
        ]);
    }
    let heading = ["workload", "metric", "peer", "figure", "then", "now", "change", ""];
    format!(
        "\nThen: {} at {}. Now: {} at {}. Less than {:.0} % is called the same.\n\n{}",
        old.environment.date,
        old.environment.commit,
        new.environment.date,
        new.environment.commit,
        NOISE * 100.0,
        table(&heading, &lines)
    )
}

fn more_is_better(document: &Document, row: &Row) -> bool {
    let mut notes = document
        .workloads
        .iter()
        .filter(|measured| measured.name == row.workload)
        .flat_map(|measured| &measured.metrics);
    notes.any(|note| note.name == row.metric && note.more_is_better)
}

fn verdict(then: f64, now: f64, more_is_better: bool) -> &'static str {
    let gain = if more_is_better { now / then } else { then / now };
    if gain > 1.0 + NOISE {
        "better"
    } else if gain < 1.0 / (1.0 + NOISE) {
        "WORSE"
    } else {
        "same"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        assert_eq!(verdict(1.0, 1.05, false), "same");
        assert_eq!(verdict(1.0, 1.2, false), "WORSE");
        assert_eq!(verdict(1.0, 0.8, false), "better");
        assert_eq!(verdict(1.0, 1.2, true), "better");
    }
}
