//! Certificate profiles: what goes into a certificate, and the only place that turns one into an [`Identity`].
//!
//! - [`claims`]: what a certificate says about its holder
//! - [`authority`]: the authorities that sign (auth only); keys stay behind [`authority::Signer`]
//! - `names`: which names a machine's certificate may carry
//! - [`verify`]: certificate in, [`Identity`] out, or a reason why not; fails closed
//! - [`known`]: client certificates whose signature has been checked before
//! - `source_address`: one critical option of SSH certificates
//! - [`identity`]: verified holders
//! - [`keys`]: key pairs that clients and machines make for themselves
#![forbid(unsafe_code)]

pub mod authority;
pub mod claims;
pub mod identity;
pub mod keys;
pub mod known;
mod names;
mod source_address;
pub mod verify;

pub use identity::{HostIdentity, Identity, UserIdentity};
pub use verify::{IdentityError, Verifier};

#[cfg(test)]
mod tests;
