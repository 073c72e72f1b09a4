//! `~.` at the start of a line ends the session; `~~` there is one tilde. Bytes in, bytes out.

/// Where in a line we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Elsewhere,
    LineStart,
    Tilde,
}

/// The filter's state between reads.
#[derive(Debug)]
pub(crate) struct Escape {
    at: At,
}

/// What typed bytes come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// `~.`
    Disconnect,
    Send(Vec<u8>),
}

impl Escape {
    pub(crate) fn new() -> Self {
        Self { at: At::LineStart }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Typed {
        let mut out = Vec::with_capacity(bytes.len() + 1);
        for &byte in bytes {
            self.at = match (self.at, byte) {
                (At::LineStart, b'~') => At::Tilde,
                (At::Tilde, b'.') => return Typed::Disconnect,
                (At::Tilde, b'~') => {
                    out.push(byte);
                    At::Elsewhere
                }
                (At::Tilde, _) => {
                    out.extend([b'~', byte]);
                    after(byte)
                }
                (At::Elsewhere | At::LineStart, _) => {
                    out.push(byte);
                    after(byte)
                }
            };
        }
        Typed::Send(out)
    }
}

fn after(byte: u8) -> At {
    if matches!(byte, b'\r' | b'\n') { At::LineStart } else { At::Elsewhere }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reads: &[&str], expect: Option<&str>) {
        let mut escape = Escape::new();
        let mut sent = Vec::new();
        for read in reads {
            match escape.feed(read.as_bytes()) {
                Typed::Disconnect => return assert_eq!(expect, None, "{reads:?}"),
                Typed::Send(bytes) => sent.extend(bytes),
            }
        }
        assert_eq!(Some(String::from_utf8(sent).unwrap().as_str()), expect, "{reads:?}");
    }

    #[test]
    fn only_at_the_start_of_a_line() {
        check(&["~."], None);
        check(&["ls\r", "~", "."], None);
        check(&["ls ~.\r"], Some("ls ~.\r"));
        check(&["~~.\r"], Some("~.\r"));
        check(&["~", "a"], Some("~a"));
        check(&["~\r~."], None);
        check(&["cd ~\r"], Some("cd ~\r"));
    }
}
