//! Measurements of what every session pays for, in `benches/`; run with `cargo bench -p bench`. The library is empty.
//! Load generators and reports against peers will live here.
#![forbid(unsafe_code)]
