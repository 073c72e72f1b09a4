//! Generated messages and services of auth: see `proto/postern/v1/auth.proto`, where every field is described.
#![expect(
    clippy::wildcard_enum_match_arm,
    clippy::let_underscore_must_use,
    reason = "generated code"
)]

tonic::include_proto!("postern.v1");
