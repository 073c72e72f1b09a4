//! The kernel's maps of rules, with the types that aya takes: bytes and words, between which there are none.

use std::io;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError};
use ebpf_abi::rules::{AddressKey, AddressPorts, HashKey, PathKey, Policy, SPACE_BITS, Settings};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::compile::Compiled;
use crate::object::{LoadError, Take};

/// See the module; the maps' names are those of `ebpf/src/rules.h`.
#[derive(Debug)]
pub(super) struct Tables {
    sessions: HashMap<MapData, u64, u32>,
    policies: HashMap<MapData, u32, PolicyWords>,
    paths: LpmTrie<MapData, PathBytes, u32>,
    addresses: LpmTrie<MapData, AddressBytes, PortsWords>,
    hashes: HashMap<MapData, HashBytes, u32>,
}

/// Of trie keys what follows their length.
type PathBytes = [u8; size_of::<PathKey>() - size_of::<u32>()];
type AddressBytes = [u8; size_of::<AddressKey>() - size_of::<u32>()];
type HashBytes = [u8; size_of::<HashKey>()];
type PolicyWords = [u32; size_of::<Policy>() / size_of::<u32>()];
type PortsWords = [u32; size_of::<AddressPorts>() / size_of::<u32>()];
type SettingsWords = [u32; size_of::<Settings>() / size_of::<u32>()];

impl Tables {
    /// Takes the maps, and names the node's own process.
    pub(super) fn take(take: Take<'_>) -> Result<Self, LoadError> {
        let mut settings: Array<_, SettingsWords> = Array::try_from(take("rules_settings")?)?;
        settings.set(0, [std::process::id(), since()], 0)?;
        Ok(Self {
            sessions: HashMap::try_from(take("rules_sessions")?)?,
            policies: HashMap::try_from(take("rules_policies")?)?,
            paths: LpmTrie::try_from(take("rules_paths")?)?,
            addresses: LpmTrie::try_from(take("rules_addresses")?)?,
            hashes: HashMap::try_from(take("rules_hashes")?)?,
        })
    }

    /// The highest number of a policy that there is.
    pub(super) fn highest(&self) -> u32 {
        self.policies.keys().flatten().max().unwrap_or_default()
    }

    /// Writes a policy; what decides whether anything is looked up comes last. After an error, remove it.
    pub(super) fn put(&mut self, number: u32, compiled: &Compiled) -> io::Result<()> {
        for (key, rule) in &compiled.paths {
            self.paths.insert(&trie_key(key)?, rule, 0).map_err(full)?;
        }
        for (key, ports) in &compiled.addresses {
            self.addresses.insert(&trie_key(key)?, words::<PortsWords>(ports)?, 0).map_err(full)?;
        }
        for (key, rule) in &compiled.hashes {
            self.hashes.insert(words::<HashBytes>(key)?, rule, 0).map_err(full)?;
        }
        let policy = words::<PolicyWords>(&compiled.policy)?;
        self.policies.insert(number, policy, 0).map_err(full)
    }

    /// Takes a policy away again, or what of it there is.
    pub(super) fn remove(&mut self, number: u32, compiled: &Compiled) {
        let mut left = 0_u32;
        let mut count = |done: Result<(), MapError>| {
            left += u32::from(done.is_err_and(|error| !matches!(error, MapError::KeyNotFound)));
        };
        count(self.policies.remove(&number));
        for (key, _) in &compiled.paths {
            trie_key(key).into_iter().for_each(|key| count(self.paths.remove(&key)));
        }
        for (key, _) in &compiled.addresses {
            trie_key(key).into_iter().for_each(|key| count(self.addresses.remove(&key)));
        }
        for (key, _) in &compiled.hashes {
            words::<HashBytes>(key).into_iter().for_each(|key| count(self.hashes.remove(&key)));
        }
        if left > 0 {
            tracing::debug!(left, number, "entries of rules stay");
        }
    }

    /// The policy that a session is under.
    pub(super) fn policy_of(&self, session: u64) -> Option<u32> {
        self.sessions.get(&session, 0).ok()
    }

    /// Removes what is of other sessions and policies than these; how many entries.
    pub(super) fn retain(
        &mut self,
        has_session: &dyn Fn(u64) -> bool,
        has_policy: &dyn Fn(u32) -> bool,
    ) -> usize {
        // Which are gone is found first: a map is not walked well while it changes.
        let sessions = left(self.sessions.keys(), |number| !has_session(*number));
        let policies = left(self.policies.keys(), |number| !has_policy(*number));
        let paths = left(self.paths.keys(), |key: &Key<PathBytes>| {
            !has_policy(first_word(&key.data()) >> SPACE_BITS)
        });
        let addresses = left(self.addresses.keys(), |key: &Key<AddressBytes>| {
            !has_policy(first_word(&key.data()))
        });
        let hashes = left(self.hashes.keys(), |key: &HashBytes| !has_policy(first_word(key)));
        let mut removed = 0_usize;
        let mut count = |done: Result<(), MapError>| removed += usize::from(done.is_ok());
        sessions.iter().for_each(|number| count(self.sessions.remove(number)));
        policies.iter().for_each(|number| count(self.policies.remove(number)));
        paths.iter().for_each(|key| count(self.paths.remove(key)));
        addresses.iter().for_each(|key| count(self.addresses.remove(key)));
        hashes.iter().for_each(|key| count(self.hashes.remove(key)));
        removed
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.sessions.keys().count()
            + self.policies.keys().count()
            + self.paths.keys().count()
            + self.addresses.keys().count()
            + self.hashes.keys().count()
    }

    /// One write, after which the session is under this policy and no other.
    pub(super) fn assign(&mut self, session: u64, policy: u32) -> io::Result<()> {
        self.sessions.insert(session, policy, 0).map_err(full)
    }

    /// The session is under none.
    pub(super) fn free(&mut self, session: u64) {
        if let Err(error) = self.sessions.remove(&session) {
            tracing::debug!(%error, session, "a session's entry of rules stays");
        }
    }
}

/// The keys of a map that are as asked for.
fn left<K>(
    keys: impl Iterator<Item = Result<K, MapError>>,
    is_left: impl Fn(&K) -> bool,
) -> Vec<K> {
    keys.flatten().filter(is_left).collect()
}

/// Where keys have their policy's number.
fn first_word(key: &[u8]) -> u32 {
    u32::read_from_prefix(key).map(|(word, _)| word).unwrap_or_default()
}

/// When this process was made, in hundredths of a second since boot, the lower half: proc(5), `starttime`. 0 where that
/// cannot be read: then nobody is taken for the node.
fn since() -> u32 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may have spaces.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let started = rest.split_whitespace().nth(19).and_then(|ticks| ticks.parse::<u64>().ok());
    started.and_then(|ticks| u32::try_from(ticks & u64::from(u32::MAX)).ok()).unwrap_or(0)
}

/// A key of ours begins with its length in bits; aya's has it beside the bytes.
fn trie_key<K, const N: usize>(key: &K) -> io::Result<Key<[u8; N]>>
where
    K: IntoBytes + Immutable,
    [u8; N]: aya::Pod,
{
    let (length, bytes) = u32::read_from_prefix(key.as_bytes()).map_err(|_| unlike())?;
    Ok(Key::new(length, <[u8; N]>::read_from_bytes(bytes).map_err(|_| unlike())?))
}

fn words<W: FromBytes>(value: &(impl IntoBytes + Immutable)) -> io::Result<W> {
    W::read_from_bytes(value.as_bytes()).map_err(|_| unlike())
}

/// Sizes that do not agree: never, by the types above.
fn unlike() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

fn full(error: MapError) -> io::Error {
    io::Error::other(error)
}
