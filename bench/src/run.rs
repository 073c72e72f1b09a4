//! Who is measured when: rounds, in each of which every contender is measured once, so that whatever disturbs the
//! machine disturbs all of them. Every second round goes the other way round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::measure::{Quiet, load_average, wait_for_quiet};
use crate::metric::{Metric, Sample};
use crate::workload::{Bench, Contender, Workload};

/// The person wants us to stop. What was measured by then is still worth a report.
#[derive(Debug, Clone)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens for Ctrl-C. The programs under test are not in our process group and hear nothing of it; they end with us.
    pub(crate) fn on_interrupt() -> Result<Self> {
        let stop = Self(Arc::default());
        let asked = Arc::clone(&stop.0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            while runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
                if asked.swap(true, Ordering::Relaxed) {
                    // Asked twice. The kernel ends our children with us.
                    std::process::exit(130);
                }
                eprintln!("stopping after this sample; once more to stop at once");
            }
        })?;
        Ok(stop)
    }

    pub(crate) fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// All samples of one contender, by metric.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples {
    pub(crate) name: String,
    pub(crate) rung: Option<String>,
    pub(crate) by_metric: Vec<(Metric, Vec<f64>)>,
    /// Why it was taken out, if it was.
    pub(crate) failed: Option<String>,
}

/// A workload's outcome.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) workload: &'static str,
    pub(crate) samples: Vec<Samples>,
    /// Cores that others kept busy meanwhile, at worst; how far to trust it all.
    pub(crate) others_busy_max: f64,
    pub(crate) load_average_max: f64,
}

/// In each workload, waiting for a quiet machine may take so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a workload to its end, or until the person wants to stop.
pub(crate) fn run(workload: &Workload, bench: &Bench, pairs: u32, stop: &Stop) -> Result<Outcome> {
    let mut contest = (workload.open)(bench).with_context(|| workload.name.to_owned())?;
    let count = contest.contenders.len();
    let bar = ProgressBar::new(u64::from(pairs) * count as u64);
    bar.set_style(ProgressStyle::with_template("{prefix:<16} {bar:24} {pos}/{len}  {msg}")?);
    bar.set_prefix(workload.name);
    bar.enable_steady_tick(Duration::from_millis(500));
    let mut outcome = Outcome {
        workload: workload.name,
        samples: contest.contenders.iter().map(Samples::of).collect(),
        others_busy_max: 0.0,
        load_average_max: 0.0,
    };
    for (name, why) in std::mem::take(&mut contest.absent) {
        bar.suspend(|| eprintln!("{}: {name} does not take part: {why}", workload.name));
        outcome.samples.push(Samples { name, failed: Some(why), ..Samples::default() });
    }
    let mut patience = bench.effort.choose(PATIENCE, Duration::ZERO);
    for round in 0..pairs {
        let mut order: Vec<usize> = (0..count).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let contender = contest.contenders.get_mut(at).context("one of those there are")?;
            let samples = outcome.samples.get_mut(at).context("one for each")?;
            if stop.asked() {
                bar.abandon_with_message("stopped");
                return Ok(outcome);
            }
            let who = format!("{}, round {} of {pairs}", contender.name, round + 1);
            if samples.failed.is_none() {
                bar.set_message(format!("{who}: waiting for others to be quiet"));
                wait_for_quiet(&mut patience);
                bar.set_message(who);
                let quiet = Quiet::watch();
                outcome.load_average_max = outcome.load_average_max.max(load_average());
                match (contender.sample)() {
                    Ok(sample) => samples.add(sample),
                    Err(error) => {
                        bar.suspend(|| {
                            eprintln!("{}: {} failed: {error:#}", workload.name, contender.name);
                        });
                        samples.failed = Some(format!("{error:#}"));
                    }
                }
                outcome.others_busy_max = outcome.others_busy_max.max(quiet.others());
            }
            bar.inc(1);
        }
    }
    bar.finish_with_message("done");
    Ok(outcome)
}

impl Samples {
    fn of(contender: &Contender<'_>) -> Self {
        Self { name: contender.name.clone(), rung: contender.rung.clone(), ..Self::default() }
    }

    fn add(&mut self, sample: Sample) {
        for (metric, value) in sample {
            match self.by_metric.iter_mut().find(|(known, _)| *known == metric) {
                Some((_, values)) => values.push(value),
                None => self.by_metric.push((metric, vec![value])),
            }
        }
    }

    pub(crate) fn values(&self, metric: Metric) -> Option<&[f64]> {
        let (_, values) = self.by_metric.iter().find(|(known, _)| *known == metric)?;
        Some(values)
    }

    /// For the report.
    pub(crate) fn raw(&self) -> BTreeMap<&'static str, &[f64]> {
        self.by_metric.iter().map(|(metric, values)| (metric.name, values.as_slice())).collect()
    }
}
