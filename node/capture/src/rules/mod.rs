//! What sessions must not do: the rules of roles, from their texts to the kernel's maps. A deed is judged in the kernel
//! (`ebpf/src/enforce.bpf.c`), which knows nothing but what is compiled here.
//!
//! - [`model`]: what rules mean, in plain Rust: rules in their order, and what becomes of a deed
//! - [`contain`]: what containment adds
//! - [`compile`]: rules to entries of maps
//! - [`enforcer`]: the maps, and which session is under which rules
//! - [`tables`]: the maps' types

pub mod compile;
pub(crate) mod contain;
pub(crate) mod enforcer;
pub mod model;
mod tables;

pub use enforcer::name_of;
