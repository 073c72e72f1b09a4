//! Which database of known vulnerabilities `check` uses: the current one where it can be fetched, else the snapshot in
//! `xtask/advisories/`, which makes the check work without a network and fail on what was known then. Says which one.
//! Judging is cargo-deny's; exceptions stand in deny.toml with their reasons.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;

/// A database that cargo-deny can read without a network.
#[derive(Debug)]
pub(crate) struct Database {
    /// deny.toml, or a copy of it that points at the snapshot.
    pub(crate) config: PathBuf,
    /// For the developer.
    pub(crate) description: String,
}

/// The RustSec database as of the date in its name; public domain (CC0).
const SNAPSHOT: &str = "xtask/advisories/rustsec-advisories-2026-08-21.tar.gz";
/// The folder below `db-path` in which cargo-deny looks: the last word of the database's URL and a hash of the URL.
const FOLDER: &str = "advisory-db-3157b0e258782691";
/// A clone takes seconds; without a network that refuses, it would hang.
const FETCH_LIMIT: Duration = Duration::from_secs(120);

/// Fetches the current database, or unpacks the snapshot.
pub(crate) fn choose() -> Result<Database> {
    let mut fetch = crate::cargo();
    // Never a question for a password: nobody is there to answer it.
    fetch.args(["deny", "fetch", "db"]).env("GIT_TERMINAL_PROMPT", "0");
    let fetched = process::Dialog::start(fetch, FETCH_LIMIT).and_then(process::Dialog::finish);
    if fetched.is_ok_and(|fetched| fetched.status.success()) {
        let description = "the current RustSec database, fetched just now".to_owned();
        return Ok(Database { config: crate::root().join("deny.toml"), description });
    }
    let date = snapshot_date(SNAPSHOT).context("the snapshot's name has no date")?;
    let config = unpack(&crate::root().join(SNAPSHOT), date)?;
    let description = format!(
        "the RustSec snapshot of {date} ({SNAPSHOT}): the current one cannot be fetched here"
    );
    Ok(Database { config, description })
}

/// `…-2026-08-21.tar.gz` gives `2026-08-21`.
fn snapshot_date(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".tar.gz")?;
    let date = stem.get(stem.len().checked_sub(10)?..)?;
    let digits = |part: Option<&str>| part.is_some_and(|p| p.chars().all(|c| c.is_ascii_digit()));
    let mut parts = date.split('-');
    (digits(parts.next()) && digits(parts.next()) && digits(parts.next())).then_some(date)
}

/// Makes the git repository that cargo-deny insists on, and a configuration that points at it.
fn unpack(snapshot: &Path, date: &str) -> Result<PathBuf> {
    let parent = crate::target_dir().join("advisories").join(date);
    let config = parent.join("deny.toml");
    let repository = parent.join(FOLDER);
    if !repository.join(".git/HEAD").exists() {
        if repository.exists() {
            fs::remove_dir_all(&repository)?;
        }
        fs::create_dir_all(&repository)?;
        must(Command::new("tar").arg("-xzf").arg(snapshot).arg("-C").arg(&repository))?;
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(&repository).args(["-c", "user.name=snapshot"]);
            command.args(["-c", "user.email=snapshot@localhost", "-c", "commit.gpgsign=false"]);
            command.args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null");
            command.env("GIT_AUTHOR_DATE", format!("{date}T00:00:00Z"));
            command.env("GIT_COMMITTER_DATE", format!("{date}T00:00:00Z"));
            must(&mut command)
        };
        git(&["init", "--quiet"])?;
        git(&["add", "--all"])?;
        git(&["commit", "--quiet", "--message", "RustSec advisories"])?;
    }
    let ours = fs::read_to_string(crate::root().join("deny.toml")).context("deny.toml")?;
    fs::write(&config, pointed_at(&ours, &parent)?)?;
    Ok(config)
}

/// The configuration with the database's place put in.
fn pointed_at(config: &str, parent: &Path) -> Result<String> {
    let heading = "[advisories]\n";
    if !config.contains(heading) {
        bail!("deny.toml has no [advisories] section");
    }
    let place = format!("{heading}db-path = {:?}\n", parent.display().to_string());
    Ok(config.replacen(heading, &place, 1))
}

fn must(command: &mut Command) -> Result<()> {
    let (success, said) = process::output(command)?;
    if !success {
        bail!("{} failed:\n{}", process::line(command), said.trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_has_a_date() {
        assert_eq!(snapshot_date(SNAPSHOT), Some("2026-08-21"));
        assert_eq!(snapshot_date("advisories.tar.gz"), None);
        assert_eq!(snapshot_date("x.zip"), None);
    }

    #[test]
    fn the_database_is_put_into_the_configuration() {
        let text = pointed_at("[bans]\n[advisories]\nignore = []\n", Path::new("/db")).unwrap();
        assert_eq!(text, "[bans]\n[advisories]\ndb-path = \"/db\"\nignore = []\n");
        assert!(pointed_at("[bans]\n", Path::new("/db")).is_err());
    }
}
