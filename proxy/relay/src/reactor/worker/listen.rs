//! A worker's listeners: what they accept, and what happens when nothing can be accepted for a moment.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::{Worker, guarded, live};
use crate::reactor::opening::Opening;
use crate::reactor::poller::{Key, Kind};
use crate::service::Service;

/// What a worker accepts on.
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    pub(super) service: Arc<dyn Service>,
    pub(super) armed: bool,
    /// Accepts no more; kept for what the kernel has accepted already.
    pub(super) closing: bool,
}

impl Worker {
    pub(super) fn accepted(&mut self, key: Key, socket: OwnedFd) {
        let Some(listener) = self.listeners.get(key.index() as usize) else { return };
        let service = Arc::clone(&listener.service);
        let from = match rustix::net::getpeername(&socket) {
            Ok(Some(address)) => match SocketAddr::try_from(address) {
                Ok(from) => from,
                Err(_) => return,
            },
            // Gone before we looked.
            Ok(None) | Err(_) => return,
        };
        let (features, now) = (self.shared.ladder.kernel_tls(), self.now);
        let opening = guarded(|| {
            let place = service.admit(from)?;
            Some(Opening::new(socket, from, service, place, now, features))
        });
        let Some(opening) = opening.flatten() else { return };
        let who = self.insert();
        let Some(entry) = live(&mut self.table, who) else { return };
        let key = Key::new(Kind::Client, who.0, who.1);
        if let Err(error) = self.poller.watch(key, opening.port.socket()) {
            self.table.remove(who.0 as usize);
            tracing::warn!(%error, "a new connection could not be watched");
            return;
        }
        entry.deadline = Some(opening.deadline);
        self.timers.set(who, None, opening.deadline);
        let step = guarded(|| opening.begin());
        self.took(who, step);
    }

    pub(super) fn accept_failed(&mut self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
        if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
            || error.raw_os_error() == Some(libc::ECANCELED)
        {
            return;
        }
        if self.paused_until.is_none() {
            // Out of descriptors or memory: connections that end give them back.
            tracing::warn!(%error, "connections cannot be accepted for a moment");
            metrics::counter!("postern_relay_accept_pauses_total").increment(1);
        }
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if listener.armed {
                listener.armed = self.poller.unlisten(listener_key(index));
            }
        }
        self.paused_until = Some(self.now + ACCEPT_PAUSE);
    }

    pub(super) fn arm_listeners(&mut self) {
        if self.paused_until.is_some() || self.stopping {
            return;
        }
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if !listener.armed && !listener.closing {
                match self.poller.listen(listener_key(index), &listener.socket) {
                    Ok(()) => listener.armed = true,
                    Err(error) => {
                        tracing::warn!(%error, "a listener could not be armed; it is tried again");
                        self.paused_until = Some(self.now + ACCEPT_PAUSE);
                    }
                }
            }
        }
    }

    pub(super) fn unlisten(&mut self) {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            listener.closing = true;
            if listener.armed {
                listener.armed = self.poller.unlisten(listener_key(index));
            }
        }
        self.drop_closed_listeners();
    }

    pub(super) fn drop_closed_listeners(&mut self) {
        // All or none, since their places are their names.
        if self.listeners.iter().all(|listener| listener.closing && !listener.armed) {
            self.listeners.clear();
        }
    }
}

fn listener_key(index: usize) -> Key {
    Key::new(Kind::Listener, u32::try_from(index).unwrap_or(u32::MAX), 0)
}

/// Long enough not to spin, short enough not to be felt.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
