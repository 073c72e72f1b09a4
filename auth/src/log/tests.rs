//! What a crash leaves behind, and days.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::Ordering;

use proto::event::{RoleCreated, UserPasswordChange};
use proto::id::UserName;

use super::*;
use crate::service::caller::local_admin;

fn open(dir: &Path, clock: &Clock) -> Log {
    let cluster = ClusterName::parse("example.com").unwrap();
    Log::open(&dir.join("log"), &dir.join("events.db"), cluster, clock.clone()).unwrap()
}

fn role(name: &str) -> Body {
    RoleCreated { actor: local_admin(), name: name.into() }.into()
}

async fn names(log: &Log) -> Vec<String> {
    let found = log.search(Filter::default(), From::Newest, 100).await.unwrap().events;
    found.iter().map(name).collect()
}

fn name(line: impl AsRef<[u8]>) -> String {
    let line: serde_json::Value = serde_json::from_slice(line.as_ref()).unwrap();
    line["name"].as_str().unwrap_or_default().to_owned()
}

const DAY: i64 = 86_400;
/// 2027-01-15.
const NOW: i64 = 1_800_000_000;

#[tokio::test]
async fn each_day_has_its_file_and_the_link_points_at_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, hand) = Clock::fake(NOW);
    let log = open(dir.path(), &clock);
    log.record([role("a")]).await.unwrap();
    hand.store(NOW + DAY, Ordering::SeqCst);
    log.record([role("b")]).await.unwrap();
    // A clock that goes back does not reopen an old file.
    hand.store(NOW, Ordering::SeqCst);
    log.record([role("c")]).await.unwrap();
    let folder = dir.path().join("log");
    let lines = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap().lines().count();
    assert_eq!(lines("2027-01-15.00:00:00.log"), 1);
    assert_eq!(lines("2027-01-16.00:00:00.log"), 2);
    assert_eq!(lines("events.log"), 2);
    assert_eq!(names(&log).await.len(), 3);
}

#[tokio::test]
async fn a_torn_line_is_cut_off_and_a_whole_one_is_indexed() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, _hand) = Clock::fake(NOW);
    let log = open(dir.path(), &clock);
    log.record([role("a")]).await.unwrap();
    let path = dir.path().join("log/events.log");
    let first = std::fs::read_to_string(&path).unwrap();
    drop(log);

    // Written and not indexed, then torn: power went away twice.
    let second = first.replace("\"a\"", "\"b\"");
    let uid = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["uid"].as_str().unwrap().to_owned()
    };
    let second = second.replace(&uid(&first), "00000000-0000-4000-8000-000000000000");
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(second.as_bytes()).unwrap();
    file.write_all(b"{\"ei\":0,\"event\":\"role.cr").unwrap();
    drop(file);

    let log = open(dir.path(), &clock);
    assert_eq!(names(&log).await, ["a", "b"]);
    log.record([role("c")]).await.unwrap();
    assert_eq!(names(&log).await.len(), 3);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<Event>(line).is_ok()), "{text}");
    assert_eq!(text.lines().count(), 3);
}

#[tokio::test]
async fn a_lost_index_is_made_again_from_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, hand) = Clock::fake(NOW);
    let log = open(dir.path(), &clock);
    log.record([role("a"), role("b")]).await.unwrap();
    hand.store(NOW + DAY, Ordering::SeqCst);
    log.record([role("c")]).await.unwrap();
    drop(log);
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("log")).unwrap();
    for file in std::fs::read_dir(dir.path().join("log")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join("log").join(file.file_name())).unwrap();
    }
    // One line has become unreadable: those behind it are still events.
    let path = copy.path().join("log/2027-01-15.00:00:00.log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[10] = 0xff;
    std::fs::write(&path, &bytes).unwrap();
    let log = open(copy.path(), &clock);
    assert_eq!(names(&log).await, ["b", "c"]);
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing is cut off");
}

#[tokio::test]
async fn a_follower_misses_nothing_and_sees_only_what_it_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, _hand) = Clock::fake(NOW);
    let log = open(dir.path(), &clock);
    log.record([role("before")]).await.unwrap();
    let filter = Filter { names: vec!["role.created".into()], ..Filter::default() };
    let mut follow = log.follow(filter);
    let user = UserName::parse("alice").unwrap();
    for number in 0..200 {
        log.record([UserPasswordChange { user: user.clone() }.into(), role(&number.to_string())])
            .await
            .unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 200 {
        for line in follow.next().await.unwrap() {
            let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
            seen.push(line["name"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(seen, (0..200).map(|number: i32| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn pages_hold_everything_once_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, hand) = Clock::fake(NOW);
    let log = open(dir.path(), &clock);
    let all: Vec<String> = (0..25).map(|number| format!("r{number:02}")).collect();
    for chunk in all.chunks(10) {
        // Many have the same time: pages end amid them.
        log.record(chunk.iter().map(|name| role(name))).await.unwrap();
        hand.fetch_add(1, Ordering::SeqCst);
    }
    for begin in [From::Newest, From::After(0)] {
        let (mut from, mut pages) = (begin, Vec::new());
        loop {
            let page = log.search(Filter::default(), from, 4).await.unwrap();
            pages.push(page.events.iter().map(name).collect::<Vec<_>>());
            if !page.more {
                break;
            }
            from = page.next;
        }
        assert_eq!(pages.len(), 7);
        if begin == From::Newest {
            pages.reverse();
        }
        assert_eq!(pages.concat(), all);
    }
    let whole = log.search(Filter::default(), From::Newest, 25).await.unwrap();
    assert!(!whole.more && whole.events.len() == 25);
}
