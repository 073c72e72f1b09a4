//! What happens between fork and exec: new session, controlling terminal, groups, ids, working directory.
//! Only async-signal-safe calls on values prepared beforehand; nothing is allocated. Called by [`crate::launch`].
#![expect(unsafe_code, reason = "pre_exec closures and id changes in the child have no safe form")]

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use capture::Marker;

/// What the child becomes.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Whose rights it takes; `None` keeps ours (a node without root).
    pub(crate) switch: Option<Switch>,
    /// Makes standard input, a terminal, the controlling one.
    pub(crate) controlling_terminal: bool,
    /// Makes the child the session's first task.
    pub(crate) mark: Option<Marker>,
    /// A descriptor that survives exec under its own number.
    pub(crate) inherit: Option<RawFd>,
    /// Entered after the switch, with the user's own rights; `/` when that fails.
    pub(crate) home: CString,
}

/// Ids of the target user.
#[derive(Debug, Clone)]
pub(crate) struct Switch {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// Lets `command` follow `plan` after fork. A step that fails makes `spawn` fail: nothing runs with wrong rights.
/// `inherit` must stay open until `spawn` has returned. Needs Linux 5.11 for `close_range`'s flag; older ones skip it.
pub(crate) fn follow(command: &mut Command, plan: Plan) {
    // SAFETY: the closure runs in the child of a fork of a threaded process. It makes only system calls through thin
    // libc wrappers that are async-signal-safe, takes no locks and allocates nothing; all data was moved in before.
    unsafe { command.pre_exec(move || become_plan(&plan)) };
}

fn become_plan(plan: &Plan) -> io::Result<()> {
    // First, while we may: nothing that is done for the session comes before.
    if let Some(marker) = &plan.mark {
        marker.mark_self()?;
    }
    // SAFETY: plain system calls on numbers and on a structure that lives here.
    unsafe {
        check(libc::setsid())?;
        // Whoever started us may have told us to ignore some (nohup, a script's `&`): that is not for sessions. Those
        // that libc keeps for itself can't be changed, and need not be.
        for signal in 1..=SIGNALS_MAX {
            libc::signal(signal, libc::SIG_DFL);
        }
        if plan.controlling_terminal {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
        libc::umask(0o022);
        let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files))?;
        files.rlim_cur = files.rlim_max.min(OPEN_FILES_SOFT);
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files))?;
        // Ours are close-on-exec already; this catches what a library may have opened without it.
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        if let Some(fd) = plan.inherit {
            check(libc::fcntl(fd, libc::F_SETFD, 0))?;
        }
    }
    if let Some(switch) = &plan.switch {
        take_rights(switch)?;
    }
    // SAFETY: both paths are NUL-terminated.
    unsafe {
        if libc::chdir(plan.home.as_ptr()) != 0 {
            check(libc::chdir(c"/".as_ptr()))?;
        }
    }
    Ok(())
}

/// The usual soft limit. The daemon raises its own, which would break programs that use select(2).
const OPEN_FILES_SOFT: libc::rlim_t = 1024;

/// Linux has 64 on every architecture that this is built for (`_NSIG`).
const SIGNALS_MAX: libc::c_int = 64;

fn take_rights(switch: &Switch) -> io::Result<()> {
    // SAFETY: `groups` points to as many numbers as its length says; the rest are plain numbers.
    unsafe {
        check(libc::setgroups(switch.groups.len(), switch.groups.as_ptr()))?;
        check(libc::setresgid(switch.gid, switch.gid, switch.gid))?;
        check(libc::setresuid(switch.uid, switch.uid, switch.uid))?;
        let taken = libc::getuid() == switch.uid
            && libc::geteuid() == switch.uid
            && libc::getgid() == switch.gid
            && libc::getegid() == switch.gid;
        let root_again = switch.uid != 0 && libc::setresuid(u32::MAX, 0, u32::MAX) == 0;
        if !taken || root_again {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    Ok(())
}

fn check(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The descriptor that a parent left open for us under this number, made close-on-exec. Called once, at the start of a
/// child's `main`, before anything else could own it.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: a plain system call; an unused number makes it fail.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the number is open (above), and nothing else in this process owns it: the caller has just begun, and the
    // standard library owns none beyond 2.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root for the switch, as CI has; otherwise checks that the own user stays.
    #[test]
    fn a_child_has_the_planned_rights_and_no_way_back() {
        let root = rustix::process::geteuid().is_root();
        let switch = root.then(|| Switch { uid: 65534, gid: 65534, groups: vec![65534, 12345] });
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "id -u; id -G; pwd; umask; ps -o sid= -p $$ | tr -d ' '; echo $$; ulimit -Sn",
        ]);
        let home = CString::new("/no/such/folder").unwrap();
        follow(
            &mut command,
            Plan { switch, controlling_terminal: false, inherit: None, mark: None, home },
        );
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = text.lines().collect();
        if root {
            assert_eq!(lines[0], "65534");
            assert_eq!(lines[1], "65534 12345");
        } else {
            assert_eq!(lines[0], rustix::process::getuid().as_raw().to_string());
        }
        assert_eq!(lines[2], "/");
        assert_eq!(lines[3], "0022");
        assert_eq!(lines[4], lines[5], "the child leads its own session");
        assert!(lines[6].parse::<u32>().unwrap() <= 1024, "{lines:?}");
    }

    #[test]
    fn a_switch_without_the_right_to_it_runs_nothing() {
        if rustix::process::geteuid().is_root() {
            return;
        }
        let mut command = Command::new("/bin/true");
        let switch = Some(Switch { uid: 0, gid: 0, groups: vec![0] });
        let home = CString::new("/").unwrap();
        follow(
            &mut command,
            Plan { switch, controlling_terminal: false, inherit: None, mark: None, home },
        );
        assert!(command.status().is_err());
    }

    #[test]
    fn a_child_ignores_no_signal_that_its_parent_was_told_to_ignore() {
        // Ours for a moment; `nohup postern start` is the same from its beginning.
        // SAFETY: a plain system call; no other test of this crate is about SIGURG.
        unsafe { libc::signal(libc::SIGURG, libc::SIG_IGN) };
        let mut command = Command::new("/bin/grep");
        command.args(["SigIgn:", "/proc/self/status"]);
        let home = CString::new("/").unwrap();
        let plan =
            Plan { switch: None, controlling_terminal: false, inherit: None, mark: None, home };
        follow(&mut command, plan);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let ignored = u64::from_str_radix(text.split_whitespace().nth(1).unwrap(), 16).unwrap();
        assert_eq!(ignored >> (libc::SIGURG - 1) & 1, 0, "{text}");
    }
}
