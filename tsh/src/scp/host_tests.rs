//! Copies to and from an SFTP server in the same process: honest and hostile.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use russh_sftp::protocol::{
    Attrs, Data, File, FileAttributes, Handle, Name, OpenFlags, Status, StatusCode,
};
use russh_sftp::server;

use crate::scp::place::RemotePlace;
use crate::scp::progress::Progress;
use crate::scp::remote::Remote;
use crate::scp::{CopySettings, download, upload};

/// Path to content; `None` is a folder.
type Tree = Arc<Mutex<HashMap<String, Option<Vec<u8>>>>>;

/// A host's files. `names` is what its folders claim to hold; reads give at most `read_bytes_max`.
struct HostFiles {
    tree: Tree,
    names: Vec<String>,
    listed: bool,
    read_bytes_max: usize,
}

fn ok(id: u32) -> Status {
    Status {
        id,
        status_code: StatusCode::Ok,
        error_message: String::new(),
        language_tag: String::new(),
    }
}

impl server::Handler for HostFiles {
    type Error = StatusCode;

    fn unimplemented(&self) -> StatusCode {
        StatusCode::OpUnsupported
    }
    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, StatusCode> {
        let tree = self.tree.lock().unwrap();
        let entry = tree.get(&path).ok_or(StatusCode::NoSuchFile)?;
        let (size, mode) = match entry {
            Some(content) => (content.len(), 0o106_755),
            None => (0, 0o040_755),
        };
        let attrs = FileAttributes {
            size: Some(size.try_into().unwrap()),
            permissions: Some(mode),
            atime: Some(2_000),
            mtime: Some(1_000),
            ..FileAttributes::empty()
        };
        Ok(Attrs { id, attrs })
    }
    async fn open(
        &mut self,
        id: u32,
        path: String,
        flags: OpenFlags,
        _attrs: FileAttributes,
    ) -> Result<Handle, StatusCode> {
        if path == "locked" {
            return Err(StatusCode::PermissionDenied);
        }
        let mut tree = self.tree.lock().unwrap();
        if flags.contains(OpenFlags::WRITE) {
            tree.insert(path.clone(), Some(vec![]));
        }
        let known = tree.contains_key(&path);
        known.then_some(Handle { id, handle: path }).ok_or(StatusCode::NoSuchFile)
    }
    async fn read(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        len: u32,
    ) -> Result<Data, StatusCode> {
        let tree = self.tree.lock().unwrap();
        let content = tree.get(&handle).and_then(Option::as_ref).ok_or(StatusCode::Failure)?;
        let from = usize::try_from(offset).unwrap();
        let rest = content.get(from..).filter(|rest| !rest.is_empty()).ok_or(StatusCode::Eof)?;
        let count = rest.len().min(usize::try_from(len).unwrap()).min(self.read_bytes_max);
        Ok(Data { id, data: rest[..count].to_vec() })
    }
    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<Status, StatusCode> {
        let mut tree = self.tree.lock().unwrap();
        let content = tree.get_mut(&handle).and_then(Option::as_mut).ok_or(StatusCode::Failure)?;
        let from = usize::try_from(offset).unwrap();
        content.resize(content.len().max(from + data.len()), 0);
        content[from..from + data.len()].copy_from_slice(&data);
        Ok(ok(id))
    }
    async fn mkdir(
        &mut self,
        id: u32,
        path: String,
        _attrs: FileAttributes,
    ) -> Result<Status, StatusCode> {
        self.tree.lock().unwrap().insert(path, None);
        Ok(ok(id))
    }
    async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, StatusCode> {
        self.listed = false;
        Ok(Handle { id, handle: path })
    }
    async fn readdir(&mut self, id: u32, _handle: String) -> Result<Name, StatusCode> {
        if std::mem::replace(&mut self.listed, true) {
            return Err(StatusCode::Eof);
        }
        let files = self.names.iter().map(File::dummy).collect();
        Ok(Name { id, files })
    }
    async fn close(&mut self, id: u32, _handle: String) -> Result<Status, StatusCode> {
        Ok(ok(id))
    }
    async fn setstat(
        &mut self,
        id: u32,
        _path: String,
        _attrs: FileAttributes,
    ) -> Result<Status, StatusCode> {
        Ok(ok(id))
    }
}

async fn remote(tree: &Tree, names: &[&str], read_bytes_max: usize) -> Remote {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    server::run(far, HostFiles { tree: Arc::clone(tree), names, listed: false, read_bytes_max })
        .await;
    Remote::over(near).await.unwrap()
}

fn place(path: &str) -> RemotePlace {
    RemotePlace { host: "web1".into(), path: path.into() }
}

const HOW: CopySettings = CopySettings { recursive: true, preserve: true };

#[tokio::test]
async fn a_file_goes_there_and_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    // Longer than all requests under way, and no multiple of one.
    let content: Vec<u8> = (0..5_000_001_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    fs::write(path("big"), &content).unwrap();
    let tree = Tree::default();
    tree.lock().unwrap().insert("/tmp".into(), None);
    let host = remote(&tree, &[], 20_000).await;
    let mut progress = Progress::new(true);
    upload::run(&host, &[path("big")], &place("/tmp"), HOW, &mut progress).await.unwrap();
    assert!(tree.lock().unwrap()["/tmp/big"].as_ref().unwrap() == &content);
    let back = path("back");
    download::run(&host, &[place("/tmp/big")], &back, HOW, &mut progress).await.unwrap();
    assert!(fs::read(&back).unwrap() == content);
    let metadata = fs::metadata(&back).unwrap();
    // Times are kept, the set-user-id bit is not.
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
    let modified = metadata.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(modified.as_secs(), 1_000);
}

#[tokio::test]
async fn names_that_lead_elsewhere_end_the_copy() {
    for bad in ["../evil", "/etc/evil", "a/b", ""] {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("in");
        let tree = Tree::default();
        for (name, content) in [("d", None), ("d/good", Some(b"x".to_vec()))] {
            tree.lock().unwrap().insert(name.into(), content);
        }
        tree.lock().unwrap().insert(format!("d/{bad}"), Some(b"evil".to_vec()));
        let host = remote(&tree, &[".", "..", "good", bad], 100).await;
        let to = to.display().to_string();
        let mut progress = Progress::new(true);
        let result = download::run(&host, &[place("d")], &to, HOW, &mut progress).await;
        assert!(result.unwrap_err().message().contains("unsafe file name"), "{bad:?}");
        assert!(!dir.path().join("evil").exists());
    }
}

#[tokio::test]
async fn a_file_that_the_host_keeps_costs_nobody_theirs() {
    let tree = Tree::default();
    tree.lock().unwrap().insert("locked".into(), Some(b"x".to_vec()));
    let host = remote(&tree, &[], 100).await;
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("mine");
    fs::write(&to, "mine").unwrap();
    let mut progress = Progress::new(true);
    let to_text = to.display().to_string();
    let kept = download::run(&host, &[place("locked")], &to_text, HOW, &mut progress).await;
    kept.unwrap_err();
    assert_eq!(fs::read(&to).unwrap(), b"mine");
    // A longer one that was there leaves nothing behind its successor.
    tree.lock().unwrap().insert("open".into(), Some(b"x".to_vec()));
    download::run(&host, &[place("open")], &to_text, HOW, &mut progress).await.unwrap();
    assert_eq!(fs::read(&to).unwrap(), b"x");
}

#[tokio::test]
async fn folders_need_the_flag_and_missing_files_are_told() {
    let tree = Tree::default();
    tree.lock().unwrap().insert("d".into(), None);
    let host = remote(&tree, &[], 100).await;
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().display().to_string();
    let mut progress = Progress::new(true);
    let how = CopySettings { recursive: false, preserve: false };
    let folder = download::run(&host, &[place("d")], &to, how, &mut progress).await;
    assert!(folder.unwrap_err().message().contains("pass -r"));
    let missing = download::run(&host, &[place("none")], &to, how, &mut progress).await;
    assert!(missing.unwrap_err().message().contains("no such file"));
    let folder = upload::run(&host, &[to], &place("d"), how, &mut progress).await;
    assert!(folder.unwrap_err().message().contains("pass -r"));
}
