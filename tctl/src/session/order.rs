//! Events in the order in which things happened: by their number in the session (`ei`), within a window. Auth gives them in
//! the order of their arrival, which is nearly the same. One that comes later than the window is given when it comes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proto::event::Event;

/// See the module.
#[derive(Debug)]
pub(super) struct Order {
    held: BinaryHeap<Reverse<Held>>,
    room: usize,
    arrived: u64,
}

#[derive(Debug)]
struct Held {
    /// Number in the session, then arrival.
    key: (u64, u64),
    event: Box<Event>,
}

impl Order {
    pub(super) fn new(room: usize) -> Self {
        Self { held: BinaryHeap::new(), room, arrived: 0 }
    }

    /// Takes one in; gives one when there are more than the window holds.
    pub(super) fn push(&mut self, event: Event) -> Option<Event> {
        self.arrived += 1;
        let key = (event.ei, self.arrived);
        self.held.push(Reverse(Held { key, event: Box::new(event) }));
        if self.held.len() <= self.room {
            return None;
        }
        self.held.pop().map(|Reverse(held)| *held.event)
    }

    /// Those that are left.
    pub(super) fn rest(self) -> Vec<Event> {
        let sorted = self.held.into_sorted_vec();
        sorted.into_iter().rev().map(|Reverse(held)| *held.event).collect()
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::exit;
    use super::*;

    #[test]
    fn a_window_puts_right_what_is_near() {
        let mut order = Order::new(2);
        let mut given = Vec::new();
        for ei in [1, 0, 3, 2, 5, 4, 4] {
            given.extend(order.push(exit(ei, 1, 0, 0)).map(|event| event.ei));
        }
        given.extend(order.rest().into_iter().map(|event| event.ei));
        assert_eq!(given, [0, 1, 2, 3, 4, 4, 5]);
    }
}
