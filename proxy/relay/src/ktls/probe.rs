//! What kernel TLS this machine offers, found by trying it on connections to ourselves. To be run once, at start: it costs
//! well under a millisecond and three connections on loopback, which it leaves behind closed. Decides nothing.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use super::keys::{CryptoInfo, Suite};
use crate::ktls::{attach, set_rx_no_pad};
use crate::sys::ktls as sys;

/// What this kernel offers. `Display` is the end of a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    Available(Features),
    /// Why not, in a sentence without its capital and full stop.
    Unavailable(String),
}

/// What it can do where it can do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    pub transmit: Suites,
    pub receive: Suites,
    /// Keys can be changed: a KeyUpdate need not end the connection.
    pub rekey: bool,
    /// [`set_rx_no_pad`] works.
    pub no_pad: bool,
}

/// A set of ciphers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Suites([bool; Suite::ALL.len()]);

impl Suites {
    pub fn contains(self, suite: Suite) -> bool {
        self.iter().any(|one| one == suite)
    }

    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }

    /// In the order of [`Suite::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Suite> {
        Suite::ALL.into_iter().zip(self.0).filter_map(|(suite, within)| within.then_some(suite))
    }
}

/// Tries everything. Never fails: what does not work is not offered.
pub fn probe() -> Support {
    // Never accepted from: a connection is established as soon as it waits to be.
    let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) {
        Ok(listener) => listener,
        Err(error) => return no_loopback(&error),
    };
    let (mut transmit, mut receive) = (Suites::default(), Suites::default());
    let (mut rekey, mut no_pad) = (false, false);
    let mut refused = None;
    let entries = transmit.0.iter_mut().zip(&mut receive.0);
    for (suite, (transmits, receives)) in Suite::ALL.into_iter().zip(entries) {
        let socket = match connect(&listener) {
            Ok(socket) => socket,
            Err(error) => return no_loopback(&error),
        };
        if let Err(error) = attach(socket.as_fd()) {
            return Support::Unavailable(match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            });
        }
        let set = |direction| match CryptoInfo::from_parts(suite, suite.no_key(), &[0; 12], 0) {
            Some(info) => sys::set_crypto_info(socket.as_fd(), direction, info.as_bytes()),
            None => Err(io::ErrorKind::InvalidInput.into()),
        };
        match set(sys::Direction::Transmit) {
            Ok(()) => *transmits = true,
            Err(error) => refused = Some(error),
        }
        *receives = set(sys::Direction::Receive).is_ok();
        rekey |= *transmits && set(sys::Direction::Transmit).is_ok();
        no_pad |= *receives && set_rx_no_pad(socket.as_fd()).is_ok();
    }
    match refused {
        Some(error) if transmit.is_empty() => {
            Support::Unavailable(format!("the kernel takes no keys of TLS 1.3: {error}"))
        }
        _ => Support::Available(Features { transmit, receive, rekey, no_pad }),
    }
}

impl Suite {
    /// A key for trying, of the right length.
    fn no_key(self) -> &'static [u8] {
        match self {
            Self::Aes128Gcm => &[0; 16],
            Self::Aes256Gcm | Self::Chacha20Poly1305 => &[0; 32],
        }
    }
}

/// Loopback answers at once or is filtered.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);

fn connect(listener: &TcpListener) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&listener.local_addr()?, CONNECT_TIMEOUT)
}

fn no_loopback(error: &io::Error) -> Support {
    Support::Unavailable(format!("it cannot be tried on loopback: {error}"))
}

impl fmt::Display for Suites {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return out.write_str("nothing");
        }
        for (index, suite) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(out, "{comma}{}", suite.name())?;
        }
        Ok(())
    }
}

impl fmt::Display for Features {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.transmit == self.receive {
            write!(out, "sends and receives {}", self.transmit)?;
        } else {
            write!(out, "sends {}; receives {}", self.transmit, self.receive)?;
        }
        out.write_str(if self.rekey { "; changes keys" } else { "; cannot change keys" })
    }
}

impl fmt::Display for Support {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available(features) => features.fmt(out),
            Self::Unavailable(reason) => out.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// This kernel may offer it or not; either way there is an answer, a reason, and no descriptor left.
    #[test]
    fn it_answers_and_leaves_nothing() {
        let before = lowest_free();
        let support = probe();
        assert!(!support.to_string().is_empty());
        match &support {
            Support::Available(features) => assert!(!features.transmit.is_empty()),
            Support::Unavailable(reason) => assert!(!reason.is_empty()),
        }
        // Other tests open descriptors meanwhile, so a leak is looked for by many probes.
        for _ in 0..50 {
            assert_eq!(probe(), support);
        }
        assert!(lowest_free() < before + 50);
    }

    fn lowest_free() -> i32 {
        std::fs::File::open("/dev/null").unwrap().as_raw_fd()
    }

    #[test]
    fn what_it_prints() {
        let two = Suites([true, false, true]);
        let features = Features { transmit: two, receive: two, rekey: false, no_pad: true };
        assert_eq!(
            Support::Available(features).to_string(),
            "sends and receives aes-128-gcm, chacha20-poly1305; cannot change keys"
        );
        let features = Features { receive: Suites::default(), rekey: true, ..features };
        assert_eq!(
            features.to_string(),
            "sends aes-128-gcm, chacha20-poly1305; receives nothing; changes keys"
        );
        assert!(two.contains(Suite::Aes128Gcm) && !two.contains(Suite::Aes256Gcm));
    }
}
