//! SFTP packets: fields from bytes and to bytes (draft-ietf-secsh-filexfer-02). Names are bytes, as on the disk. Pure.

use std::io::{self, Read};

/// Reads fields of one packet's body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

/// The packet ends too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Short;

impl<'a> Fields<'a> {
    pub(super) fn byte(&mut self) -> Result<u8, Short> {
        let (first, rest) = self.0.split_first().ok_or(Short)?;
        self.0 = rest;
        Ok(*first)
    }
    pub(super) fn number(&mut self) -> Result<u32, Short> {
        let (first, rest) = self.0.split_first_chunk::<4>().ok_or(Short)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*first))
    }
    pub(super) fn long(&mut self) -> Result<u64, Short> {
        let (first, rest) = self.0.split_first_chunk::<8>().ok_or(Short)?;
        self.0 = rest;
        Ok(u64::from_be_bytes(*first))
    }
    pub(super) fn text(&mut self) -> Result<&'a [u8], Short> {
        let length = usize::try_from(self.number()?).map_err(|_| Short)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(Short)?;
        self.0 = rest;
        Ok(text)
    }
}

/// Writes one packet; its length is filled in at the end.
#[derive(Debug)]
pub(super) struct Packet(Vec<u8>);

impl Packet {
    pub(super) fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }
    pub(super) fn answer(kind: u8, id: u32) -> Self {
        Self::new(kind).number(id)
    }
    pub(super) fn number(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }
    pub(super) fn long(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }
    pub(super) fn text(self, text: &[u8]) -> Self {
        // Callers' texts are bounded far below; a longer one would be cut, never mis-framed.
        let length = u32::try_from(text.len()).unwrap_or(0);
        let mut packet = self.number(length);
        packet.0.extend_from_slice(if length == 0 { &[] } else { text });
        packet
    }
    pub(super) fn with(mut self, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        write(&mut self.0);
        self
    }
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len().saturating_sub(4)).unwrap_or(0);
        if let Some(head) = self.0.first_chunk_mut::<4>() {
            *head = length.to_be_bytes();
        }
        self.0
    }
}

/// The next packet's body; `None` at the end of input.
pub(super) fn read_packet(from: &mut impl Read, into: &mut Vec<u8>) -> io::Result<Option<()>> {
    let mut head = [0; 4];
    match from.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if length == 0 || length > PACKET_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet of impossible length"));
    }
    into.resize(length, 0);
    from.read_exact(into)?;
    Ok(Some(()))
}

/// As OpenSSH's server: 256 KiB.
pub(super) const PACKET_BYTES_MAX: usize = 256 * 1024;

pub(super) const INIT: u8 = 1;
pub(super) const VERSION: u8 = 2;
pub(super) const OPEN: u8 = 3;
pub(super) const CLOSE: u8 = 4;
pub(super) const READ: u8 = 5;
pub(super) const WRITE: u8 = 6;
pub(super) const LSTAT: u8 = 7;
pub(super) const FSTAT: u8 = 8;
pub(super) const SETSTAT: u8 = 9;
pub(super) const FSETSTAT: u8 = 10;
pub(super) const OPENDIR: u8 = 11;
pub(super) const READDIR: u8 = 12;
pub(super) const REMOVE: u8 = 13;
pub(super) const MKDIR: u8 = 14;
pub(super) const RMDIR: u8 = 15;
pub(super) const REALPATH: u8 = 16;
pub(super) const STAT: u8 = 17;
pub(super) const RENAME: u8 = 18;
pub(super) const READLINK: u8 = 19;
pub(super) const SYMLINK: u8 = 20;
pub(super) const EXTENDED: u8 = 200;
pub(super) const STATUS: u8 = 101;
pub(super) const HANDLE: u8 = 102;
pub(super) const DATA: u8 = 103;
pub(super) const NAME: u8 = 104;
pub(super) const ATTRS: u8 = 105;
pub(super) const EXTENDED_REPLY: u8 = 201;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back() {
        let bytes = Packet::answer(HANDLE, 7).text(b"h1").long(1 << 40).finish();
        let mut body = Vec::new();
        let mut from = bytes.as_slice();
        assert_eq!(read_packet(&mut from, &mut body).unwrap(), Some(()));
        let mut fields = Fields(&body);
        assert_eq!(fields.byte(), Ok(HANDLE));
        assert_eq!(fields.number(), Ok(7));
        assert_eq!(fields.text(), Ok(&b"h1"[..]));
        assert_eq!(fields.long(), Ok(1 << 40));
        assert_eq!(fields.byte(), Err(Short));
        assert_eq!(read_packet(&mut from, &mut body).unwrap(), None);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let mut body = Vec::new();
        assert!(read_packet(&mut &[0, 0, 0, 0][..], &mut body).is_err());
        assert!(read_packet(&mut &[0xff; 8][..], &mut body).is_err());
        assert!(read_packet(&mut &[0, 0, 0, 9, 1][..], &mut body).is_err());
        assert_eq!(Fields(&[0, 0, 0, 9, 1]).text(), Err(Short));
    }
}
