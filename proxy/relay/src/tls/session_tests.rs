//! Sessions against rustls' own client, and against one another where rustls' client is too well-behaved: every suite,
//! any segmentation, changes of keys, and everything that a peer may do wrong.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::unbuffered::ConnectionState;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

use super::*;
use crate::ktls::alert_description::{DECODE_ERROR, ILLEGAL_PARAMETER};
use crate::tls::{Established, Handshake};

/// The three suites of TLS 1.3.
pub(crate) const SUITES: [SupportedCipherSuite; 3] = [
    rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
    rustls::crypto::aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// A server that has only this suite, and a client that trusts it.
pub(crate) fn configs(suite: SupportedCipherSuite) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites = vec![suite];
    let provider = Arc::new(provider);
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    server.enable_secret_extraction = true;
    let mut roots = RootCertStore::empty();
    roots.add(own.cert.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    (Arc::new(server), Arc::new(client))
}

pub(crate) fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// Takes what is to be sent.
fn sent(out: &mut Outgoing) -> Vec<u8> {
    let bytes = out.bytes().to_vec();
    out.wrote(bytes.len());
    assert!(out.is_empty());
    bytes
}

fn seal(session: &mut Session, bytes: &[u8]) -> Vec<u8> {
    let mut out = Outgoing::default();
    session.seal(std::iter::once(bytes), &mut out).unwrap();
    sent(&mut out)
}

/// One record of any type.
fn seal_raw(session: &mut Session, content_type: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Outgoing::default();
    session.seal_one(content_type, payload, &mut out).unwrap();
    sent(&mut out)
}

/// A change of keys of this side's.
fn rekey(session: &mut Session, request: bool) -> Vec<u8> {
    let record = seal_raw(session, HANDSHAKE, &encode_key_update(request));
    session.next_tx_keys().unwrap();
    record
}

/// Opens all of `wire` at once: what it said, and what is to be answered.
fn open(session: &mut Session, wire: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Fault> {
    let (mut wire, mut pieces, mut out) = (wire.to_vec(), Vec::new(), Outgoing::default());
    let opened = session.open(&mut wire, &mut pieces, usize::MAX, &mut out)?;
    let plain = pieces.into_iter().flat_map(|piece| wire[piece].to_vec()).collect();
    if session.fault.is_none() && !opened.closed {
        assert_eq!(opened.consumed, wire.len(), "whole records were given");
    }
    Ok((plain, sent(&mut out)))
}

/// rustls' client and our session, after the handshake.
struct Pair {
    client: ClientConnection,
    session: Session,
}

impl Pair {
    fn new(suite: SupportedCipherSuite) -> Self {
        let (server, client) = configs(suite);
        let mut client = ClientConnection::new(client, localhost()).unwrap();
        let mut handshake = Handshake::new(server, true).unwrap();
        let mut established = None;
        while established.is_none() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let done = handshake.feed(&wire).unwrap();
            let flight = sent(&mut handshake.outgoing);
            if done {
                established = Some(handshake.finish().unwrap());
                take(&mut client, &flight);
                break;
            }
            take(&mut client, &flight);
        }
        let Established { session, incoming, mut outgoing, .. } = established.unwrap();
        assert!(incoming.is_empty());
        take(&mut client, &sent(&mut outgoing));
        Self { client, session }
    }

    /// What the client says, sealed.
    fn say(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        self.client.set_buffer_limit(None);
        self.client.writer().write_all(bytes).unwrap();
        while self.client.wants_write() {
            self.client.write_tls(&mut wire).unwrap();
        }
        wire
    }

    /// What the client understands.
    fn hear(&mut self, wire: &[u8]) -> Vec<u8> {
        take(&mut self.client, wire)
    }

    fn talks(&mut self) {
        let wire = self.say(b"up");
        assert_eq!(open(&mut self.session, &wire).unwrap().0, b"up");
        let wire = seal(&mut self.session, b"down");
        assert_eq!(self.hear(&wire), b"down");
    }
}

fn take(client: &mut ClientConnection, mut wire: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while !wire.is_empty() {
        client.read_tls(&mut wire).unwrap();
        let state = client.process_new_packets().unwrap();
        let start = plain.len();
        plain.resize(start + state.plaintext_bytes_to_read(), 0);
        client.reader().read_exact(&mut plain[start..]).unwrap();
    }
    plain
}

/// Two of our sessions: the client's and the server's.
fn sessions() -> (Session, Session) {
    let (server, client) = configs(SUITES[0]);
    let mut client = UnbufferedClientConnection::new(client, localhost()).unwrap();
    let mut handshake = Handshake::new(server, false).unwrap();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    loop {
        let status = client.process_tls_records(&mut to_client);
        let discard = status.discard;
        let done = match status.state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let mut room = vec![0; 4096];
                let count = data.encode(&mut room).unwrap();
                to_server.extend_from_slice(&room[..count]);
                false
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                false
            }
            Ok(ConnectionState::WriteTraffic(_)) => true,
            Ok(_) => false,
            Err(error) => panic!("{error}"),
        };
        to_client.drain(..discard);
        let finished = handshake.feed(&std::mem::take(&mut to_server)).unwrap();
        to_client.extend(sent(&mut handshake.outgoing));
        if done && finished {
            let server = handshake.finish().unwrap().session;
            let mut client = Session::client(client, false).unwrap();
            // Tickets.
            assert!(open(&mut client, &to_client).unwrap().0.is_empty());
            return (client, server);
        }
    }
}

fn noise(count: usize) -> Vec<u8> {
    (0_u32..).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[2]).take(count).collect()
}

#[test]
fn every_suite_carries_bytes_both_ways() {
    for suite in SUITES {
        let mut pair = Pair::new(suite);
        for count in [1, 16_383, 16_384, 16_385, 300_000] {
            let bytes = noise(count);
            let wire = pair.say(&bytes);
            assert!(open(&mut pair.session, &wire).unwrap().0 == bytes, "{suite:?} {count} up");
            let wire = seal(&mut pair.session, &bytes);
            assert!(pair.hear(&wire) == bytes, "{suite:?} {count} down");
        }
    }
}

#[test]
fn any_segmentation_gives_the_same_bytes() {
    let mut pair = Pair::new(SUITES[0]);
    for step in [1, 2, 4, 5, 6, 21, 22, 1000, 16_405, 16_406, 16_407] {
        let bytes = noise(40_000);
        let wire = pair.say(&bytes);
        let (mut plain, mut held, mut out) = (Vec::new(), Vec::new(), Outgoing::default());
        for part in wire.chunks(step) {
            held.extend_from_slice(part);
            let mut pieces = Vec::new();
            let opened = pair.session.open(&mut held, &mut pieces, usize::MAX, &mut out).unwrap();
            plain.extend(pieces.into_iter().flat_map(|piece| held[piece].to_vec()));
            held.drain(..opened.consumed);
        }
        assert!(held.is_empty() && plain == bytes, "in steps of {step}");
    }
}

#[test]
fn either_side_may_change_keys_and_an_asked_for_change_is_made() {
    for suite in SUITES {
        let mut pair = Pair::new(suite);
        pair.talks();
        // rustls' client asks for ours when it changes its own.
        pair.client.refresh_traffic_keys().unwrap();
        let wire = pair.say(b"new keys");
        let (plain, answer) = open(&mut pair.session, &wire).unwrap();
        assert_eq!(plain, b"new keys");
        assert!(!answer.is_empty(), "an answer was asked for");
        assert!(pair.hear(&answer).is_empty());
        pair.talks();
        // By ourselves, asked or not.
        for request in [false, true] {
            let wire = rekey(&mut pair.session, request);
            assert!(pair.hear(&wire).is_empty());
            pair.talks();
        }
        assert!(pair.session.rx_updates() >= 2);
    }
}

#[test]
fn an_answer_waits_while_records_do_and_is_not_forgotten() {
    let (mut client, mut server) = sessions();
    let mut out = Outgoing::default();
    // Nothing leaves: the peer asks and does not read.
    for _ in 0..20 {
        let mut wire = rekey(&mut client, true);
        server.open(&mut wire, &mut Vec::new(), usize::MAX, &mut out).unwrap();
    }
    let answers = sent(&mut out);
    assert!(answers.len() < 1000, "{} bytes of answers are kept", answers.len());
    open(&mut client, &answers).unwrap();
    let answered = client.rx_updates();
    // What was put off is made up for with the next data.
    let wire = seal(&mut server, b"data");
    assert_eq!(open(&mut client, &wire).unwrap().0, b"data");
    assert_eq!(client.rx_updates(), answered + 1);
}

#[test]
fn too_many_changes_of_keys_are_refused_however_they_come() {
    for (at_once, with_data) in [(true, false), (false, false), (false, true)] {
        let (mut client, mut server) = sessions();
        let mut wires = Vec::new();
        for _ in 0..=KEY_UPDATES_BURST {
            let mut wire = rekey(&mut client, false);
            if with_data {
                wire.extend(seal(&mut client, b"x"));
            }
            wires.push(wire);
        }
        if at_once {
            wires = vec![wires.concat()];
        }
        let last = wires.pop().unwrap();
        for wire in wires {
            open(&mut server, &wire).unwrap();
        }
        let fault = open(&mut server, &last).unwrap_err();
        assert!(matches!(fault, Fault::KeyUpdates), "{at_once} {with_data}: {fault:?}");
    }
}

#[test]
fn changes_of_keys_with_data_between_them_are_allowed() {
    let (mut client, mut server) = sessions();
    for _ in 0..3 * KEY_UPDATES_BURST {
        let mut wire = Vec::new();
        for _ in 0..KEY_UPDATE_EVERY / 128 {
            wire.extend((0..128).flat_map(|_| seal_raw(&mut client, APPLICATION_DATA, b"x")));
            // However many records come at once.
            if wire.len() > 60_000 {
                open(&mut server, &std::mem::take(&mut wire)).unwrap();
            }
        }
        wire.extend(rekey(&mut client, false));
        open(&mut server, &wire).unwrap();
    }
}

#[test]
fn records_without_data_are_refused_after_some() {
    let (mut client, mut server) = sessions();
    for _ in 0..3 {
        let mut wire = Vec::new();
        for _ in 0..EMPTY_RECORDS_MAX {
            wire.extend(seal_raw(&mut client, APPLICATION_DATA, b""));
        }
        wire.extend(seal(&mut client, b"x"));
        assert_eq!(open(&mut server, &wire).unwrap().0, b"x");
    }
    // Warnings say nothing either.
    for _ in 0..EMPTY_RECORDS_MAX {
        let wire = seal_raw(&mut client, ALERT, &[1, 90]);
        assert!(open(&mut server, &wire).unwrap().0.is_empty());
    }
    let wire = seal_raw(&mut client, APPLICATION_DATA, b"");
    assert!(matches!(open(&mut server, &wire), Err(Fault::Empty)));
}

#[test]
fn our_key_changes_before_it_has_sealed_too_much() {
    for suite in SUITES {
        let mut pair = Pair::new(suite);
        let bytes = noise(100);
        for _ in 0..3 * RECORDS_MAX {
            let wire = seal(&mut pair.session, &bytes);
            assert_eq!(pair.hear(&wire), bytes);
            assert!(pair.session.tx_sequence <= RECORDS_MAX, "{suite:?}");
        }
        pair.talks();
    }
}

#[test]
fn close_notify_ends_and_what_comes_behind_it_is_not_looked_at() {
    let mut pair = Pair::new(SUITES[1]);
    let mut wire = pair.say(b"last");
    pair.client.send_close_notify();
    pair.client.write_tls(&mut wire).unwrap();
    wire.extend_from_slice(b"whatever this is");
    let (mut pieces, mut out) = (Vec::new(), Outgoing::default());
    let opened = pair.session.open(&mut wire, &mut pieces, usize::MAX, &mut out).unwrap();
    assert!(opened.closed && pair.session.peer_closed());
    assert_eq!(wire[pieces[0].clone()], *b"last");
    // The other half goes on, then closes.
    let mut wire = seal(&mut pair.session, b"answer");
    let mut out = Outgoing::default();
    pair.session.close(&mut out).unwrap();
    pair.session.close(&mut out).unwrap();
    wire.extend(sent(&mut out));
    pair.client.read_tls(&mut wire.as_slice()).unwrap();
    assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
    let mut plain = Vec::new();
    pair.client.reader().read_to_end(&mut plain).unwrap();
    assert_eq!(plain, b"answer");
}

#[test]
fn a_truncated_record_is_no_record() {
    let mut pair = Pair::new(SUITES[0]);
    let wire = pair.say(b"nobody may see this");
    for cut in 0..wire.len() {
        let (mut part, mut pieces) = (wire[..cut].to_vec(), Vec::new());
        let opened =
            pair.session.open(&mut part, &mut pieces, usize::MAX, &mut Outgoing::default());
        let opened = opened.unwrap();
        assert!(opened.consumed == 0 && !opened.closed && pieces.is_empty(), "{cut}");
    }
}

/// What comes of `broken` after a good record in the same read: the good one is given out, then the fault is.
fn check_fault(suite: SupportedCipherSuite, broken: impl FnOnce(&mut Pair) -> Vec<u8>) -> Fault {
    let mut pair = Pair::new(suite);
    let mut wire = pair.say(b"good");
    wire.extend(broken(&mut pair));
    let (mut pieces, mut out) = (Vec::new(), Outgoing::default());
    let opened = pair.session.open(&mut wire, &mut pieces, usize::MAX, &mut out).unwrap();
    assert_eq!(pieces.len(), 1, "nothing of the broken record");
    assert_eq!(wire[pieces[0].clone()], *b"good");
    assert!(!opened.closed);
    let mut left = wire[opened.consumed..].to_vec();
    assert!(!matches!(record_length(&left), Ok(None)), "there is something to ask about");
    pair.session.open(&mut left, &mut Vec::new(), usize::MAX, &mut out).unwrap_err()
}

#[test]
fn a_record_that_was_tampered_with_is_refused_behind_what_came_before() {
    for suite in SUITES {
        // Body, tag; in the header the length would make another record.
        for back in [1, 10, 17, 30] {
            let fault = check_fault(suite, |pair| {
                let mut wire = pair.say(b"something that is long enough");
                let at = wire.len() - back;
                wire[at] ^= 1;
                wire
            });
            let decrypt = matches!(fault, Fault::Tls(rustls::Error::DecryptError));
            assert!(
                decrypt && fault.alert() == Some(BAD_RECORD_MAC),
                "{suite:?} {back}: {fault:?}"
            );
        }
    }
}

#[test]
fn a_record_twice_or_one_left_out_is_refused() {
    let mut pair = Pair::new(SUITES[0]);
    let wire = pair.say(b"once");
    assert_eq!(open(&mut pair.session, &wire).unwrap().0, b"once");
    assert!(matches!(open(&mut pair.session, &wire), Err(Fault::Tls(_))));
    let left_out = check_fault(SUITES[0], |pair| {
        drop(pair.say(b"left out"));
        pair.say(b"the next")
    });
    assert!(matches!(left_out, Fault::Tls(_)), "{left_out:?}");
}

#[test]
fn records_in_the_clear_and_oversized_ones_are_refused() {
    for header in [[21, 3, 3, 0, 2], [20, 3, 3, 0, 1], [22, 3, 3, 0, 4], [128, 3, 3, 0, 2]] {
        let fault = check_fault(SUITES[0], |_| [&header[..], &[1, 0, 0, 0]].concat());
        assert!(matches!(fault, Fault::Protocol(_)), "{header:?}: {fault:?}");
    }
    // One byte more than RFC 8446 allows: known from the header alone.
    let fault = check_fault(SUITES[0], |_| vec![23, 3, 3, 0x41, 0x01]);
    assert!(matches!(fault, Fault::Protocol(_)), "{fault:?}");
    assert!(record_length(&[23, 3, 3, 0x41, 0x00]).unwrap().is_none());
}

#[test]
fn alerts_end_with_their_number_and_warnings_do_not() {
    // rustls' client says what it thinks of a broken record.
    let fault = check_fault(SUITES[2], |pair| {
        let mut wire = seal(&mut pair.session, b"to be broken");
        let last = wire.len() - 1;
        wire[last] ^= 1;
        pair.client.read_tls(&mut wire.as_slice()).unwrap();
        pair.client.process_new_packets().unwrap_err();
        let mut alert = Vec::new();
        pair.client.write_tls(&mut alert).unwrap();
        alert
    });
    assert!(matches!(fault, Fault::Alert(BAD_RECORD_MAC)) && fault.alert().is_none(), "{fault:?}");
}

#[test]
fn messages_that_have_no_place_are_refused() {
    // A ticket from a client, a Finished, a KeyUpdate with a wrong word, in pieces, with something behind it; odd alerts.
    let wrong: [(u8, &[u8], u8); 9] = [
        (HANDSHAKE, &[4, 0, 0, 1, 0], UNEXPECTED_MESSAGE),
        (HANDSHAKE, &[20, 0, 0, 1, 0], UNEXPECTED_MESSAGE),
        (HANDSHAKE, &[24, 0, 0, 1, 2], ILLEGAL_PARAMETER),
        (HANDSHAKE, &[24, 0, 0, 1], DECODE_ERROR),
        (HANDSHAKE, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], UNEXPECTED_MESSAGE),
        (HANDSHAKE, &[], UNEXPECTED_MESSAGE),
        (ALERT, &[2], DECODE_ERROR),
        (ALERT, &[2, 40, 0], DECODE_ERROR),
        (20, &[1], UNEXPECTED_MESSAGE),
    ];
    for (content_type, payload, alert) in wrong {
        let (mut client, mut server) = sessions();
        let wire = seal_raw(&mut client, content_type, payload);
        let fault = open(&mut server, &wire).unwrap_err();
        assert_eq!(fault.alert(), Some(alert), "{content_type} {payload:?}: {fault:?}");
    }
}
