//! How the command-line programs `tsh` and `tctl` speak: one way to fail, one way to list. Knows nothing of what they do
//! and nothing of our other crates. Text from elsewhere is made harmless before a terminal sees it.
//!
//! - [`failure`]: one line for people, what to do next, an exit code
//! - [`output`]: tables, JSON, YAML
#![forbid(unsafe_code)]

pub mod failure;
pub mod output;
