//! Connections without a certificate, by address, which may be a proxy's with everybody behind it. One too many ends the
//! oldest of that address instead of refusing the newest: a sign-in takes a second, so who only holds places loses them,
//! and who signs in gets through. How long one may live at most, and how many there are in all, is `server`'s matter.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Strangers(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// By age; dropping the sender ends the connection.
    by_address: HashMap<IpAddr, BTreeMap<u64, oneshot::Sender<()>>>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(crate) struct StrangerPlace {
    strangers: Strangers,
    from: IpAddr,
    number: u64,
}

impl Strangers {
    /// A place for the newest connection, and what resolves when it has to go.
    pub(crate) fn enter(&self, from: IpAddr) -> (StrangerPlace, oneshot::Receiver<()>) {
        let (stay, end) = oneshot::channel();
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = table.next;
        table.next += 1;
        let places = table.by_address.entry(from).or_default();
        places.insert(number, stay);
        while places.len() > PER_ADDRESS_MAX {
            places.pop_first();
        }
        (StrangerPlace { strangers: self.clone(), from, number }, end)
    }
}

impl Drop for StrangerPlace {
    fn drop(&mut self) {
        let mut table = self.strangers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = table.by_address.get_mut(&self.from) {
            places.remove(&self.number);
            if places.is_empty() {
                table.by_address.remove(&self.from);
            }
        }
    }
}

/// Sign-ins and joins under way behind one proxy at a time; each takes about a second.
pub(crate) const PER_ADDRESS_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_gets_in_and_the_oldest_goes() {
        let strangers = Strangers::default();
        let from = IpAddr::from([10, 0, 0, 1]);
        let mut places: Vec<_> = (0..PER_ADDRESS_MAX).map(|_| strangers.enter(from)).collect();
        let stays = |end: &mut oneshot::Receiver<()>| {
            end.try_recv() == Err(oneshot::error::TryRecvError::Empty)
        };
        assert!(places.iter_mut().all(|(_, end)| stays(end)));
        let (_elsewhere, mut elsewhere) = strangers.enter([10, 0, 0, 2].into());
        assert!(stays(&mut places[0].1), "another address takes nobody's place");
        let (_newest, mut newest) = strangers.enter(from);
        assert!(!stays(&mut places[0].1));
        assert!(stays(&mut places[1].1) && stays(&mut newest) && stays(&mut elsewhere));
        // A place that is given back in order ends nobody.
        places.pop();
        let (_next, _end) = strangers.enter(from);
        assert!(stays(&mut places[1].1));
    }

    #[test]
    fn nothing_is_kept_of_who_has_left() {
        let strangers = Strangers::default();
        drop((strangers.enter([10, 0, 0, 1].into()), strangers.enter([10, 0, 0, 1].into())));
        assert!(strangers.0.lock().unwrap().by_address.is_empty());
    }
}
