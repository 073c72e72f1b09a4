//! Changes of keys: Linux 6.14 and newer go on with new ones, older kernels refuse them.

use std::time::Duration;

use relay::ktls::{
    self, HandshakeMessage, Suite, content_type, encode_key_update, handshake_messages,
};

use super::attach::can_rekey;
use crate::pair::{Near, Role, each, pair};
use crate::random::Random;
use crate::splice::{CHUNK, Pipe, gather};
use crate::waiting::{is_readable, retry, writable};

crate::tests![
    the_far_end_changes_keys,
    the_near_end_changes_keys,
    the_near_end_asks_for_a_change,
    keys_change_again_and_again_under_a_splice,
    a_refusal_harms_nothing,
];

/// Takes the KeyUpdate that the stream is at; and whether it asks for one of ours.
pub(super) fn take_key_update(near: &Near) -> bool {
    let (before, end) = gather(&near.socket);
    assert!(before.is_empty(), "{} bytes before the KeyUpdate", before.len());
    assert_eq!(end.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    let (kind, record) = near.receive_record().unwrap();
    assert_eq!(kind, content_type::HANDSHAKE);
    let messages: Vec<_> = handshake_messages(&record).map(Result::unwrap).collect();
    let [HandshakeMessage::KeyUpdate { request }] = messages[..] else { panic!("{messages:?}") };
    request
}

pub(super) fn change_rx(near: &mut Near) {
    let (sequence, secrets) = near.keys().update_rx();
    ktls::set_rx(near.fd(), &secrets, sequence).unwrap();
}

pub(super) fn change_tx(near: &mut Near, request: bool) {
    near.send_record(content_type::HANDSHAKE, &encode_key_update(request));
    let (sequence, secrets) = near.keys().update_tx();
    retry(|| writable(near.fd()), || ktls::set_tx(near.fd(), &secrets, sequence)).unwrap();
}

fn the_far_end_changes_keys() {
    each(|role, suite| {
        let (mut near, mut far) = pair(role, suite);
        far.send(b"before");
        far.tls.refresh_traffic_keys().unwrap();
        far.send(b"after");
        assert_eq!(near.read_exactly(6), b"before");
        assert_eq!(near.read_error(), Some(libc::EIO));
        assert!(take_key_update(&near), "rustls asks for an answer");
        if can_rekey() {
            // Quiet for poll, and an error of its own for whoever asks all the same.
            assert!(!is_readable(near.fd(), Duration::from_millis(20)));
            assert_eq!(near.read_error(), Some(libc::EKEYEXPIRED));
            let spliced = Pipe::new().fill(&near.socket, CHUNK);
            assert_eq!(spliced.unwrap_err().raw_os_error(), Some(libc::EKEYEXPIRED));
            change_rx(&mut near);
            assert_eq!(near.read_exactly(5), b"after");
            change_tx(&mut near, false);
            near.write(b"answer");
            assert_eq!(far.receive_exactly(6), b"answer");
        } else {
            let (sequence, secrets) = near.keys().update_rx();
            let refused = ktls::set_rx(near.fd(), &secrets, sequence).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
            assert_eq!(near.read_error(), Some(libc::EBADMSG));
        }
    });
}

fn the_near_end_changes_keys() {
    if !can_rekey() {
        return crate::not_here("this kernel cannot change keys");
    }
    each(|role, suite| {
        let (mut near, mut far) = pair(role, suite);
        near.write(b"before");
        change_tx(&mut near, false);
        assert_eq!(ktls::tx_sequence(near.fd()).unwrap(), 0);
        near.write(b"after");
        assert_eq!(far.receive_exactly(11), b"beforeafter");
    });
}

fn the_near_end_asks_for_a_change() {
    if !can_rekey() {
        return crate::not_here("this kernel cannot change keys");
    }
    each(|role, suite| {
        let (mut near, mut far) = pair(role, suite);
        near.write(b"before");
        change_tx(&mut near, true);
        near.write(b"after");
        assert_eq!(far.receive_exactly(11), b"beforeafter");
        far.send(b"changed too");
        assert!(!take_key_update(&near));
        change_rx(&mut near);
        assert_eq!(near.read_exactly(11), b"changed too");
    });
}

fn keys_change_again_and_again_under_a_splice() {
    if !can_rekey() {
        return crate::not_here("this kernel cannot change keys");
    }
    each(|role, suite| {
        let (mut near, mut far) = pair(role, suite);
        let bytes = Random::new(40).bytes(20_000);
        for _ in 0..10 {
            far.send(&bytes);
            far.tls.refresh_traffic_keys().unwrap();
            far.send(&bytes);
            let (before, end) = gather(&near.socket);
            assert_eq!(end.unwrap_err().raw_os_error(), Some(libc::EINVAL));
            assert!(before == bytes);
            assert!(take_key_update(&near));
            change_rx(&mut near);
            assert!(crate::splice::gather_exactly(&near.socket, bytes.len()) == bytes);

            near.write(&bytes[..5000]);
            change_tx(&mut near, false);
            near.write(&bytes[5000..]);
            assert!(far.receive_exactly(bytes.len()) == bytes);
        }
    });
}

/// Where a kernel refuses new keys, the old ones stay in use until the peer changes its own.
fn a_refusal_harms_nothing() {
    if can_rekey() {
        return crate::not_here("this kernel changes keys");
    }
    let (mut near, mut far) = pair(Role::Server, Suite::Aes128Gcm);
    let (sequence, secrets) = near.keys().update_tx();
    let refused = ktls::set_tx(near.fd(), &secrets, sequence).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
    near.write(b"as before");
    assert_eq!(far.receive_exactly(9), b"as before");
    far.send(b"as before");
    assert_eq!(near.read_exactly(9), b"as before");
}
