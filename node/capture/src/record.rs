//! The kernel's records, read: bytes from a ring to values. Lengths are checked, whatever stands in them: a record that does
//! not fit is an error and no panic.

use ebpf_abi::rules::{self, Denial};
use ebpf_abi::{Argv, Exec, Exit, File, Header, Kernel, Net, Rights, Trace, VERSION, kind};
use zerocopy::FromBytes;

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) header: Header,
    pub(crate) body: Body<'a>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body<'a> {
    Argv { at: usize, bytes: &'a [u8] },
    Denial { denial: Denial, path: &'a [u8] },
    Exec { exec: Exec, path: &'a [u8], cwd: &'a [u8], argv: &'a [u8] },
    Exit { status: i32 },
    File { file: File, path: &'a [u8], other: &'a [u8] },
    Fork,
    Kernel { kernel: Kernel, name: &'a [u8] },
    Net { net: Net, name: &'a [u8] },
    Over,
    Rights(Rights),
    Trace { trace: Trace, name: &'a [u8] },
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("a record of kind {0}")]
    Kind(u16),
    #[error("a record that is cut off, or longer than it says")]
    Length,
    #[error("a record of version {0}")]
    Version(u16),
}

impl<'a> Record<'a> {
    /// The first of records that were read before, and what stands behind it.
    pub(crate) fn read_first(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (header, _) = Header::read_from_prefix(bytes).ok()?;
        let (first, rest) = bytes.split_at_checked(usize::try_from(header.len).ok()?)?;
        Some((Self::read(first).ok()?, rest))
    }

    /// # Errors
    /// See [`RecordError`].
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let mut rest = Rest(bytes);
        let header: Header = rest.fixed()?;
        if header.version != VERSION {
            return Err(RecordError::Version(header.version));
        }
        if usize::try_from(header.len) != Ok(bytes.len()) {
            return Err(RecordError::Length);
        }
        let body = match header.kind {
            kind::EXEC => {
                let exec: Exec = rest.fixed()?;
                Body::Exec {
                    path: rest.bytes(exec.path_len)?,
                    cwd: rest.bytes(exec.cwd_len)?,
                    argv: rest.bytes(exec.argv_len)?,
                    exec,
                }
            }
            kind::ARGV => {
                let argv: Argv = rest.fixed()?;
                let at = usize::try_from(argv.at).map_err(|_| RecordError::Length)?;
                Body::Argv { at, bytes: rest.bytes(argv.len)? }
            }
            rules::kind::DENIAL => {
                let denial: Denial = rest.fixed()?;
                Body::Denial { path: rest.bytes(denial.path_len)?, denial }
            }
            kind::EXIT => Body::Exit { status: rest.fixed::<Exit>()?.status },
            kind::FILE => {
                let file: File = rest.fixed()?;
                Body::File {
                    path: rest.bytes(file.path_len)?,
                    other: rest.bytes(file.other_len)?,
                    file,
                }
            }
            kind::FORK => Body::Fork,
            kind::KERNEL => {
                let kernel: Kernel = rest.fixed()?;
                Body::Kernel { name: rest.bytes(kernel.name_len)?, kernel }
            }
            kind::NET => {
                let net: Net = rest.fixed()?;
                Body::Net { name: rest.bytes(net.name_len)?, net }
            }
            kind::OVER => Body::Over,
            kind::RIGHTS => Body::Rights(rest.fixed()?),
            kind::TRACE => {
                let trace: Trace = rest.fixed()?;
                Body::Trace { name: rest.bytes(trace.name_len)?, trace }
            }
            other => return Err(RecordError::Kind(other)),
        };
        if !rest.0.is_empty() {
            return Err(RecordError::Length);
        }
        Ok(Self { header, body })
    }
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn fixed<T: FromBytes>(&mut self) -> Result<T, RecordError> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| RecordError::Length)?;
        self.0 = rest;
        Ok(value)
    }

    fn bytes(&mut self, length: u32) -> Result<&'a [u8], RecordError> {
        let length = usize::try_from(length).map_err(|_| RecordError::Length)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(RecordError::Length)?;
        self.0 = rest;
        Ok(bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes as _;

    use super::*;

    /// The bytes of a record with a right header.
    pub(crate) fn record(kind: u16, fixed: &[u8], rest: &[&[u8]]) -> Vec<u8> {
        let length = size_of::<Header>() + fixed.len() + rest.concat().len();
        let header = Header {
            len: u32::try_from(length).unwrap(),
            kind,
            version: VERSION,
            session: 7,
            tgid: 42,
            ..Header::default()
        };
        [header.as_bytes(), fixed, &rest.concat()].concat()
    }

    fn exec() -> Vec<u8> {
        let (path, cwd, argv) = (b"/bin/true", b"/root", b"true\0x\0");
        let exec = Exec {
            path_len: 9,
            cwd_len: 5,
            argv_len: 7,
            argv_total: 7,
            argv_captured: 7,
            ..Exec::default()
        };
        record(kind::EXEC, exec.as_bytes(), &[path, cwd, argv])
    }

    #[test]
    fn an_exec_reads_back() {
        let bytes = exec();
        let Body::Exec { path, cwd, argv, .. } = Record::read(&bytes).unwrap().body else {
            panic!()
        };
        assert_eq!((path, cwd, argv), (&b"/bin/true"[..], &b"/root"[..], &b"true\0x\0"[..]));
    }

    /// One of each kind.
    fn each() -> Vec<Vec<u8>> {
        let exit = record(kind::EXIT, Exit::default().as_bytes(), &[]);
        let argv = record(kind::ARGV, Argv { at: 3, len: 2 }.as_bytes(), &[b"ab"]);
        let file = File { path_len: 2, other_len: 1, ..File::default() };
        let file = record(kind::FILE, file.as_bytes(), &[b"/a", b"b"]);
        let net = Net { name_len: 3, ..Net::default() };
        let net = record(kind::NET, net.as_bytes(), &[b"abc"]);
        let kernel = Kernel { name_len: 1, ..Kernel::default() };
        let kernel = record(kind::KERNEL, kernel.as_bytes(), &[b"m"]);
        let trace = Trace { name_len: 1, ..Trace::default() };
        let trace = record(kind::TRACE, trace.as_bytes(), &[b"s"]);
        let rights = record(kind::RIGHTS, Rights::default().as_bytes(), &[]);
        let [over, fork] = [kind::OVER, kind::FORK].map(|kind| record(kind, &[], &[]));
        let denial = Denial { path_len: 2, ..Denial::default() };
        let denial = record(rules::kind::DENIAL, denial.as_bytes(), &[b"/a"]);
        vec![exec(), exit, argv, file, net, kernel, trace, rights, denial, over, fork]
    }

    #[test]
    fn every_truncation_and_every_longer_one_is_refused() {
        for whole in each() {
            Record::read(&whole).unwrap();
            for length in 0..whole.len() {
                Record::read(&whole[..length]).unwrap_err();
                // The same with a header that agrees.
                let mut cut = whole[..length].to_vec();
                if let Some(place) = cut.get_mut(..4) {
                    place.copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
                    assert!(Record::read(&cut).is_err(), "{length} of {}", whole.len());
                }
            }
            let mut longer = whole.clone();
            longer.push(0);
            Record::read(&longer).unwrap_err();
        }
    }

    /// How many bytes a body has that are not of fixed size.
    fn parts(body: &Body<'_>) -> usize {
        match body {
            Body::Argv { bytes, .. } => bytes.len(),
            Body::Denial { path, .. } => path.len(),
            Body::Exec { path, cwd, argv, .. } => path.len() + cwd.len() + argv.len(),
            Body::File { path, other, .. } => path.len() + other.len(),
            Body::Kernel { name, .. } | Body::Net { name, .. } | Body::Trace { name, .. } => {
                name.len()
            }
            Body::Exit { .. } | Body::Fork | Body::Over | Body::Rights(_) => 0,
        }
    }

    /// Refused, or read as something of the same length: never beyond it. The header's length and version are always checked.
    #[test]
    fn every_bit_may_be_wrong() {
        for whole in each() {
            let fixed = whole.len() - parts(&Record::read(&whole).unwrap().body);
            for bit in 0..whole.len() * 8 {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                match Record::read(&flipped) {
                    Ok(record)
                        if record.header.kind == Record::read(&whole).unwrap().header.kind =>
                    {
                        assert_eq!(fixed + parts(&record.body), whole.len(), "bit {bit}");
                    }
                    // Another kind of the same size.
                    Ok(record) => assert!(parts(&record.body) <= whole.len(), "bit {bit}"),
                    Err(RecordError::Kind(_) | RecordError::Length | RecordError::Version(_)) => {}
                }
                assert!(bit >= 32 || Record::read(&flipped).is_err(), "another length");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(
            which in 0_usize..11,
            flips in prop::collection::vec((0_usize..200, any::<u8>()), 1..8),
        ) {
            let mut bytes = each().swap_remove(which);
            for (at, flip) in flips {
                let at = at % bytes.len();
                bytes[at] ^= flip;
            }
            drop(Record::read(&bytes));
        }
    }
}
