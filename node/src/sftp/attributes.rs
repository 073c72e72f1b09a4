//! SFTP file attributes (draft-ietf-secsh-filexfer-02, section 5): read from requests, written from metadata, applied.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid};

use super::wire::{Fields, Short};

/// What a request sets; `None` is left as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<u32>,
    /// Access and modification, Unix seconds.
    pub(super) times: Option<(u32, u32)>,
}

impl Attributes {
    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, Short> {
        let flags = fields.number()?;
        let mut attributes = Self::default();
        if flags & SIZE != 0 {
            attributes.size = Some(fields.long()?);
        }
        if flags & OWNER != 0 {
            attributes.owner = Some((fields.number()?, fields.number()?));
        }
        if flags & MODE != 0 {
            attributes.mode = Some(fields.number()? & 0o7777);
        }
        if flags & TIMES != 0 {
            attributes.times = Some((fields.number()?, fields.number()?));
        }
        if flags & EXTENDED != 0 {
            for _ in 0..fields.number()? {
                fields.text()?;
                fields.text()?;
            }
        }
        Ok(attributes)
    }

    /// Applies all of it to an open file; the first failure ends it.
    pub(super) fn apply(&self, file: &File) -> io::Result<()> {
        if let Some(size) = self.size {
            file.set_len(size)?;
        }
        if let Some(times) = self.times {
            rustix::fs::futimens(file.as_fd(), &timestamps(times))?;
        }
        if let Some(mode) = self.mode {
            rustix::fs::fchmod(file.as_fd(), Mode::from_raw_mode(mode))?;
        }
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(file.as_fd(), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        Ok(())
    }

    /// Applies all of it to what a path leads to.
    pub(super) fn apply_path(&self, path: &std::path::Path) -> io::Result<()> {
        use rustix::fs::{AtFlags, CWD};
        if let Some(size) = self.size {
            std::fs::OpenOptions::new().write(true).open(path)?.set_len(size)?;
        }
        if let Some(times) = self.times {
            rustix::fs::utimensat(CWD, path, &timestamps(times), AtFlags::empty())?;
        }
        if let Some(mode) = self.mode {
            rustix::fs::chmod(path, Mode::from_raw_mode(mode))?;
        }
        if let Some((uid, gid)) = self.owner {
            rustix::fs::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        Ok(())
    }

    /// For events: which of them.
    pub(super) fn names(&self) -> String {
        let parts = [
            self.size.map(|size| format!("size={size}")),
            self.owner.map(|(uid, gid)| format!("owner={uid}:{gid}")),
            self.mode.map(|mode| format!("mode={mode:04o}")),
            self.times.map(|_| "times".to_owned()),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(",")
    }
}

fn timestamps((access, modification): (u32, u32)) -> Timestamps {
    let time = |seconds: u32| Timespec { tv_sec: i64::from(seconds), tv_nsec: 0 };
    Timestamps { last_access: time(access), last_modification: time(modification) }
}

/// Writes a file's attributes.
pub(super) fn write(to: &mut Vec<u8>, metadata: &Metadata) {
    let seconds = |time: i64| u32::try_from(time).unwrap_or(0);
    to.extend_from_slice(&(SIZE | OWNER | MODE | TIMES).to_be_bytes());
    to.extend_from_slice(&metadata.size().to_be_bytes());
    for number in [
        metadata.uid(),
        metadata.gid(),
        metadata.mode(),
        seconds(metadata.atime()),
        seconds(metadata.mtime()),
    ] {
        to.extend_from_slice(&number.to_be_bytes());
    }
}

/// No attributes at all.
pub(super) fn write_none(to: &mut Vec<u8>) {
    to.extend_from_slice(&0_u32.to_be_bytes());
}

/// A line for people, as `ls -l` has it, without names of users: clients show it and do not read it.
pub(super) fn long_name(name: &[u8], metadata: &Metadata) -> Vec<u8> {
    let kind = match metadata.mode() & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '-',
    };
    let mut rights = String::new();
    for shift in [6, 3, 0] {
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            rights.push(if metadata.mode() >> shift & bit != 0 { letter } else { '-' });
        }
    }
    let day = time::OffsetDateTime::from_unix_timestamp(metadata.mtime())
        .map(|time| time.date().to_string())
        .unwrap_or_default();
    let mut line = format!(
        "{kind}{rights} {:>4} {:<8} {:<8} {:>10} {day} ",
        metadata.nlink(),
        metadata.uid(),
        metadata.gid(),
        metadata.size(),
    )
    .into_bytes();
    line.extend_from_slice(name);
    line
}

const SIZE: u32 = 1;
const OWNER: u32 = 2;
const MODE: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 0x8000_0000;
