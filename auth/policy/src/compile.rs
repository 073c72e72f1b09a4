//! A snapshot, checked once and made quick to ask.

use proto::snapshot::Snapshot;

/// A snapshot whose every role this build understands. A role with an unknown version or a bad pattern is kept as
/// *unusable*: who holds it is refused, others go on.
#[derive(Debug)]
pub struct Policy {
    snapshot: Snapshot,
}

/// Why a snapshot can't be used at all.
#[derive(Debug, thiserror::Error)]
#[error("policy snapshot format {0} is not understood by this version")]
pub struct UnknownFormat(pub u32);

impl Policy {
    /// # Errors
    /// A format of a newer version.
    pub fn new(snapshot: Snapshot) -> Result<Self, UnknownFormat> {
        if snapshot.format != proto::snapshot::FORMAT {
            return Err(UnknownFormat(snapshot.format));
        }
        Ok(Self { snapshot })
    }
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}
