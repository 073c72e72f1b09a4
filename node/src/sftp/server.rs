//! SFTP requests and their answers: one after the other, in the order they came. Rights are the kernel's business: this
//! process has the user's and no others.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, ReadDir};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use proto::event::{Outcome, SftpAction};

use super::attributes::{self, Attributes};
use super::wire::{self, Fields, Packet, Short};
use super::{Report, Reporter};

/// See the module.
pub(super) struct Server<R> {
    reporter: R,
    home: PathBuf,
    handles: BTreeMap<u32, Handle>,
    next_handle: u32,
}

enum Handle {
    Directory { entries: ReadDir, path: PathBuf },
    File { file: File, path: PathBuf, append: bool },
}

/// Why a request has no good answer.
enum Failure {
    /// For the client, by number.
    Status(u32, &'static str),
    System(io::Error),
    /// The parent does not hear us: no operation may go unreported, so the server ends.
    Unreported(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}
impl From<Short> for Failure {
    fn from(Short: Short) -> Self {
        Self::Status(BAD_MESSAGE, "a request ends too early")
    }
}

type Answer = Result<Packet, Failure>;

impl<R: Reporter> Server<R> {
    pub(super) fn new(reporter: R, home: PathBuf) -> Self {
        Self { reporter, home, handles: BTreeMap::new(), next_handle: 0 }
    }

    /// Answers until the input ends.
    pub(super) fn serve(
        mut self,
        mut input: BufReader<impl Read>,
        output: impl Write,
    ) -> io::Result<()> {
        let mut output = io::BufWriter::with_capacity(wire::PACKET_BYTES_MAX, output);
        let mut body = Vec::new();
        while wire::read_packet(&mut input, &mut body)?.is_some() {
            let answer = self.answer(&body)?;
            output.write_all(&answer.finish())?;
            // Pipelined requests share a write.
            if input.buffer().is_empty() {
                output.flush()?;
            }
        }
        output.flush()
    }

    fn answer(&mut self, body: &[u8]) -> io::Result<Packet> {
        let mut fields = Fields(body);
        let kind = fields.byte().unwrap_or(0);
        if kind == wire::INIT {
            return Ok(version());
        }
        let id = fields.number().unwrap_or(0);
        match self.request(kind, id, &mut fields) {
            Ok(packet) => Ok(packet),
            Err(Failure::Unreported(error)) => Err(error),
            Err(Failure::Status(code, text)) => Ok(status(id, code, text)),
            Err(Failure::System(error)) => {
                let kind = error.kind();
                let code = if kind == io::ErrorKind::NotFound {
                    NO_SUCH_FILE
                } else if kind == io::ErrorKind::PermissionDenied {
                    PERMISSION_DENIED
                } else {
                    FAILURE
                };
                Ok(status(id, code, &error.to_string()))
            }
        }
    }

    fn request(&mut self, kind: u8, id: u32, fields: &mut Fields<'_>) -> Answer {
        match kind {
            wire::OPEN => self.open(id, fields),
            wire::CLOSE => {
                let number = handle_number(fields)?;
                self.handles.remove(&number).ok_or(NO_HANDLE)?;
                Ok(ok(id))
            }
            wire::READ => self.read(id, fields),
            wire::WRITE => self.write(id, fields),
            wire::LSTAT => {
                let path = self.path(fields)?;
                Ok(attrs(id, &fs::symlink_metadata(path)?))
            }
            wire::STAT => {
                let path = self.path(fields)?;
                Ok(attrs(id, &fs::metadata(path)?))
            }
            wire::FSTAT => match self.handle(fields)? {
                Handle::File { file, .. } => Ok(attrs(id, &file.metadata()?)),
                Handle::Directory { path, .. } => Ok(attrs(id, &fs::metadata(path)?)),
            },
            wire::SETSTAT => self.set_stat(id, fields),
            wire::FSETSTAT => self.set_stat_handle(id, fields),
            wire::OPENDIR => self.open_dir(id, fields),
            wire::READDIR => self.read_dir(id, fields),
            wire::REALPATH => self.real_path(id, fields),
            wire::READLINK => {
                let target = fs::read_link(self.path(fields)?)?;
                Ok(names(id, 1)
                    .text(bytes_of(&target))
                    .text(bytes_of(&target))
                    .with(attributes::write_none))
            }
            wire::REMOVE | wire::MKDIR | wire::RMDIR => self.change_one(kind, id, fields),
            wire::RENAME | wire::SYMLINK => self.change_two(kind, id, fields),
            wire::EXTENDED => self.extended(id, fields),
            _ => Err(Failure::Status(UNSUPPORTED, "not supported")),
        }
    }

    fn open(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let path = self.path(fields)?;
        let flags = fields.number()?;
        let attributes = Attributes::read(fields)?;
        self.has_room()?;
        let append = flags & OPEN_APPEND != 0;
        let mut options = OpenOptions::new();
        options.read(flags & OPEN_READ != 0).write(flags & OPEN_WRITE != 0).append(append);
        let writes = flags & OPEN_WRITE != 0;
        options.truncate(writes && !append && flags & OPEN_TRUNCATE != 0);
        if writes && flags & OPEN_CREATE != 0 {
            options.create(true).create_new(flags & OPEN_EXCLUSIVE != 0);
        }
        options.mode(attributes.mode.unwrap_or(0o666));
        // A FIFO or a terminal must not hold up everything else.
        options.custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK);
        let opened = options.open(&path);
        self.tell(SftpAction::Open, &path, None, open_flags(flags), opened.as_ref().map(drop))?;
        self.keep(id, Handle::File { file: opened?, path, append })
    }

    fn read(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let Handle::File { file, .. } = self.handle(fields)? else { return Err(NO_HANDLE) };
        let (offset, asked) = (fields.long()?, fields.number()?);
        let asked = usize::try_from(asked).unwrap_or(READ_BYTES_MAX).min(READ_BYTES_MAX);
        let mut data = vec![0; asked];
        let count = file.read_at(&mut data, offset)?;
        if count == 0 && asked != 0 {
            return Err(Failure::Status(EOF, "end of file"));
        }
        Ok(Packet::answer(wire::DATA, id).text(data.get(..count).unwrap_or_default()))
    }

    fn write(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let Handle::File { file, append, .. } = self.handle(fields)? else {
            return Err(NO_HANDLE);
        };
        let (mut file, append) = (&*file, *append);
        let (offset, data) = (fields.long()?, fields.text()?);
        if append {
            file.write_all(data)?;
        } else {
            file.write_all_at(data, offset)?;
        }
        Ok(ok(id))
    }

    fn set_stat(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let path = self.path(fields)?;
        let attributes = Attributes::read(fields)?;
        let done = attributes.apply_path(&path);
        self.tell(SftpAction::Setstat, &path, None, attributes.names(), done.as_ref().map(drop))?;
        done?;
        Ok(ok(id))
    }

    fn set_stat_handle(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let handle = self.handle(fields)?;
        let attributes = Attributes::read(fields)?;
        let (path, done) = match handle {
            Handle::File { file, path, .. } => (path.clone(), attributes.apply(file)),
            Handle::Directory { path, .. } => (path.clone(), attributes.apply_path(path)),
        };
        self.tell(SftpAction::Setstat, &path, None, attributes.names(), done.as_ref().map(drop))?;
        done?;
        Ok(ok(id))
    }

    fn open_dir(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let path = self.path(fields)?;
        self.has_room()?;
        let opened = fs::read_dir(&path);
        let told = opened.as_ref().map(drop);
        self.tell(SftpAction::Opendir, &path, None, String::new(), told)?;
        self.keep(id, Handle::Directory { entries: opened?, path })
    }

    fn read_dir(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let Handle::Directory { entries, .. } = self.handle(fields)? else {
            return Err(NO_HANDLE);
        };
        let mut list = Vec::new();
        let mut count = 0;
        while count < ENTRIES_PER_ANSWER && list.len() < READ_BYTES_MAX {
            let Some(entry) = entries.next() else { break };
            let entry = entry?;
            // Gone meanwhile: not an error of the listing.
            let Ok(metadata) = entry.metadata() else { continue };
            let name = entry.file_name();
            put_text(&mut list, name.as_bytes());
            put_text(&mut list, &attributes::long_name(name.as_bytes(), &metadata));
            attributes::write(&mut list, &metadata);
            count += 1;
        }
        if count == 0 {
            return Err(Failure::Status(EOF, "end of directory"));
        }
        Ok(names(id, count).with(|to| to.extend_from_slice(&list)))
    }

    fn real_path(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let path = self.path(fields)?;
        // A path that does not exist yet is answered too: clients ask before they create it.
        let real = fs::canonicalize(&path).unwrap_or_else(|_| plain(&path));
        Ok(names(id, 1).text(bytes_of(&real)).text(bytes_of(&real)).with(attributes::write_none))
    }

    fn change_one(&mut self, kind: u8, id: u32, fields: &mut Fields<'_>) -> Answer {
        let path = self.path(fields)?;
        let (action, done, flags) = match kind {
            wire::MKDIR => {
                let mode = Attributes::read(fields)?.mode.unwrap_or(0o777);
                let done = fs::DirBuilder::new().mode(mode).create(&path);
                (SftpAction::Mkdir, done, format!("mode={mode:04o}"))
            }
            wire::RMDIR => (SftpAction::Rmdir, fs::remove_dir(&path), String::new()),
            _ => (SftpAction::Remove, fs::remove_file(&path), String::new()),
        };
        self.tell(action, &path, None, flags, done.as_ref().map(drop))?;
        done?;
        Ok(ok(id))
    }

    fn change_two(&mut self, kind: u8, id: u32, fields: &mut Fields<'_>) -> Answer {
        if kind == wire::SYMLINK {
            // OpenSSH's order, which all clients follow: the target first, as it is, then the link.
            let target = PathBuf::from(OsStr::from_bytes(fields.text()?));
            let link = self.path(fields)?;
            let done = std::os::unix::fs::symlink(&target, &link);
            return self.told_two(id, SftpAction::Symlink, &link, &target, "", done);
        }
        let (from, to) = (self.path(fields)?, self.path(fields)?);
        // Version 3 never replaces; `renameat2` says so without a race, where the file system knows it.
        let done = rustix::fs::renameat_with(
            rustix::fs::CWD,
            &from,
            rustix::fs::CWD,
            &to,
            rustix::fs::RenameFlags::NOREPLACE,
        );
        self.told_two(id, SftpAction::Rename, &from, &to, "", done.map_err(io::Error::from))
    }

    fn extended(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        match fields.text()? {
            b"posix-rename@openssh.com" => {
                let (from, to) = (self.path(fields)?, self.path(fields)?);
                let done = fs::rename(&from, &to);
                self.told_two(id, SftpAction::Rename, &from, &to, "replace", done)
            }
            b"hardlink@openssh.com" => {
                let (from, to) = (self.path(fields)?, self.path(fields)?);
                let done = fs::hard_link(&from, &to);
                self.told_two(id, SftpAction::Link, &from, &to, "", done)
            }
            b"fsync@openssh.com" => {
                let Handle::File { file, .. } = self.handle(fields)? else {
                    return Err(NO_HANDLE);
                };
                file.sync_all()?;
                Ok(ok(id))
            }
            b"limits@openssh.com" => {
                let most = u64::try_from(wire::PACKET_BYTES_MAX).unwrap_or(0);
                let data = u64::try_from(READ_BYTES_MAX).unwrap_or(0);
                let handles = u64::try_from(HANDLES_MAX).unwrap_or(0);
                let answer = Packet::answer(wire::EXTENDED_REPLY, id);
                Ok(answer.long(most).long(data).long(data).long(handles))
            }
            _ => Err(Failure::Status(UNSUPPORTED, "not supported")),
        }
    }

    fn told_two(
        &mut self,
        id: u32,
        action: SftpAction,
        path: &Path,
        target: &Path,
        flags: &str,
        done: io::Result<()>,
    ) -> Answer {
        self.tell(action, path, Some(target), flags.to_owned(), done.as_ref().map(drop))?;
        done?;
        Ok(ok(id))
    }

    /// Tells the parent, before the client gets its answer.
    fn tell(
        &mut self,
        action: SftpAction,
        path: &Path,
        target: Option<&Path>,
        flags: String,
        done: Result<(), &io::Error>,
    ) -> Result<(), Failure> {
        let report = Report {
            action,
            path: path.to_string_lossy().into_owned(),
            working_directory: self.home.to_string_lossy().into_owned(),
            target_path: target.map(|t| t.to_string_lossy().into_owned()).unwrap_or_default(),
            flags,
            outcome: match done {
                Ok(()) => Outcome::ok(),
                Err(error) => Outcome::failed(error.to_string()),
            },
        };
        self.reporter.report(&report).map_err(Failure::Unreported)
    }

    /// A request's path, made absolute from the home directory.
    fn path(&self, fields: &mut Fields<'_>) -> Result<PathBuf, Failure> {
        let text = fields.text()?;
        if text.contains(&0) || text.len() > PATH_BYTES_MAX {
            return Err(Failure::Status(NO_SUCH_FILE, "no such path"));
        }
        Ok(self.home.join(OsStr::from_bytes(text)))
    }

    fn handle(&mut self, fields: &mut Fields<'_>) -> Result<&mut Handle, Failure> {
        self.handles.get_mut(&handle_number(fields)?).ok_or(NO_HANDLE)
    }

    fn has_room(&self) -> Result<(), Failure> {
        if self.handles.len() < HANDLES_MAX {
            return Ok(());
        }
        Err(Failure::Status(FAILURE, "too many open files"))
    }

    fn keep(&mut self, id: u32, handle: Handle) -> Answer {
        let number = self.next_handle;
        // Numbers come again after 2^32 opens: an entry in use is passed over.
        self.next_handle = number.wrapping_add(1);
        if self.handles.contains_key(&number) {
            return self.keep(id, handle);
        }
        self.handles.insert(number, handle);
        Ok(Packet::answer(wire::HANDLE, id).text(&number.to_be_bytes()))
    }
}

fn handle_number(fields: &mut Fields<'_>) -> Result<u32, Failure> {
    let bytes: [u8; 4] = fields.text()?.try_into().map_err(|_| NO_HANDLE)?;
    Ok(u32::from_be_bytes(bytes))
}

/// `.` and `..` taken out of an absolute path by name.
fn plain(path: &Path) -> PathBuf {
    let mut parts = PathBuf::from("/");
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                parts.pop();
            }
            std::path::Component::Normal(name) => parts.push(name),
            std::path::Component::CurDir
            | std::path::Component::RootDir
            | std::path::Component::Prefix(_) => {}
        }
    }
    parts
}

fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn put_text(to: &mut Vec<u8>, text: &[u8]) {
    let length = u32::try_from(text.len()).unwrap_or(0);
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(if length == 0 { &[] } else { text });
}

fn version() -> Packet {
    let extensions: [(&[u8], &[u8]); 4] = [
        (b"posix-rename@openssh.com", b"1"),
        (b"hardlink@openssh.com", b"1"),
        (b"fsync@openssh.com", b"1"),
        (b"limits@openssh.com", b"1"),
    ];
    let packet = Packet::new(wire::VERSION).number(PROTOCOL);
    extensions.iter().fold(packet, |packet, (name, data)| packet.text(name).text(data))
}

fn status(id: u32, code: u32, text: &str) -> Packet {
    Packet::answer(wire::STATUS, id).number(code).text(text.as_bytes()).text(b"en")
}

fn ok(id: u32) -> Packet {
    status(id, OK, "")
}

fn attrs(id: u32, metadata: &fs::Metadata) -> Packet {
    Packet::answer(wire::ATTRS, id).with(|to| attributes::write(to, metadata))
}

fn names(id: u32, count: u32) -> Packet {
    Packet::answer(wire::NAME, id).number(count)
}

/// For events, in the order of the protocol.
fn open_flags(flags: u32) -> String {
    let all = [
        (OPEN_READ, "read"),
        (OPEN_WRITE, "write"),
        (OPEN_APPEND, "append"),
        (OPEN_CREATE, "create"),
        (OPEN_TRUNCATE, "truncate"),
        (OPEN_EXCLUSIVE, "exclusive"),
    ];
    let set = all.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name);
    set.collect::<Vec<_>>().join(",")
}

const NO_HANDLE: Failure = Failure::Status(FAILURE, "no such handle");
const PROTOCOL: u32 = 3;
const OK: u32 = 0;
const EOF: u32 = 1;
const NO_SUCH_FILE: u32 = 2;
const PERMISSION_DENIED: u32 = 3;
const FAILURE: u32 = 4;
const BAD_MESSAGE: u32 = 5;
const UNSUPPORTED: u32 = 8;
const OPEN_READ: u32 = 0x01;
const OPEN_WRITE: u32 = 0x02;
const OPEN_APPEND: u32 = 0x04;
const OPEN_CREATE: u32 = 0x08;
const OPEN_TRUNCATE: u32 = 0x10;
const OPEN_EXCLUSIVE: u32 = 0x20;
/// Open files and directories at once; clients use a few.
const HANDLES_MAX: usize = 256;
/// Data of one answer, with room for its head in a packet.
const READ_BYTES_MAX: usize = wire::PACKET_BYTES_MAX - 1024;
/// Names of one answer: enough to make round trips rare.
const ENTRIES_PER_ANSWER: u32 = 256;
/// Linux' PATH_MAX.
const PATH_BYTES_MAX: usize = 4096;
