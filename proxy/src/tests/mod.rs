//! The proxy between real peers: an auth that issues and pushes, nodes by `net::tunnel`, users by `net::dial` and russh's
//! client. [`cluster`] is the stage.

mod cluster;
mod door;
mod jump;
mod streams;

pub(crate) use cluster::people;
