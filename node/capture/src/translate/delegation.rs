//! Who does things for a session that it does not do itself: services that start programs for others, reached by a socket or
//! by a file that they read. What the kernel ties together itself comes as a record ([`super::other`]).

use proto::event::{self, Body as Event, SessionDisk, SessionNetwork};

use crate::rules::contain::WRITES;

/// Sockets whose owners start programs for others, by the beginning or the end of their paths.
const SOCKETS: &[(&str, Match, &str)] = &[
    ("systemd", Match::End, "/systemd/private"),
    ("systemd", Match::End, "/dbus/system_bus_socket"),
    ("systemd", Match::End, "/bus"),
    ("container", Match::End, "/docker.sock"),
    ("container", Match::End, "/containerd.sock"),
    ("container", Match::End, "/podman.sock"),
    ("container", Match::End, "/crio.sock"),
    ("container", Match::Begin, "/run/libvirt/"),
    ("container", Match::End, "/lxd/unix.socket"),
];

/// Files that services read and act upon, whoever's: beside those that containment guards ([`WRITES`]).
const FILES: &[(&str, Match, &str)] = &[
    ("ssh", Match::End, "/.ssh/authorized_keys"),
    ("ssh", Match::End, "/.ssh/rc"),
    ("systemd", Match::Within, "/.config/systemd/user/"),
    ("helper", Match::End, "/release_agent"),
];

/// What changes a file, or makes one.
const CHANGES: [&str; 6] = ["create", "write", "rename", "link", "symlink", "mknod"];

#[derive(Debug, Clone, Copy)]
enum Match {
    Begin,
    Within,
    End,
}

fn broker(list: &[(&'static str, Match, &str)], path: &str) -> Option<&'static str> {
    let fits = |(_, how, part): &&(&str, Match, &str)| match how {
        Match::Begin => path.starts_with(part),
        Match::Within => path.contains(part),
        Match::End => path.ends_with(part),
    };
    list.iter().find(fits).map(|(via, _, _)| *via)
}

/// Who acts upon a file.
fn reader(path: &str) -> Option<&'static str> {
    let is_meant = |(of, via): &&(&str, &str)| {
        !via.is_empty() && if of.ends_with('/') { path.starts_with(of) } else { path == *of }
    };
    let found = WRITES.iter().filter(is_meant).max_by_key(|(of, _)| of.len());
    found.map(|(_, via)| *via).or_else(|| broker(FILES, path))
}

/// A connection to a service that starts programs, or to this machine's own sshd.
pub(super) fn by_connection(network: &SessionNetwork, peer: u32) -> Option<Event> {
    // One that failed reached nobody; one that goes on may yet.
    let has_failed = network.return_code < 0 && network.return_code != -libc::EINPROGRESS;
    if !matches!(network.op.as_str(), "connect" | "send") || has_failed {
        return None;
    }
    let via = if network.protocol == "unix" {
        broker(SOCKETS, &network.dst_addr)?
    } else if network.dst_port == SSH_PORT && is_ourselves(network) && network.op == "connect" {
        "ssh"
    } else {
        return None;
    };
    let path = match network.version {
        0 => network.dst_addr.clone(),
        _ => format!("{}:{}", network.dst_addr, network.dst_port),
    };
    let delegation = event::SessionDelegation {
        session: network.session.clone(),
        pid: network.pid,
        program: network.program.clone(),
        via: via.to_owned(),
        path,
        target_pid: peer,
        target_program: String::new(),
        target_sid: String::new(),
    };
    Some(delegation.into())
}

fn is_ourselves(network: &SessionNetwork) -> bool {
    let to_loopback = network.dst_addr.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    to_loopback || network.dst_addr == network.src_addr
}

/// A file that a service acts upon was changed.
pub(super) fn by_file(disk: &SessionDisk) -> Option<Event> {
    const O_WRONLY_OR_RDWR: u32 = 3;
    let changes = CHANGES.contains(&disk.op.as_str())
        || disk.op == "open" && disk.flags & O_WRONLY_OR_RDWR != 0;
    if !changes || disk.return_code != 0 {
        return None;
    }
    let paths = [&disk.path, &disk.target_path];
    let (path, via) = paths.into_iter().find_map(|path| Some((path, reader(path)?)))?;
    let delegation = event::SessionDelegation {
        session: disk.session.clone(),
        pid: disk.pid,
        program: disk.program.clone(),
        via: via.to_owned(),
        path: path.clone(),
        target_pid: 0,
        target_program: String::new(),
        target_sid: String::new(),
    };
    Some(delegation.into())
}

const SSH_PORT: u32 = 22;
