//! Terminals: size, modes (RFC 4254, section 8), ownership. The program's half is [`super::process`]'s.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use russh::Pty as Mode;
use rustix::fs::{Gid, Mode as FileMode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios,
    Winsize,
};

/// What a client asks for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) term: String,
    pub(crate) size: Size,
    pub(crate) modes: Vec<(Mode, u32)>,
}

/// Cells and pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: u16,
    pub(crate) rows: u16,
    pub(crate) width: u16,
    pub(crate) height: u16,
}

impl Size {
    /// From a request. No cells at all means that the client does not know: the classical size then.
    pub(crate) fn new(columns: u32, rows: u32, width: u32, height: u32) -> Self {
        let fit = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let or = |n: u16, default| if n == 0 { default } else { n };
        Self {
            columns: or(fit(columns), 80),
            rows: or(fit(rows), 24),
            width: fit(width),
            height: fit(height),
        }
    }
    /// `width:height`, as events have it.
    pub(crate) fn text(self) -> String {
        format!("{}:{}", self.columns, self.rows)
    }
    /// Sets a terminal's size; the kernel tells its program.
    pub(crate) fn apply(self, terminal: BorrowedFd<'_>) -> io::Result<()> {
        let size = Winsize {
            ws_col: self.columns,
            ws_row: self.rows,
            ws_xpixel: self.width,
            ws_ypixel: self.height,
        };
        Ok(rustix::termios::tcsetwinsize(terminal, size)?)
    }
}

impl Wanted {
    /// A terminal type is a file name in terminfo: anything else is not passed on.
    pub(crate) fn new(term: &str, size: Size, modes: &[(Mode, u32)]) -> Self {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
        let good = !term.is_empty()
            && term.len() <= TERM_BYTES_MAX
            && term.chars().all(plain)
            && !term.starts_with(['.', '-']);
        let term = if good { term } else { "dumb" };
        Self { term: term.to_owned(), size, modes: modes.to_vec() }
    }
}

/// An open pair.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
    /// `/dev/pts/N`.
    pub(crate) name: String,
}

/// Opens a pair, set up as wanted. With `owner` (user, group `tty`), the device is theirs.
pub(crate) fn open(wanted: &Wanted, owner: Option<(u32, u32)>) -> io::Result<Terminal> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let open = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name.as_c_str(), open, FileMode::empty())?;
    if let Some((uid, gid)) = owner {
        rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        // Writable by group tty, which write(1) and wall(1) have; readable by the owner alone.
        rustix::fs::fchmod(&slave, FileMode::RUSR | FileMode::WUSR | FileMode::WGRP)?;
    }
    let mut termios = rustix::termios::tcgetattr(&slave)?;
    for &(mode, value) in &wanted.modes {
        set_mode(&mut termios, mode, value);
    }
    rustix::termios::tcsetattr(&slave, OptionalActions::Now, &termios)?;
    let terminal = Terminal { master, slave, name: name.to_string_lossy().into_owned() };
    wanted.size.apply(std::os::fd::AsFd::as_fd(&terminal.slave))?;
    Ok(terminal)
}

/// One mode of a request; those that Linux does not have are left out.
fn set_mode(termios: &mut Termios, mode: Mode, value: u32) {
    let on = value != 0;
    if let Some(index) = special(mode) {
        // 255 is "none" on the wire (RFC 4254, section 8) and 0 is Linux's _POSIX_VDISABLE.
        let code = u8::try_from(value).ok().filter(|code| *code != 255).unwrap_or(0);
        termios.special_codes[index] = code;
    } else if let Some(flag) = input(mode) {
        termios.input_modes.set(flag, on);
    } else if let Some(flag) = local(mode) {
        termios.local_modes.set(flag, on);
    } else if let Some(flag) = output(mode) {
        termios.output_modes.set(flag, on);
    } else if let Some(flag) = control(mode) {
        termios.control_modes.set(flag, on);
    }
}

macro_rules! table {
    ($name:ident, $type:ident, $($mode:ident)*) => {
        fn $name(mode: Mode) -> Option<$type> {
            Some(match mode {
                $(Mode::$mode => $type::$mode,)*
                _ => return None,
            })
        }
    };
}

table!(special, SpecialCodeIndex,
    VINTR VQUIT VERASE VKILL VEOF VEOL VEOL2 VSTART VSTOP VSUSP VREPRINT VWERASE VLNEXT VDISCARD);
table!(input, InputModes,
    IGNPAR PARMRK INPCK ISTRIP INLCR IGNCR ICRNL IUCLC IXON IXANY IXOFF IMAXBEL IUTF8);
table!(local, LocalModes,
    ISIG ICANON XCASE ECHO ECHOE ECHOK ECHONL NOFLSH TOSTOP IEXTEN ECHOCTL ECHOKE PENDIN);
table!(output, OutputModes, OPOST OLCUC ONLCR OCRNL ONOCR ONLRET);
table!(control, ControlModes, CS7 CS8 PARENB PARODD);

/// Longer than any name in terminfo.
const TERM_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_and_modes_are_applied() {
        let modes = [(Mode::VINTR, 7), (Mode::ECHO, 0), (Mode::ONLCR, 1), (Mode::VEOL, 255)];
        let wanted = Wanted::new("xterm-256color", Size::new(132, 50, 0, 0), &modes);
        let terminal = open(&wanted, None).unwrap();
        let termios = rustix::termios::tcgetattr(&terminal.master).unwrap();
        assert_eq!(termios.special_codes[SpecialCodeIndex::VINTR], 7);
        assert_eq!(termios.special_codes[SpecialCodeIndex::VEOL], 0);
        assert!(!termios.local_modes.contains(LocalModes::ECHO));
        assert!(termios.output_modes.contains(OutputModes::ONLCR));
        let size = rustix::termios::tcgetwinsize(&terminal.slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (132, 50));
        assert!(terminal.name.starts_with("/dev/pts/"));
    }

    #[test]
    fn odd_requests_are_made_harmless() {
        assert_eq!(Wanted::new("../../etc/x", Size::new(0, 0, 0, 0), &[]).term, "dumb");
        assert_eq!(Wanted::new("a=b", Size::new(0, 0, 0, 0), &[]).term, "dumb");
        let size = Size::new(0, 1_000_000, 0, 0);
        assert_eq!((size.columns, size.rows), (80, u16::MAX));
    }
}
