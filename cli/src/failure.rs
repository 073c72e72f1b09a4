//! How a command ends when it fails: one line for people, what to do next, an exit code.
//! Everything that can go wrong turns into a [`Failure`] at the command's edge; only `main` prints it.

use std::error::Error;
use std::fmt::Display;

use crate::output::plain;

/// Any other failure.
pub const EXIT_FAILURE: u8 = 1;
/// Wrong use, as clap exits.
pub const EXIT_USAGE: u8 = 2;

/// A command's end. Made from any error by `?`; the error's whole chain becomes the message.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: EXIT_FAILURE }
    }
    /// The command line cannot mean anything.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: EXIT_USAGE, ..Self::new(message) }
    }
    /// What to do next.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
    #[must_use]
    pub fn code(self, code: u8) -> Self {
        Self { code, ..self }
    }
    /// Says first what was being done.
    #[must_use]
    pub fn doing(self, what: impl Display) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }
    pub fn exit_code(&self) -> u8 {
        self.code
    }
    /// The message alone, for summaries.
    pub fn message(&self) -> &str {
        &self.message
    }
    /// What goes to standard error.
    pub fn text(&self) -> String {
        match &self.hint {
            Some(hint) => format!("ERROR: {}\n       {hint}", self.message),
            None => format!("ERROR: {}", self.message),
        }
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(describe(&error))
    }
}

/// Adds context to results on their way up.
pub trait Fallible<T> {
    fn doing(self, what: impl Display) -> Result<T, Failure>;
    fn hint(self, hint: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Fallible<T> for Result<T, E> {
    fn doing(self, what: impl Display) -> Result<T, Failure> {
        self.map_err(|error| error.into().doing(what))
    }
    fn hint(self, hint: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| error.into().hint(hint))
    }
}

/// The error and its sources on one line, without repeating what a source says again.
/// gRPC statuses speak with their message only. Text from the other side loses its control characters.
fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = match error.downcast_ref::<tonic::Status>() {
            Some(status) => describe_status(status),
            None => once(error.to_string()),
        };
        if !part.is_empty() && !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    plain(&text)
}

/// `Permission denied: Permission denied (os error 13)` says it once.
fn once(text: String) -> String {
    match text.split_once(": ") {
        Some((head, rest))
            if rest.strip_prefix(head).is_some_and(|after| after.starts_with([' ', ':'])) =>
        {
            rest.to_owned()
        }
        _ => text,
    }
}

fn describe_status(status: &tonic::Status) -> String {
    match (status.code(), status.message()) {
        (tonic::Code::Unavailable, message) => format!("auth cannot be reached: {message}"),
        (code, "") => code.description().to_owned(),
        (_, message) => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_whole_chain_is_told_on_one_line() {
        let failure = Failure::from(Outer(std::io::Error::other("the key\x1b[2J broke")));
        assert_eq!(failure.text(), "ERROR: cannot open the door: the key[2J broke");
        let hinted = failure.doing("going home").hint("knock").code(255);
        assert_eq!(
            hinted.text(),
            "ERROR: going home: cannot open the door: the key[2J broke\n       knock"
        );
        assert_eq!(hinted.exit_code(), 255);
    }

    #[test]
    fn nothing_is_told_twice() {
        let text = |text: &str| Failure::from(std::io::Error::other(text.to_owned())).text();
        let twice = "Permission denied: Permission denied (os error 13)";
        assert_eq!(text(twice), "ERROR: Permission denied (os error 13)");
        for other in ["door: the key broke", "web1: web10 is gone", ": x"] {
            assert_eq!(text(other), format!("ERROR: {other}"));
        }
    }

    #[test]
    fn statuses_speak_with_their_message() {
        let status = tonic::Status::permission_denied("access denied");
        assert_eq!(Failure::from(status).message(), "access denied");
    }
}
