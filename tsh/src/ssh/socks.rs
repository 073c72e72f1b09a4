//! SOCKS5 (RFC 1928) as far as `-D` needs: no authentication, CONNECT. Bytes in, values out; sockets are `forward`'s.

/// Where the client wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// What a parser made of the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed<T> {
    /// The value and how many bytes it took.
    Done(T, usize),
    More,
}

/// Why the client is sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SocksError {
    #[error("not SOCKS version 5")]
    Version,
    #[error("no authentication method in common")]
    Method,
    #[error("only CONNECT is served")]
    Command,
    #[error("unknown kind of address")]
    Address,
}

/// The longest message: four bytes, a length, 255 bytes of name, a port (greeting: 257).
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 + 1 + 255 + 2;
/// Answer to a good greeting: no authentication.
pub(crate) const NO_AUTHENTICATION: [u8; 2] = [5, 0];
/// Answer to a greeting without a method that we have.
pub(crate) const NO_METHOD: [u8; 2] = [5, 0xff];

/// The first message: version and methods.
///
/// # Errors
/// Not ours to serve.
pub(crate) fn greeting(bytes: &[u8]) -> Result<Parsed<()>, SocksError> {
    let [version, rest @ ..] = bytes else { return Ok(Parsed::More) };
    if *version != 5 {
        return Err(SocksError::Version);
    }
    let [count, rest @ ..] = rest else { return Ok(Parsed::More) };
    match rest.get(..usize::from(*count)) {
        None => Ok(Parsed::More),
        Some(methods) if methods.contains(&0) => Ok(Parsed::Done((), 2 + methods.len())),
        Some(_) => Err(SocksError::Method),
    }
}

/// The second message: CONNECT to an address or a name.
///
/// # Errors
/// Not ours to serve.
pub(crate) fn request(bytes: &[u8]) -> Result<Parsed<Destination>, SocksError> {
    let [version, command, _reserved, kind, rest @ ..] = bytes else { return Ok(Parsed::More) };
    if *version != 5 {
        return Err(SocksError::Version);
    }
    if *command != 1 {
        return Err(SocksError::Command);
    }
    let (host, rest) = match kind {
        1 => match rest.split_first_chunk::<4>() {
            Some((ip, rest)) => (std::net::Ipv4Addr::from(*ip).to_string(), rest),
            None => return Ok(Parsed::More),
        },
        3 => {
            let Some((length, rest)) = rest.split_first() else { return Ok(Parsed::More) };
            let Some((name, rest)) = rest.split_at_checked(usize::from(*length)) else {
                return Ok(Parsed::More);
            };
            (name_of(name)?, rest)
        }
        4 => match rest.split_first_chunk::<16>() {
            Some((ip, rest)) => (std::net::Ipv6Addr::from(*ip).to_string(), rest),
            None => return Ok(Parsed::More),
        },
        _ => return Err(SocksError::Address),
    };
    let Some((port, rest)) = rest.split_first_chunk::<2>() else { return Ok(Parsed::More) };
    let destination = Destination { host, port: u16::from_be_bytes(*port) };
    Ok(Parsed::Done(destination, bytes.len() - rest.len()))
}

/// Answer to a request: it worked, or why not (RFC 1928, section 6). The bound address is of no use to anyone.
pub(crate) fn reply(result: Result<(), SocksError>, refused: bool) -> [u8; 10] {
    let code = match result {
        Ok(()) if refused => 5,
        Ok(()) => 0,
        Err(SocksError::Command) => 7,
        Err(SocksError::Address) => 8,
        Err(SocksError::Method | SocksError::Version) => 1,
    };
    [5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

fn name_of(bytes: &[u8]) -> Result<String, SocksError> {
    match std::str::from_utf8(bytes) {
        Ok(name) if !name.is_empty() && !name.chars().any(|c| c.is_control() || c == ' ') => {
            Ok(name.to_owned())
        }
        Ok(_) | Err(_) => Err(SocksError::Address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(host: &str, port: u16) -> Destination {
        Destination { host: host.into(), port }
    }

    #[test]
    fn greetings() {
        assert_eq!(greeting(&[5, 1, 0]), Ok(Parsed::Done((), 3)));
        assert_eq!(greeting(&[5, 2, 2, 0, 99]), Ok(Parsed::Done((), 4)));
        assert_eq!(greeting(&[5, 1, 2]), Err(SocksError::Method));
        assert_eq!(greeting(&[5, 0]), Err(SocksError::Method));
        assert_eq!(greeting(&[4, 1]), Err(SocksError::Version));
        assert_eq!(greeting(b"GET / HTTP/1.1"), Err(SocksError::Version));
    }

    #[test]
    fn requests() {
        let v4 = [5, 1, 0, 1, 10, 0, 0, 1, 0, 80];
        assert_eq!(request(&v4), Ok(Parsed::Done(destination("10.0.0.1", 80), 10)));
        let name = [&[5, 1, 0, 3, 2][..], b"db", &[0x15, 0x38, 7]].concat();
        assert_eq!(request(&name), Ok(Parsed::Done(destination("db", 5432), 9)));
        let mut v6 = vec![5, 1, 0, 4];
        v6.extend([0; 15]);
        v6.extend([1, 1, 0xbb]);
        assert_eq!(request(&v6), Ok(Parsed::Done(destination("::1", 443), 22)));
        assert_eq!(request(&[5, 2, 0, 1]), Err(SocksError::Command));
        assert_eq!(request(&[5, 1, 0, 9]), Err(SocksError::Address));
        assert_eq!(request(&[5, 1, 0, 3, 0, 0, 80]), Err(SocksError::Address));
        assert_eq!(request(&[5, 1, 0, 3, 2, b'a', 0, 0, 80]), Err(SocksError::Address));
    }

    #[test]
    fn every_prefix_asks_for_more() {
        let name = [&[5, 1, 0, 3, 2][..], b"db", &[0x15, 0x38]].concat();
        for length in 0..name.len() {
            assert_eq!(request(&name[..length]), Ok(Parsed::More), "{length}");
        }
        for length in 0..3 {
            assert_eq!(greeting(&[5, 1, 0][..length]), Ok(Parsed::More), "{length}");
        }
    }
}
