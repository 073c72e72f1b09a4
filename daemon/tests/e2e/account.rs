//! Accounts of this machine, made for one test.

use std::path::Path;

use tempfile::TempDir;

use crate::run::Run;

/// An account with a home of its own; removed when dropped.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) name: String,
    home: TempDir,
}

impl Account {
    /// Makes it, with `games` as a supplementary group.
    pub(crate) fn new(name: &str) -> Self {
        let _left_over = Run::new("userdel").arg(name).wait();
        let home = tempfile::tempdir().unwrap();
        Run::new("useradd")
            .arg("-d")
            .arg(home.path())
            .args(["-s", "/bin/bash", "-G", "games", name])
            .wait()
            .good();
        Run::new("chown").arg(format!("{name}:")).arg(home.path()).wait().good();
        Self { name: name.into(), home }
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// What `id` says of it.
    pub(crate) fn id(&self, flag: &str) -> String {
        Run::new("id").args([flag, &self.name]).wait().good().text().trim().to_owned()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let _gone = Run::new("userdel").arg(&self.name).wait();
    }
}
