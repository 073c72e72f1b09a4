//! End to end, with real peers: the programs as built, OpenSSH and its friends as Debian ships them.
//! `cargo xtask test` installs the peers and builds the programs; a missing one fails a test and is never skipped.
//! Namespaces and other users need root, as the README says.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod account;
mod cluster;
mod crowd;
mod run;

mod admin;
mod capture;
mod capture_all;
mod login;
mod namespaces;
mod openssh;
mod recordings;
mod refusals;
mod resilience;
mod rules;
mod surfaces;
mod terminal;
mod unprivileged;
mod upgrade;
