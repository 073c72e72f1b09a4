//! Giving a connection's keys to the kernel, one direction at a time, and whether what is left fits into another process.
//! Part of [`super::TlsPort`].

use std::io;

use super::{Receive, TlsPort, Transmit};
use crate::ktls::{self, Features};
use crate::port::socket::Socket;
use crate::tls::session::Session;

impl TlsPort {
    /// Gives the kernel the keys to receive with, if it can be done now. True when it has them.
    pub(crate) fn offload_receive(&mut self, socket: &Socket) -> bool {
        match self.receive {
            Receive::Kernel { closed, control } => return !closed && !control,
            Receive::Here | Receive::HereExactly => {}
        }
        // The end has been said already, and the kernel would not know.
        if self.session.as_ref().is_some_and(Session::peer_closed) {
            return false;
        }
        let Some((keys, sequence)) = self.session.as_ref().and_then(Session::rx_keys) else {
            return false;
        };
        let able =
            |features: Features| keys.suite().is_some_and(|suite| features.receive.contains(suite));
        if !self.features.is_some_and(able) {
            return false;
        }
        if !self.incoming.is_empty() {
            self.receive = Receive::HereExactly;
            return false;
        }
        let given = attach(&mut self.attached, socket)
            .and_then(|()| ktls::set_rx_keys(socket.fd(), keys, sequence));
        match given {
            Ok(()) => {
                if self.features.is_some_and(|features| features.no_pad)
                    && let Err(error) = ktls::set_rx_no_pad(socket.fd())
                {
                    tracing::debug!(%error, "the kernel looks for padding");
                }
                self.receive = Receive::Kernel { control: false, closed: false };
                metrics::counter!("postern_relay_ktls_total", "direction" => "receive")
                    .increment(1);
                true
            }
            Err(error) => {
                self.give_up_offload(&error);
                false
            }
        }
    }

    /// The same for sending.
    pub(crate) fn offload_transmit(&mut self, socket: &mut Socket) -> bool {
        if matches!(self.transmit, Transmit::Kernel { .. }) {
            return true;
        }
        let Some(session) = &mut self.session else { return false };
        if !self.outgoing.is_empty() || session.is_closed() {
            return false;
        }
        let Some((keys, sequence)) = session.tx_keys() else { return false };
        let able = |features: Features| {
            keys.suite().is_some_and(|suite| features.transmit.contains(suite))
        };
        if !self.features.is_some_and(able) {
            return false;
        }
        let given = attach(&mut self.attached, socket)
            .and_then(|()| ktls::set_tx_keys(socket.fd(), keys, sequence));
        match given {
            Ok(()) => {
                session.tx_moved_to_kernel();
                self.transmit = Transmit::Kernel { guess: 0, announced: false };
                metrics::counter!("postern_relay_ktls_total", "direction" => "transmit")
                    .increment(1);
                true
            }
            Err(error) => {
                self.give_up_offload(&error);
                false
            }
        }
    }

    /// Stays in user space for good.
    fn give_up_offload(&mut self, error: &io::Error) {
        tracing::debug!(%error, "the kernel does not take a connection's keys");
        self.features = None;
        if self.receive == Receive::HereExactly {
            self.receive = Receive::Here;
        }
    }

    /// Whether another process can go on with the socket alone, and what it must know: which ends have been said.
    pub(crate) fn movable(&self) -> Option<(bool, bool)> {
        match (&self.receive, &self.transmit) {
            (
                Receive::Kernel { control: false, closed },
                Transmit::Kernel { announced: false, .. },
            ) if self.outgoing.is_empty() => Some((*closed, self.closed)),
            _ => None,
        }
    }
}

/// Attaches once.
fn attach(attached: &mut bool, socket: &Socket) -> io::Result<()> {
    if !*attached {
        ktls::attach(socket.fd())?;
        *attached = true;
    }
    Ok(())
}
