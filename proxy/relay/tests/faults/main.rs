//! What strangers, broken peers and an exhausted system do to a relay that listens: each costs its own connection and
//! nothing else. Every test on both rungs that need nothing of the kernel that may be missing.
//!
//! - [`bench`]: the relay under test, its service, and the far ends
//! - [`strangers`]: before a connection is relayed; [`peers`]: after that
//! - [`system`]: too few descriptors and pipes, no io_uring; in processes of their own
//! - [`child`]: such a process
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod bench;
mod child;
mod peers;
mod strangers;
mod system;

/// The same tests on each rung.
macro_rules! on_every_rung {
    ($($module:ident::$name:ident)*) => {
        mod epoll {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$module::$name(relay::DataPlane::Epoll).await;
            })*
        }
        mod uring {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$module::$name(relay::DataPlane::Uring).await;
            })*
        }
    };
}

on_every_rung! {
    strangers::whoever_is_slow_is_ended_in_time_and_costs_nobody_anything
    strangers::garbage_instead_of_a_hello_is_refused_at_once
    strangers::half_open_connections_do_not_slow_a_transfer
    strangers::who_is_refused_is_told_why
    strangers::a_service_that_panics_ends_no_other_stream
    peers::an_end_right_behind_the_opening_is_not_lost
    peers::a_target_that_greets_and_goes_is_heard
    peers::a_reset_in_the_middle_of_both_directions_is_a_reset
    peers::tls_that_vanishes_is_no_orderly_end
    peers::a_client_that_never_reads_is_bounded_and_ends
    system::accepting_rests_without_descriptors_and_goes_on_with_some
    system::without_pipes_bulk_is_copied
}
