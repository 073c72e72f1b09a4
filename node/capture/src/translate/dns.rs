//! Questions for names, from the packets that ask them (RFC 1035, section 4). What is asked over TLS or HTTPS is not seen.

use ebpf_abi::{Header, Net};
use proto::event::{self, Body as Event};

use super::Context;
use super::network::address;

/// A packet that asks nothing is none.
pub(super) fn event(
    context: &Context<'_>,
    header: &Header,
    program: String,
    record: &Net,
    packet: &[u8],
) -> Option<Event> {
    let question = question(packet)?;
    let to = address(record.family, &record.remote);
    let asked = event::SessionDns {
        session: context.session.clone(),
        pid: header.tgid,
        program,
        name: question.name,
        qtype: question.qtype,
        dst_addr: to.map(|ip| ip.to_string()).unwrap_or_default(),
        dst_port: u16::try_from(record.remote_port).unwrap_or_default(),
    };
    Some(asked.into())
}

#[derive(Debug, PartialEq, Eq)]
struct Question {
    name: String,
    qtype: String,
}

/// The first question of a query; nothing where there is none, or it is no query.
fn question(packet: &[u8]) -> Option<Question> {
    let (head, mut rest) = packet.split_at_checked(12)?;
    let [_, _, flags, _, many, few, ..] = *head else { return None };
    let is_answer = flags & 0x80 != 0;
    if is_answer || (many, few) == (0, 0) {
        return None;
    }
    let mut name = String::new();
    loop {
        let (length, after) = rest.split_first()?;
        if *length == 0 {
            rest = after;
            break;
        }
        // Pointers stand in answers only.
        let (label, after) =
            after.split_at_checked(usize::from(*length)).filter(|_| *length < 64)?;
        if !name.is_empty() {
            name.push('.');
        }
        label.escape_ascii().for_each(|byte| name.push(char::from(byte)));
        rest = after;
    }
    let [high, low, ..] = *rest else { return None };
    let name = if name.is_empty() { ".".to_owned() } else { name };
    Some(Question { name, qtype: qtype(u16::from_be_bytes([high, low])) })
}

fn qtype(number: u16) -> String {
    let name = match number {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        33 => "SRV",
        43 => "DS",
        48 => "DNSKEY",
        64 => "SVCB",
        65 => "HTTPS",
        255 => "ANY",
        other => return format!("TYPE{other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUERY: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x1c\x00\x01";

    #[test]
    fn questions_are_read() {
        let asked = question(QUERY).unwrap();
        assert_eq!((asked.name.as_str(), asked.qtype.as_str()), ("example.com", "AAAA"));
    }

    #[test]
    fn answers_and_pieces_are_none() {
        let mut answer = QUERY.to_vec();
        answer[2] |= 0x80;
        assert_eq!(question(&answer), None);
        for length in 0..QUERY.len() - 2 {
            assert_eq!(question(&QUERY[..length]), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(packet in prop::collection::vec(any::<u8>(), 0..64)) {
            drop(question(&packet));
        }
    }
}
