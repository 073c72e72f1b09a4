//! The critical option `source-address` of SSH certificates: a comma-separated list of addresses and CIDR blocks
//! (OpenSSH PROTOCOL.certkeys). A list that is not understood in full is refused. Asked by [`crate::verify`].

use std::net::IpAddr;

/// Whether `from` is in `list`; `None` if an entry is no address or block.
pub(crate) fn allows(list: &str, from: IpAddr) -> Option<bool> {
    let from = from.to_canonical();
    let mut found = false;
    for entry in list.split(',') {
        let (address, length) = match entry.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (entry, None),
        };
        let block: IpAddr = address.parse().ok()?;
        let bits_max = if block.is_ipv4() { 32 } else { 128 };
        let bits = match length {
            Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok()?,
            Some(_) => return None,
            None => bits_max,
        };
        if bits > bits_max {
            return None;
        }
        found |= contains(block, bits, from);
    }
    Some(found)
}

fn contains(block: IpAddr, bits: u32, address: IpAddr) -> bool {
    match (block, address) {
        (IpAddr::V4(block), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            block.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V6(block), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            block.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        fn check(list: &str, from: &str, expect: Option<bool>) {
            assert_eq!(allows(list, from.parse().unwrap()), expect, "{list} {from}");
        }
        check("10.1.2.3", "10.1.2.3", Some(true));
        check("10.1.2.3", "10.1.2.4", Some(false));
        check("10.0.0.0/8", "10.255.0.1", Some(true));
        check("10.0.0.0/8", "11.0.0.1", Some(false));
        check("192.168.0.0/16,10.0.0.0/8", "10.0.0.1", Some(true));
        check("0.0.0.0/0", "203.0.113.9", Some(true));
        check("0.0.0.0/0", "2001:db8::1", Some(false));
        check("2001:db8::/32", "2001:db8:1::1", Some(true));
        check("2001:db8::/32", "2001:db9::1", Some(false));
        check("::/0", "2001:db9::1", Some(true));
        check("10.1.2.3/32", "::ffff:10.1.2.3", Some(true));
        check("", "10.1.2.3", None);
        check("10.1.2.3,", "10.1.2.3", None);
        check("10.1.2.3/33", "10.1.2.3", None);
        check("10.1.2.3/+8", "10.1.2.3", None);
        check("10.1.2.3/", "10.1.2.3", None);
        check("10.1.2.3/8/8", "10.1.2.3", None);
        check(" 10.1.2.3", "10.1.2.3", None);
        check("host.example.com", "10.1.2.3", None);
        check("!10.1.2.3", "10.1.2.3", None);
    }
}
