//! What a node says of its kernel with each heartbeat: the tier, the programs that are refused and why, how much comes, what
//! is lost. Held to the size that auth takes (`auth::inventory`); what does not fit is counted.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Display;
use std::time::Instant;

use capture::{Capture, Totals};
use proto::rpc::{CaptureRecords, CaptureStatus, RefusedProgram};
use time::OffsetDateTime;

/// Remembers what was said last, for what has come since.
#[derive(Debug)]
pub(super) struct Teller {
    since: i64,
    last: Option<(Totals, Instant)>,
}

impl Teller {
    /// Of a node that starts now.
    pub(super) fn new() -> Self {
        Self { since: OffsetDateTime::now_utc().unix_timestamp(), last: None }
    }

    pub(super) fn status(&mut self, capture: &Capture) -> CaptureStatus {
        let coverage = capture.coverage();
        let (refused, refused_more) = refused(&coverage);
        let programs = coverage.values().filter(|result| result.is_ok()).count();
        let (totals, now) = (capture.totals(), Instant::now());
        let (recent, recent_ms) = match self.last.replace((totals, now)) {
            Some((before, then)) => {
                let ms = now.saturating_duration_since(then).as_millis();
                (difference(totals, before), u32::try_from(ms).unwrap_or(u32::MAX))
            }
            None => ([0; 3], 0),
        };
        CaptureStatus {
            tier: capture.tier().map(|tier| tier.name().to_owned()).unwrap_or_default(),
            failure: capture.failure().map(|error| why(error)).unwrap_or_default(),
            programs: u32::try_from(programs).unwrap_or(u32::MAX),
            refused,
            refused_more,
            records: Some(by_class(totals.records)),
            recent: Some(by_class(recent)),
            recent_ms,
            lost: totals.lost,
            sessions: totals.sessions,
            since: self.since,
        }
    }
}

fn difference(now: Totals, before: Totals) -> [u64; 3] {
    let mut records = now.records;
    for (now, before) in records.iter_mut().zip(before.records) {
        *now = now.saturating_sub(before);
    }
    records
}

fn by_class([control, file, network]: [u64; 3]) -> CaptureRecords {
    CaptureRecords { control, file, network }
}

/// The programs that the kernel refuses, and how many more there are than fit.
fn refused<E: Display>(coverage: &BTreeMap<String, Result<(), E>>) -> (Vec<RefusedProgram>, u32) {
    let mut list = Vec::new();
    let (mut bytes, mut more) = (0, 0);
    let refusals =
        coverage.iter().filter_map(|(name, result)| Some((name, result.as_ref().err()?)));
    for (name, reason) in refusals {
        let program = RefusedProgram {
            name: line(name, NAME_BYTES_MAX),
            reason: line(reason, REASON_BYTES_MAX),
        };
        bytes += program.name.len() + program.reason.len();
        if list.len() < PROGRAMS_MAX && bytes <= LIST_BYTES_MAX {
            list.push(program);
        } else {
            more += 1;
        }
    }
    (list, more)
}

/// The error and what it came from, in a line.
pub(crate) fn why(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    line(text, REASON_BYTES_MAX)
}

/// The first of the text's lines, as far as it fits.
fn line(text: impl Display, bytes_max: usize) -> String {
    let text = text.to_string();
    let first = text.lines().next().unwrap_or_default();
    first.get(..first.floor_char_boundary(bytes_max)).unwrap_or_default().to_owned()
}

/// As auth takes them.
const PROGRAMS_MAX: usize = 200;
const NAME_BYTES_MAX: usize = 64;
const REASON_BYTES_MAX: usize = 256;
/// Less than auth takes, for the failure beside it.
const LIST_BYTES_MAX: usize = 15 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_capture_says_so() {
        let mut teller = Teller::new();
        let status = teller.status(&Capture::none());
        assert_eq!(status.tier, "");
        assert!(!status.failure.is_empty());
        assert_eq!((status.programs, status.recent_ms), (0, 0));
    }

    #[test]
    fn what_comes_between_two_beats_is_told() {
        let totals = |control, lost| Totals { records: [control, 2, 0], lost, sessions: 1 };
        assert_eq!(difference(totals(10, 0), totals(4, 0)), [6, 0, 0]);
        // A counter that begins anew.
        assert_eq!(difference(totals(3, 0), totals(4, 0)), [0, 0, 0]);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let reason = format!("{}\nand so on", "ü".repeat(200));
        let coverage: BTreeMap<_, _> =
            (0..250).map(|n| (format!("program_{n:03}"), Err(reason.clone()))).collect();
        let (list, more) = refused(&coverage);
        assert!(list.iter().all(|it| it.reason.len() == 256 && !it.reason.contains('\n')));
        assert_eq!(list.len() + usize::try_from(more).unwrap(), 250);
        let bytes: usize = list.iter().map(|it| it.name.len() + it.reason.len()).sum();
        assert!(bytes <= LIST_BYTES_MAX && list.len() > 50);
        let (all, none) =
            refused(&BTreeMap::from([("a".to_owned(), Err("x")), ("b".to_owned(), Ok(()))]));
        assert_eq!((all.len(), none), (1, 0));
    }
}
