//! Records that carry no data: what an alert or a handshake record says, and the few that we send. Pure: bytes in, values
//! out, no socket. Strict: what RFC 8446 forbids is an error, and the caller's answer to an error is a fatal alert.

/// Content types of records, RFC 8446 section 5.1.
pub mod content_type {
    pub const ALERT: u8 = 21;
    pub const HANDSHAKE: u8 = 22;
    pub const APPLICATION_DATA: u8 = 23;
}

/// Descriptions of the alerts that a relay sends, RFC 8446 section 6.
pub mod alert_description {
    pub const CLOSE_NOTIFY: u8 = 0;
    pub const UNEXPECTED_MESSAGE: u8 = 10;
    pub const BAD_RECORD_MAC: u8 = 20;
    pub const RECORD_OVERFLOW: u8 = 22;
    pub const ILLEGAL_PARAMETER: u8 = 47;
    pub const DECODE_ERROR: u8 = 50;
    pub const INTERNAL_ERROR: u8 = 80;
    pub const USER_CANCELED: u8 = 90;
}

/// What an alert means for the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alert {
    /// The peer sends nothing more; we may go on sending.
    CloseNotify,
    /// The connection is over; with the description.
    Fatal(u8),
    /// `user_canceled`: a close_notify follows. To be ignored.
    Warning,
}

/// A message in a handshake record after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeMessage<'a> {
    /// The peer's next record has new keys; with `request` it wants new ones from us too.
    KeyUpdate { request: bool },
    /// The body, as [`rustls::kernel::KernelConnection::handle_new_session_ticket`] wants it.
    NewSessionTicket(&'a [u8]),
    /// Of this type; nothing that may come here.
    Other(u8),
}

/// Why a record is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("an alert that is not two bytes, or has no level")]
    Alert,
    #[error("a handshake record with nothing in it")]
    Empty,
    #[error("a KeyUpdate that is neither a request nor none")]
    KeyUpdate,
    #[error("a KeyUpdate before the end of its record")]
    KeyUpdateNotLast,
    /// A message may go on in the next record; KeyUpdates may not, and tickets of such a length are not accepted here.
    #[error("a handshake message that is longer than its record")]
    Truncated,
}

impl Malformed {
    /// What to tell the peer (RFC 8446, sections 4.6.3, 5.1 and 6.2).
    pub fn alert_description(self) -> u8 {
        match self {
            Self::Empty | Self::KeyUpdateNotLast => alert_description::UNEXPECTED_MESSAGE,
            Self::KeyUpdate => alert_description::ILLEGAL_PARAMETER,
            Self::Alert | Self::Truncated => alert_description::DECODE_ERROR,
        }
    }
}

/// Reads an alert record. The level only has to be one: what an alert means follows from its description (RFC 8446
/// section 6), and an unknown one is fatal.
pub fn parse_alert(record: &[u8]) -> Result<Alert, Malformed> {
    match record {
        [LEVEL_WARNING | LEVEL_FATAL, description] => Ok(match *description {
            alert_description::CLOSE_NOTIFY => Alert::CloseNotify,
            alert_description::USER_CANCELED => Alert::Warning,
            fatal => Alert::Fatal(fatal),
        }),
        _ => Err(Malformed::Alert),
    }
}

/// The messages of a handshake record. After an error there is nothing more.
pub fn handshake_messages(record: &[u8]) -> HandshakeMessages<'_> {
    HandshakeMessages { rest: record, state: State::Begin }
}

/// See [`handshake_messages`].
#[derive(Debug, Clone)]
pub struct HandshakeMessages<'a> {
    rest: &'a [u8],
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Begin,
    Between,
    Failed,
}

impl<'a> HandshakeMessages<'a> {
    fn message(&mut self) -> Result<HandshakeMessage<'a>, Malformed> {
        // Type, then a length of three bytes: RFC 8446 section 4.
        let ([kind, long, middle, short], rest) =
            self.rest.split_first_chunk().ok_or(Malformed::Truncated)?;
        let length = u32::from_be_bytes([0, *long, *middle, *short]);
        let length = usize::try_from(length).map_err(|_| Malformed::Truncated)?;
        let (body, rest) = rest.split_at_checked(length).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        match (*kind, body) {
            (NEW_SESSION_TICKET, body) => Ok(HandshakeMessage::NewSessionTicket(body)),
            // Section 5.1: messages do not span a change of keys, so this one ends its record.
            (KEY_UPDATE, _) if !rest.is_empty() => Err(Malformed::KeyUpdateNotLast),
            (KEY_UPDATE, [0]) => Ok(HandshakeMessage::KeyUpdate { request: false }),
            (KEY_UPDATE, [1]) => Ok(HandshakeMessage::KeyUpdate { request: true }),
            (KEY_UPDATE, _) => Err(Malformed::KeyUpdate),
            (other, _) => Ok(HandshakeMessage::Other(other)),
        }
    }
}

impl<'a> Iterator for HandshakeMessages<'a> {
    type Item = Result<HandshakeMessage<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = match self.state {
            State::Failed => return None,
            State::Between if self.rest.is_empty() => return None,
            // Section 5.1: no empty handshake records.
            State::Begin if self.rest.is_empty() => Err(Malformed::Empty),
            State::Begin | State::Between => self.message(),
        };
        self.state = if item.is_ok() { State::Between } else { State::Failed };
        Some(item)
    }
}

/// A KeyUpdate, to be sent alone in a record of type [`content_type::HANDSHAKE`].
pub fn encode_key_update(request: bool) -> [u8; 5] {
    [KEY_UPDATE, 0, 0, 1, u8::from(request)]
}

/// An alert, to be sent alone in a record of type [`content_type::ALERT`].
pub fn encode_alert(description: u8) -> [u8; 2] {
    let level = match description {
        alert_description::CLOSE_NOTIFY | alert_description::USER_CANCELED => LEVEL_WARNING,
        _ => LEVEL_FATAL,
    };
    [level, description]
}

const LEVEL_WARNING: u8 = 1;
const LEVEL_FATAL: u8 = 2;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn alerts() {
        fn check(record: &[u8], expect: Result<Alert, Malformed>) {
            assert_eq!(parse_alert(record), expect, "{record:?}");
        }
        check(&[1, 0], Ok(Alert::CloseNotify));
        check(&[2, 0], Ok(Alert::CloseNotify));
        check(&[1, 90], Ok(Alert::Warning));
        check(&[2, 20], Ok(Alert::Fatal(20)));
        // A warning by its level, fatal by its description; and one that nobody knows.
        check(&[1, 40], Ok(Alert::Fatal(40)));
        check(&[1, 255], Ok(Alert::Fatal(255)));
        check(&[0, 0], Err(Malformed::Alert));
        check(&[3, 0], Err(Malformed::Alert));
        check(&[], Err(Malformed::Alert));
        check(&[1], Err(Malformed::Alert));
        check(&[1, 0, 0], Err(Malformed::Alert));
    }

    #[test]
    fn handshake_records() {
        fn check(record: &[u8], expect: &[Result<HandshakeMessage<'_>, Malformed>]) {
            let messages: Vec<_> = handshake_messages(record).collect();
            assert_eq!(messages, expect, "{record:?}");
        }
        let key_update = |request| Ok(HandshakeMessage::KeyUpdate { request });
        check(&[24, 0, 0, 1, 0], &[key_update(false)]);
        check(&[24, 0, 0, 1, 1], &[key_update(true)]);
        check(&[24, 0, 0, 1, 2], &[Err(Malformed::KeyUpdate)]);
        check(&[24, 0, 0, 0], &[Err(Malformed::KeyUpdate)]);
        check(&[24, 0, 0, 2, 0, 0], &[Err(Malformed::KeyUpdate)]);
        check(&[24, 0, 0, 1, 0, 24], &[Err(Malformed::KeyUpdateNotLast)]);
        check(&[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], &[Err(Malformed::KeyUpdateNotLast)]);

        let ticket = |body| Ok(HandshakeMessage::NewSessionTicket(body));
        check(&[4, 0, 0, 2, 7, 8], &[ticket(&[7, 8])]);
        check(&[4, 0, 0, 1, 7, 4, 0, 0, 0], &[ticket(&[7]), ticket(&[])]);
        check(&[4, 0, 0, 1, 7, 24, 0, 0, 1, 1], &[ticket(&[7]), key_update(true)]);
        check(&[4, 0, 0, 1, 7, 24, 0], &[ticket(&[7]), Err(Malformed::Truncated)]);
        check(&[1, 0, 0, 0], &[Ok(HandshakeMessage::Other(1))]);

        check(&[], &[Err(Malformed::Empty)]);
        check(&[4], &[Err(Malformed::Truncated)]);
        check(&[4, 0, 0, 1], &[Err(Malformed::Truncated)]);
        check(&[4, 255, 255, 255, 0], &[Err(Malformed::Truncated)]);
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        for request in [false, true] {
            let record = encode_key_update(request);
            let messages: Vec<_> = handshake_messages(&record).collect();
            assert_eq!(messages, [Ok(HandshakeMessage::KeyUpdate { request })]);
        }
        for description in 0..=255 {
            let expect = match description {
                0 => Alert::CloseNotify,
                90 => Alert::Warning,
                fatal => Alert::Fatal(fatal),
            };
            assert_eq!(parse_alert(&encode_alert(description)), Ok(expect));
        }
    }

    proptest! {
        #[test]
        fn no_alert_panics(record: Vec<u8>) {
            prop_assert_eq!(parse_alert(&record).is_ok(), matches!(record[..], [1 | 2, _]));
        }

        /// Every byte belongs to exactly one message, an error is the last item, and there is always one item.
        #[test]
        fn no_handshake_record_panics(record: Vec<u8>) {
            let mut rest = record.len();
            let items: Vec<_> = handshake_messages(&record).collect();
            prop_assert!(!items.is_empty());
            for (index, item) in items.iter().enumerate() {
                match item {
                    Ok(HandshakeMessage::KeyUpdate { .. }) => rest -= 5,
                    Ok(HandshakeMessage::NewSessionTicket(body)) => rest -= 4 + body.len(),
                    Ok(HandshakeMessage::Other(_)) => rest -= 4,
                    Err(_) => prop_assert_eq!(index, items.len() - 1),
                }
            }
            let bodies_known =
                items.iter().all(|item| !matches!(item, Ok(HandshakeMessage::Other(_)) | Err(_)));
            prop_assert!(!bodies_known || rest == 0);
        }

        /// Records that are nearly right: the bounds are met more often than by random bytes.
        #[test]
        fn no_cut_or_changed_record_panics(
            messages in prop::collection::vec((0_u8..30, prop::collection::vec(any::<u8>(), 0..20)), 1..5),
            cut in 0_usize..100,
            change in (0_usize..100, any::<u8>()),
        ) {
            let mut record = Vec::new();
            for (kind, body) in &messages {
                record.push(*kind);
                record.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
                record.extend_from_slice(body);
            }
            record.truncate(cut);
            if let Some(byte) = record.get_mut(change.0) {
                *byte = change.1;
            }
            prop_assert!(handshake_messages(&record).count() <= record.len().max(1));
        }
    }
}
