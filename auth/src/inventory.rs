//! Machines as auth last heard of them. In memory, written to the store at most once a minute per machine or when
//! something but the time has changed, so that heartbeats of thousands don't become a write load. A machine that is silent
//! for ten minutes is gone from lists; its name stays its own as long as its certificate lives.
//!
//! - `capture`: what a node may say of its kernel

mod capture;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use pki::{HostIdentity, UserIdentity};
use policy::{Decision, Policy, Request, decide};
use proto::id::HostId;
use proto::resource::{
    HostRole, KIND_NODE, Labels, Metadata, NODE_VERSION, Node as NodeResource, NodeSpec,
};
use proto::rpc::{CaptureStatus, HeartbeatRequest, Node, NodeCapture};

use crate::clock::Clock;
use crate::fault::Fault;
use crate::hostnames::Hostnames;
use crate::store::{Expect, Span, Store, from_json, to_json};

/// The machines.
#[derive(Debug)]
pub(crate) struct Inventory {
    clock: Clock,
    hostnames: Arc<Hostnames>,
    store: Arc<dyn Store>,
    machines: Mutex<HashMap<HostId, Machine>>,
}

#[derive(Debug, Clone)]
struct Machine {
    resource: NodeResource,
    /// What its kernel tells. In memory only: it is said anew with each heartbeat.
    capture: Option<CaptureStatus>,
    written_at: i64,
}

impl Inventory {
    /// Loads what was known before the last stop.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        hostnames: Arc<Hostnames>,
        clock: Clock,
    ) -> Result<Self, Fault> {
        let mut machines = HashMap::new();
        for item in store.range(Span::prefix(PREFIX), MACHINES_MAX).await?.items {
            let resource: NodeResource = from_json(&item)?;
            if let Some(id) = item.key.strip_prefix(PREFIX)
                && let Ok(id) = HostId::parse(id)
            {
                machines.insert(id, Machine { resource, capture: None, written_at: 0 });
            }
        }
        Ok(Self { clock, hostnames, store, machines: Mutex::new(machines) })
    }

    /// A machine says that it is there. Who it is stands in its certificate; it may only say how it is.
    pub(crate) async fn heartbeat(
        &self,
        host: &HostIdentity,
        mut beat: HeartbeatRequest,
    ) -> Result<i64, Fault> {
        let now = self.clock.now();
        let capture = beat.capture.take().map(capture::checked).transpose()?;
        let resource = resource(host, beat, now)?;
        let id = host.host_id().clone();
        if let Some(resource) = self.note(&id, resource, capture, now)? {
            let key = format!("{PREFIX}{id}");
            let expires = Some(now.saturating_add(GONE_SECONDS));
            self.store.put_if(&key, to_json(&resource)?, Expect::Any, expires).await?;
        }
        Ok(now)
    }

    /// Takes a heartbeat in; gives what is to be written.
    fn note(
        &self,
        id: &HostId,
        resource: NodeResource,
        capture: Option<CaptureStatus>,
        now: i64,
    ) -> Result<Option<NodeResource>, Fault> {
        let mut machines = self.lock()?;
        machines.retain(|_, machine| is_present(machine, now));
        if !machines.contains_key(id) && machines.len() >= MACHINES_MAX {
            return Err(Fault::Limit("too many machines"));
        }
        let machine = machines.entry(id.clone()).or_insert_with(|| Machine {
            resource: resource.clone(),
            capture: None,
            written_at: 0,
        });
        machine.capture = capture;
        let due = now.saturating_sub(machine.written_at) >= WRITE_EVERY_SECONDS;
        let write = due || !same_but_time(&machine.resource, &resource);
        machine.resource = resource;
        if !write {
            return Ok(None);
        }
        machine.written_at = now;
        Ok(Some(machine.resource.clone()))
    }

    /// Machines of all roles that are not gone, by name.
    pub(crate) fn resources(&self) -> Vec<(HostId, NodeResource)> {
        let now = self.clock.now();
        let Ok(machines) = self.lock() else { return Vec::new() };
        let mut list: Vec<_> = machines
            .iter()
            .filter(|(_, machine)| is_present(machine, now))
            .map(|(id, machine)| (id.clone(), machine.resource.clone()))
            .collect();
        list.sort_by(|(a_id, a), (b_id, b)| {
            (&a.spec.hostname, a_id).cmp(&(&b.spec.hostname, b_id))
        });
        list
    }

    /// What the kernels of nodes tell, by host id, from behind `after` on: as much as an answer holds, and whether there is
    /// more. `node` is a name or an id; empty for all.
    pub(crate) fn captures(&self, node: &str, after: &str) -> (Vec<NodeCapture>, bool) {
        let now = self.clock.now();
        let Ok(machines) = self.lock() else { return (Vec::new(), false) };
        let is_asked = |id: &HostId, spec: &NodeSpec| {
            spec.role == HostRole::Node
                && id.as_str() > after
                && (node.is_empty()
                    || id.as_str() == node
                    || spec.hostname.as_str().eq_ignore_ascii_case(node))
        };
        let mut list: Vec<_> = machines
            .iter()
            .filter(|(id, machine)| {
                is_present(machine, now) && is_asked(id, &machine.resource.spec)
            })
            .collect();
        list.sort_by_key(|(id, _)| *id);
        let more = list.len() > CAPTURES_MAX;
        let answer = list.into_iter().take(CAPTURES_MAX).map(|(id, machine)| NodeCapture {
            host_id: id.to_string(),
            nodename: machine.resource.spec.hostname.to_string(),
            last_seen: machine.resource.spec.last_seen,
            capture: machine.capture.clone(),
        });
        (answer.collect(), more)
    }

    /// The address that a present proxy reports, of the first by name; empty when there is none. What does not look like
    /// an address is left out: people copy it into a shell.
    pub(crate) fn proxy_address(&self) -> String {
        let proxies = self.resources().into_iter().map(|(_, machine)| machine.spec);
        let mut addresses = proxies.filter(|it| it.role == HostRole::Proxy).map(|it| it.address);
        addresses.find(|address| is_address(address)).unwrap_or_default()
    }

    /// All nodes, for an administrator; logins are those of `user`, if it is one.
    pub(crate) fn all_nodes(&self, user: Option<(&Policy, &UserIdentity)>) -> Vec<Node> {
        self.nodes(|id, labels| match user {
            Some((policy, identity)) => {
                Some(self.logins(policy, identity, id, labels).unwrap_or_default())
            }
            None => Some(Vec::new()),
        })
    }

    /// The nodes that `identity` may open a session on.
    pub(crate) fn reachable_nodes(&self, policy: &Policy, identity: &UserIdentity) -> Vec<Node> {
        self.nodes(|id, labels| self.logins(policy, identity, id, labels))
    }

    fn nodes(&self, logins: impl Fn(&HostId, &Labels) -> Option<Vec<String>>) -> Vec<Node> {
        let nodes = self.resources();
        nodes
            .into_iter()
            .filter(|(_, node)| node.spec.role == HostRole::Node)
            .filter_map(|(id, node)| {
                let logins = logins(&id, &node.metadata.labels)?;
                Some(Node {
                    host_id: id.to_string(),
                    nodename: node.spec.hostname.to_string(),
                    labels: node.metadata.labels.into_iter().collect(),
                    version: node.spec.app_version,
                    last_seen: node.spec.last_seen,
                    logins,
                })
            })
            .collect()
    }

    fn logins(
        &self,
        policy: &Policy,
        identity: &UserIdentity,
        host_id: &HostId,
        labels: &Labels,
    ) -> Option<Vec<String>> {
        let request = Request::ReachNode { host_id, labels };
        match decide(policy, identity, &request, self.clock.now()) {
            Decision::Permit(permit) => {
                Some(permit.logins().iter().map(ToString::to_string).collect())
            }
            Decision::Denial(_) => None,
        }
    }

    /// Removes a machine, by id or by name, and gives its name free. False when there is none.
    pub(crate) async fn remove(&self, name: &str) -> Result<bool, Fault> {
        let named = |(id, node): &(HostId, NodeResource)| {
            id.as_str() == name || node.spec.hostname.as_str().eq_ignore_ascii_case(name)
        };
        let found: Vec<_> = self.resources().into_iter().filter(named).collect();
        for (id, node) in &found {
            self.lock()?.remove(id);
            self.store.delete_if(&format!("{PREFIX}{id}"), Expect::Any).await?;
            let (nodename, role) = (&node.spec.hostname, node.spec.role);
            self.hostnames.release(id, nodename, role).await?;
        }
        if found.is_empty() {
            return self.hostnames.forget_node(name).await;
        }
        Ok(true)
    }

    fn lock(&self) -> Result<std::sync::MutexGuard<'_, HashMap<HostId, Machine>>, Fault> {
        self.machines.lock().map_err(|_| Fault::Internal("a heartbeat panicked".into()))
    }
}

/// What a heartbeat says, checked against the certificate.
fn resource(host: &HostIdentity, beat: HeartbeatRequest, now: i64) -> Result<NodeResource, Fault> {
    let role = host.roles().iter().copied().find(|role| role.as_str() == beat.role);
    let Some(role) = role else {
        return Err(Fault::Denied("the certificate is for another role".into()));
    };
    if beat.nodename != host.nodename().as_str() {
        return Err(Fault::Denied("the certificate is for another node name".into()));
    }
    let label_bytes = |(name, value): (&String, &String)| name.len() + value.len();
    if beat.labels.len() > LABELS_MAX
        || beat.labels.iter().map(label_bytes).sum::<usize>() > LABEL_BYTES_MAX
        || beat.version.len() > TEXT_BYTES_MAX
        || beat.address.len() > TEXT_BYTES_MAX
    {
        return Err(Fault::Invalid(format!(
            "a machine has at most {LABELS_MAX} labels with {LABEL_BYTES_MAX} bytes together"
        )));
    }
    Ok(NodeResource {
        kind: KIND_NODE.into(),
        version: NODE_VERSION.into(),
        metadata: Metadata {
            name: host.host_id().to_string(),
            labels: beat.labels.into_iter().collect(),
            ..Metadata::default()
        },
        spec: NodeSpec {
            hostname: host.nodename().clone(),
            role,
            app_version: beat.version,
            last_seen: now,
            policy_revision: beat.policy_revision,
            address: beat.address,
        },
    })
}

/// `host:port`, the host a name or an address, without anything that means something to a shell.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == ':')
        && host.chars().all(plain)
        && port.parse::<u16>().is_ok()
}

fn is_present(machine: &Machine, now: i64) -> bool {
    now.saturating_sub(machine.resource.spec.last_seen) < GONE_SECONDS
}

/// The policy revision changes on all machines at once: that alone is not worth a write each.
fn same_but_time(a: &NodeResource, b: &NodeResource) -> bool {
    a.metadata.labels == b.metadata.labels
        && a.spec.hostname == b.spec.hostname
        && a.spec.role == b.spec.role
        && a.spec.app_version == b.spec.app_version
        && a.spec.address == b.spec.address
}

const PREFIX: &str = "node/";
/// Statuses in one answer: also the longest that nodes may send then fit into a message.
const CAPTURES_MAX: usize = 100;
const _: () =
    assert!(CAPTURES_MAX * 2 * capture::STATUS_BYTES_MAX < net::auth_client::MESSAGE_BYTES_MAX);
/// Ten minutes: twenty heartbeats missed.
const GONE_SECONDS: i64 = 600;
const WRITE_EVERY_SECONDS: i64 = 60;
/// A cluster of this size needs another store.
const MACHINES_MAX: usize = 50_000;
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 8 * 1024;
const TEXT_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_plain() {
        for good in ["proxy.example.com:443", "10.0.0.1:3080", "[2001:db8::1]:3080", "localhost:1"]
        {
            assert!(is_address(good), "{good}");
        }
        for bad in
            ["", "proxy", "proxy:", ":3080", "-x:1", "a b:1", "x;rm -rf ~:1", "$(x):1", "x:99999"]
        {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
