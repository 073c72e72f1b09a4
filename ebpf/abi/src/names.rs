//! The numbers that stand in records, with their names in both languages.

/// A module of constants, and a list of them with their names in C.
macro_rules! numbers {
    ($(#[$doc:meta])* $module:ident: $type:ty, $prefix:literal {
        $($(#[$value_doc:meta])* $name:ident = $value:expr,)*
    }) => {
        $(#[$doc])*
        pub mod $module {
            $($(#[$value_doc])* pub const $name: $type = $value;)*
            /// With their names in C.
            pub const ALL: &[(&str, u32)] =
                &[$((concat!($prefix, stringify!($name)), $value),)*];
        }
    };
}

pub(crate) use numbers;

numbers! {
    /// The kinds of records.
    kind: u16, "KIND_" {
        EXEC = 1,
        ARGV = 2,
        EXIT = 3,
        /// The session's last task has ended; nothing follows the header.
        OVER = 4,
        /// A process was made; nothing follows the header, which is the parent's but for process and thread.
        FORK = 5,
        RIGHTS = 6,
        KERNEL = 7,
        TRACE = 8,
        FILE = 16,
        NET = 32,
    }
}
numbers! {
    /// The classes of records: each has a ring of its own, so that a flood in one leaves the others alone.
    class: usize, "CLASS_" {
        CONTROL = 0,
        FILE = 1,
        NET = 2,
    }
}
numbers! {
    /// Flags of records.
    flag: u32, "FLAG_" {
        /// The arguments could not be read in full although there was room.
        ARGV_UNREADABLE = 1,
        /// The path is longer than can be walked: its end is there, its beginning is not.
        PATH_CUT = 2,
        /// The same of the working directory, or of the other path.
        CWD_CUT = 4,
        /// A script: the path is the interpreter's, the arguments begin with it.
        SCRIPT = 8,
        /// The path begins at the root of its file system: where that is mounted is not known.
        PATH_IN_FS = 16,
        /// The name is a packet.
        PACKET = 32,
        /// A rule said no.
        DENIED = 64,
        /// A rule would say no, and only watches.
        WATCHED = 128,
    }
}
numbers! {
    /// Who says so.
    prov: u32, "PROV_" {
        /// A tracepoint, of what has happened, from the kernel's own structures.
        TP = 0,
        /// A security hook, of what is about to happen.
        LSM = 1,
        /// The end of a system call: paths are what the program passed, and it may have changed them since.
        SYSCALL = 2,
        /// A request to io_uring.
        URING = 3,
    }
}
numbers! {
    /// Operations on files.
    file: u32, "FILE_" {
        OPEN = 1,
        CREATE = 2,
        /// The first write of a session to a file.
        WRITE = 3,
        TRUNCATE = 4,
        UNLINK = 5,
        RMDIR = 6,
        RENAME = 7,
        LINK = 8,
        SYMLINK = 9,
        MKDIR = 10,
        MKNOD = 11,
        CHMOD = 12,
        CHOWN = 13,
        SETXATTR = 14,
        REMOVEXATTR = 15,
        /// Flags such as immutable.
        SETFLAGS = 16,
        MOUNT = 17,
        UMOUNT = 18,
        PIVOT_ROOT = 19,
        CHROOT = 20,
        /// Its bytes become code: a library, or a program that is loaded by another.
        MAP_EXEC = 21,
        /// An open file came from another process.
        RECEIVE = 22,
    }
}
numbers! {
    /// Operations of the network.
    net: u32, "NET_" {
        CONNECT = 1,
        ACCEPT = 2,
        LISTEN = 3,
        BIND = 4,
        SEND = 5,
        CLOSE = 6,
        /// Of a kind that sees more than its own: raw, packet, vsock.
        SOCKET = 7,
    }
}
numbers! {
    /// Operations on rights.
    rights: u32, "RIGHTS_" {
        SETUID = 1,
        SETGID = 2,
        SETGROUPS = 3,
        CAPSET = 4,
        USERNS = 5,
        /// Another namespace was entered or made.
        NAMESPACE = 6,
        /// As whom files are asked for.
        SETFSUID = 7,
        SETFSGID = 8,
    }
}
numbers! {
    /// Operations on the kernel.
    kernel: u32, "KERNEL_" {
        MODULE = 1,
        BPF = 2,
        KEXEC = 3,
        PERF = 4,
        CLOCK = 5,
        /// Memory of the kernel or of the machine, ports, debugging: what lockdown would forbid.
        RAW = 6,
        /// A ring of io_uring was made.
        URING = 7,
        /// A filter whose answers another process gives.
        SECCOMP_NOTIFY = 8,
        /// A program of ours was taken away, or a map changed.
        TAMPER = 9,
    }
}
numbers! {
    /// Operations on processes.
    trace: u32, "TRACE_" {
        PTRACE = 1,
        MEMORY = 2,
        SIGNAL = 3,
        DESCRIPTOR = 4,
        /// Something is done for the session by another process.
        DELEGATE = 5,
    }
}
numbers! {
    /// Ways of delegation.
    via: u32, "VIA_" {
        NONE = 0,
        /// A local socket: whose is for the node to find out.
        SOCKET = 1,
        /// A program or a library that a session wrote.
        FILE = 2,
        PTRACE = 3,
        /// A helper that the kernel starts.
        HELPER = 4,
    }
}
