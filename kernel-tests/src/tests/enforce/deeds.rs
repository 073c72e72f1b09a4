//! What a session does when it is told to: a program that reads deeds, one a line, does each, and says what came of it. It is
//! this program itself, started as a session's first.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use io_uring::{opcode, types};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount,
};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Pid, Signal, kill_process};

use crate::sys::ipv4;
use crate::sys::uring::{Way, perform};

/// The first argument that asks for [`serve`].
pub(crate) const ARGUMENT: &str = "enforce-deeds";

/// Does what standard input says, until it ends.
pub(crate) fn serve() -> ExitCode {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let result = match done(&line) {
            Ok(()) => "ok".to_owned(),
            Err(error) => match error.raw_os_error() {
                Some(libc::EPERM) => "denied".to_owned(),
                _ => error.to_string(),
            },
        };
        println!("{result}");
        io::stdout().flush().unwrap();
    }
    ExitCode::SUCCESS
}

fn done(line: &str) -> io::Result<()> {
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["exec", path] => exec(path),
        ["open", path] => OpenOptions::new().append(true).open(path).map(drop),
        ["create", path] => OpenOptions::new().create(true).append(true).open(path).map(drop),
        ["read", path] => File::open(path).map(drop),
        ["truncate", path] => crate::sys::truncate(Path::new(path)),
        ["unlink", path] => fs::remove_file(path),
        ["rmdir", path] => fs::remove_dir(path),
        ["mkdir", path] => fs::create_dir(path),
        ["rename", from, to] => fs::rename(from, to),
        ["link", from, to] => fs::hard_link(from, to),
        ["symlink", to] => symlink("elsewhere", to),
        ["fifo", path] => fifo(path),
        ["chmod", path] => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
        ["chown", path] => std::os::unix::fs::chown(path, Some(0), Some(0)),
        ["connect", address] => connect(address),
        ["send", address] => send(address),
        ["socket", path] => UnixStream::connect(path).map(drop),
        ["bpf"] => bpf(),
        ["trace", pid] => trace(pid),
        ["module", path] => tried(rustix::system::finit_module(File::open(path)?, c"", 0)),
        // Longer than the header of one, or nobody asks.
        ["module"] => tried(rustix::system::init_module(&[0; 256], c"")),
        ["signal", pid] => signal(pid),
        ["own-signal", pid] => own_signal(pid),
        ["limit", pid] => limit(pid),
        ["map-later", path] => crate::sys::map_later(&File::open(path)?),
        ["mount", path] => {
            Ok(mount("none", *path, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>)?)
        }
        ["umount", path] => Ok(unmount(*path, UnmountFlags::empty())?),
        ["move-mount", from, to] => {
            tried(move_mount(CWD, *from, CWD, *to, MoveMountFlags::empty()))
        }
        ["pivot-root", path] => tried(rustix::process::pivot_root(*path, *path)),
        ["send-unspec", address] => send_unspecified(address),
        ["fast-open", address] => fast_open(address),
        ["by-tree", folder, name] => by_tree(folder, name),
        ["ring", way, path] => by_ring(way, path),
        ["deep"] => deep(|folder, name| {
            let flags = OFlags::WRONLY | OFlags::APPEND;
            Ok(openat(folder, name, flags, Mode::empty()).map(drop)?)
        }),
        _ => Err(io::Error::other(format!("no deed: {line}"))),
    }
}

/// What is done with nonsense: the kernel says so once it has asked whether it may be done at all.
fn tried(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::NOEXEC | Errno::INVAL | Errno::BUSY) => Ok(()),
        other => Ok(other?),
    }
}

/// Without saying which kind of address it is.
fn send_unspecified(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    crate::sys::send_to(socket.as_raw_fd(), b"x", &ipv4(0, parsed(address)?), 0)
}

/// A stream whose first bytes make the connection; that nobody listens is no refusal.
fn fast_open(address: &str) -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    let address = ipv4(AddressFamily::INET.as_raw(), parsed(address)?);
    match crate::sys::send_to(socket.as_raw_fd(), b"x", &address, libc::MSG_FASTOPEN) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        other => other,
    }
}

fn parsed(address: &str) -> io::Result<SocketAddrV4> {
    address.parse().map_err(io::Error::other)
}

/// Opens a file to write, without a system call of that name.
fn by_ring(way: &str, path: &str) -> io::Result<()> {
    let way =
        Way::ALL.into_iter().find(|each| each.name() == way).ok_or(io::ErrorKind::InvalidInput)?;
    let path = CString::new(path)?;
    let here = types::Fd(libc::AT_FDCWD);
    let entry = opcode::OpenAt::new(here, path.as_ptr()).flags(libc::O_WRONLY).build();
    perform(way, entry, &path).map(drop)
}

/// Opens a file to write, in a copy of its folder that is mounted nowhere.
fn by_tree(folder: &str, name: &str) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, folder, flags)?;
    Ok(openat(&tree, name, OFlags::WRONLY | OFlags::APPEND, Mode::empty()).map(drop)?)
}

/// Folder in folder, deeper than a path can be said; with the last of them and a name in it, does something.
pub(super) fn deep(deed: impl Fn(BorrowedFd<'_>, &str) -> io::Result<()>) -> io::Result<()> {
    let name = "x".repeat(250);
    let mut folder = OwnedFd::from(File::open("/tmp/w")?);
    for _ in 0..20 {
        if let Err(error) = mkdirat(&folder, &name, Mode::RWXU)
            && error != Errno::EXIST
        {
            return Err(error.into());
        }
        folder = openat(&folder, &name, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())?;
    }
    deed(folder.as_fd(), "f")
}

/// A copy of busybox.
fn exec(path: &str) -> io::Result<()> {
    let status = Command::new(path).arg0("true").stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}

fn fifo(path: &str) -> io::Result<()> {
    use rustix::fs::{FileType, mknodat};
    Ok(mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0)?)
}

/// That nobody listens is no refusal.
fn connect(address: &str) -> io::Result<()> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        other => other.map(drop),
    }
}

fn send(address: &str) -> io::Result<()> {
    let to: SocketAddr = address.parse().map_err(io::Error::other)?;
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.send_to(b"x", to).map(drop)
}

/// Any command: the first map of the system.
fn bpf() -> io::Result<()> {
    match aya::maps::loaded_maps().next() {
        Some(Err(error)) => Err(root_cause(&error)),
        _ => Ok(()),
    }
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> io::Error {
    let mut cause = error;
    loop {
        if let Some(error) = cause.downcast_ref::<io::Error>()
            && let Some(number) = error.raw_os_error()
        {
            return io::Error::from_raw_os_error(number);
        }
        let Some(next) = cause.source() else { return io::Error::other(error.to_string()) };
        cause = next;
    }
}

/// Memory of another is opened with the right to trace it; the kernel says EACCES for whatever the hook says.
fn trace(pid: &str) -> io::Result<()> {
    let opened = match pid {
        "child" => {
            let mut child = Command::new("/bin/busybox").args(["sleep", "60"]).spawn()?;
            let opened = File::open(format!("/proc/{}/mem", child.id()));
            child.kill()?;
            child.wait()?;
            opened
        }
        pid => File::open(format!("/proc/{pid}/mem")),
    };
    match opened {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            Err(io::Error::from_raw_os_error(libc::EPERM))
        }
        other => other.map(drop),
    }
}

/// Has another told by a signal that there is something to read. Whether it comes, who causes it does not see.
fn own_signal(pid: &str) -> io::Result<()> {
    let (here, mut there) = UnixStream::pair()?;
    crate::sys::told_by_signal(here.as_raw_fd(), number(pid)?.as_raw_nonzero().get())?;
    there.write_all(b"x")
}

/// The same limit as before.
fn limit(pid: &str) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, prlimit};
    let pid = Some(number(pid)?);
    let none = Rlimit { current: Some(0), maximum: None };
    Ok(prlimit(pid, Resource::Core, none).map(drop)?)
}

fn number(pid: &str) -> io::Result<Pid> {
    Ok(pid.parse().ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?)
}

/// One that does nothing to who does not ask for it.
fn signal(pid: &str) -> io::Result<()> {
    Ok(kill_process(number(pid)?, Signal::WINCH)?)
}
