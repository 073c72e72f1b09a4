//! Which way bytes move: the best that this kernel offers and the configuration allows, found out once at start by trying.
//! `uring-ktls` > `uring` > `epoll`; each rung is a tested fallback of the one above.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::ktls::{self, Features, Support};
use crate::reactor::poller::Poller;

/// What the configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DataPlane {
    /// The best rung that works.
    #[default]
    Auto,
    Epoll,
    Uring,
    UringKtls,
}

impl DataPlane {
    /// Every word that a configuration may say.
    pub const WORDS: [&str; 4] = ["auto", "uring-ktls", "uring", "epoll"];
}

/// No such word.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no data plane; there are auto, uring-ktls, uring and epoll")]
pub struct UnknownDataPlane(String);

impl FromStr for DataPlane {
    type Err = UnknownDataPlane;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "auto" => Ok(Self::Auto),
            "epoll" => Ok(Self::Epoll),
            "uring" => Ok(Self::Uring),
            "uring-ktls" => Ok(Self::UringKtls),
            other => Err(UnknownDataPlane(other.to_owned())),
        }
    }
}

/// A rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// Readiness by epoll, TLS in user space.
    Epoll,
    /// Readiness by io_uring, TLS in user space.
    Uring,
    /// Readiness by io_uring, TLS in the kernel for directions that are bulk.
    UringKtls,
}

impl fmt::Display for Rung {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Epoll => "epoll",
            Self::Uring => "uring",
            Self::UringKtls => "uring-ktls",
        })
    }
}

/// The rung that runs, and why it is no higher one.
#[derive(Debug, Clone)]
pub struct Ladder {
    rung: Rung,
    why: String,
    /// What the kernel's TLS can do, where it is used.
    features: Option<Features>,
}

/// A rung that was asked for does not work here.
#[derive(Debug, thiserror::Error)]
pub enum LadderError {
    #[error(
        "data_plane {wanted} does not work here: {why}; set data_plane: auto to take what does"
    )]
    Forced { wanted: Rung, why: String },
    #[error("the system offers neither io_uring nor epoll")]
    Nothing(#[source] io::Error),
}

impl Ladder {
    /// Tries the rungs from the top.
    ///
    /// # Errors
    /// A rung was asked for by name and does not work: nothing else is taken in its place.
    pub fn probe(wanted: DataPlane) -> Result<Self, LadderError> {
        let forced = |rung, why: String| LadderError::Forced { wanted: rung, why };
        match wanted {
            DataPlane::Epoll => Self::epoll("it was asked for".to_owned()),
            DataPlane::Uring => {
                let flags = uring().map_err(|why| forced(Rung::Uring, why))?;
                let why = format!("it was asked for; {flags}");
                Ok(Self { rung: Rung::Uring, why, features: None })
            }
            DataPlane::UringKtls => {
                let flags = uring().map_err(|why| forced(Rung::UringKtls, why))?;
                let features = ktls().map_err(|why| forced(Rung::UringKtls, why))?;
                let why = format!("it was asked for; {flags}; {}", Support::Available(features));
                Ok(Self { rung: Rung::UringKtls, why, features: Some(features) })
            }
            DataPlane::Auto => match uring() {
                Err(why) => Self::epoll(why),
                Ok(flags) => Ok(match ktls() {
                    Ok(features) => Self {
                        rung: Rung::UringKtls,
                        why: format!("{flags}; {}", Support::Available(features)),
                        features: Some(features),
                    },
                    Err(why) => {
                        let why = format!("{flags}; no kernel TLS: {why}");
                        Self { rung: Rung::Uring, why, features: None }
                    }
                }),
            },
        }
    }

    fn epoll(why: String) -> Result<Self, LadderError> {
        Poller::epoll().map_err(LadderError::Nothing)?;
        Ok(Self { rung: Rung::Epoll, why, features: None })
    }

    /// The rung.
    pub fn rung(&self) -> Rung {
        self.rung
    }
    /// For people: what it stands on, and what is missing for the next one.
    pub fn why(&self) -> &str {
        &self.why
    }
    /// What the kernel's TLS can do; none where it is not used.
    pub fn kernel_tls(&self) -> Option<Features> {
        self.features
    }
    pub(crate) fn poller(&self) -> io::Result<Poller> {
        match self.rung {
            Rung::Epoll => Poller::epoll(),
            Rung::Uring | Rung::UringKtls => Poller::ring(),
        }
    }
}

/// The flags that a ring was set up with, or why there is none.
fn uring() -> Result<&'static str, String> {
    match Poller::ring() {
        Ok(poller) => Ok(poller.describe()),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::EPERM) => {
                "io_uring is forbidden here (a seccomp profile, or kernel.io_uring_disabled)".into()
            }
            Some(libc::ENOSYS) => "this kernel has no io_uring".into(),
            Some(libc::EINVAL) => "this kernel's io_uring is older than Linux 5.19".into(),
            Some(libc::ENOMEM) => {
                "io_uring gets no memory (ulimit -l on kernels before 5.12)".into()
            }
            _ => format!("io_uring cannot be set up: {error}"),
        }),
    }
}

fn ktls() -> Result<Features, String> {
    match ktls::probe() {
        Support::Available(features) => Ok(features),
        Support::Unavailable(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_configurations() {
        for word in DataPlane::WORDS {
            assert!(word.parse::<DataPlane>().is_ok(), "{word}");
        }
        assert!("io_uring".parse::<DataPlane>().is_err());
    }

    #[test]
    fn what_is_forced_is_taken_or_refused() {
        assert_eq!(Ladder::probe(DataPlane::Epoll).unwrap().rung(), Rung::Epoll);
        match Ladder::probe(DataPlane::Uring) {
            Ok(ladder) => assert_eq!(ladder.rung(), Rung::Uring),
            Err(error) => assert!(error.to_string().contains("data_plane uring"), "{error}"),
        }
        assert!(Ladder::probe(DataPlane::Auto).is_ok());
    }
}
