//! Asking people: on the terminal with a prompt and without echo for secrets, else one line of standard input each,
//! so that scripts and expect-less tests can answer. Never both.

use std::io::{BufRead, IsTerminal as _, Read as _};

use zeroize::Zeroizing;

use cli::failure::{Failure, Fallible as _};

/// Longest answer; what is longer is no password and no code.
const LINE_BYTES_MAX: u64 = 4096;

/// Where answers come from.
#[derive(Debug)]
pub(crate) enum Prompt {
    Pipe,
    Terminal,
}

impl Prompt {
    /// The terminal when standard input is one.
    pub(crate) fn new() -> Self {
        if std::io::stdin().is_terminal() { Self::Terminal } else { Self::Pipe }
    }
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal)
    }
    /// A secret, without echo.
    ///
    /// # Errors
    /// Input ends.
    pub(crate) fn secret(&self, question: &str) -> Result<Zeroizing<String>, Failure> {
        match self {
            Self::Terminal => {
                Ok(Zeroizing::new(rpassword::prompt_password(format!("{question}: "))?))
            }
            Self::Pipe => line(&mut std::io::stdin().lock(), question),
        }
    }
    /// Six digits; spaces are forgiven.
    ///
    /// # Errors
    /// Input ends, or is no code.
    pub(crate) fn code(&self, question: &str) -> Result<Zeroizing<String>, Failure> {
        let text = match self {
            Self::Terminal => {
                eprint!("{question}: ");
                line(&mut std::io::stdin().lock(), question)?
            }
            Self::Pipe => line(&mut std::io::stdin().lock(), question)?,
        };
        digits(&text)
    }
}

fn digits(text: &str) -> Result<Zeroizing<String>, Failure> {
    let code: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    if code.len() == 6 && code.bytes().all(|b| b.is_ascii_digit()) {
        Ok(Zeroizing::new(code))
    } else {
        Err(Failure::new("the code must be six digits"))
    }
}

/// One line without its end.
fn line(from: &mut impl BufRead, question: &str) -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::new());
    let count = from.take(LINE_BYTES_MAX).read_line(&mut text).doing(question)?;
    if count == 0 {
        return Err(Failure::new(format!(
            "standard input ended before the answer to {question:?}"
        ))
        .hint("From a pipe, give one answer per line."));
    }
    while text.ends_with(['\n', '\r']) {
        text.pop();
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_one_by_one() {
        let mut input = "pass word\r\n123 456\n".as_bytes();
        assert_eq!(*line(&mut input, "q").unwrap(), "pass word");
        assert_eq!(*line(&mut input, "q").unwrap(), "123 456");
        assert!(line(&mut input, "q").is_err());
    }

    #[test]
    fn codes_are_six_digits() {
        assert_eq!(*digits("123 456").unwrap(), "123456");
        assert!(digits("12345").is_err());
        assert!(digits("12345a").is_err());
        assert!(digits("").is_err());
    }
}
