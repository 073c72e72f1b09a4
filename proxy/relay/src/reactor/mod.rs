//! Threads that move bytes: one per core, each with its own sockets, timers, pipes and buffer, and nothing shared but an
//! inbox. What a worker waits on is the ladder's ring or epoll; the rest is the same.
//!
//! - [`worker`]: the loop, and the table of connections
//! - [`opening`]: a connection until it is relayed
//! - [`poller`]: who is ready; [`timers`]: who has waited too long; [`inbox`]: what the control plane wants

pub(crate) mod inbox;
mod opening;
pub(crate) mod poller;
mod timers;
pub(crate) mod worker;
