//! Kernel programs that nodes of tests have left: killed as they are, they keep them for a node after them, which never comes.

use std::env;
use std::fs::{self, File};
use std::path::Path;

/// Where nodes pin; each folder has a link to the node's data, with a lock that a living node holds.
const BPF_FS: &str = "/sys/fs/bpf";

/// Removes what is of dead nodes in folders of tests. What cannot be removed costs every system call a little: said, no error.
pub(crate) fn remove() {
    let tests = env::temp_dir().join("postern-");
    for entry in fs::read_dir(BPF_FS).into_iter().flatten().flatten() {
        let Ok(owner) = fs::read_link(entry.path().join("owner")) else { continue };
        let of_tests = owner.as_os_str().as_encoded_bytes();
        if !of_tests.starts_with(tests.as_os_str().as_encoded_bytes()) || is_alive(&owner) {
            continue;
        }
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            println!("{} stays: {error}", entry.path().display());
        }
    }
}

fn is_alive(owner: &Path) -> bool {
    File::open(owner.join("lock")).is_ok_and(|lock| lock.try_lock().is_err())
}
