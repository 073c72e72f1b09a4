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
