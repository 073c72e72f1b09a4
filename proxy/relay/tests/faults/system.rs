//! A system that gives less than is asked for.

use std::time::{Duration, Instant};

use relay::DataPlane;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::bench::{SOON, echo, ping};
use crate::child::Helper;

fn word(plane: DataPlane) -> &'static str {
    if plane == DataPlane::Epoll { "epoll" } else { "uring" }
}

pub(crate) async fn accepting_rests_without_descriptors_and_goes_on_with_some(plane: DataPlane) {
    let target = echo().await;
    let mut relay = Helper::start(&format!("few {} {target} 64", word(plane)), false);
    let at: std::net::SocketAddr = relay.hear("listens at").parse().unwrap();
    let mut friend = TcpStream::connect(at).await.unwrap();
    ping(&mut friend).await;
    for round in 0..3 {
        // More than it can have; the kernel takes them all into its queue.
        let mut crowd = Vec::new();
        for _ in 0..200 {
            crowd.push(TcpStream::connect(at).await.unwrap());
        }
        // For some pauses: what runs goes on, and the worker does not spin.
        let (began, spent) = (Instant::now(), cpu_time(relay.id()));
        while began.elapsed() < Duration::from_millis(1100) {
            ping(&mut friend).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let spent = cpu_time(relay.id()) - spent;
        assert!(spent < Duration::from_millis(500), "round {round}: {spent:?} of a second");
        drop(crowd);
        // Those in the queue are accepted, found gone, and then it is our turn.
        let mut later = timeout(SOON, TcpStream::connect(at)).await.unwrap().unwrap();
        ping(&mut later).await;
        ping(&mut friend).await;
    }
    relay.end();
}

/// What a process has used of the processors (proc(5): fields 14 and 15, in hundredths of a second).
fn cpu_time(id: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ');
    let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

pub(crate) async fn without_pipes_bulk_is_copied(plane: DataPlane) {
    let mut relay = Helper::start(&format!("pipeless {}", word(plane)), true);
    relay.hear("intact without pipes");
    relay.hear("intact with pipes");
    relay.end();
}

#[test]
fn where_io_uring_is_forbidden_auto_takes_epoll_and_says_why() {
    let mut relay = Helper::start("forbidden", false);
    let ladder = relay.hear("rung");
    assert!(ladder.starts_with("epoll") && ladder.contains("forbidden"), "{ladder}");
    let forced = relay.hear("forced:");
    assert!(forced.contains("data_plane uring") && forced.contains("auto"), "{forced}");
    relay.hear("moved");
    relay.end();
}
