//! Whose name is whose. A machine chooses its node name, and its certificates carry it; so a name is held by one node at a
//! time, and no proxy may get a certificate with a node's name: a stolen proxy could otherwise pass for any node, and
//! would no longer be blind. Held as long as the certificate lives; `tctl rm node/<name>` gives a name free.
//!
//! A proxy and a node may share one node name: they are then roles of one machine. Public names of proxies are shared by
//! all proxies behind them.

use std::net::IpAddr;
use std::sync::Arc;

use proto::id::{ClusterName, HostId, NodeName};
use proto::resource::HostRole;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use crate::fault::Fault;
use crate::store::{Expect, Store, StoreError};

/// The register of names.
#[derive(Debug)]
pub(crate) struct Hostnames {
    cluster: ClusterName,
    store: Arc<dyn Store>,
    /// One claim at a time: a node's and a proxy's look at each other's keys before they write their own.
    claiming: Mutex<()>,
}

/// Who wants names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holder<'a> {
    pub(crate) host_id: &'a HostId,
    pub(crate) nodename: &'a NodeName,
    pub(crate) role: HostRole,
    /// The public keys that are certified.
    pub(crate) ssh_public_key: &'a str,
    pub(crate) tls_public_key: &'a [u8],
}

impl Holder<'_> {
    fn record(&self) -> Vec<u8> {
        let (ssh, tls) = (Sha256::digest(self.ssh_public_key), Sha256::digest(self.tls_public_key));
        let keys = Sha256::new().chain_update(ssh).chain_update(tls).finalize();
        format!("{} {}", self.host_id, hex::encode(keys)).into_bytes()
    }

    /// Whether the name is this machine's: by its id, or by its keys when it joins again because an answer was lost.
    /// By both keys, because nobody proves here to have them: whoever names another machine's keys gets certificates for
    /// keys that only that machine has.
    fn holds(&self, record: &[u8]) -> bool {
        let (old, new) = (String::from_utf8_lossy(record), self.record());
        let new = String::from_utf8_lossy(&new).into_owned();
        match (old.split_once(' '), new.split_once(' ')) {
            (Some((old_id, old_keys)), Some((id, keys))) => old_id == id || old_keys == keys,
            _ => false,
        }
    }
}

impl Hostnames {
    pub(crate) fn new(cluster: ClusterName, store: Arc<dyn Store>) -> Self {
        Self { cluster, store, claiming: Mutex::default() }
    }

    /// Checks and takes the node name and, for a proxy, its public names, until `expires` (Unix seconds).
    pub(crate) async fn claim(
        &self,
        holder: Holder<'_>,
        principals: &[String],
        expires: i64,
    ) -> Result<(), Fault> {
        let _one = self.claiming.lock().await;
        let own = self.bare(holder.nodename.as_str());
        self.check_nodename(&own)?;
        if !principals.is_empty() && holder.role != HostRole::Proxy {
            return Err(Fault::Invalid("only a proxy has further names".into()));
        }
        if principals.len() > PRINCIPALS_MAX {
            return Err(Fault::Invalid(format!("more than {PRINCIPALS_MAX} names for one proxy")));
        }
        let mut public = Vec::new();
        for principal in principals {
            let name = self.check_principal(principal, &own).await?;
            if name != own {
                public.push(name);
            }
        }
        if holder.role == HostRole::Node && self.store.get(&public_key(&own)).await?.is_some() {
            return Err(taken(&own, "it is a public name of a proxy"));
        }
        self.hold(holder, &own, expires).await?;
        for name in public {
            self.store.put_if(&public_key(&name), Vec::new(), Expect::Any, Some(expires)).await?;
        }
        Ok(())
    }

    /// Gives a machine's node name free, if it is its own.
    pub(crate) async fn release(
        &self,
        host_id: &HostId,
        nodename: &NodeName,
        role: HostRole,
    ) -> Result<(), Fault> {
        let key = name_key(role, &self.bare(nodename.as_str()));
        if let Some(item) = self.store.get(&key).await?
            && item.value.starts_with(format!("{host_id} ").as_bytes())
        {
            self.store.delete_if(&key, Expect::Revision(item.revision)).await?;
        }
        Ok(())
    }

    /// Gives a node's name free whoever has it: its machine has been silent for long. False when nobody has it.
    pub(crate) async fn forget_node(&self, name: &str) -> Result<bool, Fault> {
        let key = name_key(HostRole::Node, &self.bare(name));
        Ok(self.store.delete_if(&key, Expect::Any).await?)
    }

    async fn hold(&self, holder: Holder<'_>, own: &str, expires: i64) -> Result<(), Fault> {
        let key = name_key(holder.role, own);
        let expect = match self.store.get(&key).await? {
            Some(item) if holder.holds(&item.value) => Expect::Revision(item.revision),
            Some(_) => return Err(taken(own, "another machine has it")),
            None => Expect::Absent,
        };
        let value = holder.record();
        match self.store.put_if(&key, value, expect, Some(expires)).await {
            Ok(_) => Ok(()),
            Err(StoreError::Conflict) => Err(taken(own, "another machine has it")),
            Err(error) => Err(error.into()),
        }
    }

    fn check_nodename(&self, name: &str) -> Result<(), Fault> {
        if RESERVED.contains(&name) {
            return Err(Fault::Invalid(format!(
                "the node name {name:?} is reserved: choose another"
            )));
        }
        if self.is_internal(name) || name.parse::<IpAddr>().is_ok() {
            return Err(Fault::Invalid(format!("{name:?} cannot be a node name: choose another")));
        }
        Ok(())
    }

    /// The bare form of a proxy's public name that may go into its certificates.
    async fn check_principal(&self, principal: &str, own: &str) -> Result<String, Fault> {
        let name = self.bare(principal);
        // `proxy.<cluster>` is in its certificate anyway, and a common public name.
        let reserved = RESERVED.contains(&name.as_str()) && name != HostRole::Proxy.as_str();
        if reserved || self.is_internal(&name) || name.len() > NAME_BYTES_MAX || name.is_empty() {
            return Err(Fault::Invalid("a proxy cannot have one of these names".into()));
        }
        if name != own && self.store.get(&name_key(HostRole::Node, &name)).await?.is_some() {
            return Err(taken(&name, "a node has it"));
        }
        Ok(name)
    }

    /// Whether a bare name, with or without the cluster's, is one under which auth is found by machines that don't know
    /// the cluster's name yet.
    fn is_internal(&self, bare: &str) -> bool {
        let full = format!("{bare}.{}", self.cluster.as_str().to_ascii_lowercase());
        [bare, &full].into_iter().any(|name| {
            name == INTERNAL || name.strip_suffix(INTERNAL).is_some_and(|rest| rest.ends_with('.'))
        })
    }

    /// Lower case, without the final dot and without `.<cluster>`: names are compared so.
    fn bare(&self, name: &str) -> String {
        let name = name.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let suffix = format!(".{}", self.cluster.as_str().to_ascii_lowercase());
        name.strip_suffix(&suffix).unwrap_or(name).to_owned()
    }
}

fn taken(name: &str, why: &str) -> Fault {
    Fault::Conflict(format!(
        "the name {name:?} is not free: {why}. Choose another with --nodename, or, if that machine is gone, remove it with `tctl rm node/{name}`"
    ))
}

fn name_key(role: HostRole, name: &str) -> String {
    format!("hostname/{}/{name}", role.as_str())
}

fn public_key(name: &str) -> String {
    format!("hostname/public/{name}")
}

/// Labels under which the cluster's services are found by SNI, now or later.
const RESERVED: &[&str] = &["app", "auth", "db", "desktop", "kube", "node", "proxy"];
/// Domain of names that mean "auth of whatever cluster".
pub(crate) const INTERNAL: &str = "postern.local";
/// A proxy has a handful of public addresses.
const PRINCIPALS_MAX: usize = 32;
/// Longest DNS name.
const NAME_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::store::memory::MemoryStore;
    use crate::store::sqlite::SqliteStore;

    fn hostnames() -> Hostnames {
        let store = Arc::new(MemoryStore::new(Clock::fake(1000).0));
        Hostnames::new(ClusterName::parse("example.com").unwrap(), store)
    }

    fn holder<'a>(
        host_id: &'a HostId,
        nodename: &'a NodeName,
        role: HostRole,
        keys: [u8; 2],
    ) -> Holder<'a> {
        const KEYS: [&str; 4] = ["0", "1", "2", "3"];
        let [ssh, tls] = keys.map(|key| KEYS[usize::from(key) % KEYS.len()]);
        let (ssh_public_key, tls_public_key) = (ssh, tls.as_bytes());
        Holder { host_id, nodename, role, ssh_public_key, tls_public_key }
    }

    async fn claim(
        names: &Hostnames,
        id: u8,
        nodename: &str,
        role: HostRole,
        principals: &[&str],
    ) -> Result<(), Fault> {
        let host_id = HostId::from_random([id; 16]);
        let nodename = NodeName::parse(nodename).unwrap();
        let principals: Vec<_> = principals.iter().map(|name| (*name).to_owned()).collect();
        let holder = holder(&host_id, &nodename, role, [id, id]);
        names.claim(holder, &principals, 2000).await
    }

    #[tokio::test]
    async fn names_of_services_are_reserved() {
        let names = hostnames();
        for name in ["auth", "AUTH", "proxy", "node", "db", "auth.example.com", "Kube.Example.COM"]
        {
            assert!(claim(&names, 1, name, HostRole::Node, &[]).await.is_err(), "{name}");
        }
        for name in ["auth.postern.local", "postern.local", "x.postern.local", "10.0.0.1"] {
            assert!(claim(&names, 1, name, HostRole::Node, &[]).await.is_err(), "{name}");
            let as_proxy = claim(&names, 1, "edge", HostRole::Proxy, &[name]).await;
            assert_eq!(as_proxy.is_ok(), name == "10.0.0.1", "{name}");
        }
        assert!(claim(&names, 1, "web1", HostRole::Node, &["x.org"]).await.is_err());
        assert!(claim(&names, 1, "web1", HostRole::Node, &[]).await.is_ok());
    }

    #[tokio::test]
    async fn one_machine_holds_a_name() {
        let names = hostnames();
        claim(&names, 1, "db1", HostRole::Node, &[]).await.unwrap();
        claim(&names, 1, "db1", HostRole::Node, &[]).await.unwrap();
        assert!(claim(&names, 2, "DB1", HostRole::Node, &[]).await.is_err());
        assert!(claim(&names, 2, "db1.example.com", HostRole::Node, &[]).await.is_err());
        claim(&names, 3, "db1", HostRole::Proxy, &[]).await.unwrap();
        let (first, nodename) = (HostId::from_random([1; 16]), NodeName::parse("db1").unwrap());
        names.release(&first, &nodename, HostRole::Node).await.unwrap();
        claim(&names, 2, "db1", HostRole::Node, &[]).await.unwrap();
    }

    #[tokio::test]
    async fn a_machine_that_joins_again_with_its_keys_keeps_its_name() {
        let names = hostnames();
        let nodename = NodeName::parse("db1").unwrap();
        let (first, second) = (HostId::from_random([1; 16]), HostId::from_random([2; 16]));
        for (host_id, keys, expect) in
            [(&first, [0, 0], true), (&second, [0, 0], true), (&first, [1, 1], false)]
        {
            let holder = holder(host_id, &nodename, HostRole::Node, keys);
            assert_eq!(names.claim(holder, &[], 2000).await.is_ok(), expect);
        }
        // One of the keys is public knowledge; a certificate for the other would be the impostor's.
        let third = HostId::from_random([3; 16]);
        for keys in [[0, 1], [1, 0]] {
            let impostor = holder(&third, &nodename, HostRole::Node, keys);
            assert!(names.claim(impostor, &[], 2000).await.is_err(), "{keys:?}");
        }
    }

    #[tokio::test]
    async fn of_a_node_and_a_proxy_that_want_one_name_at_once_one_gets_it() {
        // A store whose answers take time, so that the two do meet.
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("a.db"), Clock::fake(1000).0).unwrap();
        let names = Hostnames::new(ClusterName::parse("example.com").unwrap(), Arc::new(store));
        for round in 0..20 {
            let name = format!("db{round}");
            let principals = [&*name];
            let (node, proxy) = tokio::join!(
                claim(&names, 1, &name, HostRole::Node, &[]),
                claim(&names, 2, "edge", HostRole::Proxy, &principals)
            );
            assert_ne!(node.is_ok(), proxy.is_ok(), "{name}");
        }
    }

    #[tokio::test]
    async fn nobody_passes_for_auth_of_a_cluster_called_local() {
        let store = Arc::new(MemoryStore::new(Clock::fake(1000).0));
        let names = Hostnames::new(ClusterName::parse("local").unwrap(), store);
        assert!(claim(&names, 1, "auth.postern", HostRole::Node, &[]).await.is_err());
        let principal = ["auth.postern.local"];
        assert!(claim(&names, 1, "edge", HostRole::Proxy, &principal).await.is_err());
        claim(&names, 1, "postern1", HostRole::Node, &[]).await.unwrap();
    }

    #[tokio::test]
    async fn a_proxy_gets_no_name_of_a_node_nor_a_node_one_of_a_proxy() {
        let names = hostnames();
        claim(&names, 1, "db1", HostRole::Node, &[]).await.unwrap();
        for name in ["db1", "db1.example.com", "DB1.", "auth.example.com", "auth"] {
            let answer = claim(&names, 2, "edge", HostRole::Proxy, &[name]).await;
            assert!(answer.is_err(), "{name}");
        }
        let public = ["access.example.com", "example.com", "localhost", "127.0.0.1", "proxy"];
        claim(&names, 2, "edge", HostRole::Proxy, &public).await.unwrap();
        claim(&names, 3, "edge2", HostRole::Proxy, &public).await.unwrap();
        assert!(claim(&names, 4, "access", HostRole::Node, &[]).await.is_err());
        claim(&names, 2, "edge", HostRole::Proxy, &["edge", "edge.example.com"]).await.unwrap();
        claim(&names, 5, "edge", HostRole::Node, &[]).await.unwrap();
    }
}
