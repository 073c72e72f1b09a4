//! Sessions whose first process has ended: others go on, or their end is on its way.

use ebpf_abi::Session as Counts;
use proto::event;

use super::{Ended, Live, Sessions};
use crate::clock::boot_ns;

/// A session without its first process: whether others go on is told when they had time to end, and when what the kernel told
/// until then has been read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    pub(super) number: u64,
    /// Nanoseconds since the machine's start.
    when: u64,
    /// No task of it lived then.
    is_empty: bool,
}

impl Left {
    pub(super) fn now(number: u64, is_empty: bool) -> Self {
        Self { number, when: boot_ns(), is_empty }
    }

    /// What the kernel told until then, and a while longer, has been read.
    pub(super) fn had_time(&self, read: u64) -> bool {
        read.saturating_sub(self.when) > LEAVE_NS
    }
}

impl Live {
    /// The first process of a session has ended some time ago: others go on, or nobody could say that they do not.
    pub(super) fn left_alone(&self, sessions: &mut Sessions, Left { number, is_empty, .. }: Left) {
        let Some(Counts { tasks, .. }) = self.account(sessions, number) else { return };
        let Some(watched) = sessions.by_number.get_mut(&number) else { return };
        if watched.is_over {
            return;
        }
        if tasks > 0 {
            watched.send(event::SessionDetached { session: watched.facts.clone(), tasks });
        } else if is_empty {
            self.ended(sessions, number, Ended::LastTask);
        } else {
            // What its last tasks did may still be unread.
            sessions.left.push_back(Left::now(number, true));
        }
    }
}

/// What a first process had started ends with it, or soon after; or goes on.
const LEAVE_NS: u64 = 150_000_000;
