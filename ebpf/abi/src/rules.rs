//! Rules for sessions, as the kernel looks them up (`ebpf/src/rules.h`), and the record of a deed that a rule is about. What
//! rules mean, and how they become entries of these maps, is in `node/capture/src/rules`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::layout::{Field, InC, Layout, layouts};
use crate::names::numbers;

/// Bytes of a path that are compared. The trie's keys have 256 bytes at most, of which four say whose rules they are.
pub const PATH_BYTES: usize = 252;
/// Port ranges at one prefix of addresses.
pub const PORTS_MAX: usize = 32;
/// Entries of the maps: of all rules that hold on a machine at a time.
pub const PATHS_MAX: u32 = 65_536;
/// See [`PATHS_MAX`].
pub const ADDRESSES_MAX: u32 = 16_384;
/// See [`PATHS_MAX`].
pub const HASHES_MAX: u32 = 16_384;
/// Sets of rules that hold on a machine at a time.
pub const POLICIES_MAX: u32 = 4096;
/// The bits of [`PathKey::space`] that say for which deeds a path is, below the policy's number.
pub const SPACE_BITS: u32 = 2;
/// The rule of a path of which nobody can say what it begins with: longer than can be walked, or from a mount that hangs nowhere.
pub const RULE_NO_PATH: u32 = 0xffff_ffff;
/// The rule of a program whose digest the kernel does not give.
pub const RULE_NO_DIGEST: u32 = 0xffff_fffe;
/// The rules of containment that are not about paths: with their bit added.
pub const RULE_CONTAIN: u32 = 0x8000_0000;

/// A path, or how paths begin, for the trie. What is exact ends in a NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
pub struct PathKey {
    /// In bits, from `space` on.
    pub prefixlen: u32,
    /// The policy's number, and one of the spaces.
    pub space: u32,
    /// From the root of the mount namespace; zero where the path has ended.
    pub path: [u8; PATH_BYTES],
}

/// By hand, since arrays of this length have no default, which [`layouts`] wants.
const PATH_KEY: Layout = Layout {
    name: "rules_path",
    doc: " A path, or how paths begin, for the trie. What is exact ends in a NUL.",
    size: size_of::<PathKey>(),
    fields: &[
        Field {
            name: "prefixlen",
            doc: " In bits, from `space` on.",
            c_type: <u32 as InC>::NAME,
            count: 0,
            offset: core::mem::offset_of!(PathKey, prefixlen),
        },
        Field {
            name: "space",
            doc: " The policy's number, and one of the spaces.",
            c_type: <u32 as InC>::NAME,
            count: 0,
            offset: core::mem::offset_of!(PathKey, space),
        },
        Field {
            name: "path",
            doc: " From the root of the mount namespace; zero where the path has ended.",
            c_type: <u8 as InC>::NAME,
            count: PATH_BYTES,
            offset: core::mem::offset_of!(PathKey, path),
        },
    ],
};

/// What the header needs that no macro gives.
pub const MORE_LAYOUTS: &[Layout] = &[PATH_KEY];

layouts! {
    /// An address, or how addresses begin, for the trie.
    AddressKey = "rules_address" {
        /// In bits, from `policy` on.
        prefixlen: u32,
        /// The policy's number.
        policy: u32,
        /// AF_INET or AF_INET6.
        family: u32,
        /// In the network's order; the first four bytes for IPv4.
        address: [u8; 16],
    }
    /// Ports, both ends included, and whose rule it is.
    Ports = "rules_ports" {
        /// The first.
        low: u16,
        /// The last.
        high: u16,
        /// The rule.
        rule: u32,
    }
    /// What holds at a prefix of addresses: its own ports, then those of every shorter prefix.
    AddressPorts = "rules_address_ports" {
        /// How many ranges there are.
        count: u32,
        /// The ranges.
        ports: [Ports; 32],
    }
    /// What a program's bytes give.
    HashKey = "rules_hash" {
        /// The policy's number.
        policy: u32,
        /// Nothing.
        reserved: u32,
        /// The digest.
        sha256: [u8; 32],
    }
    /// A set of rules: what of it there is to look up.
    Policy = "rules_policy" {
        /// One of the modes.
        mode: u32,
        /// Of which kinds there are rules, as bits.
        has: u32,
        /// What is contained, as bits.
        contain: u32,
        /// Nothing.
        reserved: u32,
    }
    /// What does not depend on sessions.
    Settings = "rules_settings" {
        /// The node's own process, to which no rule applies, and which contained sessions leave alone.
        agent: u32,
        /// When that was made, in hundredths of a second since boot: its number may be another's later.
        since: u32,
    }
    /// A deed that a rule is about. A path follows.
    Denial = "denial" {
        /// How often, since the last record of the same.
        times: u64,
        /// What: one of the deeds.
        deed: u32,
        /// The policy's number.
        policy: u32,
        /// The rule's number in it.
        rule: u32,
        /// One of the modes.
        mode: u32,
        /// What the program gets: 0 where the rule only watches.
        result: i32,
        /// The signal, the command.
        code: u32,
        /// The other process.
        other: u32,
        /// AF_INET or AF_INET6; 0 where there is no address.
        family: u32,
        /// In the network's order; the first four bytes for IPv4.
        address: [u8; 16],
        /// The port.
        port: u32,
        /// Bytes of the path.
        path_len: u32,
    }
}

const _: () = assert!(PORTS_MAX == 32, "as the layout has it");
const _: () = assert!(size_of::<PathKey>() == 4 + 256, "the most that a trie takes");

numbers! {
    /// The kind of records of denials, beside those of [`crate::names::kind`].
    kind: u16, "KIND_" {
        DENIAL = 64,
    }
}
numbers! {
    /// How rules are meant, strictest last.
    mode: u32, "MODE_" {
        /// Told, not denied.
        AUDIT = 1,
        DENY = 2,
        /// Denied, and the process is killed.
        KILL = 3,
    }
}
numbers! {
    /// For which deeds a path is.
    space: u32, "SPACE_" {
        EXEC = 0,
        WRITE = 1,
        /// Folders above what must not be written: they must not be moved away.
        MOVE = 2,
        /// Local sockets.
        SOCKET = 3,
    }
}
numbers! {
    /// Of which kinds a policy has rules.
    has: u32, "HAS_" {
        EXEC = 1,
        WRITE = 2,
        SOCKET = 4,
        CONNECT = 8,
        HASH = 16,
    }
}
numbers! {
    /// What contained sessions must not do, beside what their rules say.
    contain: u32, "CONTAIN_" {
        /// Any call of bpf(2).
        BPF = 1,
        /// To take hold of a process outside the session.
        TRACE = 2,
        /// To load code into the kernel, or another kernel.
        MODULE = 4,
        /// To give itself another audit identity.
        LOGINUID = 8,
        /// To send signals to the node.
        SIGNAL = 16,
        /// To change what is mounted where: every path rule would have a way round.
        MOUNT = 32,
        /// To take away what is pinned in a BPF file system.
        PINS = 64,
    }
}
numbers! {
    /// What rules are about.
    deed: u32, "DEED_" {
        EXEC = 1,
        /// A file's bytes become code: a library, or a program that is loaded by another.
        MAP_EXEC = 2,
        OPEN = 3,
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
        CONNECT = 14,
        SEND = 15,
        /// To talk to a local socket.
        SOCKET = 16,
        BPF = 17,
        TRACE = 18,
        MODULE = 19,
        LOGINUID = 20,
        SIGNAL = 21,
        MOUNT = 22,
        PINS = 23,
    }
}
