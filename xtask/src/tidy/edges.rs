//! The direction between our crates, as docs/ARCHITECTURE.md draws it. Any other edge is a finding, tests' included:
//! a test that needs both sides of a wall belongs to the crate that may see both.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;

/// Who may use whom. `postern` is the daemon's package: the only one that sees proxy, node and auth together.
const ALLOWED: &[(&str, &[&str])] = &[
    ("auth", &["net", "pki", "policy", "proto"]),
    ("bench", &["capture", "net", "pki", "policy", "proto", "proxy", "relay"]),
    ("capture", &["ebpf-abi", "proto"]),
    ("cli", &["proto"]),
    ("ebpf-abi", &[]),
    ("kernel-tests", &["capture", "ebpf-abi", "proto", "relay"]),
    ("net", &["pki", "proto"]),
    ("node", &["capture", "net", "pki", "policy", "proto", "relay"]),
    ("pki", &["proto"]),
    ("policy", &["pki", "proto"]),
    ("postern", &["auth", "net", "node", "pki", "policy", "proto", "proxy", "relay"]),
    ("proto", &[]),
    ("proxy", &["net", "pki", "policy", "proto", "relay"]),
    ("relay", &[]),
    ("tctl", &["cli", "net", "pki", "proto"]),
    ("tsh", &["cli", "net", "pki", "proto"]),
    ("xtask", &[]),
];

/// Findings in the output of `cargo metadata --no-deps`.
pub(super) fn check(metadata: &Value) -> Result<Vec<Finding>> {
    let packages = metadata["packages"].as_array().context("cargo metadata without packages")?;
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let root = crate::root().to_string_lossy();
        let file = manifest.strip_prefix(&*root).unwrap_or(manifest).trim_start_matches('/');
        let mut finding =
            |message| findings.push(Finding { file: file.to_owned(), line: 0, message });
        let Some((_, allowed)) = ALLOWED.iter().find(|(crate_name, _)| *crate_name == name) else {
            finding(format!(
                "crate {name} is new; draw its edges in docs/ARCHITECTURE.md and in xtask/src/tidy/edges.rs"
            ));
            continue;
        };
        let ours = package["dependencies"].as_array().into_iter().flatten();
        for used in ours.filter(|d| d["path"].is_string()).filter_map(|d| d["name"].as_str()) {
            if !allowed.contains(&used) {
                finding(format!(
                    "{name} must not use {used}; see the direction in docs/ARCHITECTURE.md"
                ));
            }
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(name: &str, dependencies: &Value) -> usize {
        let metadata = serde_json::json!({ "packages": [{
            "name": name, "manifest_path": "x/Cargo.toml", "dependencies": dependencies,
        }]});
        check(&metadata).unwrap().len()
    }

    #[test]
    fn edges_against_the_direction_are_found() {
        let ours = |name: &str| serde_json::json!([{ "name": name, "path": "/x" }]);
        assert_eq!(findings("net", &ours("proto")), 0);
        assert_eq!(findings("proxy", &ours("node")), 1);
        assert_eq!(findings("tsh", &ours("policy")), 1);
        assert_eq!(findings("relay", &ours("proto")), 1);
        // Not ours: a crate of the registry that happens to have the name.
        assert_eq!(findings("relay", &serde_json::json!([{ "name": "proto", "path": null }])), 0);
        assert_eq!(findings("newcomer", &ours("proto")), 1);
    }

    /// The table itself has no way round: nothing of ours is reachable from itself.
    #[test]
    fn the_direction_has_no_circle() {
        fn reaches(from: &str, to: &str) -> bool {
            let (_, uses) = ALLOWED.iter().find(|(name, _)| *name == from).unwrap();
            uses.iter().any(|used| *used == to || reaches(used, to))
        }
        for (name, _) in ALLOWED {
            assert!(!reaches(name, name), "{name}");
        }
        for (one, other) in [("proxy", "node"), ("proxy", "auth"), ("node", "auth")] {
            assert!(!reaches(one, other) && !reaches(other, one));
        }
    }
}
