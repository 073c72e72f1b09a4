//! The `sftp-server` half alone, as the daemon's hidden subcommand runs it: the crate's own tests start this.

fn main() -> std::process::ExitCode {
    node::sftp_child_main()
}
