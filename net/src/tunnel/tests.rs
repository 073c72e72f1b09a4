//! The tunnel against a fake proxy on loopback.

use proto::preamble::{ALPN_STREAM, Inner, Refusal, Reply, Service};
use proto::resource::HostRole;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::stream::Tls;
use crate::testing::{Cluster, accept, host, listener};

const SOON: Duration = Duration::from_secs(20);

/// Accepts for the test: control streams and data connections apart.
struct FakeProxy {
    address: String,
    control: mpsc::Receiver<Tls>,
    data: mpsc::Receiver<Tls>,
}

impl FakeProxy {
    async fn start(config: Arc<ServerConfig>) -> Self {
        let (listener, address) = listener().await;
        let (to_control, control) = mpsc::channel(100);
        let (to_data, data) = mpsc::channel(100);
        tokio::spawn(accept_all(listener, config, to_control, to_data));
        Self { address, control, data }
    }

    /// The next control stream, welcomed.
    async fn welcome(&mut self, pool: u32) -> Tls {
        let mut control = within(self.control.recv()).await.unwrap();
        let hello: FromNode = frame::read(&mut control, SOON).await.unwrap();
        assert!(matches!(hello, FromNode::Hello { version: VERSION, .. }), "{hello:?}");
        let welcome = FromProxy::Welcome { version: VERSION, pool };
        frame::write(&mut control, &welcome, SOON).await.unwrap();
        control
    }

    async fn data(&mut self) -> Tls {
        within(self.data.recv()).await.unwrap()
    }
}

async fn accept_all(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    control: mpsc::Sender<Tls>,
    data: mpsc::Sender<Tls>,
) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (config, control, data) = (config.clone(), control.clone(), data.clone());
        tokio::spawn(async move {
            let Ok(tls) = accept(socket, config).await else { return };
            assert!(tls.get_ref().1.peer_certificates().is_some());
            let to =
                if tls.get_ref().1.alpn_protocol() == Some(ALPN_STREAM) { data } else { control };
            to.send(tls).await.ok();
        });
    }
}

struct Bench {
    proxy: FakeProxy,
    sink: mpsc::Receiver<Incoming>,
    state: watch::Receiver<State>,
    labels: watch::Sender<Labels>,
    shutdown: Shutdown,
    running: JoinHandle<()>,
}

impl Bench {
    async fn start(sink_size: usize) -> Self {
        let cluster = Cluster::new("example.com");
        let machine = cluster.machine(HostRole::Proxy, "p1", &[]);
        let config = cluster.server(&machine, &[ALPN_TUNNEL, ALPN_STREAM]);
        let proxy = FakeProxy::start(config).await;
        let unused = crate::auth_client::socket_channel("/nonexistent".into());
        let (host, _) = host(cluster.machine(HostRole::Node, "n1", &[]), unused);
        let (labels, labels_watch) = watch::channel(Labels::new());
        let (to_sink, sink) = mpsc::channel(sink_size);
        let (to_state, state) = watch::channel(State::Connecting);
        let shutdown = Shutdown::new();
        let running = tokio::spawn(run(
            proxy.address.clone(),
            host,
            labels_watch,
            to_sink,
            to_state,
            shutdown.clone(),
        ));
        Self { proxy, sink, state, labels, shutdown, running }
    }

    async fn until(&mut self, state: State) {
        within(self.state.wait_for(|it| *it == state)).await.unwrap();
    }
}

async fn within<T>(it: impl Future<Output = T>) -> T {
    timeout(SOON, it).await.unwrap()
}

fn open(target: &str, inner: Inner) -> Open {
    Open {
        version: VERSION,
        service: Service::Ssh,
        target: target.into(),
        client_addr: "192.0.2.1:5".into(),
        inner,
        trace: "0".repeat(32),
    }
}

async fn ask(data: &mut Tls, open: &Open) -> Reply {
    frame::write(data, open, SOON).await.unwrap();
    frame::read(data, SOON).await.unwrap()
}

/// Both directions of a stream that was handed over.
async fn exchange(mut near: Stream, mut far: Stream) {
    near.write_all(b"SSH-2.0-user").await.unwrap();
    near.flush().await.unwrap();
    let mut heard = [0; 12];
    far.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"SSH-2.0-user");
    far.write_all(b"SSH-2.0-node").await.unwrap();
    far.flush().await.unwrap();
    near.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"SSH-2.0-node");
}

#[tokio::test]
async fn streams_arrive_and_the_pool_is_refilled() {
    let mut bench = Bench::start(8).await;
    let _control = bench.proxy.welcome(3).await;
    bench.until(State::Connected).await;
    let mut pool = Vec::new();
    for _ in 0..3 {
        pool.push(bench.proxy.data().await);
    }
    for (number, inner) in
        [Inner::Plain, Inner::Tls, Inner::Plain, Inner::Plain].into_iter().enumerate()
    {
        let mut data = pool.remove(0);
        let open = open(&format!("n{number}"), inner);
        assert_eq!(ask(&mut data, &open).await, Reply::Ok { inner });
        let incoming = within(bench.sink.recv()).await.unwrap();
        assert_eq!(incoming.open, open);
        assert_eq!(incoming.proxy.nodename().as_str(), "p1");
        assert_eq!(matches!(incoming.stream, Stream::Plain(_)), inner == Inner::Plain);
        exchange(Stream::after_reply(data, inner).unwrap(), incoming.stream).await;
        pool.push(bench.proxy.data().await);
    }
}

#[tokio::test]
async fn data_connections_resume_the_session() {
    let mut bench = Bench::start(8).await;
    let _control = bench.proxy.welcome(1).await;
    let mut first = bench.proxy.data().await;
    let full = rustls::HandshakeKind::Resumed;
    assert_ne!(first.get_ref().1.handshake_kind(), Some(full));
    ask(&mut first, &open("n1", Inner::Tls)).await;
    let second = bench.proxy.data().await;
    assert_eq!(second.get_ref().1.handshake_kind(), Some(full));
    assert!(second.get_ref().1.peer_certificates().is_some(), "the ticket carries the identity");
}

#[tokio::test]
async fn the_proxy_gets_as_many_as_it_needs() {
    let mut bench = Bench::start(8).await;
    let mut control = bench.proxy.welcome(1).await;
    let mut held = vec![bench.proxy.data().await];
    frame::write(&mut control, &FromProxy::Need { count: 4 }, SOON).await.unwrap();
    for _ in 0..4 {
        held.push(bench.proxy.data().await);
    }
    // Extra ones are not replaced when used, the pool's one is.
    for _ in 0..5 {
        let mut data = held.remove(0);
        ask(&mut data, &open("n1", Inner::Tls)).await;
        within(bench.sink.recv()).await.unwrap();
    }
    bench.proxy.data().await;
    assert!(bench.proxy.data.try_recv().is_err());
}

#[tokio::test]
async fn a_lost_control_stream_takes_the_idle_ones_along_and_comes_back() {
    let mut bench = Bench::start(8).await;
    for _ in 0..3 {
        let control = bench.proxy.welcome(2).await;
        bench.until(State::Connected).await;
        let mut idle = bench.proxy.data().await;
        let mut used = bench.proxy.data().await;
        ask(&mut used, &open("n1", Inner::Plain)).await;
        let incoming = within(bench.sink.recv()).await.unwrap();
        bench.proxy.data().await;
        drop(control);
        bench.until(State::Connecting).await;
        assert!(within(idle.read_u8()).await.is_err(), "idle connections end");
        exchange(Stream::after_reply(used, Inner::Plain).unwrap(), incoming.stream).await;
        while bench.proxy.data.try_recv().is_ok() {}
    }
}

#[tokio::test]
async fn a_full_sink_delays_and_loses_nothing() {
    let mut bench = Bench::start(1).await;
    let _control = bench.proxy.welcome(4).await;
    let mut waiting = Vec::new();
    for number in 0..4 {
        let mut data = bench.proxy.data().await;
        frame::write(&mut data, &open(&format!("n{number}"), Inner::Plain), SOON).await.unwrap();
        waiting.push(data);
    }
    let mut targets = Vec::new();
    for _ in 0..4 {
        targets.push(within(bench.sink.recv()).await.unwrap().open.target);
    }
    targets.sort();
    assert_eq!(targets, ["n0", "n1", "n2", "n3"]);
    for mut data in waiting {
        let reply: Reply = frame::read(&mut data, SOON).await.unwrap();
        assert_eq!(reply, Reply::Ok { inner: Inner::Plain });
    }
}

#[tokio::test]
async fn a_node_that_is_gone_refuses() {
    let mut bench = Bench::start(1).await;
    let _control = bench.proxy.welcome(1).await;
    let mut data = bench.proxy.data().await;
    bench.sink.close();
    let reply = ask(&mut data, &open("n1", Inner::Plain)).await;
    assert!(matches!(reply, Reply::Refused { reason: Refusal::Limit, .. }), "{reply:?}");
}

#[tokio::test]
async fn another_version_is_refused() {
    let mut bench = Bench::start(1).await;
    let _control = bench.proxy.welcome(1).await;
    let mut data = bench.proxy.data().await;
    let mut newer = open("n1", Inner::Plain);
    newer.version += 1;
    let reply = ask(&mut data, &newer).await;
    assert!(matches!(reply, Reply::Refused { reason: Refusal::Version, .. }), "{reply:?}");
    assert!(bench.sink.try_recv().is_err());
}

#[tokio::test]
async fn draining_is_told_and_keeps_the_control_stream() {
    let mut bench = Bench::start(8).await;
    let mut control = bench.proxy.welcome(1).await;
    let mut idle = bench.proxy.data().await;
    bench.shutdown.drain();
    loop {
        match frame::read::<FromNode>(&mut control, SOON).await.unwrap() {
            FromNode::Draining => break,
            FromNode::Heartbeat { .. } => {}
            FromNode::Hello { .. } => panic!("a second hello"),
        }
    }
    assert!(within(idle.read_u8()).await.is_err(), "no new streams");
    frame::write(&mut control, &FromProxy::Need { count: 5 }, SOON).await.unwrap();
    frame::write(&mut control, &FromProxy::Alive, SOON).await.unwrap();
    bench.shutdown.stop();
    within(bench.running).await.unwrap();
    while frame::read::<FromNode>(&mut control, SOON).await.is_ok() {}
    assert!(bench.proxy.data.try_recv().is_err());
}

#[tokio::test]
async fn labels_travel_with_heartbeats() {
    let mut bench = Bench::start(8).await;
    bench.labels.send_replace(Labels::from([("env".into(), "prod".into())]));
    let mut control = bench.proxy.welcome(0).await;
    let message: FromNode = frame::read(&mut control, SOON).await.unwrap();
    let labels = Labels::from([("env".into(), "prod".into())]);
    assert_eq!(message, FromNode::Heartbeat { labels });
}

#[tokio::test]
async fn a_draining_proxy_is_dialed_again() {
    let mut bench = Bench::start(8).await;
    let mut control = bench.proxy.welcome(0).await;
    frame::write(&mut control, &FromProxy::Draining { retry_after_ms: 1 }, SOON).await.unwrap();
    bench.proxy.welcome(0).await;
}

#[tokio::test]
async fn a_proxy_that_breaks_the_protocol_is_left() {
    let mut bench = Bench::start(8).await;
    for bad in [
        FromProxy::Alive,
        FromProxy::Welcome { version: VERSION + 1, pool: 1 },
        FromProxy::Need { count: 1 },
    ] {
        let mut control = within(bench.proxy.control.recv()).await.unwrap();
        frame::read::<FromNode>(&mut control, SOON).await.unwrap();
        frame::write(&mut control, &bad, SOON).await.unwrap();
        assert!(within(control.read_u8()).await.is_err());
        assert_eq!(*bench.state.borrow(), State::Connecting);
    }
    let _control = bench.proxy.welcome(0).await;
    bench.until(State::Connected).await;
}

#[tokio::test]
async fn another_clusters_proxy_gets_no_hello() {
    let (ours, other) = (Cluster::new("example.com"), Cluster::new("example.com"));
    let machine = other.machine(HostRole::Proxy, "p1", &[]);
    let mut proxy = FakeProxy::start(other.server(&machine, &[ALPN_TUNNEL])).await;
    let unused = crate::auth_client::socket_channel("/nonexistent".into());
    let (host, _) = host(ours.machine(HostRole::Node, "n1", &[]), unused);
    let dialed = Dialer::new(proxy.address.clone(), host).dial(ALPN_TUNNEL).await;
    assert!(matches!(dialed.map(|_| ()), Err(TunnelError::Dial(DialError::Tls { .. }))));
    assert!(proxy.control.try_recv().is_err());
}
