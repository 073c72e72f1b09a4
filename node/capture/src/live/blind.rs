//! A kernel that does not ask any more: root can turn off what LSM programs hang on (`kernel.ftrace_enabled`), and nothing says
//! so. It is turned on again, and every session is told of; where that fails, those with rules end.

use std::{fs, io};

use super::{Live, Sessions};
use crate::{Tier, lock};

impl Live {
    /// Who did it is not known: his open is told of, with others' of that file.
    ///
    /// # Errors
    /// The kernel does not ask, whatever is done.
    pub(super) fn tell_if_blind(&self, sessions: &mut Sessions) -> io::Result<()> {
        if self.tier != Tier::A || lock(&self.object).is_asked() {
            return Ok(());
        }
        let turned_on = fs::write(SWITCH, "1");
        let is_asked = turned_on.is_ok() && lock(&self.object).is_asked();
        let error = turned_on.err().or((!is_asked).then(|| io::ErrorKind::Unsupported.into()));
        match &error {
            None => tracing::error!(
                "somebody had turned off {SWITCH}, and what sessions did was not seen"
            ),
            Some(error) => {
                tracing::error!(%error, "the kernel does not ask any more, and {SWITCH} does not help")
            }
        }
        for (number, watched) in &mut sessions.by_number {
            if watched.is_over {
                continue;
            }
            watched.lost("program", "tamper", 1);
            if error.is_some() && self.maps.rules.has(*number) {
                watched.rules.end("the kernel does not keep capture_rules any more");
            }
        }
        error.map_or(Ok(()), Err)
    }
}

/// Off, no program is run at the beginning or the end of a function of the kernel's.
const SWITCH: &str = "/proc/sys/kernel/ftrace_enabled";
