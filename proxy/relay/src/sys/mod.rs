//! The only unsafe code of the relay: [`ring`], submitting to io_uring, and [`ktls`], socket options and control messages of
//! kernel TLS. Everything above is safe. Each wrapper says from which kernel on it works.

pub(crate) mod ktls;
pub(crate) mod ring;
