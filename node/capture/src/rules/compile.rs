//! Rules to entries of the kernel's maps. A trie finds the longest entry and no other: so what holds at a shorter one is
//! written to the longer ones again where both can hold (ports of networks), or kept in a space of its own (folders that must not
//! be moved).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ebpf_abi::rules::{
    AddressKey, AddressPorts, HashKey, PATH_BYTES, PORTS_MAX, PathKey, Policy, Ports, SPACE_BITS,
    has, space,
};
use proto::capture_rules::AddressRule;

use super::model::{self, PathOf, Ruleset};

/// What a policy puts into the maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    pub policy: Policy,
    pub paths: Vec<(PathKey, u32)>,
    pub addresses: Vec<(AddressKey, AddressPorts)>,
    pub hashes: Vec<(HashKey, u32)>,
}

/// Why rules have no place in the maps. Of one role they do; several may say too much together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("more than {PORTS_MAX} ranges of ports at {0}")]
    Ports(String),
    #[error("{0} leads to a path that is too long")]
    TooLong(String),
    #[error("{0} rules, each of which may be more than one path: at most {ENTRIES_MAX}")]
    TooMany(usize),
}

/// # Errors
/// See [`CompileError`].
pub fn compile(rules: &Ruleset, policy: u32) -> Result<Compiled, CompileError> {
    if rules.names.len() > ENTRIES_MAX {
        return Err(CompileError::TooMany(rules.names.len()));
    }
    let mut has = 0;
    for (some, bit) in [
        (!rules.exec.is_empty(), has::EXEC),
        (!rules.write.is_empty(), has::WRITE),
        (!rules.socket.is_empty(), has::SOCKET),
        (!rules.connect.is_empty(), has::CONNECT),
        (!rules.hashes.is_empty(), has::HASH),
    ] {
        has |= if some { bit } else { 0 };
    }
    let mut paths = BTreeMap::new();
    for (space, rules) in
        [(space::EXEC, &rules.exec), (space::WRITE, &rules.write), (space::SOCKET, &rules.socket)]
    {
        for rule in rules {
            add(&mut paths, policy << SPACE_BITS | space, rule, &rule.path, rule.is_prefix())?;
        }
    }
    for rule in &rules.write {
        for above in rule.above() {
            add(&mut paths, policy << SPACE_BITS | space::MOVE, rule, above, false)?;
        }
    }
    let addresses: Result<_, _> =
        networks(rules).iter().map(|network| address(rules, network, policy)).collect();
    let mut hashes = BTreeMap::new();
    for (rule, sha256) in &rules.hashes {
        hashes.entry(*sha256).or_insert(*rule);
    }
    let hash = |(sha256, rule)| (HashKey { policy, reserved: 0, sha256 }, rule);
    Ok(Compiled {
        policy: Policy {
            mode: model::number(rules.mode),
            has,
            contain: rules.contain,
            reserved: 0,
        },
        paths: paths.into_iter().map(|(bytes, (length, rule))| path(length, bytes, rule)).collect(),
        addresses: addresses?,
        hashes: hashes.into_iter().map(hash).collect(),
    })
}

/// By space and bytes: their length with the NUL of an exact one, and the rule. The first of the same is kept.
type Paths = BTreeMap<(u32, [u8; PATH_BYTES]), (usize, u32)>;

fn add(
    paths: &mut Paths,
    space: u32,
    rule: &PathOf,
    path: &str,
    is_prefix: bool,
) -> Result<(), CompileError> {
    let mut bytes = [0; PATH_BYTES];
    // Of an exact path the NUL is compared, too.
    let length = path.len() + usize::from(!is_prefix);
    let place = bytes.get_mut(..path.len()).filter(|_| length <= PATH_BYTES);
    let place = place.ok_or_else(|| CompileError::TooLong(rule.path.clone()))?;
    place.copy_from_slice(path.as_bytes());
    paths.entry((space, bytes)).or_insert((length, rule.rule));
    Ok(())
}

fn path(length: usize, (space, path): (u32, [u8; PATH_BYTES]), rule: u32) -> (PathKey, u32) {
    (PathKey { prefixlen: bits(size_of_val(&space) + length), space, path }, rule)
}

/// Each network that a rule names, once.
fn networks(rules: &Ruleset) -> Vec<&AddressRule> {
    let mut networks: Vec<&AddressRule> = Vec::new();
    for (_, rule) in &rules.connect {
        let same = |known: &&AddressRule| {
            known.address() == rule.address() && known.prefix() == rule.prefix()
        };
        if !networks.iter().any(same) {
            networks.push(rule);
        }
    }
    networks
}

/// What holds at a network: the ports of all that cover it, the narrowest first.
fn address(
    rules: &Ruleset,
    network: &AddressRule,
    policy: u32,
) -> Result<(AddressKey, AddressPorts), CompileError> {
    let covers = |(_, rule): &&(u32, AddressRule)| {
        rule.prefix() <= network.prefix() && rule.covers(network.address())
    };
    let mut covering: Vec<_> = rules.connect.iter().filter(covers).collect();
    // Stable: of equal ones the first stays first.
    covering.sort_by_key(|(_, rule)| std::cmp::Reverse(rule.prefix()));
    let mut ports = AddressPorts::default();
    let mut places = ports.ports.iter_mut();
    for (rule, about) in covering {
        let (low, high) = about.ports();
        let place = places.next().ok_or_else(|| CompileError::Ports(network.to_string()))?;
        *place = Ports { low, high, rule: *rule };
        ports.count += 1;
        if (low, high) == (0, u16::MAX) {
            // Nothing is left for those that follow.
            break;
        }
    }
    let key = address_key(policy, network.address(), network.prefix());
    Ok((key, ports))
}

/// The key of a network; of a single address, what is looked up.
pub fn address_key(policy: u32, address: IpAddr, prefix: u8) -> AddressKey {
    let mut bytes = [0; 16];
    let family = match address {
        IpAddr::V4(v4) => {
            for (to, from) in bytes.iter_mut().zip(v4.octets()) {
                *to = from;
            }
            AF_INET
        }
        IpAddr::V6(v6) => {
            bytes = v6.octets();
            AF_INET6
        }
    };
    let fixed = size_of_val(&policy) + size_of_val(&family);
    AddressKey { prefixlen: bits(fixed) + u32::from(prefix), policy, family, address: bytes }
}

/// Of so many bytes.
fn bits(bytes: usize) -> u32 {
    u32::try_from(8 * bytes).unwrap_or(u32::MAX)
}

/// Of one policy: each kind may have as many as a role has, of sixteen roles.
pub const ENTRIES_MAX: usize = 16 * proto::capture_rules::RULES_MAX;
pub(crate) const AF_INET: u32 = 2;
pub(crate) const AF_INET6: u32 = 10;

#[cfg(test)]
mod tests;
