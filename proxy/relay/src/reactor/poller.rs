//! Who is ready: the ring, or epoll on the ladder's lowest rung. Both are edge-triggered: an event says that something may
//! have changed, and the worker goes on until the kernel says EAGAIN. So everything above is the same on every rung.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll;
use rustix::event::{EventfdFlags, Timespec};

use crate::port::socket::Readiness;
use crate::sys::ring::{Completion, Ring};

/// Names what an event is about: kind, place in the slab, and the place's generation, so that an event for a connection
/// that is gone is told from one for its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u64);

/// What a key is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Client,
    Listener,
    Target,
    Wake,
}

impl Key {
    /// A worker's eventfd.
    pub(crate) const WAKE: Self = Self(3 << 62);

    pub(crate) fn new(kind: Kind, index: u32, generation: u32) -> Self {
        let kind: u64 = match kind {
            Kind::Client => 0,
            Kind::Target => 1,
            Kind::Listener => 2,
            Kind::Wake => 3,
        };
        Self(kind << 62 | u64::from(index & INDEX_MASK) << 32 | u64::from(generation))
    }
    pub(crate) fn kind(self) -> Kind {
        match self.0 >> 62 {
            0 => Kind::Client,
            1 => Kind::Target,
            2 => Kind::Listener,
            _ => Kind::Wake,
        }
    }
    pub(crate) fn index(self) -> u32 {
        u32::try_from(self.0 >> 32).unwrap_or_default() & INDEX_MASK
    }
    pub(crate) fn generation(self) -> u32 {
        u32::try_from(self.0 & u64::from(u32::MAX)).unwrap_or_default()
    }
}

/// What the poller reports.
#[derive(Debug)]
pub(crate) enum Event {
    Accepted {
        key: Key,
        socket: io::Result<OwnedFd>,
    },
    Ready {
        key: Key,
        says: Readiness,
    },
    /// Events of this key come no more until it is watched again.
    Unarmed {
        key: Key,
    },
}

/// Waits for events.
#[derive(Debug)]
pub(crate) enum Poller {
    Epoll(Epoll),
    Ring(Box<RingPoller>),
}

impl Poller {
    pub(crate) fn ring() -> io::Result<Self> {
        Ok(Self::Ring(Box::new(RingPoller { ring: Ring::new()?, completions: Vec::new() })))
    }

    pub(crate) fn epoll() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self::Epoll(Epoll {
            epoll,
            events: Vec::with_capacity(EVENTS_MAX),
            listeners: Vec::new(),
        }))
    }

    /// For the log.
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Self::Epoll(_) => "edge-triggered epoll",
            Self::Ring(poller) => poller.ring.flags(),
        }
    }

    /// Reports on a socket until [`Poller::unwatch`].
    pub(crate) fn watch(&mut self, key: Key, socket: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Ring(poller) => poller.ring.watch(socket, key.0),
            Self::Epoll(poller) => {
                let flags = epoll::EventFlags::IN
                    | epoll::EventFlags::OUT
                    | epoll::EventFlags::RDHUP
                    | epoll::EventFlags::PRI
                    | epoll::EventFlags::ET;
                Ok(epoll::add(&poller.epoll, socket, epoll::EventData::new_u64(key.0), flags)?)
            }
        }
    }

    /// Reports on a socket no more. The socket may be closed after [`Poller::settle`].
    pub(crate) fn unwatch(&mut self, key: Key, socket: BorrowedFd<'_>) {
        let done = match self {
            Self::Ring(poller) => poller.ring.cancel(key.0),
            Self::Epoll(poller) => epoll::delete(&poller.epoll, socket).map_err(io::Error::from),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "a socket's watch could not be taken back");
        }
    }

    /// The same for a socket that is closed already.
    pub(crate) fn unwatch_gone(&mut self, key: Key) {
        match self {
            Self::Ring(poller) => {
                if let Err(error) = poller.ring.cancel(key.0) {
                    tracing::debug!(%error, "a socket's watch could not be taken back");
                }
            }
            // A closed descriptor has left the set by itself (epoll(7)).
            Self::Epoll(_) => {}
        }
    }

    /// Makes sure that no request which has not reached the kernel names a descriptor.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        match self {
            Self::Ring(poller) => poller.ring.settle(),
            Self::Epoll(_) => Ok(()),
        }
    }

    /// Accepts until [`Poller::unlisten`].
    pub(crate) fn listen(&mut self, key: Key, listener: &OwnedFd) -> io::Result<()> {
        match self {
            Self::Ring(poller) => poller.ring.accept(listener.as_fd(), key.0),
            Self::Epoll(poller) => {
                let data = epoll::EventData::new_u64(key.0);
                // The copy first: one that fails for want of descriptors must leave nothing behind that is reported on.
                let copy = listener.try_clone()?;
                // The set knows it by this descriptor's number, and so it is taken out again (epoll(7), question 1).
                epoll::add(&poller.epoll, &copy, data, epoll::EventFlags::IN)?;
                poller.listeners.push((key, copy));
                Ok(())
            }
        }
    }

    /// Accepts no more. True when there may be connections that the kernel has accepted already: then
    /// [`Event::Unarmed`] comes after the last.
    pub(crate) fn unlisten(&mut self, key: Key) -> bool {
        let mut more = false;
        let done = match self {
            Self::Ring(poller) => {
                more = true;
                poller.ring.cancel(key.0)
            }
            Self::Epoll(poller) => {
                let listeners = std::mem::take(&mut poller.listeners);
                let (gone, kept): (Vec<_>, Vec<_>) =
                    listeners.into_iter().partition(|(of, _)| *of == key);
                poller.listeners = kept;
                gone.iter().try_for_each(|(_, listener)| {
                    epoll::delete(&poller.epoll, listener).map_err(io::Error::from)
                })
            }
        };
        if let Err(error) = done {
            tracing::debug!(%error, "a listener could not be taken back");
        }
        more
    }

    /// Waits for at least one event, at most `timeout`.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        match self {
            Self::Epoll(poller) => poller.wait(timeout, events),
            Self::Ring(poller) => poller.wait(timeout, events),
        }
    }
}

/// The ring's side.
#[derive(Debug)]
pub(crate) struct RingPoller {
    ring: Ring,
    completions: Vec<Completion>,
}

impl RingPoller {
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        self.ring.wait(timeout, &mut self.completions)?;
        for completion in self.completions.drain(..) {
            let key = Key(completion.user_data);
            if key == OF_REMOVAL {
                continue;
            }
            let more = completion.more;
            match key.kind() {
                Kind::Listener => {
                    events.push(Event::Accepted { key, socket: completion.into_socket() });
                }
                Kind::Client | Kind::Target | Kind::Wake => {
                    events.extend(ready(key, completion.result));
                }
            }
            if !more {
                events.push(Event::Unarmed { key });
            }
        }
        Ok(())
    }
}

fn ready(key: Key, result: i32) -> Option<Event> {
    let flags = i16::try_from(result).ok().filter(|flags| *flags >= 0)?;
    let has = |mask: i16| flags & mask != 0;
    let says = Readiness {
        readable: has(libc::POLLIN),
        writable: has(libc::POLLOUT),
        closed: has(libc::POLLRDHUP),
        gone: has(libc::POLLHUP | libc::POLLERR),
        urgent: has(libc::POLLPRI),
    };
    Some(Event::Ready { key, says })
}

/// The epoll side.
pub(crate) struct Epoll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    listeners: Vec<(Key, OwnedFd)>,
}

impl std::fmt::Debug for Epoll {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Epoll").field("listeners", &self.listeners.len()).finish_non_exhaustive()
    }
}

impl Epoll {
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.events.clear();
        let buffer = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &self.events {
            let (key, flags) = (Key(event.data.u64()), event.flags);
            let has = |wanted: epoll::EventFlags| flags.intersects(wanted);
            match key.kind() {
                Kind::Listener => accept_some(&self.listeners, key, events),
                Kind::Client | Kind::Target | Kind::Wake => {
                    let says = Readiness {
                        readable: has(epoll::EventFlags::IN),
                        writable: has(epoll::EventFlags::OUT),
                        closed: has(epoll::EventFlags::RDHUP),
                        gone: has(epoll::EventFlags::HUP | epoll::EventFlags::ERR),
                        urgent: has(epoll::EventFlags::PRI),
                    };
                    events.push(Event::Ready { key, says });
                }
            }
        }
        Ok(())
    }
}

/// Level-triggered, so what is left over comes with the next wait.
fn accept_some(listeners: &[(Key, OwnedFd)], key: Key, events: &mut Vec<Event>) {
    let Some((_, listener)) = listeners.iter().find(|(of, _)| *of == key) else { return };
    for _ in 0..ACCEPTS_PER_TURN {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        match rustix::net::accept_with(listener, flags) {
            Ok(socket) => events.push(Event::Accepted { key, socket: Ok(socket) }),
            Err(rustix::io::Errno::AGAIN) => return,
            Err(error) => {
                events.push(Event::Accepted { key, socket: Err(error.into()) });
                return;
            }
        }
    }
}

/// Wakes a worker that waits.
pub(crate) fn wake_descriptor() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Events taken from epoll at once.
const EVENTS_MAX: usize = 1024;
/// New connections between two looks at those that run.
const ACCEPTS_PER_TURN: usize = 64;
/// What the ring says of a removal that had nothing to remove: of no interest.
const OF_REMOVAL: Key = Key(u64::MAX);
const INDEX_MASK: u32 = (1 << 30) - 1;
