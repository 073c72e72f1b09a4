//! Audit events on their way to auth: durable here before [`Spool::record`] returns, sent in order, removed after auth has
//! acknowledged them. One writer thread, group commit; segments on disk with one JSON line per event and its sequence.

use std::path::PathBuf;

use proto::event::{Body, Event};
use proto::id::ClusterName;
use tonic::transport::Channel;

use crate::shutdown::Shutdown;

/// Why an event is not durable. Whoever grants access must then refuse.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the audit spool holds {bytes} bytes, its limit, because auth does not take them")]
    Full { bytes: u64 },
    #[error("the audit spool has stopped")]
    Stopped,
}

/// Handle to the writer; cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool {
    _private: (),
}

impl Spool {
    /// Opens `<dir>`, repairs a torn tail (the torn line was never acknowledged), starts the writer.
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub fn open(_dir: PathBuf, _cluster: ClusterName) -> Result<Self, SpoolError> {
        todo!()
    }
    /// Makes `body` an event (id, time, `ei`), writes and syncs it; returns once it survives a power cut.
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub async fn record(&self, _body: impl Into<Body>, _ei: u64) -> Result<Event, SpoolError> {
        todo!()
    }
    /// Sends to auth until `shutdown` stops, with back-off. At [`Shutdown::drain`] it goes on; run it once.
    pub async fn ship(self, _auth: Channel, _shutdown: Shutdown) {
        todo!()
    }
    /// Events not yet acknowledged by auth.
    pub fn pending(&self) -> u64 {
        todo!()
    }
}
