//! Connections, listeners, and datagrams to others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_abi::{Header, Net, flag, net};
use proto::event::{self, Body as Event};

use super::{Context, delegation, dns, prov, text};

/// The event of a record, and what it hands to others.
pub(super) fn events(
    context: &Context<'_>,
    header: &Header,
    program: String,
    record: &Net,
    name: &[u8],
) -> Vec<Event> {
    let version = match record.family {
        AF_INET => 4,
        AF_INET6 => 6,
        _ => 0,
    };
    if record.bits & flag::PACKET != 0 {
        return dns::event(context, header, program, record, name).into_iter().collect();
    }
    let local = address(record.family, &record.local);
    let remote = address(record.family, &record.remote);
    let network = event::SessionNetwork {
        session: context.session.clone(),
        pid: header.tgid,
        program,
        op: op(record.op),
        protocol: protocol(record),
        src_addr: local.map(|ip| ip.to_string()).unwrap_or_default(),
        src_port: u16::try_from(record.local_port).unwrap_or_default(),
        dst_addr: remote.map_or_else(|| socket_name(name), |ip| ip.to_string()),
        dst_port: record.remote_port,
        version,
        operation: u8::try_from(record.op.saturating_sub(net::CONNECT)).unwrap_or(u8::MAX),
        action: u8::from(record.bits & flag::DENIED != 0),
        tx: record.tx,
        rx: record.rx,
        times: record.times,
        prov: prov(header.prov),
        return_code: record.result,
    };
    let delegated = delegation::by_connection(&network, record.peer);
    std::iter::once(network.into()).chain(delegated).collect()
}

/// The address of IPv4 in the first four bytes, or as IPv6 has it.
pub(super) fn address(family: u32, bytes: &[u8; 16]) -> Option<IpAddr> {
    let [a, b, c, d, ..] = *bytes;
    match family {
        AF_INET => Some(Ipv4Addr::new(a, b, c, d).into()),
        AF_INET6 => Some(Ipv6Addr::from(*bytes).to_canonical()),
        _ => None,
    }
}

/// The path of a local socket; `@` and the name of one without.
fn socket_name(bytes: &[u8]) -> String {
    match bytes {
        [0, name @ ..] => format!("@{}", text(name)),
        path => text(path.split(|byte| *byte == 0).next().unwrap_or_default()),
    }
}

fn op(number: u32) -> String {
    let name = match number {
        net::CONNECT => "connect",
        net::ACCEPT => "accept",
        net::LISTEN => "listen",
        net::BIND => "bind",
        net::SEND => "send",
        net::CLOSE => "close",
        net::SOCKET => "socket",
        other => return other.to_string(),
    };
    name.to_owned()
}

fn protocol(record: &Net) -> String {
    let name = match (record.family, record.kind, record.protocol) {
        (AF_UNIX, _, _) => "unix",
        (AF_PACKET, _, _) => "packet",
        (AF_VSOCK, _, _) => "vsock",
        (AF_NETLINK, _, _) => "netlink",
        (AF_ALG, _, _) => "alg",
        (AF_INET | AF_INET6, SOCK_RAW, _) => "raw",
        (AF_INET | AF_INET6, _, IPPROTO_TCP) => "tcp",
        (AF_INET | AF_INET6, _, IPPROTO_UDP) => "udp",
        (AF_INET | AF_INET6, _, IPPROTO_ICMP | IPPROTO_ICMPV6) => "icmp",
        (AF_INET | AF_INET6, _, IPPROTO_SCTP) => "sctp",
        (AF_INET | AF_INET6, _, IPPROTO_MPTCP) => "mptcp",
        (AF_INET | AF_INET6, SOCK_STREAM, _) => "tcp",
        (AF_INET | AF_INET6, SOCK_DGRAM, _) => "udp",
        (family, _, _) => return format!("family {family}"),
    };
    name.to_owned()
}

pub(super) const AF_UNIX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const AF_NETLINK: u32 = 16;
const AF_PACKET: u32 = 17;
const AF_ALG: u32 = 38;
const AF_VSOCK: u32 = 40;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;
const IPPROTO_ICMP: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_ICMPV6: u32 = 58;
const IPPROTO_SCTP: u32 = 132;
const IPPROTO_MPTCP: u32 = 262;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_named() {
        assert_eq!(socket_name(b"/run/docker.sock\0junk"), "/run/docker.sock");
        assert_eq!(socket_name(b"\0abstract"), "@abstract");
        assert_eq!(socket_name(b""), "");
    }

    #[test]
    fn addresses_are_read() {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[192, 0, 2, 7]);
        assert_eq!(address(AF_INET, &bytes).unwrap().to_string(), "192.0.2.7");
        let mapped = "::ffff:192.0.2.7".parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(address(AF_INET6, &mapped).unwrap().to_string(), "192.0.2.7");
        assert_eq!(address(AF_UNIX, &bytes), None);
    }
}
