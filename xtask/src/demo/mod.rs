//! `cargo xtask demo`: the product on loopback, from nothing to a replayed session, with the real programs and stock
//! OpenSSH. Everything lives in one folder that is gone afterwards, unless `--keep`.
//!
//! - [`story`]: the steps, in the order in which a person would take them
//! - [`cluster`]: the daemons, and running the clients against them
//! - [`terminal`]: an interactive shell through a real terminal
//! - [`narrator`]: what the developer reads
//! - [`janitor`]: ends processes and removes the folder, whatever happens to us
//! - [`keep`]: what `--keep` leaves behind

mod cluster;
mod janitor;
mod keep;
mod narrator;
mod story;
mod terminal;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{setup, test};
use cluster::Cluster;
use narrator::Narrator;

pub(crate) use janitor::{Options as JanitorOptions, clean_up};

/// Arguments of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Leave the cluster up, and say how to use and stop it.
    #[arg(long)]
    keep: bool,
    /// The folder of the demo; it must not exist yet or be empty [default: one below the temporary folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Which build to run.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
    /// Only check: one line per step.
    #[arg(long)]
    check: bool,
}

impl Options {
    /// The demo as a test of what is built.
    pub(crate) fn as_test(profile: Profile) -> Self {
        Self { keep: false, dir: None, profile, check: true }
    }
}

/// A cargo profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// For `cargo build` and `cargo test`.
    pub(crate) fn cargo_flags(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &[],
            Self::Release => &["--release"],
        }
    }

    /// Where cargo puts the programs.
    pub(crate) fn programs(self) -> PathBuf {
        crate::target_dir().join(match self {
            Self::Dev => "debug",
            Self::Release => "release",
        })
    }
}

/// The map: set up, build, tell the story, keep or clean up.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !options.check {
        setup::prepare(setup::Purpose::Demo)?;
        test::build(options.profile)?;
    }
    let dir = folder(options.dir.as_deref())?;
    let mut narrator = Narrator::new(&dir, options.check);
    let mut cluster = Cluster::new(dir, options.profile.programs())?;
    let told = story::tell(&mut cluster, &mut narrator);
    match (told, options.keep) {
        (Err(failed), true) => {
            narrator.failed(&failed, &cluster.logs());
            keep::write(&cluster)?;
            cluster.leave_running()?;
            narrator.say(&format!(
                "The cluster was left as it is, in {}. To stop it: {}",
                cluster.dir().display(),
                cluster.dir().join("stop").display()
            ));
            bail!("the demo failed")
        }
        (Err(failed), false) => {
            let logs = keep_logs(cluster.dir())?;
            narrator.failed(&failed, &cluster.logs());
            drop(cluster);
            bail!("the demo failed; the daemons' logs are in {}", logs.display())
        }
        (Ok(()), true) => {
            keep::write(&cluster)?;
            cluster.leave_running()?;
            narrator.say(&keep::instructions(&cluster));
            Ok(())
        }
        (Ok(()), false) => {
            drop(cluster);
            narrator.done();
            Ok(())
        }
    }
}

/// Makes the folder, for us alone: keys, passwords and tokens will lie in it.
fn folder(wanted: Option<&Path>) -> Result<PathBuf> {
    let dir = match wanted {
        Some(dir) => std::path::absolute(dir)?,
        None => std::env::temp_dir().join(format!("postern-demo-{}", random_hex(4)?)),
    };
    if dir.exists() {
        let mut entries =
            fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        if entries.next().is_some() {
            bail!("{} is not empty; give the demo a folder of its own", dir.display());
        }
        fs::remove_dir(&dir).with_context(|| format!("cannot use {}", dir.display()))?;
    }
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    let made = DirBuilder::new().mode(0o700).create(&dir);
    made.with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// The folder goes away; the logs of a failure are worth keeping.
fn keep_logs(dir: &Path) -> Result<PathBuf> {
    let kept = crate::target_dir().join("demo-failure");
    if kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    fs::create_dir_all(&kept)?;
    for entry in fs::read_dir(dir.join("log"))? {
        let entry = entry?;
        fs::copy(entry.path(), kept.join(entry.file_name()))?;
    }
    Ok(kept)
}

/// Random bytes as hexadecimal digits.
fn random_hex(bytes: usize) -> Result<String> {
    use std::io::Read;
    let mut random = vec![0; bytes];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_ours_alone_and_never_somebody_elses() {
        use std::os::unix::fs::PermissionsExt;
        let base = std::env::temp_dir().join(format!("xtask-test-{}", random_hex(8).unwrap()));
        let dir = folder(Some(&base.join("demo"))).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(dir.join("precious"), "x").unwrap();
        assert!(folder(Some(&dir)).is_err());
        assert!(dir.join("precious").exists());
        fs::remove_dir_all(base).unwrap();
    }
}
