//! What rules mean. [`Ruleset::decide`] goes through them one by one and is what the kernel's answer is compared with; nothing
//! asks it in earnest.

use std::net::IpAddr;

use ebpf_abi::rules::{RULE_CONTAIN, RULE_NO_DIGEST, RULE_NO_PATH, mode};
use proto::capture_rules::{AddressRule, CaptureRules, ExecRule, RuleMode, as_reached};

use super::contain;

/// Something that a task is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed<'a> {
    /// To talk to an address.
    Connect { address: IpAddr, port: u16 },
    /// One of `ebpf_abi::rules::contain`.
    Contained(u32),
    /// To execute bytes whose digest is known, or cannot be.
    Digest(Option<&'a [u8; 32]>),
    /// To execute a file, or to have it become code.
    Exec(Path<'a>),
    /// To move or remove a folder, with what is in it.
    Move(Path<'a>),
    /// To talk to a local socket.
    Socket(Path<'a>),
    /// To open a file for writing, make it, change it, remove it.
    Write(Path<'a>),
}

/// Where something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path<'a> {
    /// From the root of the mount namespace.
    Known(&'a [u8]),
    /// Longer than can be walked, or from a mount that hangs nowhere.
    Unknown,
}

/// What becomes of a deed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub action: Action,
    /// The rule that it comes under; 0 for none.
    pub rule: u32,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
    Kill,
    Watch,
}

/// A path that a rule is about, wherever it leads on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathOf {
    pub rule: u32,
    /// Ends in `/` or `:` where all that begins so is meant.
    pub path: String,
}

impl PathOf {
    pub(super) fn is_prefix(&self) -> bool {
        self.path.ends_with(['/', ':'])
    }

    fn covers(&self, path: &[u8]) -> bool {
        let own = self.path.as_bytes();
        if self.is_prefix() { path.starts_with(own) } else { path == own }
    }

    /// Folders above, the one that is meant itself included.
    pub(super) fn above(&self) -> impl Iterator<Item = &str> {
        let ends = self.path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
        ends.filter_map(|end| self.path.get(..end))
    }
}

/// Rules with numbers, from 1 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub mode: RuleMode,
    /// What each rule is called, from that with number 1 on.
    pub names: Vec<String>,
    pub exec: Vec<PathOf>,
    pub write: Vec<PathOf>,
    pub socket: Vec<PathOf>,
    pub connect: Vec<(u32, AddressRule)>,
    pub hashes: Vec<(u32, [u8; 32])>,
    /// Bits of `ebpf_abi::rules::contain`.
    pub contain: u32,
}

impl Ruleset {
    /// `leads` says where a path of a rule leads on this machine, where that is somewhere else.
    pub fn new(rules: &CaptureRules, leads: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut all = Self {
            mode: rules.mode,
            names: Vec::new(),
            exec: Vec::new(),
            write: Vec::new(),
            socket: Vec::new(),
            connect: Vec::new(),
            hashes: Vec::new(),
            contain: 0,
        };
        for exec in &rules.deny_exec {
            let rule = all.named(exec.to_string());
            match exec {
                ExecRule::Memory => all.exec.push(PathOf { rule, path: MEMORY.to_owned() }),
                ExecRule::Path(path) => all.exec.extend(both(rule, path.as_str(), leads)),
                ExecRule::Sha256(digest) => all.hashes.push((rule, *digest)),
            }
        }
        for path in &rules.deny_open_write {
            let rule = all.named(path.to_string());
            all.write.extend(both(rule, path.as_str(), leads));
        }
        for address in &rules.deny_connect {
            let rule = all.named(address.to_string());
            all.connect.push((rule, address.clone()));
        }
        if rules.contain {
            for (path, _) in contain::WRITES {
                let rule = all.named(format!("contain: {path}"));
                all.write.extend(both(rule, path, leads));
            }
            for path in contain::SOCKETS {
                let rule = all.named(format!("contain: {path}"));
                all.socket.extend(both(rule, path, leads));
            }
            all.contain = contain::DEEDS.iter().fold(0, |bits, (bit, _)| bits | bit);
        }
        all
    }

    fn named(&mut self, name: String) -> u32 {
        self.names.push(name);
        u32::try_from(self.names.len()).unwrap_or(u32::MAX)
    }

    /// What becomes of a deed.
    pub fn decide(&self, deed: Deed<'_>) -> Decision {
        let rule = match deed {
            Deed::Connect { address, port } => self.connect(address, port),
            Deed::Contained(bit) => (self.contain & bit != 0).then_some(RULE_CONTAIN | bit),
            Deed::Digest(digest) => self.digest(digest),
            Deed::Exec(path) => longest(&self.exec, path),
            Deed::Move(path) => longest(&self.write, path).or_else(|| above(&self.write, path)),
            Deed::Socket(path) => longest(&self.socket, path),
            Deed::Write(path) => longest(&self.write, path),
        };
        let action = match (rule, self.mode) {
            (None, _) => Action::Allow,
            (Some(_), RuleMode::Audit) => Action::Watch,
            (Some(_), RuleMode::Deny) => Action::Deny,
            (Some(_), RuleMode::Kill) => Action::Kill,
        };
        Decision { action, rule: rule.unwrap_or(0) }
    }

    /// The narrowest network that has the port; the first of those.
    fn connect(&self, address: IpAddr, port: u16) -> Option<u32> {
        let address = as_reached(address);
        let about = |(_, rule): &&(u32, AddressRule)| {
            let (low, high) = rule.ports();
            rule.covers(address) && low <= port && port <= high
        };
        let narrower = |best: &'_ (u32, AddressRule), rule: &'_ (u32, AddressRule)| {
            rule.1.prefix() > best.1.prefix()
        };
        let found = self
            .connect
            .iter()
            .filter(about)
            .reduce(|best, rule| if narrower(best, rule) { rule } else { best });
        found.map(|(rule, _)| *rule)
    }

    fn digest(&self, digest: Option<&[u8; 32]>) -> Option<u32> {
        let Some(digest) = digest else {
            return (!self.hashes.is_empty()).then_some(RULE_NO_DIGEST);
        };
        self.hashes.iter().find(|(_, known)| known == digest).map(|(rule, _)| *rule)
    }
}

/// A rule's path as it is written, and where it leads.
fn both(rule: u32, path: &str, leads: &dyn Fn(&str) -> Option<String>) -> Vec<PathOf> {
    let elsewhere = leads(path).filter(|there| there != path);
    let paths = std::iter::once(path.to_owned()).chain(elsewhere);
    paths.map(|path| PathOf { rule, path }).collect()
}

/// The rule that says most about a path; the first of those.
fn longest(rules: &[PathOf], path: Path<'_>) -> Option<u32> {
    let Path::Known(path) = path else {
        return (!rules.is_empty()).then_some(RULE_NO_PATH);
    };
    let covering = rules.iter().filter(|rule| rule.covers(path));
    let found = covering.reduce(|best, rule| {
        let longer = (rule.path.len(), !rule.is_prefix()) > (best.path.len(), !best.is_prefix());
        if longer { rule } else { best }
    });
    found.map(|found| found.rule)
}

/// The first rule of which something is in this folder.
fn above(rules: &[PathOf], path: Path<'_>) -> Option<u32> {
    let Path::Known(path) = path else { return None };
    let found = rules.iter().find(|rule| rule.above().any(|above| above.as_bytes() == path));
    found.map(|found| found.rule)
}

/// The number of a mode in the kernel.
pub(super) fn number(of: RuleMode) -> u32 {
    match of {
        RuleMode::Audit => mode::AUDIT,
        RuleMode::Deny => mode::DENY,
        RuleMode::Kill => mode::KILL,
    }
}

/// How the path of a file begins that is in no folder but was made in memory.
const MEMORY: &str = "memfd:";

#[cfg(test)]
mod tests {
    use super::*;

    fn set(json: &str) -> Ruleset {
        let leads = |path: &str| path.strip_prefix("/bin/").map(|rest| format!("/usr/bin/{rest}"));
        Ruleset::new(&serde_json::from_str(json).unwrap(), &leads)
    }

    fn check(set: &Ruleset, deed: Deed<'_>, expect: &str) {
        let rule = set.decide(deed).rule;
        let name = super::super::enforcer::name_of(&set.names, rule);
        assert_eq!(name, expect, "{deed:?}");
    }

    #[test]
    fn the_rule_that_says_most_is_named() {
        let set = set(r#"{"deny_exec":["/opt/","/opt/a/","/opt/a/b","/bin/nc","memfd:"]}"#);
        for (path, expect) in [
            ("/opt/x", "/opt/"),
            ("/opt/a/x", "/opt/a/"),
            ("/opt/a/b", "/opt/a/b"),
            ("/opt/a/bc", "/opt/a/"),
            ("/opt/a", "/opt/"),
            ("/opt", ""),
            ("/optional", ""),
            ("/bin/nc", "/bin/nc"),
            ("/usr/bin/nc", "/bin/nc"),
            ("/usr/bin/ncat", ""),
            ("memfd:x", "memfd:"),
        ] {
            check(&set, Deed::Exec(Path::Known(path.as_bytes())), expect);
        }
        check(&set, Deed::Exec(Path::Unknown), "a path that cannot be known");
        check(&set, Deed::Write(Path::Unknown), "");
        check(&set, Deed::Digest(None), "");
    }

    #[test]
    fn a_folder_is_moved_with_what_is_in_it() {
        let set = set(r#"{"deny_open_write":["/a/b/c/","/a/x"]}"#);
        for (path, write, moves) in [
            ("/a/b/c/d", "/a/b/c/", "/a/b/c/"),
            ("/a/b/c", "", "/a/b/c/"),
            ("/a/b", "", "/a/b/c/"),
            ("/a", "", "/a/b/c/"),
            ("/a/x", "/a/x", "/a/x"),
            ("/a/y", "", ""),
            ("/", "", ""),
        ] {
            check(&set, Deed::Write(Path::Known(path.as_bytes())), write);
            check(&set, Deed::Move(Path::Known(path.as_bytes())), moves);
        }
    }

    #[test]
    fn an_address_comes_under_the_narrowest_network_that_has_the_port() {
        let set = set(
            r#"{"deny_connect":["10.0.0.0/8","10.1.0.0/16:22","10.1.0.0/16:20-30","127.0.0.0/8","::1"]}"#,
        );
        for (address, port, expect) in [
            ("10.1.2.3", 22, "10.1.0.0/16:22"),
            ("10.1.2.3", 23, "10.1.0.0/16:20-30"),
            ("10.1.2.3", 80, "10.0.0.0/8"),
            ("::ffff:10.1.2.3", 22, "10.1.0.0/16:22"),
            ("11.0.0.1", 22, ""),
            ("0.0.0.0", 80, "127.0.0.0/8"),
            ("::", 80, "::1/128"),
            ("::ffff:0.0.0.0", 80, "127.0.0.0/8"),
            ("::2", 80, ""),
        ] {
            check(&set, Deed::Connect { address: address.parse().unwrap(), port }, expect);
        }
    }

    #[test]
    fn containment_is_paths_sockets_and_deeds() {
        let set = set(r#"{"contain":true,"mode":"kill"}"#);
        let path = |path: &'static str| Path::Known(path.as_bytes());
        check(&set, Deed::Write(path("/etc/cron.d/job")), "contain: /etc/cron.d/");
        check(&set, Deed::Socket(path("/run/docker.sock")), "contain: /run/docker.sock");
        check(&set, Deed::Contained(ebpf_abi::rules::contain::BPF), "contain: bpf");
        assert_eq!(set.decide(Deed::Write(path("/tmp/x"))).action, Action::Allow);
        assert_eq!(set.decide(Deed::Write(path("/etc/crontab"))).action, Action::Kill);
    }
}
