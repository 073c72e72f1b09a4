//! Sessions that a node before us watched, and that go on: found by what it has left beside its data and in the kernel.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ebpf_abi::{Credit, Session as Counts};
use proto::event;

use super::before::Before;
use super::{Left, Live, records_of};
use crate::{Restore, lock, pins};

impl Live {
    /// Goes on with what a node before us watched.
    pub(super) fn restore(self: &Arc<Self>, restore: &Restore) {
        let Some(pins) = &self.pins else { return };
        for kept in pins.sessions() {
            let number = kept.number;
            self.next.fetch_max(number + 1, Ordering::Relaxed);
            let Some(counts) = self.maps.counts(number) else {
                if kept.boot == pins::boot() {
                    // It may go on, and nothing follows it any more.
                    self.watched(number, restore(kept.facts), kept.classes, None)
                        .lost("task", "restart", 1);
                }
                pins.forget(number);
                continue;
            };
            if records_of(&counts) == [0; 3] {
                // The node was killed before anything ran in it.
                pins.forget(number);
                continue;
            }
            let rules = serde_json::from_value(kept.rules).ok();
            if let Err(error) = self.maps.rules.adopt(number, rules.as_ref()) {
                tracing::error!(%error, number, "the rules of a session that goes on");
            }
            // What was read and not told is not known: it is told as lost. What is in the rings is within the budget.
            let done = self.maps.credit_of(number).records;
            let bytes = counts.tallies.map(|tally| tally.bytes);
            self.maps.credit(number, Credit { bytes, records: done });
            let mut watched = self.watched(number, restore(kept.facts), kept.classes, None);
            watched.rules.roles = kept.roles;
            // None of those that live.
            watched.leader = Some(0);
            watched.before = Some(Before::new(done));
            // All of it was told; if not, its end is told when the rings have been read.
            watched.is_over = counts.tasks == 0 && is_told(&counts, done);
            if counts.tasks > 0 {
                let session = watched.facts.clone();
                watched.send(event::SessionDetached { session, tasks: counts.tasks });
                tracing::info!(sid = %watched.facts.clone().sid, "a session goes on");
            }
            let mut sessions = lock(&self.sessions);
            if watched.is_over {
                sessions.over.push_back(number);
            } else if counts.tasks == 0 {
                sessions.left.push_back(Left::now(number, true));
            }
            sessions.by_number.insert(number, watched);
        }
        // Of a session that a node before us began and did not come to remember no task is marked.
        let sessions = lock(&self.sessions);
        self.maps.retain(&|number| sessions.by_number.contains_key(&number));
    }
}

/// Every record of a session has been made durable, its end's among them.
fn is_told(counts: &Counts, done: [u64; 3]) -> bool {
    counts.tallies.iter().zip(done).all(|(tally, done)| done >= tally.records)
}
