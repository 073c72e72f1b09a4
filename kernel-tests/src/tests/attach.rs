//! What the kernel offers, and how it refuses.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::Instant;

use relay::ktls::{self, AttachError, Suite, Support, content_type};

use crate::pair::{Role, each, pair, sockets};

crate::tests![
    the_probe_finds_what_the_kernel_has,
    attaching_is_refused_where_it_cannot_be,
    sequence_numbers_are_counted,
];

/// Major and minor version.
pub(super) fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Whether this kernel can change keys, by its version.
pub(super) fn can_rekey() -> bool {
    kernel() >= (6, 14)
}

fn the_probe_finds_what_the_kernel_has() {
    // The first use of a cipher loads its module.
    let first = ktls::probe();
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = files();
    let started = Instant::now();
    let support = ktls::probe();
    println!("note: {support}; probed in {:?}", started.elapsed());
    assert_eq!((files(), &support), (before, &first));
    let Support::Available(features) = support else { panic!("{support}") };
    for suite in Suite::ALL {
        assert!(features.transmit.contains(suite) && features.receive.contains(suite));
    }
    assert!(features.no_pad);
    assert_eq!(features.rekey, can_rekey());
}

fn attaching_is_refused_where_it_cannot_be() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(matches!(ktls::attach(listener.as_fd()), Err(AttachError::NotConnected)));
    let (one, other) = sockets();
    ktls::attach(one.as_fd()).unwrap();
    assert!(matches!(ktls::attach(one.as_fd()), Err(AttachError::Taken)));
    // No keys yet: neither a sequence number nor the promise of no padding.
    assert!(ktls::tx_sequence(one.as_fd()).is_err());
    assert!(ktls::set_rx_no_pad(one.as_fd()).is_err());
    // The peer is gone: no longer established.
    drop(one);
    crate::waiting::readable(&other);
    assert!(matches!(ktls::attach(other.as_fd()), Err(AttachError::NotConnected)));
}

fn sequence_numbers_are_counted() {
    each(|role, suite| {
        let (near, mut far) = pair(role, suite);
        let begin = ktls::tx_sequence(near.fd()).unwrap();
        // One record, three records, and one that is no data.
        near.write(b"x");
        near.write(&[1; 2 * ktls::RECORD_BYTES_MAX + 1]);
        near.send_record(content_type::ALERT, &[1, 90]);
        assert_eq!(ktls::tx_sequence(near.fd()).unwrap(), begin + 5);
        far.receive_exactly(2 * ktls::RECORD_BYTES_MAX + 2);
    });
    // The server's tickets were records as well, in user space.
    let (near, _far) = pair(Role::Server, Suite::Aes128Gcm);
    assert_eq!(ktls::tx_sequence(near.fd()).unwrap(), 0);
}
