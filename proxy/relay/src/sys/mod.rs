//! The only unsafe code of the relay: [`ring`], submitting to io_uring. Everything above it is safe. Each wrapper says from which kernel on it works.

pub(crate) mod ring;
