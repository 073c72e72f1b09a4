//! asciicast v2 lines (<https://docs.asciinema.org/manual/asciicast/v2/>) from terminal bytes. Pure: bytes and times in,
//! text out. Characters that arrive in pieces are put together; what is no UTF-8 becomes U+FFFD.

use std::borrow::Cow;
use std::io::Write as _;
use std::time::Duration;

use serde::Serialize;

/// First line of a recording.
#[derive(Debug)]
pub(crate) struct Header<'a> {
    pub(crate) columns: u16,
    pub(crate) rows: u16,
    /// Unix seconds.
    pub(crate) timestamp: i64,
    pub(crate) shell: &'a str,
    pub(crate) term: &'a str,
}

impl Header<'_> {
    pub(crate) fn write(&self, to: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Line<'a> {
            version: u32,
            width: u16,
            height: u16,
            timestamp: i64,
            env: Environment<'a>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "UPPERCASE")]
        struct Environment<'a> {
            shell: &'a str,
            term: &'a str,
        }
        let env = Environment { shell: self.shell, term: self.term };
        json(
            to,
            &Line {
                version: 2,
                width: self.columns,
                height: self.rows,
                timestamp: self.timestamp,
                env,
            },
        );
        to.push(b'\n');
    }
}

/// `[time, "o", text]`.
pub(crate) fn write_output(to: &mut Vec<u8>, at: Duration, text: &str) {
    if !text.is_empty() {
        write_line(to, at, 'o', text);
    }
}

/// `[time, "r", "COLSxROWS"]`.
pub(crate) fn write_resize(to: &mut Vec<u8>, at: Duration, columns: u16, rows: u16) {
    write_line(to, at, 'r', &format!("{columns}x{rows}"));
}

fn write_line(to: &mut Vec<u8>, at: Duration, code: char, text: &str) {
    // Writing to a Vec cannot fail.
    write!(to, "[{}.{:06},\"{code}\",", at.as_secs(), at.subsec_micros()).unwrap_or_default();
    json(to, &text);
    to.extend_from_slice(b"]\n");
}

fn json<T: Serialize>(to: &mut Vec<u8>, value: &T) {
    // Text and numbers always have a JSON form, and writing to a Vec cannot fail.
    serde_json::to_writer(to, value).unwrap_or_default();
}

/// The beginning of a character whose rest has not arrived yet: at most three bytes.
#[derive(Debug, Default)]
pub(crate) struct Utf8Tail {
    bytes: Vec<u8>,
}

impl Utf8Tail {
    /// All complete characters of what was left and `bytes`; keeps an unfinished one for later.
    pub(crate) fn complete<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, str> {
        if self.bytes.is_empty() {
            let (whole, rest) = split(bytes);
            self.bytes.extend_from_slice(rest);
            return String::from_utf8_lossy(whole);
        }
        let mut all = std::mem::take(&mut self.bytes);
        all.extend_from_slice(bytes);
        let (whole, rest) = split(&all);
        self.bytes.extend_from_slice(rest);
        Cow::Owned(String::from_utf8_lossy(whole).into_owned())
    }

    /// At the end: an unfinished character will never be finished.
    pub(crate) fn rest(&mut self) -> Option<&'static str> {
        (!std::mem::take(&mut self.bytes).is_empty()).then_some("\u{fffd}")
    }
}

/// Parts `bytes` before a character at its end that may still be completed.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let longest = bytes.len().min(3);
    for length in 1..=longest {
        let (before, tail) = bytes.split_at(bytes.len() - length);
        let Some(&lead) = tail.first() else { break };
        if lead & 0b1100_0000 == 0b1000_0000 {
            continue;
        }
        // `error_len` is None exactly when the bytes are a good beginning (std::str::Utf8Error).
        let unfinished = std::str::from_utf8(tail).is_err_and(|e| e.error_len().is_none());
        return if unfinished { (before, tail) } else { (bytes, &[]) };
    }
    (bytes, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_the_format_says() {
        let mut text = Vec::new();
        Header {
            columns: 80,
            rows: 24,
            timestamp: 1_763_800_000,
            shell: "/bin/bash",
            term: "xterm",
        }
        .write(&mut text);
        write_output(&mut text, Duration::from_micros(1_500_042), "a\x1b[1m\"\\\r\n");
        write_resize(&mut text, Duration::from_secs(61), 100, 50);
        let expect = concat!(
            r#"{"version":2,"width":80,"height":24,"timestamp":1763800000,"#,
            r#""env":{"SHELL":"/bin/bash","TERM":"xterm"}}"#,
            "\n",
            r#"[1.500042,"o","a\u001b[1m\"\\\r\n"]"#,
            "\n",
            r#"[61.000000,"r","100x50"]"#,
            "\n",
        );
        assert_eq!(String::from_utf8(text).unwrap(), expect);
    }

    #[test]
    fn characters_in_pieces_are_put_together() {
        fn check(pieces: &[&[u8]], expect: &str) {
            let mut tail = Utf8Tail::default();
            let mut text: String = pieces.iter().map(|p| tail.complete(p).into_owned()).collect();
            text.extend(tail.rest());
            assert_eq!(text, expect, "{pieces:?}");
        }
        check(&[b"plain"], "plain");
        check(&["\u{20ac}".as_bytes()], "\u{20ac}");
        check(&[&[0xe2], &[0x82], &[0xac]], "\u{20ac}");
        check(&[&[b'a', 0xf0, 0x9f], &[0x98, 0x80, b'b']], "a\u{1f600}b");
        check(&[&[0xff], b"a"], "\u{fffd}a");
        check(&[&[0xe2], b"a"], "\u{fffd}a");
        check(&[&[0xe2, 0x82]], "\u{fffd}");
        check(&[&[0x80, 0x80]], "\u{fffd}\u{fffd}");
        check(&[&[0xc3], &[], &[0xbc]], "\u{fc}");
    }

    #[test]
    fn any_split_gives_the_same_text() {
        let bytes = "gr\u{fc}n \u{20ac} \u{1f600} \u{fffd}".as_bytes();
        for at in 0..=bytes.len() {
            let mut tail = Utf8Tail::default();
            let (left, right) = bytes.split_at(at);
            let text = format!("{}{}", tail.complete(left), tail.complete(right));
            assert_eq!(text.as_bytes(), bytes, "{at}");
            assert_eq!(tail.rest(), None);
        }
    }
}
