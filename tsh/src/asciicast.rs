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

impl State {
    /// The state in which `c` is looked at: an ESC within a text that begins no ST ends the text, as in terminals, so
    /// that one that is never ended hides little.
    fn before(self, c: char) -> Self {
        if self == Self::TextEscape && c != '\\' { Self::Escape } else { self }
    }
}

/// BEL and ST; CAN and SUB break a text off.
fn ends_text(c: char) -> bool {
    matches!(c, '\x07' | '\x18' | '\x1a' | '\u{9c}')
}

impl Strip {
    pub(crate) fn feed(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            self.state = match (self.state.before(c), c) {
                (State::Text, '\x1b') => State::TextEscape,
                (State::Text, _) if ends_text(c) => State::Ground,
                (State::Text, _) => State::Text,
                (State::TextEscape, _) => State::Ground,
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

/// Lets through what draws, and nothing that makes a terminal answer, type, print, or change what is outside its screen
/// (title, clipboard): a recording shows the work of somebody who may mean the person that watches it. Fed in pieces.
#[derive(Debug, Default)]
pub(crate) struct Tame {
    state: State,
    /// A sequence that is not whole yet.
    held: String,
}

impl Tame {
    pub(crate) fn feed(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            self.state = match (self.state.before(c), c) {
                (State::Text, '\x1b') => self.hold("\x1b", State::TextEscape),
                (State::Text, _) if ends_text(c) => State::Ground,
                (State::Text, _) => State::Text,
                (State::TextEscape, _) => State::Ground,
                (_, '\x1b') => self.hold("\x1b", State::Escape),
                (State::Escape, '[') => self.hold("\x1b[", State::Csi),
                (State::Escape, ']' | 'P' | 'X' | '^' | '_' | 'k') => State::Text,
                (State::Escape | State::Intermediate, ' '..='/') => {
                    self.held.push(c);
                    State::Intermediate
                }
                // DECID: asks who is there.
                (State::Escape, 'Z') => State::Ground,
                (State::Escape | State::Intermediate, _) => self.release(c, &mut out),
                (State::Csi, '@'..='~') if self.is_question(c) => State::Ground,
                (State::Csi, '@'..='~') => self.release(c, &mut out),
                (State::Csi, _) if self.held.len() >= SEQUENCE_BYTES_MAX => State::Ground,
                (State::Csi, _) => {
                    self.held.push(c);
                    State::Csi
                }
                (State::Ground, '\u{9b}') => self.hold("\x1b[", State::Csi),
                (State::Ground, '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}') => {
                    State::Text
                }
                // ENQ makes old terminals send their answerback.
                (State::Ground, '\x05' | '\u{80}'..='\u{9f}') => State::Ground,
                (State::Ground, _) => {
                    out.push(c);
                    State::Ground
                }
            };
        }
        out
    }

    fn hold(&mut self, begin: &str, state: State) -> State {
        self.held.clear();
        self.held.push_str(begin);
        state
    }

    fn release(&mut self, last: char, out: &mut String) -> State {
        out.push_str(&self.held);
        out.push(last);
        State::Ground
    }

    /// Sequences that are answered as if typed, or that print (xterm's ctlseqs): DA, DSR, media copy, window operations,
    /// terminal parameters and checksums; DECRQM, XTVERSION, keyboard and graphics queries by their marks.
    fn is_question(&self, last: char) -> bool {
        match last {
            'c' | 'i' | 'n' | 't' | 'x' | 'y' => true,
            'p' => self.held.contains('$'),
            'q' => self.held.contains('>'),
            'S' | 'u' => self.held.contains('?'),
            _ => false,
        }
    }
}

/// Longer control sequences draw nothing.
const SEQUENCE_BYTES_MAX: usize = 256;

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

    #[test]
    fn a_replay_draws_and_asks_nothing_of_the_terminal() {
        fn check(pieces: &[&str], expect: &str) {
            let mut tame = Tame::default();
            let text: String = pieces.iter().map(|piece| tame.feed(piece)).collect();
            assert_eq!(text, expect, "{pieces:?}");
        }
        let drawing =
            "a\tb\r\n\x08\x07\x1b[1;31mred\x1b[0m\x1b[2J\x1b[?1049h\x1b(B\x1b7\x1b[ q\x1b[3S";
        check(&[drawing], drawing);
        check(&["a\x1b[", "31", "mb"], "a\x1b[31mb");
        check(
            &["a\x1b[6nb\x1b[cb\x1b[>0cb\x1b[21tb\x1b[?1$pb\x1b[>qb\x1b[?ub\x1bZ\x05c"],
            "abbbbbbbc",
        );
        check(
            &["a\x1b]52;c;ZXZpbA==\x07b\x1b]0;title", "\x1b\\c\x1bP$qm\x1b\\d\x1bktitle\x1b\\e"],
            "abcde",
        );
        check(&["a\u{9b}6nb\u{9d}0;t\u{9c}c\u{9a}d\u{9b}1me"], "abcd\x1b[1me");
        check(&["a\x1b[\x1b[6nb"], "ab");
        check(&["a\x1b]0;never ended \x1b", "[1mb\x1b]0;\x18c\x1b]\x1b]x\x07d"], "a\x1b[1mbcd");
    }
}
