//! Names and ids. A value of these types has passed its check; there is no other way to make one.
//! Randomness comes from the caller.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is not a name. The text itself is not repeated: it comes from outside.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} must be 1 to {length_max} characters of {alphabet}")]
pub struct InvalidName {
    what: &'static str,
    length_max: usize,
    alphabet: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:literal, $alphabet:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Parses and checks.
            ///
            /// # Errors
            /// The text is empty, too long, or has a character outside the alphabet.
            pub fn parse(text: impl Into<String>) -> Result<Self, InvalidName> {
                let text = text.into();
                let check: fn(&str) -> bool = $check;
                if text.is_empty() || text.len() > $max || !check(&text) {
                    return Err(InvalidName { what: $what, length_max: $max, alphabet: $alphabet });
                }
                Ok(Self(text))
            }

            /// The checked text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::parse(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

fn all(text: &str, also: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
}

fn starts_plain(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
}

fn hex_dashes(text: &str) -> bool {
    text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f' | '-'))
}

name!(
    /// A person in the cluster: `alice`, `alice@example.com`.
    UserName, "a user name", 128, "letters, digits and . _ - + @, not starting with a sign",
    |t| all(t, "._-+@") && starts_plain(t)
);
name!(
    /// An account on a target: a Unix login.
    Login, "a login", 64, "letters, digits and . _ - $, not starting with a dash",
    |t| all(t, "._-$") && starts_plain(t)
);
name!(
    /// A role.
    RoleName, "a role name", 128, "letters, digits and . _ - :, not starting with a sign",
    |t| all(t, "._-:") && starts_plain(t)
);
name!(
    /// A cluster, also the DNS suffix of its SNI names.
    ClusterName, "a cluster name", 128, "letters, digits and . -, not starting with a sign",
    |t| all(t, ".-") && starts_plain(t)
);
name!(
    /// What people call a machine.
    NodeName, "a node name", 253, "letters, digits and . _ -, not starting with a dash",
    |t| all(t, "._-") && starts_plain(t)
);
name!(
    /// A machine's id, given by auth when it joins: UUID text.
    HostId, "a host id", 36, "lower-case hexadecimal digits and dashes",
    hex_dashes
);
name!(
    /// A session's id: UUID text.
    SessionId, "a session id", 36, "lower-case hexadecimal digits and dashes",
    hex_dashes
);

/// UUID version 4 text (RFC 9562, section 5.4) of sixteen random bytes.
pub fn uuid_text(mut random: [u8; 16]) -> String {
    random[6] = (random[6] & 0x0f) | 0x40;
    random[8] = (random[8] & 0x3f) | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in random.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for nibble in [byte >> 4, byte & 0x0f] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
    }
    text
}

impl HostId {
    /// A new id from random bytes.
    pub fn from_random(random: [u8; 16]) -> Self {
        Self(uuid_text(random))
    }
}

impl SessionId {
    /// A new id from random bytes.
    pub fn from_random(random: [u8; 16]) -> Self {
        Self(uuid_text(random))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        fn check(text: &str, expect: bool) {
            assert_eq!(Login::parse(text).is_ok(), expect, "{text:?}");
        }
        check("root", true);
        check("svc_backup-1", true);
        check("", false);
        check("-oProxyCommand=x", false);
        check("a b", false);
        check("../etc", false);
        check("räksmörgås", false);
        check(&"a".repeat(65), false);
        assert!(UserName::parse("alice@example.com").is_ok());
        assert!(UserName::parse("a/b").is_err());
        assert!(SessionId::parse("../../etc/passwd").is_err());
    }

    #[test]
    fn uuids_have_version_and_variant() {
        assert_eq!(uuid_text([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert!(SessionId::parse(SessionId::from_random([7; 16]).as_str()).is_ok());
    }
}
