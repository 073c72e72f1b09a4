//! A connection from accept until it is relayed or given away: what it says first, its TLS handshake, the dialing. Each
//! step asks the listener's [`Service`]. Owned by [`super::worker`]; a step never waits.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::Limits;
use crate::chunk::Chunk;
use crate::direction::Side as _;
use crate::ktls::Features;
use crate::port::Port;
use crate::port::socket::Readiness;
use crate::service::{Given, Next, OpeningFault, Place, Service};
use crate::tls::session::Outgoing;
use crate::tls::{Established, Handshake};

/// A connection that is not relayed yet.
pub(crate) struct Opening {
    pub(crate) port: Port,
    pub(crate) from: SocketAddr,
    pub(crate) service: Arc<dyn Service>,
    pub(crate) deadline: Instant,
    place: Place,
    /// What came so far.
    bytes: Vec<u8>,
    phase: Phase,
    /// What events said of the target while it was dialed.
    target_says: Readiness,
    features: Option<Features>,
}

enum Phase {
    /// The service wants to see more.
    Asking,
    Handshake(Box<Handshake>),
    /// The last of the handshake is on its way out.
    Finishing(Box<Established>),
    Connecting {
        target: OwnedFd,
        established: Option<Box<Established>>,
        limits: Limits,
        place: Option<Place>,
        tag: Bytes,
    },
}

/// What a step came to.
pub(crate) enum Step {
    /// A target is being dialed: its socket is to be watched.
    Dialing(Opening),
    Failed(Opening, OpeningFault),
    /// For the control plane.
    Give(Arc<dyn Service>, Box<Given>),
    /// Turned away.
    Refused(Opening),
    Relay(Box<Ready>),
    Waits(Opening),
}

/// Both sides are there.
pub(crate) struct Ready {
    pub(crate) client: Port,
    pub(crate) target: Port,
    pub(crate) limits: Limits,
    pub(crate) place: Option<Place>,
    pub(crate) tag: Bytes,
    pub(crate) from: SocketAddr,
    pub(crate) service: Arc<dyn Service>,
}

impl Opening {
    pub(crate) fn new(
        socket: OwnedFd,
        from: SocketAddr,
        service: Arc<dyn Service>,
        place: Place,
        now: Instant,
        features: Option<Features>,
    ) -> Self {
        let deadline = now + service.within();
        let mut port = Port::plain(socket, Bytes::new());
        // The first event says when there is something.
        port.wait_for_event();
        let (bytes, phase) = (Vec::new(), Phase::Asking);
        let target_says = Readiness::default();
        Self { port, from, service, deadline, place, bytes, phase, target_says, features }
    }

    /// Whether there may be something to read that nobody has been told of.
    pub(crate) fn wants_turn(&self) -> bool {
        match self.phase {
            Phase::Asking | Phase::Handshake(_) => self.port.is_readable(),
            Phase::Connecting { .. } | Phase::Finishing(_) => false,
        }
    }

    /// The target's socket while it is being dialed.
    pub(crate) fn target(&self) -> Option<&OwnedFd> {
        match &self.phase {
            Phase::Connecting { target, .. } => Some(target),
            Phase::Asking | Phase::Finishing(_) | Phase::Handshake(_) => None,
        }
    }

    /// An event of the target's socket.
    pub(crate) fn target_ready(&mut self, says: Readiness) {
        let Readiness { readable, writable, closed, gone, urgent } = &mut self.target_says;
        *readable |= says.readable;
        *writable |= says.writable;
        *closed |= says.closed;
        *gone |= says.gone;
        *urgent |= says.urgent;
    }

    /// The first step: some services need nothing from the client to know where it goes.
    pub(crate) fn begin(self) -> Step {
        let next = self.service.route(self.from, &[]);
        self.follow(next, None)
    }

    /// Goes on after an event.
    pub(crate) fn step(mut self, chunk: &mut Chunk) -> Step {
        loop {
            match std::mem::replace(&mut self.phase, Phase::Asking) {
                Phase::Asking => match self.fill(chunk) {
                    Ok(()) => match self.service.route(self.from, &self.bytes) {
                        Next::More => {}
                        next @ (Next::Dial { .. }
                        | Next::Give
                        | Next::Refuse(_)
                        | Next::Terminate(_)) => return self.follow(next, None),
                    },
                    Err(Some(fault)) => return Step::Failed(self, fault),
                    Err(None) => return Step::Waits(self),
                },
                Phase::Handshake(handshake) => return self.shake(handshake, chunk),
                Phase::Finishing(mut established) => {
                    match send(&mut self.port, &mut established.outgoing) {
                        Ok(()) => {
                            let next = self.service.established(self.from, &established);
                            return self.follow(next, Some(established));
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            self.phase = Phase::Finishing(established);
                            return Step::Waits(self);
                        }
                        Err(error) => return Step::Failed(self, OpeningFault::Io(error)),
                    }
                }
                phase @ Phase::Connecting { .. } => {
                    self.phase = phase;
                    return self.connected();
                }
            }
        }
    }

    /// Reads what is there behind what came so far. `Err(None)`: nothing now.
    fn fill(&mut self, chunk: &mut Chunk) -> Result<(), Option<OpeningFault>> {
        if self.bytes.len() >= OPENING_BYTES_MAX {
            return Err(Some(OpeningFault::TooLong));
        }
        match receive(&mut self.port, chunk) {
            Ok(bytes) => {
                self.bytes.extend_from_slice(bytes);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(None),
            Err(error) => Err(Some(OpeningFault::Io(error))),
        }
    }

    fn follow(mut self, next: Next, established: Option<Box<Established>>) -> Step {
        match next {
            Next::More => Step::Waits(self),
            Next::Refuse(words) => {
                let mut out = Outgoing::default();
                if let Some(mut established) = established {
                    let session = &mut established.session;
                    let sealed = session.seal(std::iter::once(&*words), &mut out);
                    if let Err(error) = sealed.and_then(|()| session.close(&mut out)) {
                        tracing::debug!(%error, "a refusal could not be sealed");
                    }
                } else {
                    out.push(&words);
                }
                if let Err(error) = send(&mut self.port, &mut out) {
                    tracing::debug!(%error, "a refusal could not be said");
                }
                Step::Refused(self)
            }
            Next::Give => {
                let given = Given {
                    socket: self.port.into_parts().0,
                    from: self.from,
                    opening: Bytes::from(self.bytes),
                    established: established.map(|established| *established),
                    place: self.place,
                    deadline: self.deadline,
                };
                Step::Give(self.service, Box::new(given))
            }
            Next::Terminate(config) => match Handshake::new(config, self.features.is_some()) {
                Ok(mut handshake) => match handshake.feed(&std::mem::take(&mut self.bytes)) {
                    Ok(done) => self.shaken(Box::new(handshake), done),
                    Err(fault) => self.refused(handshake, fault.into()),
                },
                Err(fault) => Step::Failed(self, fault.into()),
            },
            Next::Dial { to, limits, place, tag } => {
                self.dial(to, (limits, place, tag), established)
            }
        }
    }

    /// Reads for the handshake until it is done or nothing more is there.
    fn shake(mut self, mut handshake: Box<Handshake>, chunk: &mut Chunk) -> Step {
        if let Err(error) = send(&mut self.port, &mut handshake.outgoing)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            return Step::Failed(self, OpeningFault::Io(error));
        }
        let fed = match receive(&mut self.port, chunk) {
            Ok(bytes) => handshake.feed(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.phase = Phase::Handshake(handshake);
                return Step::Waits(self);
            }
            Err(error) => return Step::Failed(self, OpeningFault::Io(error)),
        };
        match fed {
            Ok(done) => self.shaken(handshake, done),
            Err(fault) => self.refused(*handshake, fault.into()),
        }
    }

    fn shaken(mut self, mut handshake: Box<Handshake>, done: bool) -> Step {
        if done {
            match handshake.finish() {
                Ok(mut established) => {
                    // A first try: usually there is room, and the client need not wait for our dialing.
                    match send(&mut self.port, &mut established.outgoing) {
                        Ok(()) => {
                            let next = self.service.established(self.from, &established);
                            self.follow(next, Some(Box::new(established)))
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            self.phase = Phase::Finishing(Box::new(established));
                            Step::Waits(self)
                        }
                        Err(error) => Step::Failed(self, OpeningFault::Io(error)),
                    }
                }
                Err(fault) => Step::Failed(self, fault.into()),
            }
        } else {
            match send(&mut self.port, &mut handshake.outgoing) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Step::Failed(self, OpeningFault::Io(error)),
            }
            self.phase = Phase::Handshake(handshake);
            Step::Waits(self)
        }
    }

    /// Says why, as far as there is room.
    fn refused(mut self, mut handshake: Handshake, fault: OpeningFault) -> Step {
        if let Err(error) = send(&mut self.port, &mut handshake.outgoing) {
            tracing::debug!(%error, "an alert could not be sent");
        }
        Step::Failed(self, fault)
    }

    fn dial(
        mut self,
        to: SocketAddr,
        (limits, place, tag): (Limits, Option<Place>, Bytes),
        established: Option<Box<Established>>,
    ) -> Step {
        match connect(to) {
            Ok((target, connected)) => {
                self.phase = Phase::Connecting { target, established, limits, place, tag };
                if connected {
                    return self.relay();
                }
                Step::Dialing(self)
            }
            Err(error) => Step::Failed(self, OpeningFault::Dial(error)),
        }
    }

    /// The target's socket has something to say: it stands, or why not.
    fn connected(self) -> Step {
        let Some(target) = self.target() else { return Step::Waits(self) };
        match sockopt::socket_error(target) {
            Ok(Ok(())) => match rustix::net::getpeername(target) {
                Ok(_) => self.relay(),
                // An event that came before.
                Err(rustix::io::Errno::NOTCONN) => Step::Waits(self),
                Err(error) => Step::Failed(self, OpeningFault::Dial(error.into())),
            },
            Ok(Err(error)) | Err(error) => Step::Failed(self, OpeningFault::Dial(error.into())),
        }
    }

    fn relay(mut self) -> Step {
        let phase = std::mem::replace(&mut self.phase, Phase::Asking);
        let Phase::Connecting { target, established, limits, place, tag } = phase else {
            return Step::Waits(self);
        };
        // The same port: what events said of it, they do not say again.
        let client = match established {
            None => self.port.with_pending(Bytes::from(self.bytes)),
            Some(established) => {
                let Established { session, incoming, outgoing, .. } = *established;
                self.port.with_tls(session, incoming, outgoing, self.features)
            }
        };
        let mut target = Port::plain(target, Bytes::new());
        target.ready(self.target_says);
        Step::Relay(Box::new(Ready {
            client,
            target,
            limits,
            place,
            tag,
            from: self.from,
            service: self.service,
        }))
    }
}

/// Reads what is there; an end is an error here.
fn receive<'a>(port: &mut Port, chunk: &'a mut Chunk) -> io::Result<&'a [u8]> {
    if !port.is_readable() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    match port.read(chunk, READ_BYTES)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(chunk.slices().next().unwrap_or_default()),
    }
}

/// Sends all, or as much as there is room for.
fn send(port: &mut Port, out: &mut Outgoing) -> io::Result<()> {
    while !out.is_empty() {
        let count = port.send_slices(std::iter::once(out.bytes()))?;
        out.wrote(count);
    }
    Ok(())
}

/// A socket on its way to `to`, and whether it is there already, as on loopback.
fn connect(to: SocketAddr) -> io::Result<(OwnedFd, bool)> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    crate::socket::prepare(&socket)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) => Ok((socket, true)),
        Err(rustix::io::Errno::INPROGRESS) => Ok((socket, false)),
        Err(error) => Err(error.into()),
    }
}

/// A ClientHello with everything that is in use today fits four times.
const OPENING_BYTES_MAX: usize = 16 * 1024;
const READ_BYTES: usize = 16 * 1024;
