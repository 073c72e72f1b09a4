//! The register of tunnels: which nodes are connected, under which names and labels, and their idle data connections.
//! Knows nothing of TLS: [`crate::tunnel`] fills it, [`crate::dial`] takes from it. One lock, held for table operations only.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::gauge;
use proto::id::{ClusterName, HostId, NodeName};
use proto::preamble::FromProxy;
use proto::resource::Labels;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::limits::Limits;

/// An authenticated connection that waits for its stream.
pub(crate) trait Data: Send + 'static {
    /// False when it is known to be of no use any more.
    fn is_alive(&self) -> bool;
}

/// A node as its tunnel describes it. Id and name are the certificate's, labels are the node's own word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) host_id: HostId,
    pub(crate) nodename: NodeName,
    pub(crate) labels: Labels,
    /// It takes no new streams.
    pub(crate) draining: bool,
}

/// Why there is no data connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoConnection {
    #[error("the node's tunnel is gone")]
    Gone,
    #[error("too many streams wait for the node already")]
    Queue,
    #[error("the node opened no connection in time")]
    TimedOut,
}

/// The register.
#[derive(Debug)]
pub(crate) struct Register<D> {
    tunnels: Mutex<HashMap<HostId, Tunnel<D>>>,
    tunnels_max: usize,
    pool_max: usize,
    waiting_max: usize,
}

#[derive(Debug)]
struct Tunnel<D> {
    facts: Facts,
    control: mpsc::Sender<FromProxy>,
    /// Cancelled when another control stream takes this one's place.
    replaced: CancellationToken,
    idle: VecDeque<D>,
    waiting: VecDeque<oneshot::Sender<D>>,
}

/// A registered control stream. The tunnel is gone when this is dropped, unless a newer one has taken its place.
#[derive(Debug)]
pub(crate) struct Registration<D> {
    register: Arc<Register<D>>,
    host_id: HostId,
    /// Cancelled when another control stream of the same host takes over.
    pub(crate) replaced: CancellationToken,
}

impl<D: Data> Register<D> {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        gauge!("postern_proxy_tunnels").set(0.0);
        Arc::new(Self {
            tunnels: Mutex::default(),
            tunnels_max: limits.tunnels_max,
            pool_max: limits.pool_max,
            waiting_max: limits.waiting_per_node_max,
        })
    }

    /// Registers a control stream; an older one of the same host is told to end, and its connections are dropped: they
    /// may belong to a process that is no more. None when there are too many tunnels.
    pub(crate) fn enter(
        self: &Arc<Self>,
        facts: Facts,
        control: mpsc::Sender<FromProxy>,
    ) -> Option<Registration<D>> {
        let mut tunnels = self.tunnels();
        if !tunnels.contains_key(&facts.host_id) && tunnels.len() >= self.tunnels_max {
            return None;
        }
        let host_id = facts.host_id.clone();
        let replaced = CancellationToken::new();
        let tunnel = Tunnel {
            facts,
            control,
            replaced: replaced.clone(),
            idle: VecDeque::new(),
            waiting: VecDeque::new(),
        };
        if let Some(mut old) = tunnels.insert(host_id.clone(), tunnel) {
            old.replaced.cancel();
            // Who waits goes on waiting, at the new tunnel.
            if let Some(new) = tunnels.get_mut(&host_id) {
                new.waiting.append(&mut old.waiting);
                new.waiting.retain(|waiter| !waiter.is_closed());
                new.ask(new.waiting.len());
            }
        }
        report(&tunnels);
        Some(Registration { register: Arc::clone(self), host_id, replaced })
    }

    /// Takes a data connection: for whoever waits, else into the pool. Dropped without a tunnel or room.
    pub(crate) fn offer(&self, host_id: &HostId, data: D) -> bool {
        let mut tunnels = self.tunnels();
        let Some(tunnel) = tunnels.get_mut(host_id) else { return false };
        let mut data = data;
        while let Some(waiter) = tunnel.waiting.pop_front() {
            match waiter.send(data) {
                Ok(()) => return true,
                Err(back) => data = back,
            }
        }
        if tunnel.idle.len() >= self.pool_max {
            tunnel.idle.retain(Data::is_alive);
        }
        let room = tunnel.idle.len() < self.pool_max;
        if room {
            tunnel.idle.push_back(data);
        }
        room
    }

    /// A data connection of the host: the newest idle one, else one that the node is asked for.
    pub(crate) async fn take(
        &self,
        host_id: &HostId,
        deadline: Instant,
    ) -> Result<D, NoConnection> {
        let wait = {
            let mut tunnels = self.tunnels();
            let tunnel = tunnels.get_mut(host_id).ok_or(NoConnection::Gone)?;
            while let Some(data) = tunnel.idle.pop_back() {
                if data.is_alive() {
                    return Ok(data);
                }
            }
            tunnel.waiting.retain(|waiter| !waiter.is_closed());
            if tunnel.waiting.len() >= self.waiting_max {
                return Err(NoConnection::Queue);
            }
            let (waiter, wait) = oneshot::channel();
            tunnel.waiting.push_back(waiter);
            tunnel.ask(1);
            wait
        };
        match timeout_at(deadline, wait).await {
            Ok(Ok(data)) => Ok(data),
            Ok(Err(_)) => Err(NoConnection::Gone),
            Err(_) => Err(NoConnection::TimedOut),
        }
    }

    /// The nodes that `target` may mean: the one with this host id, else all with this name, with or without the
    /// cluster's name behind it.
    pub(crate) fn find(&self, target: &str, cluster: &ClusterName) -> Vec<Facts> {
        let tunnels = self.tunnels();
        let short = without_cluster(target, cluster);
        let by_id = |text: &str| HostId::parse(text).ok().and_then(|id| tunnels.get(&id));
        if let Some(tunnel) = by_id(target).or_else(|| by_id(short)) {
            return vec![tunnel.facts.clone()];
        }
        let named = |tunnel: &&Tunnel<D>| {
            let name = tunnel.facts.nodename.as_str();
            name.eq_ignore_ascii_case(target) || name.eq_ignore_ascii_case(short)
        };
        tunnels.values().filter(named).map(|tunnel| tunnel.facts.clone()).collect()
    }

    /// Tunnels now.
    pub(crate) fn len(&self) -> usize {
        self.tunnels().len()
    }

    /// Ends everything: waiters learn that the tunnels are gone, idle connections close.
    pub(crate) fn clear(&self) {
        let mut tunnels = self.tunnels();
        tunnels.clear();
        report(&tunnels);
    }

    fn tunnels(&self) -> MutexGuard<'_, HashMap<HostId, Tunnel<D>>> {
        // Every critical section leaves the table whole at every step, so a panic elsewhere does not matter here.
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D> Tunnel<D> {
    /// Asks the node for connections. A control stream whose queue is full is stuck, and its own deadline ends it.
    fn ask(&self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if count > 0 && self.control.try_send(FromProxy::Need { count }).is_err() {
            tracing::debug!(node = %self.facts.nodename, "the control stream takes no request");
        }
    }
}

impl<D> Registration<D> {
    fn change(&self, change: impl FnOnce(&mut Tunnel<D>)) {
        let mut tunnels = self.register.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tunnel) = tunnels.get_mut(&self.host_id)
            && !self.replaced.is_cancelled()
        {
            change(tunnel);
        }
    }
}

impl<D: Data> Registration<D> {
    /// The node's labels as they are now; connections that have died meanwhile are let go.
    pub(crate) fn heartbeat(&self, labels: Labels) {
        self.change(|tunnel| {
            tunnel.facts.labels = labels;
            tunnel.idle.retain(Data::is_alive);
        });
    }

    /// The node takes no new streams.
    pub(crate) fn drain(&self) {
        self.change(|tunnel| {
            tunnel.facts.draining = true;
            tunnel.idle.clear();
        });
    }
}

impl<D> Drop for Registration<D> {
    fn drop(&mut self) {
        let mut tunnels = self.register.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.replaced.is_cancelled() {
            tunnels.remove(&self.host_id);
            report(&tunnels);
        }
    }
}

fn report<D>(tunnels: &HashMap<HostId, Tunnel<D>>) {
    gauge!("postern_proxy_tunnels")
        .set(f64::from(u32::try_from(tunnels.len()).unwrap_or(u32::MAX)));
}

/// `name` of `name.<cluster>`.
fn without_cluster<'a>(target: &'a str, cluster: &ClusterName) -> &'a str {
    let cluster = cluster.as_str();
    let split = target.len().checked_sub(cluster.len()).and_then(|at| target.split_at_checked(at));
    match split {
        Some((name, end)) if end.eq_ignore_ascii_case(cluster) => {
            name.strip_suffix('.').filter(|name| !name.is_empty()).unwrap_or(target)
        }
        Some(_) | None => target,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Line(u32, bool);

    impl Data for Line {
        fn is_alive(&self) -> bool {
            self.1
        }
    }

    fn id(number: u8) -> HostId {
        HostId::from_random([number; 16])
    }

    fn facts(number: u8, name: &str) -> Facts {
        Facts {
            host_id: id(number),
            nodename: name.parse().unwrap(),
            labels: Labels::new(),
            draining: false,
        }
    }

    fn register(limits: Limits) -> Arc<Register<Line>> {
        Register::new(&limits)
    }

    type Control = mpsc::Receiver<FromProxy>;

    fn enter(
        register: &Arc<Register<Line>>,
        number: u8,
        name: &str,
    ) -> (Registration<Line>, Control) {
        let (control, queue) = mpsc::channel(8);
        (register.enter(facts(number, name), control).unwrap(), queue)
    }

    fn in_ten_seconds() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn targets_are_found_by_id_and_name() {
        let register = register(Limits::default());
        let (_a, _qa) = enter(&register, 1, "Web-1");
        let (_b, _qb) = enter(&register, 2, "db.example.com");
        let (_c, _qc) = enter(&register, 3, "twin");
        let (_d, _qd) = enter(&register, 4, "TWIN");
        let cluster = "example.com".parse().unwrap();
        let check = |target: &str, expect: &[u8]| {
            let mut found: Vec<_> =
                register.find(target, &cluster).into_iter().map(|facts| facts.host_id).collect();
            found.sort();
            assert_eq!(found, expect.iter().map(|n| id(*n)).collect::<Vec<_>>(), "{target}");
        };
        check("web-1", &[1]);
        check("WEB-1.Example.COM", &[1]);
        check(id(1).as_str(), &[1]);
        check(&format!("{}.example.com", id(1)), &[1]);
        check("db.example.com", &[2]);
        check("twin", &[3, 4]);
        check("example.com", &[]);
        check(".example.com", &[]);
        check("", &[]);
        check("web-1.example.org", &[]);
        check("ä.example.com", &[]);
        check("äexample.com", &[]);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_are_used_newest_first_and_dead_ones_skipped() {
        let register = register(Limits::default());
        let (_tunnel, _queue) = enter(&register, 1, "a");
        for line in [Line(1, true), Line(2, true), Line(3, false)] {
            assert!(register.offer(&id(1), line));
        }
        assert!(!register.offer(&id(9), Line(4, true)), "of an unknown host");
        let deadline = in_ten_seconds();
        assert_eq!(register.take(&id(1), deadline).await, Ok(Line(2, true)));
        assert_eq!(register.take(&id(1), deadline).await, Ok(Line(1, true)));
        assert_eq!(register.take(&id(9), deadline).await, Err(NoConnection::Gone));
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_pool_asks_and_waits() {
        let register = register(Limits::default());
        let (_tunnel, mut queue) = enter(&register, 1, "a");
        let (host, deadline) = (id(1), in_ten_seconds());
        let (taken, ()) = tokio::join!(register.take(&host, deadline), async {
            assert_eq!(queue.recv().await, Some(FromProxy::Need { count: 1 }));
            assert!(register.offer(&host, Line(7, true)));
        });
        assert_eq!(taken, Ok(Line(7, true)));
        assert_eq!(register.take(&id(1), deadline).await, Err(NoConnection::TimedOut));
        // Nobody waits any more: the late one is kept.
        assert!(register.offer(&id(1), Line(8, true)));
        assert_eq!(register.take(&id(1), deadline).await, Ok(Line(8, true)));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_and_pool_are_bounded() {
        let limits = Limits { waiting_per_node_max: 1, pool_max: 2, ..Limits::default() };
        let register = register(limits);
        let (tunnel, _queue) = enter(&register, 1, "a");
        let (host, deadline) = (id(1), in_ten_seconds());
        let (first, second) =
            tokio::join!(register.take(&host, deadline), register.take(&host, deadline));
        assert_eq!((first, second), (Err(NoConnection::TimedOut), Err(NoConnection::Queue)));
        assert!(register.offer(&id(1), Line(1, true)));
        assert!(register.offer(&id(1), Line(2, false)));
        assert!(register.offer(&id(1), Line(3, true)), "in the dead one's place");
        assert!(!register.offer(&id(1), Line(4, true)));
        tunnel.drain();
        let deadline = in_ten_seconds();
        assert_eq!(register.take(&id(1), deadline).await, Err(NoConnection::TimedOut));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_control_stream_takes_over() {
        let register = register(Limits::default());
        let (old, _old_queue) = enter(&register, 1, "a");
        assert!(register.offer(&id(1), Line(1, true)));
        let (new, mut queue) = enter(&register, 1, "a");
        assert!(old.replaced.is_cancelled() && !new.replaced.is_cancelled());
        old.drain();
        drop(old);
        assert_eq!(register.len(), 1, "the old one's end does not end the new one");
        let cluster = "c".parse().unwrap();
        assert!(!register.find("a", &cluster)[0].draining);
        let (host, deadline) = (id(1), in_ten_seconds());
        let (taken, ()) = tokio::join!(register.take(&host, deadline), async {
            // The old tunnel's connection is not given out.
            assert_eq!(queue.recv().await, Some(FromProxy::Need { count: 1 }));
            assert!(register.offer(&host, Line(2, true)));
        });
        assert_eq!(taken, Ok(Line(2, true)));
        drop(new);
        assert_eq!(register.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_carried_over_and_told_of_the_end() {
        let register = register(Limits::default());
        let (old, _old_queue) = enter(&register, 1, "a");
        let (host, deadline) = (id(1), in_ten_seconds());
        let (taken, ()) = tokio::join!(register.take(&host, deadline), async {
            let (_new, mut queue) = enter(&register, 1, "a");
            assert_eq!(queue.recv().await, Some(FromProxy::Need { count: 1 }));
            drop(old);
        });
        assert_eq!(taken, Err(NoConnection::Gone));
    }

    #[test]
    fn tunnels_are_bounded() {
        let register = register(Limits { tunnels_max: 1, ..Limits::default() });
        let (_a, _qa) = enter(&register, 1, "a");
        let (control, _queue) = mpsc::channel(1);
        assert!(register.enter(facts(2, "b"), control.clone()).is_none());
        assert!(register.enter(facts(1, "a"), control).is_some());
    }

    #[test]
    fn heartbeats_change_labels_and_sweep() {
        let register = register(Limits::default());
        let (tunnel, _queue) = enter(&register, 1, "a");
        assert!(register.offer(&id(1), Line(1, false)));
        let labels = Labels::from([("env".to_owned(), "prod".to_owned())]);
        tunnel.heartbeat(labels.clone());
        assert_eq!(register.find("a", &"c".parse().unwrap())[0].labels, labels);
        assert!(register.tunnels()[&id(1)].idle.is_empty());
    }
}
