//! How a worker's connections end, or leave for another process: sockets that are about to be closed are watched no more
//! before their numbers can be used again.

use super::{Relaying, Report, Stage, Worker, live, tell};
use crate::reactor::poller::{Key, Kind};
use crate::reactor::timers::Who;
use crate::upgrade::Moved;
use crate::{End, Outcome};

impl Worker {
    /// Ends a relayed stream and reports it.
    pub(super) fn finish(&mut self, who: Who, end: End) {
        let Some(entry) = live(&mut self.table, who) else { return };
        let Some(Stage::Relaying(relaying)) = entry.stage.take() else { return };
        let Relaying { id, stream, report, .. } = *relaying;
        let (outcome, [client, target]) = stream.part(end, &mut self.kit);
        self.ids.remove(&id);
        self.discard(who, client.socket(), Some(target.socket()));
        drop((client, target));
        self.shared.leave(id);
        report.tell(outcome);
    }

    /// Takes apart every stream that another process can go on with.
    pub(super) fn leave(&mut self) -> Vec<Moved> {
        let mut moved = Vec::new();
        for who in self.everyone() {
            let Some(entry) = live(&mut self.table, who) else { continue };
            let Some(Stage::Relaying(relaying)) = &mut entry.stage else { continue };
            if !relaying.stream.make_movable() {
                continue;
            }
            let Some(Stage::Relaying(relaying)) = entry.stage.take() else { continue };
            let Relaying { id, stream, tag, report } = *relaying;
            let (bytes_from_client, bytes_from_target) = stream.moved();
            self.ids.remove(&id);
            self.discard(who, stream.client.socket(), Some(stream.target.socket()));
            self.shared.leave(id);
            moved.push(stream.into_moved(tag, &mut self.kit));
            let outcome = Outcome { bytes_from_client, bytes_from_target, end: End::Moved };
            report.tell(outcome);
        }
        moved
    }

    pub(super) fn everyone(&self) -> Vec<Who> {
        self.table
            .iter()
            .filter_map(|(index, entry)| Some((u32::try_from(index).ok()?, entry.generation)))
            .collect()
    }

    /// Frees an entry whose sockets are about to be closed.
    pub(super) fn discard(
        &mut self,
        who: Who,
        client: std::os::fd::BorrowedFd<'_>,
        target: Option<std::os::fd::BorrowedFd<'_>>,
    ) {
        let Some(entry) = live(&mut self.table, who) else { return };
        self.poller.unwatch(Key::new(Kind::Client, who.0, who.1), client);
        if let (true, Some(target)) = (entry.watches_target, target) {
            self.poller.unwatch(Key::new(Kind::Target, who.0, who.1), target);
        }
        self.timers.clear(who, entry.deadline);
        self.table.remove(who.0 as usize);
        // The ring must hear of it before the descriptors' numbers can be used again.
        if let Err(error) = self.poller.settle() {
            tracing::debug!(%error, "a watch could not be taken back");
        }
    }

    /// Frees an entry whose sockets are gone.
    pub(super) fn forget(&mut self, who: Who) {
        let Some(entry) = live(&mut self.table, who) else { return };
        self.timers.clear(who, entry.deadline);
        let watches_target = entry.watches_target;
        self.table.remove(who.0 as usize);
        self.poller.unwatch_gone(Key::new(Kind::Client, who.0, who.1));
        if watches_target {
            self.poller.unwatch_gone(Key::new(Kind::Target, who.0, who.1));
        }
    }

    pub(super) fn end_all(&mut self) {
        self.unlisten();
        for who in self.everyone() {
            self.finish(who, End::Cut);
        }
    }
}

impl Report {
    /// Tells whoever is to learn of the end.
    fn tell(self, outcome: Outcome) {
        match self {
            // Whoever asked may be gone.
            Self::Asker(done) => drop(done.send(outcome)),
            Self::Service { service, from, .. } => tell(|| service.ended(from, &outcome)),
        }
    }
}
