//! The SFTP session. Bulk goes in many requests at once, because russh-sftp's own file type keeps too few under way;
//! here their number is bounded, which also bounds that crate's unbounded queue.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt as _};
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::{Config, RawSftpSession};
use russh_sftp::protocol::{FileAttributes, OpenFlags, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_blocking;

use crate::scp::progress::Progress;
use crate::ssh::link::Link;
use cli::failure::{Failure, Fallible as _};

/// An SFTP session.
pub(crate) struct Remote {
    session: RawSftpSession,
}

/// A name in a remote folder, as the host says it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
}

/// By the file type bits, all of them: russh-sftp's own question takes sockets for folders.
pub(crate) fn is_dir(attrs: &FileAttributes) -> bool {
    attrs.permissions.is_some_and(|mode| mode & TYPE_BITS == 0o040_000)
}

/// As [`is_dir`].
pub(crate) fn is_file(attrs: &FileAttributes) -> bool {
    attrs.permissions.is_some_and(|mode| mode & TYPE_BITS == 0o100_000)
}

impl Remote {
    /// # Errors
    /// The host has no SFTP for this login.
    pub(crate) async fn start(link: &Link) -> Result<Self, Failure> {
        let start = async {
            let channel = link.handle().channel_open_session().await?;
            channel.request_subsystem(true, "sftp").await?;
            Self::over(channel.into_stream()).await
        };
        start.await.map_err(|failure| {
            link.end_reason().unwrap_or_else(|| failure.doing("the host refused file copy"))
        })
    }

    /// On a stream that leads to an SFTP server.
    ///
    /// # Errors
    /// It is none.
    pub(crate) async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Self, Failure> {
        let config = Config { request_timeout_secs: ANSWER_SECONDS, ..Config::default() };
        let session = RawSftpSession::new_with_config(stream, config);
        session.init().await?;
        Ok(Self { session })
    }

    pub(crate) fn finish(self) {
        // The connection ends next; this only spares the host an error.
        drop(self.session.close_session());
    }

    /// Attributes, following links; `None` if there is no such thing.
    ///
    /// # Errors
    /// The host's.
    pub(crate) async fn stat(&self, path: &str) -> Result<Option<FileAttributes>, Failure> {
        match self.session.stat(path).await {
            Ok(attrs) => Ok(Some(attrs.attrs)),
            Err(SftpError::Status(status)) if status.status_code == StatusCode::NoSuchFile => {
                Ok(None)
            }
            Err(error) => Err(error).doing(path),
        }
    }

    /// # Errors
    /// The host's, or more names than anybody copies.
    pub(crate) async fn list(&self, dir: &str) -> Result<Vec<Entry>, Failure> {
        let handle = self.session.opendir(dir).await.doing(dir)?.handle;
        let mut entries = Vec::new();
        loop {
            match self.session.readdir(handle.as_str()).await {
                Ok(page) => {
                    entries
                        .extend(page.files.into_iter().map(|file| Entry { name: file.filename }));
                }
                Err(SftpError::Status(status)) if status.status_code == StatusCode::Eof => break,
                Err(error) => return Err(error).doing(dir),
            }
            if entries.len() > ENTRIES_MAX {
                return Err(Failure::new(format!("{dir}: more than {ENTRIES_MAX} names")));
            }
        }
        self.session.close(handle).await.doing(dir)?;
        Ok(entries)
    }

    /// Makes a folder unless it is there.
    ///
    /// # Errors
    /// The host's.
    pub(crate) async fn make_dir(&self, path: &str, mode: u32) -> Result<(), Failure> {
        if self.stat(path).await?.is_some_and(|attrs| is_dir(&attrs)) {
            return Ok(());
        }
        let attrs = FileAttributes { permissions: Some(mode), ..FileAttributes::empty() };
        self.session.mkdir(path, attrs).await.doing(path)?;
        Ok(())
    }

    /// # Errors
    /// The host's.
    pub(crate) async fn set(&self, path: &str, attrs: FileAttributes) -> Result<(), Failure> {
        self.session.setstat(path, attrs).await.doing(path)?;
        Ok(())
    }

    /// Copies a local file's content to `path`.
    ///
    /// # Errors
    /// Either side's.
    pub(crate) async fn put(
        &self,
        file: File,
        path: &str,
        attrs: FileAttributes,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE;
        let handle = self.session.open(path, flags, attrs).await.doing(path)?.handle;
        let file = Arc::new(file);
        let mut under_way = FuturesUnordered::new();
        let mut offset = 0;
        let mut ended = false;
        let copied = async {
            loop {
                while !ended && under_way.len() < REQUESTS_MAX {
                    let data = read_chunk(&file, offset).await?;
                    let count = data.len();
                    if count == 0 {
                        ended = true;
                        break;
                    }
                    let write = self.session.write(handle.as_str(), offset, data);
                    under_way.push(async move { write.await.map(|_| count) });
                    offset += u64::try_from(count).unwrap_or(0);
                }
                match under_way.next().await {
                    Some(written) => progress.add(written?),
                    None => return Ok::<_, Failure>(()),
                }
            }
        };
        copied.await.doing(path)?;
        self.session.close(handle.as_str()).await.doing(path)?;
        Ok(())
    }

    /// Copies `path`'s content to a local file, which is emptied before.
    ///
    /// # Errors
    /// Either side's, or the file shrank meanwhile.
    pub(crate) async fn fetch(
        &self,
        path: &str,
        size: u64,
        file: File,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let attrs = FileAttributes::empty();
        let handle = self.session.open(path, OpenFlags::READ, attrs).await.doing(path)?.handle;
        file.set_len(0).doing("cannot empty the file here")?;
        let file = Arc::new(file);
        let mut under_way = FuturesUnordered::new();
        let mut offset = 0;
        let copied = async {
            loop {
                while offset < size && under_way.len() < REQUESTS_MAX {
                    let length = u32::try_from(size - offset).unwrap_or(CHUNK_BYTES);
                    let length = length.min(CHUNK_BYTES);
                    under_way.push(self.fetch_chunk(&handle, offset, length, &file));
                    offset += u64::from(length);
                }
                match under_way.next().await {
                    Some(count) => progress.add(count?),
                    None => return Ok::<_, Failure>(()),
                }
            }
        };
        copied.await.doing(path).hint("The file here holds only a part.")?;
        self.session.close(handle.as_str()).await.doing(path)?;
        Ok(())
    }

    /// One stretch, asked for again as long as the host gives less.
    async fn fetch_chunk(
        &self,
        handle: &str,
        offset: u64,
        length: u32,
        file: &Arc<File>,
    ) -> Result<usize, Failure> {
        let mut done: u32 = 0;
        while done < length {
            let at = offset + u64::from(done);
            let data = match self.session.read(handle, at, length - done).await {
                Ok(answer) => answer.data,
                Err(SftpError::Status(status)) if status.status_code == StatusCode::Eof => {
                    return Err(Failure::new("the file became shorter while it was copied"));
                }
                Err(error) => return Err(error.into()),
            };
            let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
            if count == 0 || count > length - done {
                return Err(Failure::new("the host's answer is not what was asked for"));
            }
            let file = Arc::clone(file);
            spawn_blocking(move || file.write_all_at(&data, at)).await??;
            done += count;
        }
        Ok(usize::try_from(length).unwrap_or(0))
    }
}

/// The next stretch of a local file; shorter at its end, then empty.
async fn read_chunk(file: &Arc<File>, offset: u64) -> Result<Vec<u8>, Failure> {
    let file = Arc::clone(file);
    let read = move || {
        let mut data = vec![0; usize::try_from(CHUNK_BYTES).unwrap_or(0)];
        let mut filled = 0;
        while let Some(free) = data.get_mut(filled..).filter(|free| !free.is_empty()) {
            let at = offset + u64::try_from(filled).unwrap_or(0);
            match file.read_at(free, at) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        data.truncate(filled);
        Ok(data)
    };
    Ok(spawn_blocking(read).await??)
}

/// POSIX `S_IFMT`.
const TYPE_BITS: u32 = 0o170_000;
/// What every SFTP server takes in one request.
const CHUNK_BYTES: u32 = 32 * 1024;
/// Under way at once: 4 MiB, enough for 100 Mbit/s over 300 ms.
const REQUESTS_MAX: usize = 128;
/// On a slow link a request waits behind all others; dead links are noticed by keepalives.
const ANSWER_SECONDS: u64 = 600;
/// Names in one folder that we hold in memory.
const ENTRIES_MAX: usize = 1_000_000;
