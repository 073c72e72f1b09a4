//! What commands say on standard output. A reader that has gone (`| head`) is no failure, as with other tools.

use std::io::{self, Write};

/// Writes it.
///
/// # Errors
/// The operating system's.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// "1 stream", "2 streams".
pub(crate) fn streams(count: usize) -> String {
    format!("{count} {}", if count == 1 { "stream" } else { "streams" })
}

/// A length of time as the configuration writes it, no finer than it is of interest.
pub(crate) fn span(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m"),
        (hours, 0) => format!("{hours}h"),
        (hours, minutes) => format!("{hours}h{minutes}m"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn spans_are_short() {
        let spans = [0, 59, 60, 3599, 3600, 43_140].map(super::span);
        assert_eq!(spans, ["0s", "59s", "1m", "59m", "1h", "11h59m"]);
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(super::streams), ["0 streams", "1 stream", "2 streams"]);
    }
}
