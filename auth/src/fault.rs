//! Why auth does not do what it was asked. Made by the domain files, turned into a gRPC status by `service`.
//! What the caller reads never says more than the caller may know; the operator's detail goes to the log.

use crate::log::LogError;
use crate::store::StoreError;

/// By whose fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The caller may not. The text is what the caller reads.
    #[error("denied: {0}")]
    Denied(String),
    /// It is there already, or changed in between.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The request makes no sense. The text is what the caller reads.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// Too many at once.
    #[error("over a limit: {0}")]
    Limit(&'static str),
    /// Nothing of that name.
    #[error("not found: {0}")]
    Missing(String),
    /// No sufficient proof of identity. The text is what the caller reads.
    #[error("not authenticated: {0}")]
    Unproven(&'static str),
    /// Our environment: disk, database. The caller gets a neutral sentence.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log cannot take the event, so nothing that needs one is done.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A signature could not be made, or something else that is ours.
    #[error("{0}")]
    Internal(String),
}

impl Fault {
    /// For metrics and log fields.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Denied(_) => "denied",
            Self::Conflict(_) => "conflict",
            Self::Invalid(_) => "invalid",
            Self::Limit(_) => "limit",
            Self::Missing(_) => "missing",
            Self::Unproven(_) => "unproven",
            Self::Store(_) => "store",
            Self::Log(_) => "log",
            Self::Internal(_) => "internal",
        }
    }

    /// What the caller reads.
    pub(crate) fn client_message(&self) -> String {
        match self {
            Self::Denied(text) | Self::Conflict(text) | Self::Invalid(text) => text.clone(),
            Self::Missing(what) => format!("{what} not found"),
            Self::Limit(text) | Self::Unproven(text) => (*text).to_owned(),
            Self::Store(StoreError::Conflict) => CHANGED.into(),
            Self::Store(_) | Self::Log(_) | Self::Internal(_) => {
                "auth cannot do this now: its log says why".into()
            }
        }
    }
}

impl From<Fault> for tonic::Status {
    fn from(fault: Fault) -> Self {
        let message = fault.client_message();
        match fault {
            Fault::Denied(_) => Self::permission_denied(message),
            Fault::Conflict(_) => Self::already_exists(message),
            Fault::Store(StoreError::Conflict) => Self::aborted(message),
            Fault::Invalid(_) => Self::invalid_argument(message),
            Fault::Limit(_) => Self::resource_exhausted(message),
            Fault::Missing(_) => Self::not_found(message),
            Fault::Unproven(_) => Self::unauthenticated(message),
            Fault::Store(_) | Fault::Log(_) | Fault::Internal(_) => {
                tracing::error!(error = told(&fault), kind = fault.kind(), "a request failed");
                Self::internal(message)
            }
        }
    }
}

impl From<pki::authority::AuthorityError> for Fault {
    fn from(error: pki::authority::AuthorityError) -> Self {
        use pki::authority::AuthorityError;
        match error {
            AuthorityError::Request(_) | AuthorityError::RequesterKey(_) => {
                Self::Invalid(error.to_string())
            }
            AuthorityError::Material(_) | AuthorityError::Signing(_) => {
                Self::Internal(error.to_string())
            }
        }
    }
}

/// The error and all its causes on one line, for the operator.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

const CHANGED: &str = "it was changed by somebody else in between: get it again and retry";
