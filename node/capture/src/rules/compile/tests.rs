//! The compiled maps, read as the kernel reads them, against the model.

use std::net::{Ipv4Addr, Ipv6Addr};

use ebpf_abi::rules::{RULE_CONTAIN, RULE_NO_DIGEST, RULE_NO_PATH};
use proptest::prelude::*;
use proto::capture_rules::{CaptureRules, ExecRule, PathRule, RuleMode};

use super::*;
use crate::rules::model::{Action, Decision, Deed, Path};

/// A trie's answer: the longest entry that the key begins with.
fn longest<'a, K: zerocopy::IntoBytes + zerocopy::Immutable, V>(
    entries: &'a [(K, V)],
    key: &K,
) -> Option<&'a V> {
    let bit = |bytes: &[u8], at: usize| bytes[4 + at / 8] >> (7 - at % 8) & 1;
    let length = |key: &K| u32::from_ne_bytes(key.as_bytes()[..4].try_into().unwrap()) as usize;
    let matches = |entry: &K| {
        (0..length(entry)).all(|at| bit(entry.as_bytes(), at) == bit(key.as_bytes(), at))
    };
    let found = entries.iter().filter(|(entry, _)| matches(entry));
    found.max_by_key(|(entry, _)| length(entry)).map(|(_, value)| value)
}

/// `rule_of_path` of ebpf/src/rules.h.
fn rule_of_path(maps: &Compiled, number: u32, space: u32, path: &[u8]) -> u32 {
    let mut key =
        PathKey { prefixlen: 8 * 256, space: number << SPACE_BITS | space, path: [0; PATH_BYTES] };
    let length = path.len().min(PATH_BYTES);
    key.path[..length].copy_from_slice(&path[..length]);
    longest(&maps.paths, &key).copied().unwrap_or(0)
}

/// What the programs make of a deed.
fn judge(maps: &Compiled, number: u32, deed: Deed<'_>) -> Decision {
    let has = |bit| maps.policy.has & bit != 0;
    let of_path = |bit, space, path| match path {
        _ if !has(bit) => 0,
        Path::Unknown => RULE_NO_PATH,
        Path::Known(path) => rule_of_path(maps, number, space, path),
    };
    let rule = match deed {
        Deed::Connect { address, port } => {
            let address = proto::capture_rules::as_reached(address);
            // Of IPv4 the rest is zero, on both sides.
            let found = longest(&maps.addresses, &address_key(number, address, 128));
            let found = found.filter(|_| has(has::CONNECT));
            let ports = found.into_iter().flat_map(|found| &found.ports[..found.count as usize]);
            let mut ports = ports.filter(|range| range.low <= port && port <= range.high);
            ports.next().map_or(0, |range| range.rule)
        }
        Deed::Contained(bit) => {
            if maps.policy.contain & bit != 0 {
                RULE_CONTAIN | bit
            } else {
                0
            }
        }
        Deed::Digest(_) if !has(has::HASH) => 0,
        Deed::Digest(None) => RULE_NO_DIGEST,
        Deed::Digest(Some(sha256)) => {
            let key = HashKey { policy: number, reserved: 0, sha256: *sha256 };
            maps.hashes.iter().find(|(known, _)| *known == key).map_or(0, |(_, rule)| *rule)
        }
        Deed::Exec(path) => of_path(has::EXEC, space::EXEC, path),
        Deed::Socket(path) => of_path(has::SOCKET, space::SOCKET, path),
        Deed::Write(path) => of_path(has::WRITE, space::WRITE, path),
        Deed::Move(path) => match of_path(has::WRITE, space::WRITE, path) {
            0 => of_path(has::WRITE, space::MOVE, path),
            rule => rule,
        },
    };
    let action = match (rule, maps.policy.mode) {
        (0, _) => Action::Allow,
        (_, ebpf_abi::rules::mode::AUDIT) => Action::Watch,
        (_, ebpf_abi::rules::mode::DENY) => Action::Deny,
        _ => Action::Kill,
    };
    Decision { action, rule }
}

/// Few names, so that paths meet.
fn a_path() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]{1,2}", 1..5).prop_map(|parts| format!("/{}", parts.join("/")))
}

fn path_rule() -> impl Strategy<Value = PathRule> {
    let long = (200_usize..252).prop_map(|length| format!("/{}", "a".repeat(length - 1)));
    (prop_oneof![9 => a_path(), 1 => long, 1 => Just(String::new())], any::<bool>())
        .prop_filter_map("no rule", |(path, below)| {
            PathRule::parse(&if below { format!("{path}/") } else { path }).ok()
        })
}

fn exec_rule() -> impl Strategy<Value = ExecRule> {
    prop_oneof![
        8 => path_rule().prop_map(ExecRule::Path),
        1 => (0_u8..3).prop_map(|byte| ExecRule::Sha256([byte; 32])),
        1 => Just(ExecRule::Memory),
    ]
}

/// Few bits differ, so that networks are in one another.
fn an_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u32..4, 0_u32..4).prop_map(|(high, low)| Ipv4Addr::from(high << 30 | low).into()),
        (0_u128..4, 0_u128..4).prop_map(|(high, low)| Ipv6Addr::from(high << 126 | low).into()),
        (0_u32..4).prop_map(|v4| Ipv4Addr::from(v4).to_ipv6_mapped().into()),
        Just(Ipv4Addr::LOCALHOST.into()),
    ]
}

fn address_rule() -> impl Strategy<Value = AddressRule> {
    let ports = prop::option::of((1_u16..6, 0_u16..4));
    let prefix = prop_oneof![0_u8..4, 28_u8..=32, 124_u8..=128];
    (an_address(), prefix, ports).prop_filter_map("no rule", |(address, prefix, ports)| {
        let ports = ports.map(|(low, more)| format!(":{low}-{}", low + more)).unwrap_or_default();
        let text = format!("{address}/{prefix}{ports}");
        match AddressRule::parse(&text) {
            Ok(rule) => Some(rule),
            Err(proto::capture_rules::RuleError::HostBits(_, bare)) => {
                AddressRule::parse(&format!("{bare}{ports}")).ok()
            }
            Err(_) => None,
        }
    })
}

fn rules() -> impl Strategy<Value = CaptureRules> {
    let mode = prop_oneof![Just(RuleMode::Audit), Just(RuleMode::Deny), Just(RuleMode::Kill)];
    (
        mode,
        prop::collection::vec(exec_rule(), 0..8),
        prop::collection::vec(path_rule(), 0..8),
        prop::collection::vec(address_rule(), 0..12),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(mode, deny_exec, deny_open_write, deny_connect, contain)| CaptureRules {
            mode,
            deny_exec,
            deny_open_write,
            deny_connect,
            contain,
        })
}

proptest! {
    #[test]
    fn the_maps_say_what_the_model_says(
        rules in rules(),
        number in 1_u32..5,
        paths in prop::collection::vec(a_path(), 1..12),
        addresses in prop::collection::vec((an_address(), 0_u16..8), 1..12),
    ) {
        // As if `/b` were a link to `/a/b`.
        let leads = |path: &str| path.strip_prefix("/b/").map(|rest| format!("/a/b/{rest}"));
        let set = Ruleset::new(&rules, &leads);
        // Paths of 250 bytes lead nowhere longer, since they begin with another name.
        let maps = compile(&set, number).unwrap();
        let known: Vec<Vec<u8>> = paths
            .into_iter()
            .chain(["/", "memfd:x", "/etc/cron.d/x", "/run/docker.sock"].map(str::to_owned))
            .chain([format!("/{}", "a".repeat(300)), format!("/{}/b", "a".repeat(249))])
            .chain(rules.deny_open_write.iter().map(|rule| rule.as_str().to_owned()))
            .map(String::into_bytes)
            .collect();
        let mut deeds = vec![Deed::Digest(None), Deed::Digest(Some(&[1; 32]))];
        for path in known.iter().map(|path| Path::Known(path)).chain([Path::Unknown]) {
            deeds.extend([Deed::Exec(path), Deed::Write(path), Deed::Move(path), Deed::Socket(path)]);
        }
        deeds.extend(addresses.iter().map(|&(address, port)| Deed::Connect { address, port }));
        deeds.extend((0..8).map(|bit| Deed::Contained(1 << bit)));
        for deed in deeds {
            prop_assert_eq!(judge(&maps, number, deed), set.decide(deed), "{:?}", deed);
            // Another's rules are none of ours.
            prop_assert_eq!(rule_of_path(&maps, number + 1, space::EXEC, b"/a"), 0);
        }
    }
}

#[test]
fn what_has_no_room_is_refused() {
    let ports: Vec<_> = (1..=33).map(|port| format!("\"10.0.0.0/8:{port}\"")).collect();
    let rules = format!("{{\"deny_connect\":[{}]}}", ports.join(","));
    let set = Ruleset::new(&serde_json::from_str(&rules).unwrap(), &|_| None);
    assert_eq!(compile(&set, 1), Err(CompileError::Ports("10.0.0.0/8:1".to_owned())));
    let rules = serde_json::from_str(r#"{"deny_exec":["/a"]}"#).unwrap();
    let set = Ruleset::new(&rules, &|_| Some(format!("/{}", "x".repeat(300))));
    assert!(matches!(compile(&set, 1), Err(CompileError::TooLong(_))));
}
