//! Users' streams to nodes, end to end.

use net::dial::DialError;
use net::stream::Stream;
use net::tunnel::State;
use proto::preamble::{Dial, Inner, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::cluster::{Bench, dial, echoes, lock, within};
use crate::Limits;

fn refusal(result: Result<Stream, DialError>) -> (Refusal, String) {
    match result {
        Err(DialError::Refused { reason, message }) => (reason, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_reaches_its_node_by_name_and_by_id() {
    let bench = Bench::start().await;
    let mut node = bench.node("web1", "dev").await;
    let id = node.host_id.to_string();
    for target in ["web1", "WEB1", "web1.example.com", &id] {
        let mut stream = bench.dial("alice", target).await.unwrap();
        assert!(matches!(stream, Stream::Plain(_)), "TLS is left");
        echoes(&mut stream, b"SSH-2.0-test\r\n").await;
        let open = within(node.opened.recv()).await.unwrap();
        assert_eq!(open.target, target);
        assert_eq!(open.trace, dial("x").trace);
        assert!(open.client_addr.starts_with("127.0.0.1:"), "{}", open.client_addr);
    }
    assert_eq!(bench.proxy.tunnels(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_data_and_half_close_pass() {
    let bench = Bench::start().await;
    let _node = bench.node("web1", "dev").await;
    for inner in [Inner::Plain, Inner::Tls] {
        let request = Dial { inner, ..dial("web1") };
        let stream = bench.dial_as("alice", &request).await.unwrap();
        assert_eq!(matches!(stream, Stream::Tls(_)), inner == Inner::Tls);
        let (mut reader, mut writer) = tokio::io::split(stream);
        let sent: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_be_bytes).collect();
        let expected = sent.clone();
        let sender = tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        within(reader.read_to_end(&mut got)).await.unwrap();
        within(sender).await.unwrap();
        assert!(got == expected, "{inner:?}: {} bytes of {}", got.len(), expected.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_can_keep_tls_on_both_legs() {
    let bench = Bench::with(Limits::default(), Inner::Tls).await;
    let mut node = bench.node("web1", "dev").await;
    let mut stream = bench.dial("alice", "web1").await.unwrap();
    assert!(matches!(stream, Stream::Tls(_)));
    echoes(&mut stream, b"inside TLS").await;
    assert_eq!(within(node.opened.recv()).await.unwrap().inner, Inner::Tls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_streams_at_once_than_the_pool_holds() {
    let bench = Bench::start().await;
    let _node = bench.node("web1", "dev").await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(bench.dial("alice", "web1").await.unwrap());
    }
    for (index, stream) in streams.iter_mut().enumerate() {
        echoes(stream, format!("stream {index}").as_bytes()).await;
    }
    assert_eq!(bench.proxy.streams(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_relayed_to_auth_keeps_no_proxy_from_draining() {
    let bench = Bench::start().await;
    let _node = bench.node("web1", "dev").await;
    let config = net::tls::client_config(&bench.authority.trust(), None, &[b"h2"]).unwrap();
    let address = bench.address();
    let auth = net::dial::tls(&address, "auth.postern.local", config);
    let _to_auth = within(auth).await.unwrap();
    assert!(bench.proxy.core.relay.active() > 0);
    assert_eq!(bench.proxy.streams(), 0);
    let stream = bench.dial("alice", "web1").await.unwrap();
    assert_eq!(bench.proxy.streams(), 1);
    drop(stream);
    within(async {
        while bench.proxy.streams() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_what_they_may_and_are_audited() {
    let bench = Bench::start().await;
    let _dev = bench.node("web1", "dev").await;
    let _prod = bench.node("db1", "prod").await;
    let (missing, sentence) = refusal(bench.dial("alice", "nowhere").await);
    assert_eq!(
        (missing, &*sentence),
        (Refusal::NoTarget, "no node \"nowhere\" that you may reach: see `tsh ls`",)
    );
    let event = bench.event("session.rejected").await;
    assert_eq!(event["user"], "alice");
    assert_eq!(event["code"], "T1006W");
    assert_eq!(event["reason"], "no node \"nowhere\"");
    let (forbidden, sentence) = refusal(bench.dial("alice", "db1").await);
    assert_eq!(
        (forbidden, &*sentence),
        (Refusal::NoTarget, "no node \"db1\" that you may reach: see `tsh ls`",)
    );
    let other = Dial { cluster: "other.org".parse().unwrap(), ..dial("web1") };
    // The name in the proxy's certificate already keeps a client of another cluster away.
    assert!(bench.dial_as("alice", &other).await.is_err());
    let newer = Dial { version: 99, ..dial("web1") };
    let (reason, sentence) = refusal(bench.dial_as("alice", &newer).await);
    assert_eq!(reason, Refusal::Version, "{sentence}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_of_one_name_are_told_apart_by_id() {
    let bench = Bench::start().await;
    let first = bench.node("twin", "dev").await;
    // A folder of its own, by time, would be the first one's: another name of the same letters.
    let _second = bench.node("TWIN", "dev").await;
    let (reason, sentence) = refusal(bench.dial("alice", "twin").await);
    assert_eq!(reason, Refusal::NoTarget);
    assert_eq!(sentence, "several nodes are called \"twin\": use the id that `tsh ls -v` shows");
    let mut stream = bench.dial("alice", first.host_id.as_str()).await.unwrap();
    echoes(&mut stream, b"the first").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_cuts_running_streams_and_refuses_new_ones() {
    let bench = Bench::start().await;
    let _node = bench.node("web1", "dev").await;
    let mut alice = bench.dial("alice", "web1").await.unwrap();
    let mut bob = bench.dial("bob", "web1").await.unwrap();
    echoes(&mut alice, b"before").await;
    echoes(&mut bob, b"before").await;
    bench.push(2, vec![lock("alice")]).await;
    let mut rest = Vec::new();
    assert!(within(alice.read_to_end(&mut rest)).await.is_err(), "cut by a reset");
    let (reason, _) = refusal(bench.dial("alice", "web1").await);
    assert_eq!(reason, Refusal::Identity);
    echoes(&mut bob, b"after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_gone_or_going_is_told_from_one_that_is_forbidden() {
    let bench = Bench::start().await;
    let mut node = bench.node("web1", "dev").await;
    let mut running = bench.dial("alice", "web1").await.unwrap();
    echoes(&mut running, b"x").await;
    node.shutdown.drain();
    // Draining is told on the control stream; until then new streams still open.
    let reason = loop {
        match bench.dial("alice", "web1").await {
            Ok(stream) => drop(stream),
            refused => break refusal(refused).0,
        }
    };
    assert!(matches!(reason, Refusal::Unreachable | Refusal::NoTarget), "{reason:?}");
    echoes(&mut running, b"goes on").await;
    node.shutdown.stop();
    while bench.proxy.tunnels() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(refusal(bench.dial("alice", "web1").await).0, Refusal::NoTarget);
    node.state.borrow_and_update();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_ends_the_door_but_not_what_runs() {
    let bench = Bench::start().await;
    let mut node = bench.node("web1", "dev").await;
    let mut running = bench.dial("alice", "web1").await.unwrap();
    echoes(&mut running, b"x").await;
    bench.shutdown.drain();
    within(node.state.wait_for(|state| *state == State::Connecting)).await.unwrap();
    // The nodes hear of it a moment before or after the listener is gone.
    let closed = async {
        while !matches!(bench.dial("alice", "web1").await, Err(DialError::Connect { .. })) {}
    };
    within(closed).await;
    echoes(&mut running, b"goes on").await;
    bench.shutdown.stop();
    within(bench.proxy.finished()).await;
    let mut rest = Vec::new();
    drop(within(running.read_to_end(&mut rest)).await);
    assert!(rest.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_streams_are_bounded() {
    let limits = Limits { streams_per_user_max: 2, ..Limits::default() };
    let bench = Bench::with(limits, Inner::Plain).await;
    let _node = bench.node("web1", "dev").await;
    let first = bench.dial("alice", "web1").await.unwrap();
    let _second = bench.dial("alice", "web1").await.unwrap();
    assert_eq!(refusal(bench.dial("alice", "web1").await).0, Refusal::Limit);
    assert!(bench.dial("bob", "web1").await.is_ok());
    drop(first);
    loop {
        match bench.dial("alice", "web1").await {
            Ok(_) => break,
            refused => assert_eq!(refusal(refused).0, Refusal::Limit),
        }
    }
}
