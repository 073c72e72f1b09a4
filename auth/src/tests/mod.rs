//! Auth as a whole.
