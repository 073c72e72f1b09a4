//! Tests that need a kernel which the developer's machine may not have. `cargo xtask kernel-test` boots Debian's kernels
//! and runs this program in each; on a machine with kernel TLS it runs as it is. One line per test; exit code 0 where all
//! passed that are for this kernel, also where that is none. Names on the command line, or in `kernel_tests=` on the kernel's, choose tests by parts of their names.
//! As `kernel-tests deed …` it is what a test of the capture has a session do, as `kernel-tests agent …` a node that can die.
//! As `kernel-tests fault …` it is what a test of faults needs beside it.
//! As `kernel-tests enforce-deeds` it is a session that does what it is told.
//!
//! - [`tests`]: the tests, a file for each matter
//! - [`pair`]: a connection with kernel TLS at the near end and rustls in user space at the far one
//! - [`splice`]: pipes, as the relay uses them
//! - [`openssl`]: OpenSSL as the far end
//! - [`random`]: numbers and bytes from a seed
//! - [`waiting`]: waits with a limit
//! - [`sys`]: system calls that have no safe form elsewhere
#![deny(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test program: what goes wrong ends the test with a message"
)]

mod openssl;
mod pair;
mod random;
mod splice;
mod sys;
mod tests;
mod waiting;

use std::panic;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// A test: it panics, or it passed.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) run: fn(),
}

/// `tests![a, b]`: the list of a file's tests, named for the file.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::Test] = &[$($crate::Test {
            name: concat!(module_path!(), "::", stringify!($name)),
            run: $name,
        }),*];
    };
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let [first, deed @ ..] = arguments.as_slice()
        && first == "deed"
    {
        return tests::capture::run_deed(deed);
    }
    if let [first, agent @ ..] = arguments.as_slice()
        && first == "agent"
    {
        return tests::capture::run_agent(agent);
    }
    if let [first, fault @ ..] = arguments.as_slice()
        && first == "fault"
    {
        return tests::capture::run_fault(fault);
    }
    if std::env::args().nth(1).is_some_and(|first| first == tests::enforce::deeds::ARGUMENT) {
        return tests::enforce::deeds::serve();
    }
    let chosen = chosen();
    // What is said goes into the test's line: of several threads that fail, the first is the cause.
    panic::set_hook(Box::new(|info| {
        let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        said.push(info.to_string().replace('\n', " "));
    }));
    let (mut passed, mut failed, mut left_out) = (0_u32, 0_u32, 0_u32);
    for test in tests::all() {
        let name = test.name.strip_prefix("kernel_tests::tests::").unwrap_or(test.name);
        if !chosen.is_empty() && !chosen.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        match run(test) {
            Verdict::Passed(took) => {
                passed += 1;
                println!("ok {name} ({:.1} s)", took.as_secs_f32());
            }
            Verdict::NotHere(why) => {
                left_out += 1;
                println!("left out {name}: {why}");
            }
            Verdict::Failed(why) => {
                failed += 1;
                println!("FAILED {name}: {why}");
            }
            Verdict::Hung => {
                println!("FAILED {name}: not over after {TEST_TIMEOUT:?}, {}", case());
                println!("kernel-tests: given up after {passed} passed, {failed} failed");
                return ExitCode::FAILURE;
            }
        }
    }
    let nothing = match (passed + failed, left_out) {
        (0, 0) => "no test is called so: ",
        (0, _) => "nothing of this can run here: ",
        _ => "",
    };
    println!("kernel-tests: {nothing}{passed} passed, {failed} failed, {left_out} left out");
    if failed == 0 && passed + left_out > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Parts of names: our own arguments, or those of the kernel's command line.
fn chosen() -> Vec<String> {
    let ours: Vec<String> = std::env::args().skip(1).collect();
    if !ours.is_empty() {
        return ours;
    }
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let words = line.split_whitespace().filter_map(|word| word.strip_prefix("kernel_tests="));
    words.flat_map(|list| list.split(',')).map(str::to_owned).collect()
}

enum Verdict {
    Passed(Duration),
    Failed(String),
    Hung,
    NotHere(String),
}

/// More than the longest test takes in an emulated machine that has half a core.
const TEST_TIMEOUT: Duration = Duration::from_secs(600);

/// What panics said since the test began.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// What the test is at; see [`at`].
static CASE: Mutex<String> = Mutex::new(String::new());
/// Why a test is not for this kernel; see [`not_here`].
static NOT_HERE: Mutex<Option<String>> = Mutex::new(None);

fn run(test: &'static Test) -> Verdict {
    SAID.lock().unwrap_or_else(PoisonError::into_inner).clear();
    at("");
    let started = Instant::now();
    let (over, end) = mpsc::channel();
    thread::spawn(move || {
        let done = panic::catch_unwind(test.run);
        over.send(done.is_ok()).ok();
    });
    match end.recv_timeout(TEST_TIMEOUT) {
        Ok(true) => match NOT_HERE.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(why) => Verdict::NotHere(why),
            None => Verdict::Passed(started.elapsed()),
        },
        Ok(false) => {
            let said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
            let first = said.first().map_or("no word", String::as_str);
            Verdict::Failed(format!("{first} {}", case()))
        }
        Err(_) => Verdict::Hung,
    }
}

/// Says which of its cases a test is at, for its line when it fails.
pub(crate) fn at(case: impl Into<String>) {
    *CASE.lock().unwrap_or_else(PoisonError::into_inner) = case.into();
}

/// Says that a test has nothing to test on this kernel; to be returned after.
pub(crate) fn not_here(why: &str) {
    *NOT_HERE.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
}

fn case() -> String {
    let case = CASE.lock().unwrap_or_else(PoisonError::into_inner);
    if case.is_empty() { String::new() } else { format!("[{case}]") }
}
