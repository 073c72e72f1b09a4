//! The tests. A new file is a `mod` line and an entry in [`all`]; a new test is a function and its name in the file's
//! `tests!`.

mod attach;
pub(crate) mod capture;
mod carry;
mod close;
mod control;
pub(crate) mod enforce;
mod openssl;
mod rekey;
mod relay;
mod segments;
mod tamper;

use crate::Test;

/// All of them, in order: what the others build on comes first.
pub(crate) fn all() -> impl Iterator<Item = &'static Test> {
    [
        attach::TESTS,
        capture::TESTS,
        capture::faults::TESTS,
        carry::TESTS,
        control::TESTS,
        close::TESTS,
        tamper::TESTS,
        rekey::TESTS,
        openssl::TESTS,
        segments::TESTS,
        relay::bulk::TESTS,
        relay::crowd::TESTS,
        relay::ends::TESTS,
        relay::keys::TESTS,
        relay::upgrade::TESTS,
        // Its kernel programs stay to the end.
        enforce::TESTS,
    ]
    .into_iter()
    .flatten()
}
