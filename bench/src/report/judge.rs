//! From samples to rows: medians, ratios round by round, and whether the goals are met.

use super::document::{Contender, Measured, MetricNote, Row, median, range};
use super::environment;
use super::figure;
use crate::goal::{Bound, GOALS, Goal};
use crate::metric::{Better, Metric};
use crate::peer::OURS;
use crate::run::{Outcome, Samples};

/// What the JSON keeps of an outcome.
pub(crate) fn measured(outcome: &Outcome, about: &str, quick: bool) -> Measured {
    let contender = |samples: &Samples| Contender {
        name: samples.name.clone(),
        failed: samples.failed.clone(),
        samples: samples.raw().iter().map(|(name, v)| ((*name).to_owned(), v.to_vec())).collect(),
    };
    Measured {
        name: outcome.workload.to_owned(),
        about: about.to_owned(),
        measured_at: environment::now(),
        commit: environment::commit(),
        quick,
        rung: outcome.samples.iter().find_map(|samples| samples.rung.clone()),
        others_busy_max: outcome.others_busy_max,
        load_average_max: outcome.load_average_max,
        metrics: metrics(outcome).into_iter().map(note).collect(),
        contenders: outcome.samples.iter().map(contender).collect(),
    }
}

fn note(metric: Metric) -> MetricNote {
    MetricNote {
        name: metric.name.to_owned(),
        unit: metric.unit.to_owned(),
        more_is_better: metric.better == Better::More,
    }
}

/// In the order in which the workload reports them.
fn metrics(outcome: &Outcome) -> Vec<Metric> {
    let first = outcome.samples.iter().find(|samples| !samples.by_metric.is_empty());
    first.map(|s| s.by_metric.iter().map(|(metric, _)| *metric).collect()).unwrap_or_default()
}

/// The rows of an outcome: for each metric ours alone, then against each peer.
pub(crate) fn rows(outcome: &Outcome) -> Vec<Row> {
    let ours = outcome.samples.iter().find(|samples| samples.name == OURS);
    let mut rows = Vec::new();
    for metric in metrics(outcome) {
        let goal = GOALS
            .iter()
            .find(|goal| goal.workload == outcome.workload && goal.metric.name == metric.name);
        let our_values = ours.and_then(|ours| ours.values(metric)).unwrap_or_default();
        rows.push(alone(outcome.workload, metric, goal, our_values));
        if metric.better == Better::Neither {
            continue;
        }
        for peer in outcome.samples.iter().filter(|samples| samples.name != OURS) {
            let Some(their_values) = peer.values(metric) else { continue };
            rows.push(Row {
                workload: outcome.workload.to_owned(),
                peer: Some(peer.name.clone()),
                ..against(metric, goal, &peer.name, our_values, their_values)
            });
        }
    }
    rows
}

fn alone(workload: &str, metric: Metric, goal: Option<&Goal>, ours: &[f64]) -> Row {
    let middle = median(ours);
    let (min, max) = range(ours).unzip();
    let bound = goal.and_then(|goal| goal.bound);
    Row {
        workload: workload.to_owned(),
        metric: metric.name.to_owned(),
        unit: metric.unit.to_owned(),
        peer: None,
        ours: middle,
        theirs: None,
        ratio: None,
        goal: bound.map(|bound| match bound {
            Bound::AtLeast(least) => format!(">= {} {}", figure(least), metric.unit),
            Bound::AtMost(most) => format!("<= {} {}", figure(most), metric.unit),
        }),
        pass: middle.zip(bound).map(|(ours, bound)| bound.is_met(ours)),
        pairs: ours.len(),
        min,
        max,
    }
}

fn against(metric: Metric, goal: Option<&Goal>, peer: &str, ours: &[f64], theirs: &[f64]) -> Row {
    let medians = median(ours).zip(median(theirs));
    let ratio = medians.and_then(|(ours, theirs)| times_better(metric, ours, theirs));
    let pairs: Vec<f64> =
        ours.iter().zip(theirs).filter_map(|(o, t)| times_better(metric, *o, *t)).collect();
    let (min, max) = range(&pairs).unzip();
    let wanted = goal.and_then(|goal| goal.against.iter().find(|(name, _)| *name == peer));
    Row {
        workload: String::new(),
        metric: metric.name.to_owned(),
        unit: metric.unit.to_owned(),
        peer: None,
        ours: median(ours),
        theirs: median(theirs),
        ratio,
        goal: wanted.map(|(_, times)| format!(">= {times:.2}x")),
        pass: medians.zip(wanted).map(|((ours, theirs), (_, times))| match ratio {
            Some(ratio) => ratio >= *times,
            // Something added less than nothing: noise, in favour of whose it was.
            None => metric.better == Better::Less && ours <= theirs,
        }),
        pairs: ours.len().min(theirs.len()),
        min,
        max,
    }
}

/// None where a ratio says nothing: of what is not above zero.
fn times_better(metric: Metric, ours: f64, theirs: f64) -> Option<f64> {
    if ours <= 0.0 || theirs <= 0.0 {
        return None;
    }
    Some(match metric.better {
        Better::Less => theirs / ours,
        Better::More => ours / theirs,
        Better::Neither => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::{ADDED_P99, CPU_PER_GB, WALL_RATE};

    fn samples(name: &str, metric: Metric, values: &[f64]) -> Samples {
        let by_metric = vec![(metric, values.to_vec())];
        Samples { name: name.to_owned(), by_metric, ..Samples::default() }
    }

    fn judge(workload: &'static str, samples: Vec<Samples>) -> Vec<Row> {
        rows(&Outcome { workload, samples, others_busy_max: 0.0, load_average_max: 0.0 })
    }

    #[test]
    fn less_is_better() {
        let rows = judge(
            "l4-bulk",
            vec![
                samples(OURS, CPU_PER_GB, &[0.4, 0.5, 0.4]),
                samples("haproxy", CPU_PER_GB, &[0.8, 0.7, 0.8]),
                samples("envoy", CPU_PER_GB, &[0.5, 0.5, 0.5]),
            ],
        );
        let [alone, haproxy, envoy] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((alone.ours, alone.pass, alone.pairs), (Some(0.4), Some(true), 3));
        assert_eq!((haproxy.ratio, haproxy.pass), (Some(2.0), Some(true)));
        assert_eq!((haproxy.min, haproxy.max), (Some(0.7 / 0.5), Some(2.0)));
        assert_eq!((envoy.goal.as_deref(), envoy.pass), (Some(">= 1.50x"), Some(false)));
    }

    #[test]
    fn more_is_better() {
        let rows = judge(
            "tsh-bulk",
            vec![samples(OURS, WALL_RATE, &[0.95]), samples("sshd", WALL_RATE, &[1.0])],
        );
        assert_eq!(rows[1].ratio, Some(0.95));
        assert_eq!(rows[1].pass, Some(true));
    }

    #[test]
    fn without_ours_theirs_still_stand() {
        let rows = judge("l4-bulk", vec![samples("haproxy", CPU_PER_GB, &[0.7])]);
        assert_eq!((rows[1].theirs, rows[1].ratio, rows[1].pass), (Some(0.7), None, None));
        assert_eq!(rows[0].pass, None);
    }

    #[test]
    fn less_than_nothing_is_no_ratio() {
        let rows = judge(
            "latency",
            vec![samples(OURS, ADDED_P99, &[-1.0]), samples("haproxy", ADDED_P99, &[2.0])],
        );
        assert_eq!((rows[1].ratio, rows[1].pass), (None, Some(true)));
    }

    /// Every goal names a workload that there is.
    #[test]
    fn goals_belong_to_workloads() {
        for goal in GOALS {
            assert!(
                crate::workload::WORKLOADS.iter().any(|w| w.name == goal.workload),
                "{}",
                goal.workload
            );
        }
    }
}
