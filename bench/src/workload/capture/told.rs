//! From the deed to the audit log: programs that are started in a session of a cluster with the time as their argument, and
//! when auth's log has them on the disk.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::{CORE, Site};
use crate::metric::{Sample, TOLD_P50, TOLD_P99};
use crate::site::client::Talk;
use crate::site::cluster::Cluster;

/// What stands before the time.
const NONCE: &str = "deed-at-";
const LOOK_EVERY: Duration = Duration::from_millis(1);
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn measure(site: &Site, cluster: &Cluster) -> Result<Sample> {
    let count = site.effort.choose(400, 100);
    let mut log = File::open(cluster.audit_log()).context("the audit log")?;
    log.seek(SeekFrom::End(0))?;
    let mut ssh = cluster.ssh();
    let deeds = site.programs.join("deeds");
    let line = format!("{} told --count {count} --every-ms 25", deeds.display());
    ssh.arg(cluster.destination()).arg(line);
    let session = Talk::start(CORE, &ssh)?;
    let (started, mut rest, mut took) = (Instant::now(), Vec::new(), Vec::new());
    while took.len() < count {
        ensure!(started.elapsed() < LIMIT, "{} of {count} deeds are in the log", took.len());
        std::thread::sleep(LOOK_EVERY);
        if log.read_to_end(&mut rest)? == 0 {
            continue;
        }
        // On the disk, as auth waits for it to be.
        log.sync_data()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = rest.drain(..whole).collect();
        for line in String::from_utf8_lossy(&lines).lines() {
            took.extend(deed(line).map(|then| now.saturating_sub(then) as f64 / 1e6));
        }
    }
    session.finish()?;
    took.sort_by(f64::total_cmp);
    let at = |part: usize| took.get(took.len() * part / 100).copied().context("as many as that");
    Ok(vec![(TOLD_P50, at(50)?), (TOLD_P99, at(99)?)])
}

/// When the deed was done that a line tells of.
fn deed(line: &str) -> Option<u128> {
    if !line.contains("\"session.command\"") {
        return None;
    }
    let (_, rest) = line.split_once(NONCE)?;
    rest.split(|digit: char| !digit.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deed_is_found_in_its_line() {
        let line = r#"{"event":"session.command","argv":["deed-at-1700000000000000000"]}"#;
        assert_eq!(deed(line), Some(1_700_000_000_000_000_000));
        assert_eq!(deed(&line.replace("command", "disk")), None);
    }
}
