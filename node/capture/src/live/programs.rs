//! Where programs run that a node before us has left, and ours are others: ours are put in their place as soon as nobody is watched. A
//! session that begins at that moment waits.

use std::io;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::Live;
use crate::lock;

/// Begins to wait, in a thread of its own, where there is something to wait for.
pub(super) fn replace(live: &Arc<Live>, programs: &'static [u8]) -> io::Result<()> {
    if !live.is_behind() {
        return Ok(());
    }
    let live = Arc::downgrade(live);
    let waiting = move || {
        while !is_done(&live, programs) {
            thread::sleep(LOOK_EVERY);
        }
    };
    thread::Builder::new().name("capture-replace".to_owned()).spawn(waiting).map(drop)
}

/// Whether nothing is to be waited for any more.
fn is_done(live: &Weak<Live>, programs: &[u8]) -> bool {
    let Some(live) = live.upgrade() else { return true };
    let Some(pins) = &live.pins else { return true };
    // Held, so that nobody begins.
    let mut sessions = lock(&live.sessions);
    if !sessions.is_idle() {
        return false;
    }
    let began = Instant::now();
    let mut object = lock(&live.object);
    match object.replace(programs, pins, &live.maps) {
        Ok(()) => {
            // Programs count anew, and maps do not.
            sessions.passed_over = object.passed_over();
            let took_ms = began.elapsed().as_millis();
            tracing::info!(took_ms, "programs of a node before this one are replaced");
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "programs of a node before this one stay");
        }
    }
    true
}

impl Live {
    pub(crate) fn is_behind(&self) -> bool {
        lock(&self.object).is_behind
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
