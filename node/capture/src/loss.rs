//! What the kernel says that it has counted and lost, as events.

use ebpf_abi::Session as Counts;
use proto::event;

/// All in all, when the last task has ended.
pub(crate) fn summary(
    session: event::Session,
    tier: String,
    counts: &Counts,
) -> event::SessionCapture {
    let [control, file, network] = counts.tallies.map(|tally| tally.records);
    let lost = counts.tallies.iter().map(|tally| tally.lost_ring + tally.lost_budget).sum();
    event::SessionCapture { session, tier, control, file, network, folded: counts.folded, lost }
}

/// How many records, and the first and the last of them; what has no number is not told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lost {
    pub(crate) count: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Lost {
    /// Without numbers.
    pub(crate) fn of(count: u64) -> Self {
        Self { count, first: 0, last: 0 }
    }
}

pub(crate) fn loss(
    session: &event::Session,
    class: &str,
    reason: &str,
    Lost { count, first, last }: Lost,
) -> event::SessionLoss {
    let (session, class, reason) = (session.clone(), class.to_owned(), reason.to_owned());
    event::SessionLoss { session, class, reason, count, first, last }
}

/// What was lost between two looks.
pub(crate) fn losses(
    session: &event::Session,
    told: &Counts,
    counts: &Counts,
) -> Vec<event::SessionLoss> {
    let mut losses = Vec::new();
    let mut add = |class: &str, reason: &str, count: u64, first: u64, last: u64| {
        if count > 0 {
            losses.push(loss(session, class, reason, Lost { count, first, last }));
        }
    };
    for ((name, before), now) in CLASS_NAMES.iter().zip(&told.tallies).zip(&counts.tallies) {
        let first = if before.lost_last == 0 { now.lost_first } else { before.lost_last + 1 };
        let ring = now.lost_ring.saturating_sub(before.lost_ring);
        let budget = now.lost_budget.saturating_sub(before.lost_budget);
        add(name, "ring", ring, first, now.lost_last);
        add(name, "budget", budget, first, now.lost_last);
    }
    add("task", "", counts.unmarked.saturating_sub(told.unmarked), 0, 0);
    losses
}

/// By class.
pub(crate) const CLASS_NAMES: [&str; 3] = ["control", "file", "network"];

#[cfg(test)]
pub(crate) mod tests {
    use ebpf_abi::Tally;

    use super::*;

    pub(crate) fn facts() -> event::Session {
        let json = r#"{"sid":"01010101-0101-4101-8101-010101010101","namespace":"default","user":"alice",
            "login":"root","server_id":"02020202-0202-4202-8202-020202020202","server_hostname":"db-1",
            "server_version":"0.1.0","addr.remote":"192.0.2.7:50022","proto":"ssh"}"#;
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn losses_are_told_once_and_by_their_reason() {
        let mut counts = Counts::default();
        assert!(losses(&facts(), &Counts::default(), &counts).is_empty());
        counts.tallies[1] = Tally {
            records: 100,
            lost_ring: 3,
            lost_budget: 2,
            lost_first: 10,
            lost_last: 20,
            ..Tally::default()
        };
        counts.unmarked = 1;
        let told = losses(&facts(), &Counts::default(), &counts);
        let short: Vec<_> = told
            .iter()
            .map(|loss| {
                (loss.class.as_str(), loss.reason.as_str(), loss.count, loss.first, loss.last)
            })
            .collect();
        assert_eq!(
            short,
            [("file", "ring", 3, 10, 20), ("file", "budget", 2, 10, 20), ("task", "", 1, 0, 0)]
        );
        assert!(losses(&facts(), &counts, &counts).is_empty());
        let mut later = counts;
        later.tallies[1].lost_ring = 4;
        later.tallies[1].lost_last = 25;
        let told = losses(&facts(), &counts, &later);
        assert_eq!((told[0].count, told[0].first, told[0].last), (1, 21, 25));
    }
}
