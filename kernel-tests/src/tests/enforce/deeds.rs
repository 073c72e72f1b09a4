//! What a session does when it is told to: a program that reads deeds, one a line, does each, and says what came of it. It is
//! this program itself, started as a session's first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

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
        ["module", path] => Ok(rustix::system::finit_module(File::open(path)?, c"", 0)?),
        ["signal", pid] => signal(pid),
        ["mount", path] => {
            Ok(mount("none", *path, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>)?)
        }
        ["umount", path] => Ok(unmount(*path, UnmountFlags::empty())?),
        _ => Err(io::Error::other(format!("no deed: {line}"))),
    }
}

/// A copy of busybox.
fn exec(path: &str) -> io::Result<()> {
    let status = Command::new(path).arg0("true").stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}

fn fifo(path: &str) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
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

/// One that does nothing to who does not ask for it.
fn signal(pid: &str) -> io::Result<()> {
    let pid = pid.parse().ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, Signal::WINCH)?)
}
