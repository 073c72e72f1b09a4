//! Deeds, one a line, and what each is in the words of the model; in the order in which the kernel comes to them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixListener;

use rustix::fs::{Mode, OFlags, openat};

use super::deeds::deep;
use super::{Deed, Path, contain, known};

/// A deed as [`super::deeds`] reads it.
pub(super) struct Case {
    pub(super) line: &'static str,
    pub(super) deeds: &'static [Deed<'static>],
}

const fn case(line: &'static str, deeds: &'static [Deed<'static>]) -> Case {
    Case { line, deeds }
}

/// What a session may not do, but for the mode, and deeds.
pub(super) type Table = (&'static str, &'static [Case]);

macro_rules! write {
    ($($path:literal),*) => { &[$(Deed::Write(known($path))),*] };
}
macro_rules! moved {
    ($($path:literal),*) => { &[$(Deed::Move(known($path))),*] };
}

/// Deeds that follow one another, none of them twice with the same file, since what is repeated is counted: what one has made is there for the next, where it was allowed or done by another.
pub(super) const FILES: Table = (
    r#""deny_open_write":["/tmp/w/d/","/tmp/w/f","/tmp/w/up/x/"]"#,
    &[
        case("read /tmp/w/f", &[]),
        case("read /tmp/w/d/f", &[]),
        case("open /tmp/w/f", write!["/tmp/w/f"]),
        case("open /tmp/w/ff", write!["/tmp/w/ff"]),
        case("open /tmp/w/d/f", write!["/tmp/w/d/f"]),
        case("open /tmp/w/d/../g", write!["/tmp/w/g"]),
        case("open /tmp/w/link", write!["/tmp/w/d/l"]),
        case("ring inline /tmp/w/d/inline", write!["/tmp/w/d/inline"]),
        case("ring worker /tmp/w/d/worker", write!["/tmp/w/d/worker"]),
        case("ring poller /tmp/w/d/poller", write!["/tmp/w/d/poller"]),
        case("ring worker /tmp/w/ff", write!["/tmp/w/ff"]),
        case("by-tree /tmp/w/d f", &[Deed::Write(Path::Unknown)]),
        case("deep", &[Deed::Write(Path::Unknown)]),
        case("truncate /tmp/w/f", write!["/tmp/w/f"]),
        case("truncate /tmp/w/g", write!["/tmp/w/g"]),
        case("chmod /tmp/w/f", write!["/tmp/w/f"]),
        case("chmod /tmp/w/d", write!["/tmp/w/d"]),
        case("chown /tmp/w/d/f", write!["/tmp/w/d/f"]),
        case("chown /tmp/w/g", write!["/tmp/w/g"]),
        case("link /tmp/w/f /tmp/w/alias", write!["/tmp/w/f"]),
        case("link /tmp/w/g /tmp/w/galias", write!["/tmp/w/g", "/tmp/w/galias"]),
        case("symlink /tmp/w/d/s", write!["/tmp/w/d/s"]),
        case("symlink /tmp/w/s", write!["/tmp/w/s"]),
        case("fifo /tmp/w/d/p", write!["/tmp/w/d/p"]),
        case("mkdir /tmp/w/d/sub", write!["/tmp/w/d/sub"]),
        case("mkdir /tmp/w/sub", write!["/tmp/w/sub"]),
        case("rmdir /tmp/w/sub", moved!["/tmp/w/sub"]),
        case("rename /tmp/w/up /tmp/w/down", moved!["/tmp/w/up", "/tmp/w/down"]),
        case("rename /tmp/w/g /tmp/w/h", moved!["/tmp/w/g", "/tmp/w/h"]),
        case("rename /tmp/w/h /tmp/w/d/f", moved!["/tmp/w/h", "/tmp/w/d/f"]),
        case("unlink /tmp/w/d/f", write!["/tmp/w/d/f"]),
    ],
);

const fn to(address: IpAddr, port: u16) -> Deed<'static> {
    Deed::Connect { address, port }
}

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 1, 0, 1));
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const MAPPED: IpAddr = IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
const LOCAL6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

pub(super) const NETWORK: Table = (
    r#""deny_connect":["127.0.0.0/16:1-9","127.0.0.1:20","127.1.0.0/16:7","::1/128:5-6"]"#,
    &[
        case("connect 127.0.0.1:9", &[to(LOCAL, 9)]),
        case("connect 127.0.0.1:10", &[to(LOCAL, 10)]),
        case("connect 127.0.0.1:20", &[to(LOCAL, 20)]),
        case("connect 127.1.0.1:7", &[to(OTHER, 7)]),
        case("connect 127.1.0.1:9", &[to(OTHER, 9)]),
        case("connect 0.0.0.0:9", &[to(NOWHERE, 9)]),
        case("connect [::ffff:127.0.0.1]:9", &[to(MAPPED, 9)]),
        case("connect [::1]:5", &[to(LOCAL6, 5)]),
        case("connect [::1]:9", &[to(LOCAL6, 9)]),
        case("send 127.0.0.1:9", &[to(LOCAL, 9)]),
        case("send 127.0.0.1:10", &[to(LOCAL, 10)]),
        case("send-unspec 127.0.0.1:8", &[to(LOCAL, 8)]),
        case("send-unspec 127.0.0.1:10", &[to(LOCAL, 10)]),
        case("fast-open 127.0.0.1:7", &[to(LOCAL, 7)]),
        case("fast-open 127.0.0.1:10", &[to(LOCAL, 10)]),
        case("send [::1]:6", &[to(LOCAL6, 6)]),
        case("send [::ffff:127.0.0.1]:9", &[to(MAPPED, 9)]),
    ],
);

pub(super) const PROGRAMS: Table = (
    r#""deny_exec":["/tmp/w/d/","/tmp/w/program","/tmp/w/busybox"]"#,
    &[
        case("exec /tmp/w/program", &[Deed::Exec(known("/tmp/w/program"))]),
        case("exec /tmp/w/program2", &[Deed::Exec(known("/tmp/w/program2"))]),
        case("exec /tmp/w/d/program", &[Deed::Exec(known("/tmp/w/d/program"))]),
        // The script itself may be, its interpreter not.
        case("exec /tmp/w/script", &[Deed::Exec(known("/tmp/w/busybox"))]),
        case(
            "exec /tmp/w/d/script",
            &[Deed::Exec(known("/tmp/w/d/script")), Deed::Exec(known("/tmp/w/busybox"))],
        ),
        case("exec /bin/busybox", &[Deed::Exec(known("/bin/busybox"))]),
        case("map-later /tmp/w/d/mapped", &[Deed::Exec(known("/tmp/w/d/mapped"))]),
        case("map-later /tmp/w/mapped", &[Deed::Exec(known("/tmp/w/mapped"))]),
    ],
);

pub(super) const CONTAINED: Table = (
    r#""contain":true"#,
    &[
        // The next map, a descriptor of it, what it is.
        case("bpf", &[Deed::Contained(contain::BPF); 3]),
        case("trace AGENT", &[Deed::Contained(contain::TRACE)]),
        case("trace 1", &[Deed::Contained(contain::TRACE)]),
        case("trace child", &[]),
        case("signal AGENT", &[Deed::Contained(contain::SIGNAL)]),
        case("limit AGENT", &[Deed::Contained(contain::SIGNAL)]),
        case("open /proc/sys/kernel/ftrace_enabled", write!["/proc/sys/kernel/ftrace_enabled"]),
        case("socket /run/docker.sock", &[Deed::Socket(known("/run/docker.sock"))]),
        case("socket /run/other.sock", &[Deed::Socket(known("/run/other.sock"))]),
        // It is made, then opened.
        case("create /etc/cron.d/job", write!["/etc/cron.d/job", "/etc/cron.d/job"]),
        case("create /etc/hosts", &[]),
        case("rename /etc/cron.d /etc/cron.e", moved!["/etc/cron.d"]),
        case("mount /tmp/w/d", &[Deed::Contained(contain::MOUNT)]),
        case("move-mount /tmp/w/d /tmp/w/up", &[Deed::Contained(contain::MOUNT)]),
        case("pivot-root /tmp/w/d", &[Deed::Contained(contain::MOUNT)]),
        case("module /tmp/w/f", &[Deed::Contained(contain::MODULE)]),
        case("open /proc/self/loginuid", &[Deed::Contained(contain::LOGINUID)]),
        case("read /proc/self/loginuid", &[]),
        case("umount /tmp/w/mounted", &[Deed::Contained(contain::MOUNT)]),
        case("rmdir /tmp/w/pins/folder", &[Deed::Contained(contain::PINS)]),
    ],
);

/// From memory; in a session of its own, since it is the same deed as that from a file.
pub(super) const MODULES: Table =
    (r#""contain":true"#, &[case("module", &[Deed::Contained(contain::MODULE)])]);

/// Makes what the deeds are done to, anew.
pub(super) fn prepare() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    for mounted in ["/tmp/w/mounted", "/tmp/w/pins", "/tmp/w/d", "/tmp/w/up"] {
        while unmount(mounted, UnmountFlags::DETACH).is_ok() {}
    }
    for gone in ["/tmp/w", "/etc/cron.d", "/etc/cron.e"] {
        drop(fs::remove_dir_all(gone));
    }
    let folders =
        ["/run", "/etc/cron.d", "/tmp/w/d", "/tmp/w/up/x", "/tmp/w/mounted", "/tmp/w/pins"];
    folders.iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
    for file in ["f", "ff", "g", "d/f", "d/l", "d/inline", "d/worker", "d/poller"] {
        fs::write(format!("/tmp/w/{file}"), "x").unwrap();
    }
    deep(|folder, name| {
        Ok(openat(folder, name, OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).map(drop)?)
    })
    .unwrap();
    std::os::unix::fs::symlink("/tmp/w/d/l", "/tmp/w/link").unwrap();
    for program in ["busybox", "program", "program2", "mapped", "d/program", "d/mapped"] {
        let program = format!("/tmp/w/{program}");
        fs::copy("/bin/busybox", program).unwrap();
    }
    for script in ["/tmp/w/script", "/tmp/w/d/script"] {
        use std::os::unix::fs::PermissionsExt as _;
        fs::write(script, "#!/tmp/w/busybox true\n").unwrap();
        fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let none = None::<&std::ffi::CStr>;
    mount("none", "/tmp/w/mounted", "tmpfs", MountFlags::empty(), none).unwrap();
    mount("none", "/tmp/w/pins", "bpf", MountFlags::empty(), none).unwrap();
    fs::create_dir("/tmp/w/pins/folder").unwrap();
    for socket in ["/run/docker.sock", "/run/other.sock"] {
        drop(fs::remove_file(socket));
        // Until the end of the program: the guest is there for nothing else.
        Box::leak(Box::new(UnixListener::bind(socket).unwrap()));
    }
}
