//! Paths of every length that there is, with every byte that there can be: told exactly, or told as cut. Text that is no UTF-8
//! is told so that the bytes can be had again.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Room, Told, command};

/// The longest that a system call takes, without the NUL.
const PATH_BYTES_MAX: usize = 4095;
/// Folders behind one another that no path can name any more.
const DEEP: usize = 40;

pub(super) fn paths_are_told_byte_by_byte() {
    let Some(room) = Room::open("paths") else { return };
    if room.stage.tier() == Some(capture::Tier::B) {
        // Told as they were passed, which in folders that deep is not the whole.
        return crate::not_here("the deepest paths are told in full by LSM programs only");
    }
    let told = room.begin(1, command("paths", &room.folder)).end(&room.stage);
    for path in named(&room.folder) {
        crate::at(format!("a path of {} bytes", path.as_os_str().len()));
        check(&told, &path, false);
    }
    crate::at("a path that is too long");
    let deep = deep(&room.folder);
    assert!(deep.as_os_str().len() > 2 * PATH_BYTES_MAX);
    check(&told, &deep, true);
    assert_eq!(told.lost(), 0);
}

/// It was made and removed, as far as events say.
fn check(told: &Told, path: &Path, may_be_cut: bool) {
    let bytes = path.as_os_str().as_bytes();
    for ops in [&["open", "create", "write"][..], &["unlink"]] {
        let mut candidates = told.of("session.disk").filter(|event| ops.contains(&op(event)));
        let found = candidates.any(|event| {
            let told = decoded(event["path"].as_str().unwrap());
            let cut = event["path_cut"] == true;
            // A part that is cut is the end, and more than the name.
            told == bytes && !cut
                || may_be_cut && cut && bytes.ends_with(&told) && told.len() > PATH_BYTES_MAX / 2
        });
        assert!(found, "not told: {} of {path:?}", ops[0]);
    }
}

fn op(event: &Value) -> &str {
    event["op"].as_str().unwrap_or_default()
}

/// The bytes of a text, as docs/reference/events.md says.
fn decoded(text: &str) -> Vec<u8> {
    let mut parts = text.split('\u{fffd}');
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend(part[2..].bytes());
    }
    bytes
}

/// Every byte but NUL and the slash, in which the names differ.
fn every_byte() -> Vec<u8> {
    (1..=255).filter(|byte| *byte != b'/').collect()
}

/// A name with each byte, a path of the longest name and one that is as long as paths are.
fn named(folder: &Path) -> Vec<PathBuf> {
    let in_folder = |name: &[u8]| folder.join(OsStr::from_bytes(name));
    let single = every_byte().into_iter().map(|byte| in_folder(&[b'b', byte]));
    let mut longest = folder.as_os_str().as_bytes().to_vec();
    while PATH_BYTES_MAX - longest.len() > 256 {
        longest.push(b'/');
        longest.extend(every_byte());
    }
    longest.push(b'/');
    longest.extend(every_byte().into_iter().cycle().take(PATH_BYTES_MAX - longest.len()));
    let longest = PathBuf::from(std::ffi::OsString::from_vec(longest));
    assert_eq!(longest.as_os_str().len(), PATH_BYTES_MAX);
    let whole = [folder.join(OsStr::from_bytes(&every_byte())).with_extension("x"), longest];
    single.chain(whole).collect()
}

fn deep(folder: &Path) -> PathBuf {
    let names = std::iter::repeat_n(every_byte(), DEEP);
    let folders = names.fold(folder.join("deep"), |path, name| path.join(OsStr::from_bytes(&name)));
    folders.join("end")
}

pub(super) fn deed(folder: &Path) {
    for path in named(folder) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(File::create(&path).unwrap());
        fs::remove_file(&path).unwrap();
    }
    let mut names = deep(folder);
    names = names.strip_prefix(folder).unwrap().to_owned();
    let name = names.file_name().unwrap().to_owned();
    for part in names.parent().unwrap() {
        fs::create_dir(part).unwrap();
        std::env::set_current_dir(part).unwrap();
    }
    drop(File::create(&name).unwrap());
    fs::remove_file(&name).unwrap();
}
