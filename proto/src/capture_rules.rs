//! What a role says that sessions must not do: `options.capture_rules`. Texts are parsed here and nowhere else, so that a rule
//! that exists can be kept; what it means is `node/capture/src/rules`' to say. Nothing is a pattern here, and what looks like one
//! is refused: a rule that never matches is worse than none.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// See the module. Over several roles: all that any role names, and the strictest mode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureRules {
    pub mode: RuleMode,
    /// Programs that must not be executed, nor become code of another.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny_exec: Vec<ExecRule>,
    /// Files that must not be opened for writing, made, changed, moved or removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny_open_write: Vec<PathRule>,
    /// Addresses that must not be connected or sent to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny_connect: Vec<AddressRule>,
    /// Keeps the session from what would take it out of sight: see the reference.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub contain: bool,
}

/// What becomes of a deed that a rule is about; strictest last.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum RuleMode {
    /// It happens, and is told.
    Audit,
    /// It is refused, and told.
    #[default]
    Deny,
    /// It is refused and told, and the process is killed.
    Kill,
}

impl RuleMode {
    /// As roles write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Deny => "deny",
            Self::Kill => "kill",
        }
    }
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error(
        "{0:?} is no address, nor a network such as 10.0.0.0/8, with :PORT or :FROM-TO at most"
    )]
    Address(String),
    #[error("{0:?} has a `.`, a `..` or an empty part: write where it leads")]
    Dots(String),
    #[error("{0:?} has bits beyond its prefix: write {1}")]
    HostBits(String, String),
    #[error("{0:?} is no SHA-256: write sha256: and 64 hexadecimal digits")]
    Hash(String),
    #[error("{0:?} is IPv4 in IPv6: write it as IPv4, which is meant by both")]
    Mapped(String),
    #[error("{0:?} looks like a pattern, and there are none: end it in / for all that is below")]
    Pattern(String),
    #[error("{0:?}: ports are 1 to 65535, the lower first")]
    Ports(String),
    #[error("{0:?} is no absolute path")]
    Relative(String),
    #[error("a path of {0} bytes: at most {PATH_BYTES_MAX} are compared")]
    TooLong(usize),
    #[error("option capture_rules.{0} has {1} rules: at most {RULES_MAX}")]
    TooMany(&'static str, usize),
}

impl CaptureRules {
    /// No session is kept from anything.
    pub fn is_empty(&self) -> bool {
        let Self { mode: _, deny_exec, deny_open_write, deny_connect, contain } = self;
        deny_exec.is_empty() && deny_open_write.is_empty() && deny_connect.is_empty() && !contain
    }

    /// Something must not happen, rather than be told.
    pub fn enforces(&self) -> bool {
        !self.is_empty() && self.mode != RuleMode::Audit
    }

    /// # Errors
    /// Too many rules of a kind for one role.
    pub fn check(&self) -> Result<(), RuleError> {
        for (name, count) in [
            ("deny_exec", self.deny_exec.len()),
            ("deny_open_write", self.deny_open_write.len()),
            ("deny_connect", self.deny_connect.len()),
        ] {
            if count > RULES_MAX {
                return Err(RuleError::TooMany(name, count));
            }
        }
        Ok(())
    }

    /// The rule that keeps a connection from being made, where one does.
    pub fn denies(&self, address: IpAddr, port: u16) -> Option<&AddressRule> {
        let address = as_reached(address);
        let about = |rule: &&AddressRule| {
            let (low, high) = rule.ports();
            rule.covers(address) && low <= port && port <= high
        };
        self.deny_connect.iter().filter(|_| self.enforces()).find(about)
    }

    /// All that both say, in the order in which they say it, once each.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.mode = self.mode.max(other.mode);
        self.contain |= other.contain;
        add(&mut self.deny_exec, &other.deny_exec);
        add(&mut self.deny_open_write, &other.deny_open_write);
        add(&mut self.deny_connect, &other.deny_connect);
        self
    }
}

fn add<T: Clone + PartialEq>(all: &mut Vec<T>, more: &[T]) {
    for rule in more {
        if !all.contains(rule) {
            all.push(rule.clone());
        }
    }
}

/// An absolute path; all that is below it, where it ends in `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathRule(String);

impl PathRule {
    /// # Errors
    /// Relative, with dots, a pattern, or too long.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let said = || text.to_owned();
        let Some(rest) = text.strip_prefix('/') else { return Err(RuleError::Relative(said())) };
        if text.len() > PATH_BYTES_MAX {
            return Err(RuleError::TooLong(text.len()));
        }
        if text.contains(['*', '?', '[', ']', '{', '}', '\\']) || text.contains(char::is_control) {
            return Err(RuleError::Pattern(said()));
        }
        let parts = rest.strip_suffix('/').unwrap_or(rest);
        if !rest.is_empty() && parts.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(RuleError::Dots(said()));
        }
        Ok(Self(said()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// All that is below is meant.
    pub fn is_prefix(&self) -> bool {
        self.0.ends_with('/')
    }
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ExecRule {
    /// `memfd:`: files that are in no folder but were made in memory.
    Memory,
    Path(PathRule),
    /// Whatever its name is.
    Sha256([u8; 32]),
}

impl ExecRule {
    /// # Errors
    /// No path and no digest.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        if text == MEMORY {
            return Ok(Self::Memory);
        }
        let Some(hex) = text.strip_prefix("sha256:") else {
            return PathRule::parse(text).map(Self::Path);
        };
        let bad = || RuleError::Hash(text.to_owned());
        let mut digest = [0; 32];
        if hex.len() != 2 * digest.len() {
            return Err(bad());
        }
        for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let digits = pair.iter().map(|digit| char::from(*digit).to_digit(16));
            let value = digits.reduce(|high, low| Some(high? * 16 + low?)).flatten();
            *byte = value.and_then(|value| u8::try_from(value).ok()).ok_or_else(bad)?;
        }
        Ok(Self::Sha256(digest))
    }
}

/// Addresses, and the ports there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRule {
    address: IpAddr,
    prefix: u8,
    /// Both ends included; `None` for all.
    ports: Option<(u16, u16)>,
}

impl AddressRule {
    /// `10.0.0.0/8`, `192.0.2.1:22`, `2001:db8::/32:1-1023`, `[::1]:80`.
    ///
    /// # Errors
    /// No address, bits beyond the prefix, ports that are none.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let bad = || RuleError::Address(text.to_owned());
        let (address, length, ports) = parts(text).ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = length.map_or(Ok(longest), |length| number(length).ok_or_else(bad))?;
        if prefix > longest {
            return Err(bad());
        }
        if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return Err(RuleError::Mapped(text.to_owned()));
        }
        let bare = masked(address, prefix);
        if bare != address {
            return Err(RuleError::HostBits(text.to_owned(), format!("{bare}/{prefix}")));
        }
        let ports = match ports {
            None => None,
            Some(ports) => {
                let (low, high) = ports.split_once('-').unwrap_or((ports, ports));
                let range = number::<u16>(low).zip(number::<u16>(high));
                let range = range.filter(|(low, high)| 0 < *low && low <= high);
                Some(range.ok_or_else(|| RuleError::Ports(text.to_owned()))?)
            }
        };
        Ok(Self { address, prefix, ports })
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// In bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The first and the last that is meant.
    pub fn ports(&self) -> (u16, u16) {
        self.ports.unwrap_or((0, u16::MAX))
    }

    /// Whether an address is meant; one of IPv4 in IPv6 is not asked for.
    pub fn covers(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }
}

/// Address, prefix and ports, each as it is written.
fn parts(text: &str) -> Option<(&str, Option<&str>, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        // Only IPv6 has brackets.
        address.parse::<Ipv6Addr>().ok()?;
        if rest.is_empty() {
            return Some((address, None, None));
        }
        if let Some(ports) = rest.strip_prefix(':') {
            return Some((address, None, Some(ports)));
        }
        return network(address, rest.strip_prefix('/')?);
    }
    if let Some((address, rest)) = text.split_once('/') {
        return network(address, rest);
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Some((text, None, None));
    }
    match text.split_once(':') {
        Some((address, ports)) => Some((address, None, Some(ports))),
        None => Some((text, None, None)),
    }
}

fn network<'a>(
    address: &'a str,
    rest: &'a str,
) -> Option<(&'a str, Option<&'a str>, Option<&'a str>)> {
    Some(match rest.split_once(':') {
        Some((length, ports)) => (address, Some(length), Some(ports)),
        None => (address, Some(rest), None),
    })
}

/// An address as the kernel reaches it: IPv4 in IPv6 is IPv4, and nowhere is this machine.
pub fn as_reached(address: IpAddr) -> IpAddr {
    let address = address.to_canonical();
    if !address.is_unspecified() {
        return address;
    }
    if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

/// Digits only: `parse` would take a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl fmt::Display for PathRule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Display for ExecRule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => out.write_str(MEMORY),
            Self::Path(path) => path.fmt(out),
            Self::Sha256(digest) => {
                out.write_str("sha256:")?;
                digest.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
            }
        }
    }
}

impl fmt::Display for AddressRule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix)?;
        match self.ports {
            None => Ok(()),
            Some((low, high)) if low == high => write!(out, ":{low}"),
            Some((low, high)) => write!(out, ":{low}-{high}"),
        }
    }
}

macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = RuleError;
            fn try_from(text: String) -> Result<Self, RuleError> { Self::parse(&text) }
        }
        impl From<$type> for String {
            fn from(rule: $type) -> Self { rule.to_string() }
        }
    )*};
}
as_text!(AddressRule, ExecRule, PathRule);

const MEMORY: &str = "memfd:";
/// Of a kind, in one role.
pub const RULES_MAX: usize = 256;
/// What the kernel compares of a path, but for the NUL at the end of one that is exact.
pub const PATH_BYTES_MAX: usize = 251;

#[cfg(test)]
mod tests {
    use super::*;

    fn said<T: fmt::Display>(parsed: Result<T, RuleError>) -> Result<String, String> {
        parsed.map(|rule| rule.to_string()).map_err(|error| error.to_string())
    }

    fn refused<T: fmt::Display>(parsed: Result<T, RuleError>, why: &str) {
        let error = said(parsed).unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn paths_are_absolute_and_plain() {
        for text in ["/", "/usr/bin/nc", "/etc/cron.d/", "/a b/ü..x/...", "/tmp/.x"] {
            assert_eq!(said(PathRule::parse(text)), Ok(text.to_owned()));
        }
        for (text, why) in [
            ("", "absolute"),
            ("usr/bin/nc", "absolute"),
            ("~/x", "absolute"),
            ("/usr/../bin", "`..`"),
            ("/usr/./bin", "`.`"),
            ("/..", "`..`"),
            ("/usr//bin", "empty part"),
            ("//", "empty part"),
            ("/home/*/x", "pattern"),
            ("/home/?", "pattern"),
            ("/a\0b", "pattern"),
            ("/a\n", "pattern"),
        ] {
            refused(PathRule::parse(text), why);
        }
        PathRule::parse(&format!("/{}", "x".repeat(250))).unwrap();
        refused(PathRule::parse(&format!("/{}", "x".repeat(251))), "252 bytes");
    }

    #[test]
    fn programs_are_paths_or_digests() {
        let hex = "0123456789abcdef".repeat(4);
        let text = format!("sha256:{hex}");
        assert_eq!(said(ExecRule::parse(&text)), Ok(text.clone()));
        assert_eq!(said(ExecRule::parse(&format!("sha256:{}", hex.to_uppercase()))), Ok(text));
        for text in ["/bin/x", "memfd:"] {
            assert_eq!(said(ExecRule::parse(text)), Ok(text.to_owned()));
        }
        for text in
            ["sha256:", "sha256:12", &format!("sha256:{hex}0"), &format!("sha256:+{}", &hex[1..])]
        {
            refused(ExecRule::parse(text), "SHA-256");
        }
        refused(ExecRule::parse("md5:00"), "absolute");
    }

    #[test]
    fn addresses_are_networks_with_ports() {
        for (text, same) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("192.0.2.1:22", "192.0.2.1/32:22"),
            ("10.0.0.0/8:1-1023", "10.0.0.0/8:1-1023"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:db8::/32:443", "2001:db8::/32:443"),
            ("::1", "::1/128"),
            ("[::1]:80-80", "::1/128:80"),
            ("[2001:db8::]/32:80", "2001:db8::/32:80"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(said(AddressRule::parse(text)), Ok(same.to_owned()));
            assert_eq!(said(AddressRule::parse(same)), Ok(same.to_owned()));
        }
        for (text, why) in [
            ("", "no address"),
            ("example.org", "no address"),
            ("10.0.0.0/33", "no address"),
            ("10.0.0.0/", "no address"),
            ("10.0.0.0/+8", "no address"),
            ("10.0.0/8", "no address"),
            ("[10.0.0.1]:80", "no address"),
            ("::1/129", "no address"),
            ("[::1]x", "no address"),
            ("10.1.2.3/8", "write 10.0.0.0/8"),
            ("2001:db8::1/32", "write 2001:db8::/32"),
            ("10.0.0.0/8:0", "ports"),
            ("10.0.0.0/8:", "ports"),
            ("10.0.0.0/8:22-21", "ports"),
            ("10.0.0.0/8:1-65536", "ports"),
            ("10.0.0.0/8:22:23", "ports"),
            ("::ffff:10.0.0.1", "as IPv4"),
        ] {
            refused(AddressRule::parse(text), why);
        }
    }

    #[test]
    fn an_address_is_covered_by_its_network_only() {
        let covers = |rule: &str, address: &str| {
            AddressRule::parse(rule).unwrap().covers(address.parse().unwrap())
        };
        assert!(covers("10.0.0.0/8", "10.255.0.1"));
        assert!(!covers("10.0.0.0/8", "11.0.0.0"));
        assert!(covers("0.0.0.0/0", "1.2.3.4"));
        assert!(!covers("0.0.0.0/0", "::1"));
        assert!(covers("::/0", "::1"));
        assert!(!covers("::/0", "1.2.3.4"));
        assert!(covers("2001:db8::/33", "2001:db8:7fff::"));
        assert!(!covers("2001:db8::/33", "2001:db8:8000::"));
    }

    #[test]
    fn a_connection_is_denied_however_its_address_is_written() {
        let rules = |json| serde_json::from_str::<CaptureRules>(json).unwrap();
        let denied = |rules: &CaptureRules, address: &str, port| {
            rules.denies(address.parse().unwrap(), port).map(ToString::to_string)
        };
        let deny = rules(r#"{"deny_connect":["127.0.0.0/8:22","10.0.0.0/8"]}"#);
        assert_eq!(denied(&deny, "::ffff:10.1.2.3", 80).unwrap(), "10.0.0.0/8");
        assert_eq!(denied(&deny, "0.0.0.0", 22).unwrap(), "127.0.0.0/8:22");
        assert_eq!(denied(&deny, "127.0.0.1", 23), None);
        let audit = rules(r#"{"deny_connect":["10.0.0.0/8"],"mode":"audit"}"#);
        assert_eq!(denied(&audit, "10.1.2.3", 80), None);
    }

    #[test]
    fn roles_together_deny_what_any_of_them_does() {
        let rules = |mode, path: &str| CaptureRules {
            mode,
            deny_open_write: vec![PathRule::parse(path).unwrap()],
            ..CaptureRules::default()
        };
        let both = rules(RuleMode::Kill, "/a").and(&rules(RuleMode::Audit, "/b"));
        let both = both.and(&CaptureRules { contain: true, ..rules(RuleMode::Deny, "/a") });
        assert_eq!((both.mode, both.contain), (RuleMode::Kill, true));
        let paths: Vec<_> = both.deny_open_write.iter().map(PathRule::as_str).collect();
        assert_eq!(paths, ["/a", "/b"]);
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_says_what() {
        let read = |json| serde_json::from_str::<CaptureRules>(json).map_err(|e| e.to_string());
        let rules = read(r#"{"mode":"kill","deny_exec":["/usr/bin/nc"],"contain":true}"#).unwrap();
        assert_eq!((rules.mode, rules.contain), (RuleMode::Kill, true));
        assert!(read(r#"{"deny_exec":["nc"]}"#).unwrap_err().contains("no absolute path"));
        assert!(read(r#"{"deny_read":["/x"]}"#).unwrap_err().contains("unknown field"));
        assert!(read(r#"{"mode":"ask"}"#).unwrap_err().contains("audit"));
        let many = CaptureRules {
            deny_exec: vec![ExecRule::Sha256([0; 32]); RULES_MAX + 1],
            ..CaptureRules::default()
        };
        many.check().unwrap_err();
    }
}
