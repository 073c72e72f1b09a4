//! Places that one can SSH to: a Postern cluster, and OpenSSH servers, each with what a client needs to get in.
//!
//! - [`cluster`]: a bastion and a node, from nothing, as `cargo xtask demo` makes them
//! - [`enrolment`]: the cluster's user signs in
//! - [`openssh`]: servers with a configuration and keys of their own
//! - [`client`]: running a client against one of them

pub(crate) mod client;
pub(crate) mod cluster;
mod enrolment;
pub(crate) mod openssh;

use std::process::Command;

use crate::program::command;

/// What shells read when a session begins. On a developer's machine it can take longer than everything else together.
const START_FILES: &str = ".bash_login .bash_profile .bashrc .profile .zprofile .zshenv .zshrc";

/// The command, in surroundings in which the account's shells find their start files empty. Only root can make such
/// surroundings; without it, what the files do is part of every session, for all alike.
fn without_start_files(server: &Command) -> Command {
    if !rustix::process::geteuid().is_root() {
        return command(server.get_program(), server.get_args());
    }
    let script = format!(
        "cd && for file in {START_FILES}; do [ ! -e \"$file\" ] || mount --bind /dev/null \"$file\"; done \
         && cd / && exec \"$@\""
    );
    let mut wrapped = command("unshare", ["--mount", "--propagation=private", "sh", "-c"]);
    wrapped.arg(script).arg("sh").arg(server.get_program()).args(server.get_args());
    wrapped
}
