//! Recordings are asciicast v2: a header line, then one JSON array per line: seconds since the start, kind, data
//! (docs.asciinema.org, manual, asciicast v2). A last line that a crash has torn is no error. Pure.

use serde::Deserialize;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Moment {
    /// Seconds since the start.
    pub(crate) at: f64,
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// Kinds that we do not show: input, markers, later ones.
    Other {
        kind: String,
        data: String,
    },
    Output(String),
    /// `columns x rows` as text, `80x24`.
    Resize(String),
}

/// A whole recording.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) header: Header,
    pub(crate) moments: Vec<Moment>,
}

/// Why a text is no recording.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CastError {
    #[error("not an asciicast v2 recording")]
    Header,
    #[error("line {line} of the recording is damaged")]
    Line { line: usize },
}

/// # Errors
/// Not a recording, or damaged before its last line.
pub(crate) fn parse(text: &str) -> Result<Recording, CastError> {
    let mut lines = text.lines().enumerate().peekable();
    let header: Header = lines
        .next()
        .and_then(|(_, line)| serde_json::from_str(line).ok())
        .ok_or(CastError::Header)?;
    if header.version != 2 {
        return Err(CastError::Header);
    }
    let mut moments = Vec::new();
    while let Some((index, line)) = lines.next() {
        if line.is_empty() {
            continue;
        }
        match moment(line) {
            Some(moment) => moments.push(moment),
            None if lines.peek().is_none() && !text.ends_with('\n') => break,
            None => return Err(CastError::Line { line: index + 1 }),
        }
    }
    Ok(Recording { header, moments })
}

fn moment(line: &str) -> Option<Moment> {
    let (at, kind, data): (f64, String, String) = serde_json::from_str(line).ok()?;
    let what = match kind.as_str() {
        "o" => What::Output(data),
        "r" => What::Resize(data),
        _ => What::Other { kind, data },
    };
    (at.is_finite() && at >= 0.0).then_some(Moment { at, what })
}

/// Removes control sequences (ECMA-48), leaving lines and tabs. Fed in pieces: a sequence may span two.
#[derive(Debug, Default)]
pub(crate) struct Strip {
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// After `ESC [`.
    Csi,
    Escape,
    #[default]
    Ground,
    /// After `ESC (` and the like: one more character.
    Intermediate,
    /// OSC, DCS and the like, up to BEL or ST.
    Text,
    /// An ESC within them.
    TextEscape,
}

impl Strip {
    pub(crate) fn feed(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            self.state = match (self.state, c) {
                (State::Text, '\x1b') => State::TextEscape,
                (State::Text, '\x07' | '\u{9c}') => State::Ground,
                (State::TextEscape, '\\') => State::Ground,
                (State::Text | State::TextEscape, _) => State::Text,
                (_, '\x1b') => State::Escape,
                (State::Escape, '[') => State::Csi,
                (State::Escape, ']' | 'P' | 'X' | '^' | '_') => State::Text,
                (State::Escape, ' '..='/') => State::Intermediate,
                (State::Intermediate, ' '..='/') => State::Intermediate,
                (State::Escape | State::Intermediate, _) => State::Ground,
                (State::Csi, '@'..='~') => State::Ground,
                (State::Csi, _) => State::Csi,
                (State::Ground, '\u{9b}') => State::Csi,
                (State::Ground, '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}') => {
                    State::Text
                }
                (State::Ground, _) => {
                    if !c.is_control() || matches!(c, '\n' | '\t') {
                        out.push(c);
                    }
                    State::Ground
                }
            };
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = r#"{"version":2,"width":80,"height":24,"timestamp":1,"title":"x"}"#;

    #[test]
    fn moments_are_read() {
        let text =
            format!("{HEADER}\n[0.5,\"o\",\"hi\\r\\n\"]\n[1,\"r\",\"90x30\"]\n[2.0,\"m\",\"x\"]\n");
        let recording = parse(&text).unwrap();
        assert_eq!(recording.header.width, 80);
        assert_eq!(recording.moments[0], Moment { at: 0.5, what: What::Output("hi\r\n".into()) });
        assert_eq!(recording.moments[1].what, What::Resize("90x30".into()));
        assert_eq!(recording.moments.len(), 3);
    }

    #[test]
    fn a_torn_last_line_is_forgiven_and_no_other() {
        let torn = format!("{HEADER}\n[0.5,\"o\",\"a\"]\n[0.6,\"o\",\"b");
        assert_eq!(parse(&torn).unwrap().moments.len(), 1);
        let damaged = format!("{HEADER}\nrubbish\n[0.6,\"o\",\"b\"]\n");
        assert!(matches!(parse(&damaged), Err(CastError::Line { line: 2 })));
        let negative = format!("{HEADER}\n[-1,\"o\",\"b\"]\n");
        assert!(parse(&negative).is_err());
        assert!(matches!(parse(""), Err(CastError::Header)));
        assert!(matches!(parse("{\"version\":1}"), Err(CastError::Header)));
    }

    #[test]
    fn control_sequences_are_removed_even_in_pieces() {
        fn check(pieces: &[&str], expect: &str) {
            let mut strip = Strip::default();
            let got: String = pieces.iter().map(|piece| strip.feed(piece)).collect();
            assert_eq!(got, expect, "{pieces:?}");
        }
        check(&["\x1b[1;31mred\x1b[0m\r\n"], "red\n");
        check(&["\x1b[3", "1mred"], "red");
        check(&["\x1b]0;title\x07text"], "text");
        check(&["\x1b]52;c;", "aGk=\x1b\\text"], "text");
        check(&["\x1b(Btext"], "text");
        check(&["a\x08b\u{9b}2Jc"], "abc");
        check(&["\x1bPq#0\x1b\\x"], "x");
    }
}
