//! What the keys of the file and the flags mean. Flags win over the file, the file over defaults.
//! Section and key names are those that people know; see docs/reference/config.md.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use proto::id::{ClusterName, NodeName};
use proto::preamble::Inner;
use proto::resource::{HostRole, Labels, Span};
use zeroize::Zeroizing;

use super::yaml::{self, Mistake, Section};
use super::{
    AUTH_PORT, AuthSection, Config, DRAIN_TIMEOUT, JUMP_PORT, JoinConfig, LogConfig, Mistakes,
    NodeSection, ProxySection, UPGRADE_TIMEOUT, WEB_PORT,
};

/// What the command line says.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    pub(crate) roles: Option<Vec<HostRole>>,
    pub(crate) token: Option<String>,
    pub(crate) auth_server: Option<String>,
    pub(crate) proxy: Option<String>,
    pub(crate) ca_pin: Option<String>,
    pub(crate) nodename: Option<NodeName>,
    pub(crate) labels: Option<Labels>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) diag_addr: Option<SocketAddr>,
    pub(crate) debug: bool,
}

/// The file's contents before defaults.
#[derive(Debug, Default)]
struct RawConfig {
    nodename: Option<NodeName>,
    data_dir: Option<PathBuf>,
    diag_addr: Option<SocketAddr>,
    auth_token: Option<String>,
    auth_server: Option<String>,
    proxy_server: Option<String>,
    ca_pin: Option<String>,
    log_json: Option<bool>,
    severity: Option<String>,
    drain_timeout: Option<Span>,
    upgrade_timeout: Option<Span>,
    auth: RawAuth,
    proxy: RawProxy,
    node: RawNode,
}

#[derive(Debug, Default)]
struct RawAuth {
    enabled: Option<bool>,
    cluster_name: Option<ClusterName>,
    listen_addr: Option<SocketAddr>,
    public_addr: Vec<String>,
}

#[derive(Debug, Default)]
struct RawProxy {
    enabled: Option<bool>,
    web_listen_addr: Option<SocketAddr>,
    public_addr: Vec<String>,
    /// `Some(None)`: switched off.
    ssh_listen_addr: Option<Option<SocketAddr>>,
    ssh_public_addr: Option<String>,
    https_keypairs: Vec<(PathBuf, PathBuf)>,
    inner: Option<Inner>,
    data_plane: Option<proxy::DataPlane>,
}

#[derive(Debug, Default)]
struct RawNode {
    enabled: Option<bool>,
    labels: Labels,
    environment_allow: Option<Vec<String>>,
}

/// Reads the file (if any) and the flags into a configuration.
///
/// # Errors
/// Every mistake in both.
pub(crate) fn load(file: Option<&Path>, flags: Flags, hostname: &str) -> Result<Config, Mistakes> {
    let mut mistakes = Vec::new();
    let raw = match file.map(std::fs::read_to_string) {
        None => RawConfig::default(),
        Some(Ok(text)) => read_text(&text, &mut mistakes),
        Some(Err(error)) => {
            mistakes.push(plain(format!("cannot be read: {error}")));
            RawConfig::default()
        }
    };
    let config = settle(raw, flags, hostname, &mut mistakes);
    match config {
        Some(config) if mistakes.is_empty() => Ok(config),
        _ => {
            mistakes.sort_by_key(|mistake| mistake.place.map(|place| (place.line, place.column)));
            Err(Mistakes { file: file.map(Path::to_owned), list: mistakes })
        }
    }
}

const DATA_PLANES: &str = "must be auto, uring-ktls, uring or epoll";

fn plain(text: impl Into<String>) -> Mistake {
    Mistake { place: None, text: text.into() }
}

fn read_text(text: &str, mistakes: &mut Vec<Mistake>) -> RawConfig {
    let node = match yaml::parse(text) {
        Ok(node) => node,
        Err(mistake) => {
            mistakes.push(mistake);
            return RawConfig::default();
        }
    };
    let mut raw = RawConfig::default();
    let mut root = Section::new("", node, mistakes);
    root.text("version", known_version);
    root.section("postern", |section| {
        read_global(section, &mut raw);
        read_services(section, &mut raw);
    });
    // Beside `postern:` too, where files written for the established product have them.
    read_services(&mut root, &mut raw);
    root.finish();
    raw
}

fn known_version(text: &str) -> Result<(), String> {
    match text {
        "v1" | "v2" | "v3" => Ok(()),
        other => Err(format!("configuration version {other:?} is not known; v3 is the newest")),
    }
}

fn read_global(section: &mut Section<'_>, raw: &mut RawConfig) {
    raw.nodename = section.text("nodename", str::parse::<NodeName>);
    raw.data_dir = section.text("data_dir", absolute_path);
    raw.diag_addr = section.text("diag_addr", listen_address(None));
    raw.auth_token = section.text("auth_token", any_text);
    raw.auth_server = section.text("auth_server", |text| host_port(text, AUTH_PORT));
    raw.proxy_server = section.text("proxy_server", |text| host_port(text, WEB_PORT));
    raw.ca_pin = section.text("ca_pin", pin);
    raw.drain_timeout = section.text("drain_timeout", Span::parse);
    raw.upgrade_timeout = section.text("upgrade_timeout", Span::parse);
    section.section("log", |log| {
        raw.severity = log.text("severity", severity);
        log.section("format", |format| {
            raw.log_json = format.text("output", |text| match text {
                "json" => Ok(true),
                "text" => Ok(false),
                other => Err(format!("must be text or json, not {other:?}")),
            });
        });
    });
}

fn read_services(section: &mut Section<'_>, raw: &mut RawConfig) {
    section.section("auth_service", |auth| {
        raw.auth.enabled = auth.flag("enabled");
        raw.auth.cluster_name = auth.text("cluster_name", str::parse::<ClusterName>);
        raw.auth.listen_addr = auth.text("listen_addr", listen_address(Some(AUTH_PORT)));
        raw.auth.public_addr =
            auth.texts("public_addr", |text| host_port(text, AUTH_PORT)).unwrap_or_default();
    });
    section.section("proxy_service", |proxy| {
        raw.proxy.enabled = proxy.flag("enabled");
        raw.proxy.web_listen_addr = proxy.text("web_listen_addr", listen_address(Some(WEB_PORT)));
        raw.proxy.public_addr =
            proxy.texts("public_addr", |text| host_port(text, WEB_PORT)).unwrap_or_default();
        raw.proxy.ssh_listen_addr = proxy.text("listen_addr", |text| match text {
            "off" | "false" => Ok(None),
            text => listen_address(Some(JUMP_PORT))(text).map(Some),
        });
        raw.proxy.ssh_public_addr =
            proxy.text("ssh_public_addr", |text| host_port(text, JUMP_PORT));
        raw.proxy.inner = proxy.text("inner_encrypted", |text| match text {
            "plain" => Ok(Inner::Plain),
            "tls" => Ok(Inner::Tls),
            other => Err(format!("must be plain or tls, not {other:?}")),
        });
        raw.proxy.data_plane =
            proxy.text("data_plane", |text| text.parse().map_err(|_| DATA_PLANES.to_owned()));
        raw.proxy.https_keypairs = proxy
            .texts("https_keypairs", |text| match text.split_once(',') {
                Some((key, cert)) => Ok((absolute_path(key.trim())?, absolute_path(cert.trim())?)),
                None => Err("write /path/key.pem,/path/cert.pem".to_owned()),
            })
            .unwrap_or_default();
    });
    section.section("ssh_service", |node| {
        raw.node.enabled = node.flag("enabled");
        raw.node.labels = node.pairs("labels").unwrap_or_default().into_iter().collect();
        raw.node.environment_allow = node.texts("environment_allow", any_text);
    });
}

/// The name that was given, or the host's own.
fn name_of_machine(
    given: Option<NodeName>,
    hostname: &str,
    mistakes: &mut Vec<Mistake>,
) -> Option<NodeName> {
    match given.map_or_else(|| NodeName::parse(hostname), Ok) {
        Ok(name) => Some(name),
        Err(error) => {
            mistakes.push(plain(format!(
                "the host's own name cannot be used ({error}): pass --nodename"
            )));
            None
        }
    }
}

/// Defaults, flags, and what must fit together.
fn settle(
    raw: RawConfig,
    flags: Flags,
    hostname: &str,
    mistakes: &mut Vec<Mistake>,
) -> Option<Config> {
    let runs = |role: HostRole, enabled: Option<bool>, default: bool| match &flags.roles {
        Some(roles) => roles.contains(&role),
        None => enabled.unwrap_or(default),
    };
    let run_auth = runs(HostRole::Auth, raw.auth.enabled, true);
    let run_proxy = runs(HostRole::Proxy, raw.proxy.enabled, true);
    let run_node = runs(HostRole::Node, raw.node.enabled, true);
    if !(run_auth || run_proxy || run_node) {
        mistakes.push(plain("no role is enabled: pass --roles=auth,proxy,node or some of them"));
    }
    let nodename = name_of_machine(flags.nodename.or(raw.nodename), hostname, mistakes);
    let Some(data_dir) = flags.data_dir.or(raw.data_dir).or_else(net::file::default_data_dir)
    else {
        mistakes.push(plain("there is no home to keep state in: pass --data-dir"));
        return None;
    };
    let is_joined = [(run_proxy, HostRole::Proxy), (run_node, HostRole::Node)]
        .into_iter()
        .all(|(runs, role)| !runs || net::host::is_joined(&data_dir.join(role.as_str())));
    let join = JoinConfig {
        token: read_token(flags.token.or(raw.auth_token), is_joined, mistakes),
        auth_server: parse_flag(
            flags.auth_server,
            |t| host_port(t, AUTH_PORT),
            "--auth-server",
            mistakes,
        )
        .or(raw.auth_server),
        proxy_server: parse_flag(flags.proxy, |t| host_port(t, WEB_PORT), "--proxy", mistakes)
            .or(raw.proxy_server),
        ca_pin: parse_flag(flags.ca_pin, pin, "--ca-pin", mistakes).or(raw.ca_pin),
    };
    check_join(&join, run_auth, run_proxy, run_node, mistakes);
    let severity = if flags.debug { Some("debug".to_owned()) } else { raw.severity };
    Some(Config {
        nodename: nodename?,
        data_dir,
        diag_addr: flags.diag_addr.or(raw.diag_addr),
        log: LogConfig {
            json: raw.log_json.unwrap_or(false),
            severity: severity.unwrap_or_else(|| "info".into()),
        },
        drain_timeout: raw.drain_timeout.map_or(DRAIN_TIMEOUT, |span| span.0),
        upgrade_timeout: raw.upgrade_timeout.map_or(UPGRADE_TIMEOUT, |span| span.0),
        join,
        auth: run_auth.then(|| settle_auth(raw.auth, hostname, mistakes)).flatten(),
        proxy: run_proxy.then(|| settle_proxy(raw.proxy, hostname)),
        node: run_node.then(|| NodeSection {
            labels: flags.labels.unwrap_or(raw.node.labels),
            environment_allow: raw
                .node
                .environment_allow
                .unwrap_or_else(node::environment_allow_default),
        }),
    })
}

/// What a role needs to know of the others.
fn check_join(
    join: &JoinConfig,
    run_auth: bool,
    run_proxy: bool,
    run_node: bool,
    mistakes: &mut Vec<Mistake>,
) {
    if !run_auth && join.auth_server.is_none() && join.proxy_server.is_none() {
        mistakes.push(plain(
            "auth does not run here: say where it is with --auth-server, or pass --proxy",
        ));
    }
    if run_node && !run_proxy && join.proxy_server.is_none() {
        mistakes.push(plain("a node is reached through a proxy: say which with --proxy"));
    }
    if run_proxy && !run_auth && join.auth_server.is_none() {
        mistakes.push(plain("a proxy without auth beside it needs --auth-server"));
    }
}

fn settle_auth(raw: RawAuth, hostname: &str, mistakes: &mut Vec<Mistake>) -> Option<AuthSection> {
    let cluster_name_given = raw.cluster_name.is_some();
    let cluster_name = match raw.cluster_name.map_or_else(|| ClusterName::parse(hostname), Ok) {
        Ok(name) => name,
        Err(error) => {
            mistakes.push(plain(format!(
                "the host's own name cannot be the cluster's ({error}): set auth_service.cluster_name"
            )));
            return None;
        }
    };
    Some(AuthSection {
        cluster_name,
        cluster_name_given,
        listen_addr: raw.listen_addr.unwrap_or_else(|| loopback(AUTH_PORT)),
        public_addr: raw.public_addr,
    })
}

fn settle_proxy(raw: RawProxy, hostname: &str) -> ProxySection {
    let web = raw.web_listen_addr.unwrap_or_else(|| loopback(WEB_PORT));
    let jump = raw.ssh_listen_addr.unwrap_or_else(|| Some(SocketAddr::new(web.ip(), JUMP_PORT)));
    let mut public_addr = raw.public_addr;
    if public_addr.is_empty() {
        public_addr.push(reachable(web, hostname));
    }
    ProxySection {
        web_listen_addr: web,
        ssh_public_addr: raw.ssh_public_addr,
        ssh_listen_addr: jump,
        public_addr,
        https_keypairs: raw.https_keypairs,
        inner: raw.inner.unwrap_or(Inner::Plain),
        data_plane: raw.data_plane.unwrap_or_default(),
    }
}

/// How others reach a listener, when nothing says it: its address, `localhost` on loopback, the host's name on a wildcard.
fn reachable(listen: SocketAddr, hostname: &str) -> String {
    let ip = listen.ip();
    if ip.is_unspecified() {
        format!("{hostname}:{}", listen.port())
    } else if ip == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        format!("localhost:{}", listen.port())
    } else {
        listen.to_string()
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

fn parse_flag<T>(
    text: Option<String>,
    parse: impl FnOnce(&str) -> Result<T, String>,
    flag: &str,
    mistakes: &mut Vec<Mistake>,
) -> Option<T> {
    match parse(&text?) {
        Ok(value) => Some(value),
        Err(error) => {
            mistakes.push(plain(format!("{flag}: {error}")));
            None
        }
    }
}

/// A token's text, or the absolute path of a file that holds it (so that it need not stand in a command line). A token is
/// needed only to join: later starts work after the file has been removed.
fn read_token(
    text: Option<String>,
    is_joined: bool,
    mistakes: &mut Vec<Mistake>,
) -> Option<Zeroizing<String>> {
    let text = Zeroizing::new(text?);
    if !text.starts_with('/') {
        if text.contains('/') || Path::new(text.as_str()).exists() {
            mistakes.push(plain("--token names a file: give its absolute path, from / on"));
        }
        return Some(text);
    }
    match std::fs::read_to_string(text.as_str()) {
        Ok(token) => Some(Zeroizing::new(token.trim().to_owned())),
        Err(error) if is_joined && error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            mistakes.push(plain(format!("the token file {} cannot be read: {error}", *text)));
            None
        }
    }
}

fn any_text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("must not be empty".into()) } else { Ok(text.to_owned()) }
}

/// A level, or a filter such as `info,node=debug`.
fn severity(text: &str) -> Result<String, String> {
    let text = text.to_lowercase();
    let plain_word = !text.contains(['=', ',']);
    let level = matches!(&*text, "error" | "warn" | "info" | "debug" | "trace" | "off");
    let filter = tracing_subscriber::EnvFilter::try_new(&text);
    if (plain_word && !level) || filter.is_err() {
        return Err(format!(
            "{text:?} is none of error, warn, info, debug, trace, nor a filter of them"
        ));
    }
    Ok(text)
}

fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("{text:?} is not an absolute path")) }
}

pub(crate) fn pin(text: &str) -> Result<String, String> {
    let digest = text.strip_prefix("sha256:").unwrap_or_default();
    if digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit()) {
        Ok(text.to_lowercase())
    } else {
        Err("a pin is sha256: and 64 hexadecimal digits, as `tctl status` prints it".into())
    }
}

fn listen_address(port: Option<u16>) -> impl Fn(&str) -> Result<SocketAddr, String> {
    move |text| {
        let with_port = port.map(|port| format!("{text}:{port}"));
        text.parse().ok().or_else(|| with_port.and_then(|text| text.parse().ok())).ok_or_else(
            || format!("{text:?} is not an address such as 0.0.0.0:{}", port.unwrap_or(3000)),
        )
    }
}

/// `host:port`, with a default port. Names are not resolved here.
pub(crate) fn host_port(text: &str, default: u16) -> Result<String, String> {
    let text = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    let bad = || format!("{text:?} is not host:port");
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse::<u16>().map_err(|_| bad())?)
        }
        _ => (text, default),
    };
    if host.is_empty() || host.contains(char::is_whitespace) || host.contains('/') {
        return Err(bad());
    }
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_text(text: &str) -> Result<Config, Vec<String>> {
        let mut mistakes = Vec::new();
        let raw = read_text(text, &mut mistakes);
        let config = settle(raw, Flags::default(), "bastion", &mut mistakes);
        match config {
            Some(config) if mistakes.is_empty() => Ok(config),
            _ => Err(mistakes.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn nothing_is_a_cluster_on_loopback() {
        let config = from_text("").unwrap();
        let proxy = config.proxy.unwrap();
        assert_eq!(proxy.web_listen_addr, "127.0.0.1:3080".parse().unwrap());
        assert_eq!(proxy.public_addr, ["localhost:3080"]);
        assert_eq!(config.auth.unwrap().cluster_name.as_str(), "bastion");
        assert!(config.node.is_some());
    }

    #[test]
    fn known_names_below_and_beside_the_root() {
        let nested = "postern:\n  nodename: a\n  proxy_service:\n    web_listen_addr: 0.0.0.0:443\n    public_addr: p.example.com:443\n  ssh_service:\n    labels:\n      env: prod\n";
        let config = from_text(nested).unwrap();
        assert_eq!(config.proxy.unwrap().public_addr, ["p.example.com:443"]);
        assert_eq!(config.node.unwrap().labels["env"], "prod");
        let beside = "version: v3\npostern:\n  nodename: a\nauth_service:\n  enabled: yes\n  cluster_name: c.example.com\nproxy_service:\n  enabled: no\nssh_service:\n  enabled: no\n";
        let config = from_text(beside).unwrap();
        assert_eq!(config.auth.unwrap().cluster_name.as_str(), "c.example.com");
        assert!(config.proxy.is_none());
    }

    #[test]
    fn all_mistakes_at_once_with_their_places() {
        let text = "postern:\n  nodenam: x\n  diag_addr: nonsense\n  proxy_service:\n    web_listen_adr: 1\n    public_addr: [\"a b\"]\n  ssh_service: 7\nbogus: 1\n";
        let mistakes = from_text(text).unwrap_err();
        let starts: Vec<_> = mistakes.iter().map(|m| m.split(": ").next().unwrap()).collect();
        for place in [
            "line 2, column 3",
            "line 3",
            "line 5, column 5",
            "line 6",
            "line 7",
            "line 8, column 1",
        ] {
            assert!(starts.iter().any(|s| s.starts_with(place)), "{place} in {mistakes:#?}");
        }
        assert_eq!(mistakes.len(), 6, "{mistakes:#?}");
    }

    #[test]
    fn addresses() {
        fn check(text: &str, expect: Option<&str>) {
            assert_eq!(host_port(text, 3080).ok().as_deref(), expect, "{text}");
        }
        check("p.example.com", Some("p.example.com:3080"));
        check("p.example.com:443", Some("p.example.com:443"));
        check("https://p.example.com:443/", Some("p.example.com:443"));
        check("[::1]:443", Some("[::1]:443"));
        check("a b", None);
        check("", None);
        check("h:99999", None);
    }
}
