//! How the command-line programs `tsh` and `tctl` speak: one way to fail, one way to list. Knows nothing of what they do
//! and of our other crates only `proto`. Text from elsewhere is made harmless before a terminal sees it.
//!
//! - [`captured`]: what the kernel told of a session, in words
//! - [`failure`]: one line for people, what to do next, an exit code
//! - [`output`]: tables, JSON, YAML
#![forbid(unsafe_code)]

pub mod captured;
pub mod failure;
pub mod output;
