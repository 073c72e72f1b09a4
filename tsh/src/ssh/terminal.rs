//! The local terminal: raw while a session has it, restored on every way out. Size for the other side.

use std::io::{stdin, stdout};

use rustix::termios::{
    OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

/// Raw mode until dropped: also by an error's way out and by a panic's.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
}

/// Columns, rows, and pixels of each, as SSH wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: u32,
    pub(crate) rows: u32,
    pub(crate) pixels_wide: u32,
    pub(crate) pixels_high: u32,
}

impl RawTerminal {
    /// `None` when standard input is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw).ok()?;
        Some(Self { before })
    }
    /// The character that erased before, usually 0x7f.
    pub(crate) fn erase(&self) -> u8 {
        self.before.special_codes[SpecialCodeIndex::VERASE]
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring, and there is nobody left to tell.
        if tcsetattr(stdin(), OptionalActions::Drain, &self.before).is_err() {}
    }
}

/// The terminal's size, or the customary one.
pub(crate) fn size() -> Size {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin()));
    match size {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size {
            columns: size.ws_col.into(),
            rows: size.ws_row.into(),
            pixels_wide: size.ws_xpixel.into(),
            pixels_high: size.ws_ypixel.into(),
        },
        Ok(_) | Err(_) => Size { columns: 80, rows: 24, pixels_wide: 0, pixels_high: 0 },
    }
}
