//! Unix accounts as sessions need them: who it is, which groups, which shell. Looked up when somebody logs in, never
//! cached across connections. Whether the person may is `admit`'s question, not asked here.

use std::io;
use std::path::PathBuf;

use crate::sys::account as database;
use crate::sys::child::Switch;

/// An account that exists on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

impl Account {
    /// The ids to take, or nothing when they are ours already.
    pub(crate) fn switch(&self, serves: &Serves) -> Option<Switch> {
        match serves {
            Serves::AnyUser => {
                Some(Switch { uid: self.uid, gid: self.gid, groups: self.groups.clone() })
            }
            Serves::OnlyOwnUser(_) => None,
        }
    }
}

/// Whom this node can serve, fixed at start by the rights that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Serves {
    /// Root: any account.
    AnyUser,
    /// Without root, its own account only.
    OnlyOwnUser(String),
}

impl Serves {
    /// Found out from our own rights.
    pub(crate) fn probe() -> io::Result<Self> {
        if rustix::process::geteuid().is_root() {
            return Ok(Self::AnyUser);
        }
        let uid = rustix::process::geteuid().as_raw();
        match database::by_uid(uid)? {
            Some(entry) => Ok(Self::OnlyOwnUser(entry.name)),
            None => Err(io::Error::other(format!("this process' user {uid} has no account"))),
        }
    }
}

/// The account of this name. On a blocking thread: name services may be slow.
pub(crate) async fn find(name: String) -> io::Result<Option<Account>> {
    tokio::task::spawn_blocking(move || find_blocking(&name)).await.map_err(io::Error::other)?
}

fn find_blocking(name: &str) -> io::Result<Option<Account>> {
    let Some(entry) = database::by_name(name)? else { return Ok(None) };
    // A database that matches loosely (case, aliases) must not turn one login into another account.
    if entry.name != name {
        return Ok(None);
    }
    let groups = database::groups(&entry.name, entry.gid)?;
    let shell = if entry.shell.as_os_str().is_empty() { SHELL.into() } else { entry.shell };
    let home = if entry.home.is_absolute() { entry.home } else { "/".into() };
    Ok(Some(Account { name: entry.name, uid: entry.uid, gid: entry.gid, groups, home, shell }))
}

/// passwd(5): an empty shell field means this one.
const SHELL: &str = "/bin/sh";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accounts_are_found_whole() {
        let root = find("root".into()).await.unwrap().unwrap();
        assert_eq!((root.uid, root.gid, root.name.as_str()), (0, 0, "root"));
        assert!(root.groups.contains(&0) && root.home.is_absolute() && root.shell.is_absolute());
        assert_eq!(find("no-such-account-here".into()).await.unwrap(), None);
    }
}
