//! What is known of a session as a whole, and above all what is missing: said first, never hidden.

use std::collections::BTreeMap;

use proto::event::{Body, Event, Session, SessionCapture, SessionLoss};
use time::OffsetDateTime;

use cli::captured::{loss_class, loss_reason};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Notices {
    pub(super) facts: Option<Session>,
    /// What the kernel tells of it, as `session.start` says; `None` while that was not seen.
    pub(super) tier: Option<String>,
    pub(super) start: Option<OffsetDateTime>,
    pub(super) end: Option<OffsetDateTime>,
    pub(super) totals: Option<SessionCapture>,
    /// By class and reason.
    pub(super) losses: BTreeMap<(String, String), Loss>,
    /// Tasks that went on after the end.
    pub(super) detached: Option<u64>,
    /// It asked the kernel.
    is_captured: Option<bool>,
    /// The node died amid it.
    is_broken_off: bool,
    /// Events with a number in the session, and the first number behind all of them.
    numbered: u64,
    behind: u64,
    pub(super) not_understood: u64,
    /// Events that we had no room for.
    pub(super) left_out: u64,
    pub(super) is_cut_off: bool,
}

/// Records that were lost, of one class for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) count: u64,
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Notices {
    /// What an event says of the session.
    pub(super) fn note(&mut self, event: &Event) {
        let Some(session) = event.body.session() else { return };
        if self.facts.is_none() {
            self.facts = Some(session.clone());
        }
        if event.ei < EI_NOT_COUNTED {
            self.numbered += 1;
            self.behind = self.behind.max(event.ei + 1);
        } else {
            self.is_broken_off = true;
        }
        if let Body::SessionStart(start) = &event.body {
            self.start = Some(event.time);
            self.tier = Some(start.capture.clone());
        } else if let Body::SessionEnd(end) = &event.body {
            self.end = Some(event.time);
            self.is_captured = Some(end.enhanced_recording);
        } else if let Body::SessionCapture(totals) = &event.body {
            self.totals = Some(totals.clone());
        } else if let Body::SessionDetached(detached) = &event.body {
            self.detached = Some(detached.tasks);
        } else if let Body::SessionLoss(lost) = &event.body {
            self.lost(lost);
        }
    }

    fn lost(&mut self, lost: &SessionLoss) {
        let known = self.losses.len() < LOSSES_MAX;
        let name = |text: &str| if known { text.to_owned() } else { "other".to_owned() };
        let none = Loss { count: 0, first: lost.first, last: lost.last };
        let loss = self.losses.entry((name(&lost.class), name(&lost.reason))).or_insert(none);
        loss.count = loss.count.saturating_add(lost.count);
        loss.first = loss.first.min(lost.first);
        loss.last = loss.last.max(lost.last);
    }

    /// Numbers of events that have not come.
    pub(super) fn gaps(&self) -> u64 {
        self.behind.saturating_sub(self.numbered)
    }

    /// What is missing, one line each.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for ((class, reason), Loss { count, first, last }) in &self.losses {
            let which = if (*first, *last) == (0, 0) {
                String::new()
            } else {
                format!(" (between numbers {first} and {last})")
            };
            let (class, reason) = (loss_class(class), loss_reason(reason));
            lines.push(format!("LOST: {count} {class}{which}{reason}"));
        }
        let lost = self.totals.as_ref().map_or(0, |totals| totals.lost);
        let told: u64 = self.losses.values().map(|loss| loss.count).fold(0, u64::saturating_add);
        if lost > told {
            lines.push(format!("LOST: {lost} records in all, of which not every event is here"));
        }
        self.lines_of_log(&mut lines);
        self.lines_of_capture(&mut lines);
        if let Some(tasks) = self.detached {
            lines.push(format!("{tasks} tasks went on when the session had ended"));
        }
        lines
    }

    /// Of what the log does not have, or we have not read.
    fn lines_of_log(&self, lines: &mut Vec<String>) {
        if self.gaps() > 0 {
            let gaps = self.gaps();
            lines.push(format!(
                "MISSING: {gaps} events of the session are not in the log: on their way, or lost at the node"
            ));
        }
        if self.is_cut_off {
            lines.push("MISSING: the session has more events than are read here".to_owned());
        }
        if self.left_out > 0 {
            let left_out = self.left_out;
            lines.push(format!("MISSING: {left_out} events, for which there is no room here"));
        }
        if self.not_understood > 0 {
            let count = self.not_understood;
            lines.push(format!("MISSING: {count} events that this tctl does not know: update it"));
        }
        if self.is_broken_off {
            lines.push("BROKEN OFF: the node stopped amid the session".to_owned());
        }
        if self.start.is_none() {
            lines.push("MISSING: the session's start is not in the log".to_owned());
        }
    }

    /// Of what the kernel did not tell.
    fn lines_of_capture(&self, lines: &mut Vec<String>) {
        let nothing = self.tier.as_deref() == Some("") || self.is_captured == Some(false);
        if nothing && self.totals.is_none() {
            lines.push(
                "NOT CAPTURED: the user's roles do not ask for it (`enhanced_recording`), or the node's kernel cannot: \
                 see `tctl capture status`"
                    .to_owned(),
            );
        } else if self.totals.is_none() && !self.is_broken_off {
            lines.push(
                "NOT OVER: processes of the session live, or their ends are on their way"
                    .to_owned(),
            );
        }
    }
}

/// From here on numbers stand for themselves: a session that a crash has ended (`node::upload`).
const EI_NOT_COUNTED: u64 = 0x7fff_ff00;
/// There are four classes and three reasons; a node that makes up others gets one line for them.
const LOSSES_MAX: usize = 16;
