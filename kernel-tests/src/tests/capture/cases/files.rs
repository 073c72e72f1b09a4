//! Files by what is no open, by what is no path, and by another path than their own.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Read as _;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
use rustix::mount::mount_bind;
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

use super::super::deed::{Deed, applet, busybox, finish, forked_to_end};
use super::super::stage::{self, Scene};
use super::super::told::{Found, Told};
use super::{Case, Play};
use crate::sys::process::unshare;

pub(super) const CASES: &[Case] = &[
    Case {
        number: 21,
        name: "unlink, rename, chmod, truncate, xattr",
        play: Play::Here(changes_and_refusals),
        deed: do_changes_or_be_refused,
    },
    Case { number: 22, name: "open_by_handle_at", play: Play::Here(handle), deed: do_handle },
    Case {
        number: 23,
        name: "bind mount, chroot, hard link",
        play: Play::Here(aliases),
        deed: do_aliases,
    },
    Case { number: 24, name: "raw read of the block device", play: Play::Here(raw), deed: do_raw },
];

fn changes_and_refusals(scene: &Scene<'_>) -> Vec<Found> {
    let mut found = changes(scene);
    found.extend(refusals(scene));
    found
}

fn do_changes_or_be_refused(deed: &Deed, part: &str) {
    if part == "refused" { do_be_refused(deed) } else { do_changes(deed) }
}

fn changes(scene: &Scene<'_>) -> Vec<Found> {
    let told = scene.session("");
    let one = |op: &str, name: &str| told.disk(&[op], &scene.text(name));
    let two = |op: &str, name: &str, other: &str| {
        one(op, name).with("target_path", scene.text(other)).found()
    };
    vec![
        one("unlink", "gone").found(),
        two("rename", "old", "new"),
        one("chmod", "mode").with("mode", 0o600).found(),
        one("chown", "owner").found(),
        one("truncate", "short").found(),
        one("setxattr", "attribute").found(),
        one("mkdir", "folder").found(),
        one("rmdir", "folder").found(),
        one("symlink", "symbolic").found(),
        two("link", "name", "other-name").or(two("link", "other-name", "name")),
        one("mknod", "pipe").found(),
    ]
}

fn do_changes(deed: &Deed) {
    for name in ["gone", "old", "mode", "owner", "short", "attribute", "name"] {
        deed.file(name);
    }
    fs::remove_file(deed.path("gone")).unwrap();
    fs::rename(deed.path("old"), deed.path("new")).unwrap();
    fs::set_permissions(deed.path("mode"), Permissions::from_mode(0o600)).unwrap();
    chown(deed.path("owner"), Some(1), Some(1)).unwrap();
    // By its path: not through an open file.
    let short = deed.path("short");
    OpenOptions::new().write(true).open(&short).unwrap().set_len(1).unwrap();
    setxattr(deed.path("attribute"), "trusted.bypass", b"x", XattrFlags::empty()).unwrap();
    fs::create_dir(deed.path("folder")).unwrap();
    fs::remove_dir(deed.path("folder")).unwrap();
    symlink("anywhere", deed.path("symbolic")).unwrap();
    fs::hard_link(deed.path("name"), deed.path("other-name")).unwrap();
    mknodat(CWD, deed.path("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
}

const REFUSED_OPENS: u64 = 64;

/// What somebody was not allowed to do: told by how it ended, each once for a process and then by how often.
fn refusals(scene: &Scene<'_>) -> Vec<Found> {
    fs::set_permissions(scene.path(""), Permissions::from_mode(0o755)).unwrap();
    let told = scene.session("refused");
    let by = told.facts.number("child");
    let (acces, perm, noent) = (-libc::EACCES, -libc::EPERM, -libc::ENOENT);
    let one = |op: &str, name: &str, code: i32| {
        let any = told.disk(&[op], &scene.text(name)).with("return_code", code);
        any.by(by).named(&format!("refused {op} {name}")).found()
    };
    let opens = told.of("session.disk").filter(|event| {
        event["op"] == "open"
            && event["path"] == scene.text("closed").as_str()
            && event["return_code"] == acces
    });
    let opens: Vec<u64> = opens.map(|event| event["times"].as_u64().unwrap_or(1)).collect();
    let looked_for = told.disk(&["open"], &scene.text("nowhere")).by(by).found();
    vec![
        one("open", "closed", acces),
        one("open", "not-made", acces),
        one("unlink", "closed", acces),
        one("rename", "closed", acces),
        one("chmod", "closed", perm),
        one("truncate", "closed", acces),
        one("mkdir", "not-made", acces),
        one("unlink", "nowhere", noent),
        Found::whole(
            &format!("{} refused opens in {} events", opens.iter().sum::<u64>(), opens.len()),
            opens.iter().sum::<u64>() == REFUSED_OPENS && opens.len() == 4,
        ),
        Found::whole("nothing of what was only looked for", !looked_for.is_seen()),
        told.network("connect", "tcp").with("return_code", -libc::ENETUNREACH).by(by).found(),
    ]
}

fn do_be_refused(deed: &Deed) {
    let closed = deed.file("closed");
    fs::set_permissions(&closed, Permissions::from_mode(0o600)).unwrap();
    let (not_made, nowhere) = (deed.path("not-made"), deed.path("nowhere"));
    let child = forked_to_end(|| {
        let nobody = Uid::from_raw(NOBODY);
        set_thread_res_uid(nobody, nobody, nobody).unwrap();
        for _ in 0..REFUSED_OPENS {
            File::open(&closed).unwrap_err();
            File::open(&nowhere).unwrap_err();
        }
        File::create(&not_made).unwrap_err();
        fs::remove_file(&closed).unwrap_err();
        fs::rename(&closed, &not_made).unwrap_err();
        fs::set_permissions(&closed, Permissions::from_mode(0o666)).unwrap_err();
        crate::sys::truncate(&closed).unwrap_err();
        fs::create_dir(&not_made).unwrap_err();
        fs::remove_file(&nowhere).unwrap_err();
        // Nobody can be reached there by TCP.
        TcpStream::connect("255.255.255.255:1").unwrap_err();
    });
    deed.tell("child", child);
}

const NOBODY: u32 = 65534;

fn handle(scene: &Scene<'_>) -> Vec<Found> {
    fs::write(scene.path("secret"), "x").unwrap();
    let told = scene.session("");
    let (path, inode) = (told.facts.text("forgotten"), told.facts.text("inode"));
    // Where the file system could find the file without its folder, its path is not known, and must not seem to be.
    let forgotten = told.any_disk().with("op", "open").that(|event| {
        event["file"].as_str().is_some_and(|file| file.split(':').nth(2) == Some(inode.as_str()))
            && (event["path"] == path.as_str() || event["path_cut"] == true)
    });
    vec![told.opened(&scene.text("secret")).found(), forgotten.named("forgotten").by_any().found()]
}

fn do_handle(deed: &Deed, _: &str) {
    let mut said = String::new();
    let file = crate::sys::open_by_handle(&deed.path("secret"), || {});
    file.unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "x");
    // On a disk, the kernel forgets names; in memory it does not.
    let folder = Path::new("/var/tmp/postern-bypass");
    fs::create_dir_all(folder).unwrap();
    let path = folder.join("forgotten");
    fs::write(&path, "x").unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    let file = crate::sys::open_by_handle(&path, || {
        rustix::fs::sync();
        // Entries of folders, and inodes.
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    });
    drop(file.unwrap());
    fs::remove_dir_all(folder).unwrap();
    deed.tell("forgotten", path.display());
    deed.tell("inode", inode);
}

/// Whatever the path is: the file is the one that it is.
fn opened_as(told: &Told, path: &Path, name: &str) -> Found {
    let file = fs::metadata(path).unwrap();
    let (dev, ino) = (file.dev(), file.ino());
    let identity = format!("{}:{}:{ino}:", rustix::fs::major(dev), rustix::fs::minor(dev));
    let any = told.any_disk().that(|event| {
        let is_it = event["file"].as_str().is_some_and(|file| file.starts_with(&identity));
        is_it && event["path"].as_str().is_some_and(|path| path.ends_with(name))
    });
    any.named(name).by_any().found()
}

fn aliases(scene: &Scene<'_>) -> Vec<Found> {
    fs::create_dir(scene.path("real")).unwrap();
    for name in ["bound", "rooted", "linked"] {
        fs::write(scene.path("real").join(name), "x").unwrap();
    }
    fs::hard_link(scene.path("real/linked"), scene.path("alias")).unwrap();
    let told = scene.session("");
    vec![
        opened_as(&told, &scene.path("real/bound"), "bound"),
        opened_as(&told, &scene.path("real/rooted"), "rooted"),
        // From the root of the file system, not from the one that the session made up.
        told.opened(&scene.text("real/rooted")).by(told.facts.number("rooted")).found(),
        opened_as(&told, &scene.path("real/linked"), "alias"),
        told.disk(&["chroot"], &scene.text("real")).by(told.facts.number("rooted")).found(),
        told.any_disk().with("op", "mount").named("mount").found(),
    ]
}

fn do_aliases(deed: &Deed, _: &str) {
    drop(File::open(deed.path("alias")).unwrap());
    let rooted = super::super::deed::forked_to_end(|| {
        std::os::unix::fs::chroot(deed.path("real")).unwrap();
        std::env::set_current_dir("/").unwrap();
        drop(File::open("/rooted").unwrap());
    });
    deed.tell("rooted", rooted);
    unshare(libc::CLONE_NEWNS).unwrap();
    fs::create_dir(deed.path("view")).unwrap();
    mount_bind(deed.path("real"), deed.path("view")).unwrap();
    drop(File::open(deed.path("view/bound")).unwrap());
}

/// The numbers of the kernel's memory disk.
const RAM: (u32, u32) = (1, 0);

fn raw(scene: &Scene<'_>) -> Vec<Found> {
    if stage::is_guest() {
        // A disk in memory: a guest has no other.
        finish(&mut applet(&busybox(), "modprobe").arg("brd").spawn().unwrap());
    }
    let told = scene.session("");
    let path = told.facts.text("device");
    vec![told.opened(&path).found()]
}

/// The first disk there is; a node for it, where nobody has made one. Nothing is written.
fn do_raw(deed: &Deed, _: &str) {
    let node = deed.path("disk");
    let disks = fs::read_dir("/sys/block").unwrap().filter_map(|entry| {
        let text = fs::read_to_string(entry.ok()?.path().join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    let Some((major, minor)) = disks.min_by_key(|disk| *disk != RAM) else {
        deed.impossible("no disk");
    };
    mknodat(CWD, &node, FileType::BlockDevice, Mode::RUSR, makedev(major, minor)).unwrap();
    deed.tell("device", node.display());
    // Some have no medium.
    assert!(File::open(node).unwrap().read(&mut [0; 512]).unwrap() <= 512);
}
