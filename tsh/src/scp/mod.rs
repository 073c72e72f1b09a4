//! `tsh scp`: the scp command line over the SFTP subsystem, as stock scp does since OpenSSH 9.0.
//!
//! - [`place`]: which side, which names are safe
//! - [`remote`]: the SFTP session and many requests under way at once
//! - [`upload`], [`download`]: one direction each
//! - [`progress`]: the line on the terminal

pub(crate) mod download;
#[cfg(test)]
mod host_tests;
pub(crate) mod place;
pub(crate) mod progress;
pub(crate) mod remote;
pub(crate) mod upload;

use proto::preamble::Inner;

use crate::flags::{Global, ScpArgs};
use crate::scp::place::{Place, RemotePlace};
use crate::scp::progress::Progress;
use crate::scp::remote::Remote;
use crate::signed_in::SignedIn;
use crate::ssh::link::{Link, LinkSettings};
use crate::target::Target;
use cli::failure::Failure;

/// What the flags ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopySettings {
    pub(crate) recursive: bool,
    pub(crate) preserve: bool,
}

/// # Errors
/// The paths make no sense, the host refuses, or a file cannot be copied; what was copied before stays.
pub(crate) async fn run(
    signed_in: &SignedIn,
    global: &Global,
    args: &ScpArgs,
) -> Result<(), Failure> {
    let job = Job::parse(&args.paths)?;
    let target = Target::choose(job.host(), global.login.as_deref(), signed_in)?;
    let settings = LinkSettings {
        inner: if args.tls_always { Inner::Tls } else { Inner::Plain },
        window_bytes: WINDOW_BYTES,
        agent: None,
    };
    let link = Link::open(signed_in, &target, settings).await?;
    let remote = Remote::start(&link).await?;
    let mut progress = Progress::new(args.quiet);
    let how = CopySettings { recursive: args.recursive, preserve: args.preserve };
    match &job {
        Job::Download { from, to } => download::run(&remote, from, to, how, &mut progress).await?,
        Job::Upload { from, to } => upload::run(&remote, from, to, how, &mut progress).await?,
    }
    remote.finish();
    link.close().await;
    Ok(())
}

/// One direction, one host.
#[derive(Debug, PartialEq, Eq)]
enum Job {
    Download { from: Vec<RemotePlace>, to: String },
    Upload { from: Vec<String>, to: RemotePlace },
}

impl Job {
    fn parse(paths: &[String]) -> Result<Self, Failure> {
        let mut places: Vec<Place> = paths.iter().map(|path| Place::parse(path)).collect();
        let to = places.pop().ok_or_else(|| Failure::usage("no destination"))?;
        let both = || {
            Failure::usage("either all sources or the destination must be remote, on one host")
                .hint("Remote paths are written [user@]host:path.")
        };
        match to {
            Place::Local(to) => {
                let from: Option<Vec<RemotePlace>> =
                    places.into_iter().map(Place::into_remote).collect();
                let from = from.ok_or_else(both)?;
                let first = from.first().ok_or_else(both)?;
                if from.iter().any(|place| place.host != first.host) {
                    return Err(both());
                }
                Ok(Self::Download { from, to })
            }
            Place::Remote(to) => {
                let from: Option<Vec<String>> = places.into_iter().map(Place::into_local).collect();
                Ok(Self::Upload { from: from.ok_or_else(both)?, to })
            }
        }
    }
    fn host(&self) -> &str {
        match self {
            Self::Download { from, .. } => from.first().map_or("", |place| place.host.as_str()),
            Self::Upload { to, .. } => &to.host,
        }
    }
}

/// Room for all requests under way, each 32 KiB, and as much again.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_side_is_remote() {
        fn check(paths: &[&str], expect: Option<&str>) {
            let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
            let got = Job::parse(&paths).ok();
            assert_eq!(got.as_ref().map(Job::host), expect, "{paths:?}");
        }
        check(&["a", "b", "root@web1:/tmp"], Some("root@web1"));
        check(&["web1:a", "web1:b", "."], Some("web1"));
        check(&["web1:a", "web2:b", "."], None);
        check(&["web1:a", "b", "."], None);
        check(&["web1:a", "web2:b"], None);
        check(&["a", "b"], None);
    }
}
