//! What is no TCP connection to somebody else: datagrams, names, listeners, other families, local sockets of services.

use std::io::{IoSlice, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use rustix::net::{
    AddressFamily, MMsgHdr, RawProtocol, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags,
    SocketType, addr::SocketAddrArg, ipproto, sendmmsg, socket, socket_with,
};

use super::super::deed::{Deed, applet, busybox, run_true};
use super::super::stage::Scene;
use super::super::told::Found;
use super::{Case, Play};

pub(super) const CASES: &[Case] = &[
    Case {
        number: 16,
        name: "UDP sendto, sendmmsg, QUIC",
        play: Play::Here(datagrams),
        deed: do_datagrams,
    },
    Case { number: 17, name: "DNS tunnel", play: Play::Here(names), deed: do_names },
    Case {
        number: 18,
        name: "bind, listen, accept a shell",
        play: Play::Here(shell),
        deed: do_shell,
    },
    Case {
        number: 19,
        name: "vsock, raw and packet sockets",
        play: Play::Here(families),
        deed: do_families,
    },
    Case { number: 20, name: "docker.sock", play: Play::Here(docker), deed: do_docker },
];

/// QUIC's usual port, one for each of two messages of one call, and one for an address that does not say what kind it is.
const PORTS: [u16; 4] = [443, 4434, 4435, 4436];

fn datagrams(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let sent = |port: u16| {
        let any = told.network("send", "udp").with("dst_addr", "127.0.0.1").with("dst_port", port);
        any.named(&format!("udp send to {port}")).found()
    };
    PORTS.map(sent).into()
}

fn do_datagrams(_: &Deed, _: &str) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addresses = PORTS.map(|port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    let [quic, first, second, unspecified] = addresses;
    let [first, second] = [first, second].map(|address| SocketAddrArg::as_any(&address));
    socket.send_to(&[0xc0; 1200], quic).unwrap();
    let bytes = [IoSlice::new(b"out")];
    let [mut none, mut nothing] = [SendAncillaryBuffer::default(), SendAncillaryBuffer::default()];
    let mut messages = [
        MMsgHdr::new_with_addr(&first, &bytes, &mut none),
        MMsgHdr::new_with_addr(&second, &bytes, &mut nothing),
    ];
    // A refusal that the first one brought would be the second one's.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(sendmmsg(&socket, &mut messages, SendFlags::empty()).unwrap(), 2);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = crate::sys::ipv4(0, unspecified);
    crate::sys::send_to(socket.as_raw_fd(), b"out", &address, 0).unwrap();
}

const NAME: &str = "c2VjcmV0.tunnel.example";

fn names(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    vec![told.name(NAME).with("qtype", "TXT").with("dst_port", 53).found()]
}

/// A question, as RFC 1035 has it.
fn do_names(_: &Deed, _: &str) {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in NAME.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.bytes());
    }
    // Text, of the internet.
    question.extend([0, 0, 16, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(&question, "127.0.0.1:53").unwrap();
}

fn shell(scene: &Scene<'_>) -> Vec<Found> {
    let running = scene.start("");
    let port: u16 = running.fact("port").parse().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"/proc/self/exe true; exit\n").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    let told = running.end();
    let ours = |op: &str| told.network(op, "tcp").with("src_port", port).found();
    // The port is the kernel's choice, which comes later.
    let bind = told.network("bind", "tcp").with("src_addr", "127.0.0.1").found();
    vec![
        bind,
        ours("listen"),
        ours("accept"),
        told.command(&busybox().display().to_string()).found(),
    ]
}

fn do_shell(deed: &Deed, _: &str) {
    // A port that is free: before it happens, only what is asked for is known.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listener = TcpListener::bind(free).unwrap();
    deed.tell("port", listener.local_addr().unwrap().port());
    let (stream, _) = listener.accept().unwrap();
    let (input, output) = (stream.try_clone().unwrap(), stream);
    let mut shell = applet(&busybox(), "sh");
    let error = shell.stdin(Stdio::from(std::os::fd::OwnedFd::from(input)));
    let error = error.stdout(Stdio::from(std::os::fd::OwnedFd::from(output))).exec();
    panic!("{error}");
}

const VSOCK_PORT: u32 = 1234;

fn families(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let any = |protocol: &str| {
        let all = ["socket", "connect", "send", "bind"].map(|op| told.network(op, protocol));
        let told = all.into_iter().map(|expected| expected.named(protocol).found());
        told.reduce(Found::or).unwrap()
    };
    vec![any("vsock"), any("raw"), any("packet")]
}

/// Each is asked for whether the kernel has it or not: that is what is to be told.
fn do_families(_: &Deed, _: &str) {
    let vsock = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::NONBLOCK, None);
    if let Ok(socket) = vsock {
        // Family, port, and the machine itself.
        let mut address = [0_u8; 16];
        address[..2].copy_from_slice(&40_u16.to_ne_bytes());
        address[4..8].copy_from_slice(&VSOCK_PORT.to_ne_bytes());
        address[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        // Nobody listens.
        crate::sys::connect(socket.as_raw_fd(), &address).ok();
    }
    let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).unwrap();
    let to = crate::sys::ipv4(2, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
    crate::sys::send_to(raw.as_raw_fd(), &[8, 0, 0xf7, 0xff, 0, 0, 0, 0], &to, 0).unwrap();
    // All protocols, in the network's byte order.
    let all = RawProtocol::new(u32::from(3_u16.to_be())).unwrap();
    let packet =
        socket(AddressFamily::PACKET, SocketType::RAW, Some(rustix::net::Protocol::from_raw(all)));
    let packet = packet.unwrap();
    rustix::net::recv(&packet, &mut [0; 100], RecvFlags::DONTWAIT).ok();
}

const DOCKER: &str = "/run/docker.sock";
/// Not unlike it.
const OTHER: &str = "/run/abcker.sock";

fn docker(scene: &Scene<'_>) -> Vec<Found> {
    let daemon = scene.outside("daemon");
    let told = scene.session("");
    vec![
        told.network("connect", "unix").with("dst_addr", OTHER).found(),
        told.network("connect", "unix").with("dst_addr", DOCKER).found(),
        told.delegation("container", DOCKER).to(daemon.pid),
    ]
}

/// The service starts what it is told to start.
fn do_docker(deed: &Deed, part: &str) {
    if part == "daemon" {
        let listener = UnixListener::bind(DOCKER).unwrap();
        let _other = UnixListener::bind(OTHER).unwrap();
        deed.tell("ready", "");
        let (mut stream, _) = listener.accept().unwrap();
        let mut wanted = String::new();
        stream.read_to_string(&mut wanted).unwrap();
        deed.tell("started", run_true(wanted.trim_end().as_ref()));
        drop(stream);
        deed.ready_forever();
    }
    drop(UnixStream::connect(OTHER).unwrap());
    let mut stream = UnixStream::connect(DOCKER).unwrap();
    writeln!(stream, "{}", busybox().display()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // Until it is done.
    stream.read_to_end(&mut Vec::new()).unwrap();
}
