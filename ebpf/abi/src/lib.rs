//! The records that the kernel programs write and the node reads: their layout stands here and nowhere else. The C
//! header `ebpf/src/records.h` is written from [`LAYOUTS`] by `cargo xtask ebpf`, and the compiler asserts its sizes and
//! offsets there. Everything is in the machine's byte order: both sides run on one machine.
//!
//! A record is a [`Header`], the fixed part that its kind names, and bytes whose lengths the fixed part gives.
#![no_std]
#![forbid(unsafe_code)]
#![expect(
    missing_debug_implementations,
    reason = "the derives of zerocopy make types of their own"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A field, as the C header needs it.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub name: &'static str,
    pub doc: &'static str,
    /// `__u32` and the like.
    pub c_type: &'static str,
    pub offset: usize,
}

/// A structure, as the C header needs it.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub name: &'static str,
    pub doc: &'static str,
    pub size: usize,
    pub fields: &'static [Field],
}

macro_rules! c_type {
    (u16) => {
        "__u16"
    };
    (u32) => {
        "__u32"
    };
    (u64) => {
        "__u64"
    };
    (i32) => {
        "__s32"
    };
}

macro_rules! layouts {
    ($(
        #[doc = $doc:literal]
        $name:ident = $c_name:literal { $(#[doc = $field_doc:literal] $field:ident: $type:ident,)* }
    )*) => {
        $(
            #[doc = $doc]
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
            #[derive(FromBytes, Immutable, IntoBytes)]
            #[repr(C)]
            pub struct $name { $(#[doc = $field_doc] pub $field: $type,)* }
        )*

        /// All structures, in the order in which the header has them.
        pub const LAYOUTS: &[Layout] = &[$(Layout {
            name: $c_name,
            doc: $doc,
            size: size_of::<$name>(),
            fields: &[$(Field {
                name: stringify!($field),
                doc: $field_doc,
                c_type: c_type!($type),
                offset: core::mem::offset_of!($name, $field),
            },)*],
        },)*];
    };
}

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
    }
    /// A program was executed. Path, working directory and arguments follow, each argument ended by a NUL.
    Exec = "exec" {
        /// Device of the file, as the kernel encodes it.
        dev: u64,
        /// Inode of the file.
        ino: u64,
        /// When the parent process was made, see `header`.
        parent_ns: u64,
        /// The parent process.
        parent: u32,
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
    /// What a task carries, from the session's first process to its last, in task storage.
    Mark = "mark" {
        /// The node's number of the session; never 0.
        session: u64,
    }
    /// What the kernel counts of a session.
    Counts = "counts" {
        /// Tasks that live.
        tasks: u64,
        /// Records so far, those included that were lost.
        records: u64,
        /// Records that were lost.
        lost: u64,
        /// The sequence of the first that was lost since the node last looked.
        lost_first: u64,
        /// And of the last.
        lost_last: u64,
        /// Tasks that could not be marked: what they did is not known.
        unmarked: u64,
    }
}

/// The kinds of records.
pub mod kind {
    pub const EXEC: u16 = 1;
    pub const ARGV: u16 = 2;
    pub const EXIT: u16 = 3;
    /// The session's last task has ended; nothing follows the header.
    pub const OVER: u16 = 4;
    /// With their names in C.
    pub const ALL: &[(&str, u16)] =
        &[("KIND_EXEC", EXEC), ("KIND_ARGV", ARGV), ("KIND_EXIT", EXIT), ("KIND_OVER", OVER)];
}

/// [`Exec::flags`].
pub mod flag {
    /// The arguments could not be read in full although there was room.
    pub const ARGV_UNREADABLE: u32 = 1;
    /// The path is longer than can be walked: its end is there, its beginning is not.
    pub const PATH_CUT: u32 = 2;
    /// The same of the working directory.
    pub const CWD_CUT: u32 = 4;
    /// A script: the path is the interpreter's, the arguments begin with it.
    pub const SCRIPT: u32 = 8;
    /// With their names in C.
    pub const ALL: &[(&str, u32)] = &[
        ("FLAG_ARGV_UNREADABLE", ARGV_UNREADABLE),
        ("FLAG_PATH_CUT", PATH_CUT),
        ("FLAG_CWD_CUT", CWD_CUT),
        ("FLAG_SCRIPT", SCRIPT),
    ];
}

/// Of this layout: changed whenever a record is.
pub const VERSION: u16 = 1;
/// Longest path that is taken down, in bytes.
pub const PATH_BYTES_MAX: u32 = 4095;
/// Arguments in one record at most, in bytes.
pub const ARGV_PART_BYTES_MAX: u32 = 8000;
/// Arguments of one program at most, in bytes: Linux' own limit of one argument.
pub const ARGV_BYTES_MAX: u32 = 128 * 1024;
