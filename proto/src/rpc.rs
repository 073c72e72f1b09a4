//! Generated messages and services of auth: see `proto/postern/v1/auth.proto`, where every field is described.

tonic::include_proto!("postern.v1");
