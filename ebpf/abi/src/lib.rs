//! The records that the kernel programs write and the node reads: their layout stands here and nowhere else. The C
//! header `ebpf/src/records.h` is written from [`LAYOUTS`] by `cargo xtask ebpf`, and the compiler asserts its sizes and
//! offsets there. Everything is in the machine's byte order: both sides run on one machine.
//!
//! A record is a [`Header`], the fixed part that its kind names, and bytes whose lengths the fixed part gives.
//!
//! - [`layout`]: structures for both languages
//! - [`names`]: the numbers in them
//! - [`rules`]: rules for sessions, and what they are about
#![no_std]
#![forbid(unsafe_code)]
#![expect(
    missing_debug_implementations,
    reason = "the derives of zerocopy make types of their own"
)]

pub mod layout;
pub mod names;
pub mod rules;

use layout::layouts;
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub use names::{class, file, flag, kernel, kind, net, prov, rights, trace, via};

layouts! {
    /// What every record begins with.
    Header = "header" {
        /// Of the whole record, in bytes.
        len: u32,
        /// One of the kinds.
        kind: u16,
        /// Of this layout.
        version: u16,
        /// Nanoseconds since boot, sleep included.
        boot_ns: u64,
        /// The node's number of the session.
        session: u64,
        /// Counts the session's records of this class, from 0; those that were lost are counted, too.
        sequence: u64,
        /// When the process was made, in nanoseconds since boot: with `tgid` it names the process for good.
        process_ns: u64,
        /// The process, in the first PID namespace.
        tgid: u32,
        /// The thread.
        tid: u32,
        /// Effective user.
        uid: u32,
        /// Effective group.
        gid: u32,
        /// The process that it was made by, or that took it over.
        parent: u32,
        /// Who says so: one of the provenances.
        prov: u32,
        /// What the task calls itself.
        comm: [u8; 16],
    }
    /// A program was executed, or was not to be. Path, working directory and arguments follow, each argument ended by a NUL.
    Exec = "exec" {
        /// Device of the file, as the kernel encodes it.
        dev: u64,
        /// Inode of the file.
        ino: u64,
        /// How many names the file has; 0 for one that was deleted or never had any.
        nlink: u32,
        /// Its mode.
        mode: u32,
        /// See the flags.
        flags: u32,
        /// Bytes of all arguments.
        argv_total: u32,
        /// Bytes of them in this record and in the parts that follow.
        argv_captured: u32,
        /// Bytes of them in this record.
        argv_len: u32,
        /// Bytes of the path.
        path_len: u32,
        /// Bytes of the working directory.
        cwd_len: u32,
        /// Real user.
        real_uid: u32,
        /// Whose the file is.
        owner_uid: u32,
        /// The same of groups.
        owner_gid: u32,
        /// 0, or the negative error of one that failed.
        result: i32,
    }
    /// More arguments of the program that the process has executed last; the bytes follow.
    Argv = "argv" {
        /// Where among the arguments they belong.
        at: u32,
        /// How many.
        len: u32,
    }
    /// A process has ended.
    Exit = "exit" {
        /// As wait(2) gives it.
        status: i32,
        /// Nothing.
        reserved: u32,
    }
    /// A file was opened or changed. Path and other path follow.
    File = "file_record" {
        /// Device of the file; 0 with `ino` where it is not known.
        dev: u64,
        /// Inode of the file.
        ino: u64,
        /// How often, since the last record of the same.
        times: u64,
        /// What: one of the operations on files.
        op: u32,
        /// Of open(2), mount(2), renameat2(2).
        flags: u32,
        /// Of the file; the new one, where that is what changes.
        mode: u32,
        /// How many names the file has.
        nlink: u32,
        /// 0, or the negative error.
        result: i32,
        /// See the flags.
        bits: u32,
        /// Bytes of the path.
        path_len: u32,
        /// Bytes of the other path.
        other_len: u32,
    }
    /// Somebody was talked to, or listened for. A name follows: a path of a socket, or a packet.
    Net = "net_record" {
        /// Bytes sent, of a connection that is closed.
        tx: u64,
        /// Bytes received.
        rx: u64,
        /// How often, since the last record of the same.
        times: u64,
        /// What: one of the operations of the network.
        op: u32,
        /// AF_INET and others.
        family: u32,
        /// SOCK_STREAM and others.
        kind: u32,
        /// IPPROTO_TCP and others.
        protocol: u32,
        /// 0, or the negative error.
        result: i32,
        /// The process at the other end of a local socket; 0 where it is not known.
        peer: u32,
        /// Our address; the first four bytes for IPv4.
        local: [u8; 16],
        /// The other's.
        remote: [u8; 16],
        /// Our port.
        local_port: u32,
        /// The other's; the channel or the protocol of what has no ports.
        remote_port: u32,
        /// See the flags.
        bits: u32,
        /// Bytes of the name.
        name_len: u32,
    }
    /// A process took or gave up rights.
    Rights = "rights_record" {
        /// Before: real and effective user or group in the upper and the lower half, or a set of capabilities.
        old: u64,
        /// After.
        new: u64,
        /// What: one of the operations on rights.
        op: u32,
        /// 0, or the negative error.
        result: i32,
    }
    /// The kernel itself was to be changed or watched. A name follows.
    Kernel = "kernel_record" {
        /// What: one of the operations on the kernel.
        op: u32,
        /// The command, as the call has it.
        code: u32,
        /// 0, or the negative error.
        result: i32,
        /// Bytes of the name.
        name_len: u32,
    }
    /// A process reached into another, or has another do something. A name follows.
    Trace = "trace_record" {
        /// The other's session; 0 for none.
        other_session: u64,
        /// What: one of the operations on processes.
        op: u32,
        /// The signal or the request.
        code: u32,
        /// The other process.
        other: u32,
        /// 0, or the negative error.
        result: i32,
        /// What the other calls itself.
        other_comm: [u8; 16],
        /// Through what: one of the ways of delegation.
        via: u32,
        /// Bytes of the name.
        name_len: u32,
    }
    /// What a task carries, from the session's first process to its last, in task storage.
    Mark = "mark" {
        /// The node's number of the session; never 0.
        session: u64,
        /// Not 0 once its first program runs: what is done before is the node's own doing.
        begun: u64,
        /// As the session's, for when that is taken out of its map.
        classes: u32,
        /// The same.
        strict: u32,
    }
    /// What the kernel counts of a session's records of one class.
    Tally = "tally" {
        /// Records so far, those included that were lost.
        records: u64,
        /// Bytes of those that were not lost.
        bytes: u64,
        /// Records for which the ring had no room.
        lost_ring: u64,
        /// Records beyond the session's budget.
        lost_budget: u64,
        /// The sequence of the first that was lost.
        lost_first: u64,
        /// And of the last.
        lost_last: u64,
    }
    /// A session: what the node wants to know of it, and what the kernel counts.
    Session = "session" {
        /// Tasks that live.
        tasks: u64,
        /// Tasks that could not be marked: what they did is not known.
        unmarked: u64,
        /// Repetitions that were not told one by one.
        folded: u64,
        /// The classes of records that are wanted, as bits.
        classes: u32,
        /// Not 0: what cannot be told must not happen.
        strict: u32,
        /// By class.
        tallies: [Tally; 3],
    }
    /// What of a session's records the node has done with; by class.
    Credit = "credit" {
        /// See the tally's.
        bytes: [u64; 3],
        /// See the tally's; what was lost is no record that the node is done with.
        records: [u64; 3],
    }
}

/// Of this layout: changed whenever a record is.
pub const VERSION: u16 = 3;
/// Longest path that is taken down, in bytes.
pub const PATH_BYTES_MAX: u32 = 4095;
/// Arguments in one record at most, in bytes.
pub const ARGV_PART_BYTES_MAX: u32 = 8000;
/// Arguments of one program at most, in bytes: Linux' own limit of one argument.
pub const ARGV_BYTES_MAX: u32 = 128 * 1024;
/// Of a packet that asks for a name.
pub const PACKET_BYTES_MAX: u32 = 512;
/// Sessions that are watched at once.
pub const SESSIONS_MAX: u32 = 16_384;
/// By class: what a session may have on its way from the kernel to the disk, in bytes of records.
pub const BUDGET_BYTES: [u32; 3] = [2 << 20, 8 << 20, 2 << 20];
/// By class: the size of the ring, in bytes.
pub const RING_BYTES: [u32; 3] = [4 << 20, 16 << 20, 4 << 20];
