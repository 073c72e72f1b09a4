/* The records, as ebpf/abi has them. Written by `cargo xtask ebpf`; do not edit. */
#ifndef POSTERN_RECORDS_H
#define POSTERN_RECORDS_H

#include <linux/types.h>

#define RECORD_VERSION 3
#define PATH_BYTES_MAX 4095
#define ARGV_PART_BYTES_MAX 8000
#define ARGV_BYTES_MAX 131072
#define PACKET_BYTES_MAX 512
#define SESSIONS_MAX 16384
#define RING_BYTES_CONTROL 4194304
#define RING_BYTES_FILE 16777216
#define RING_BYTES_NET 4194304
#define RULES_PATHS_MAX 65536
#define RULES_ADDRESSES_MAX 16384
#define RULES_HASHES_MAX 16384
#define RULES_POLICIES_MAX 4096
#define SPACE_BITS 2
#define RULE_NO_PATH 4294967295
#define RULE_NO_DIGEST 4294967294
#define RULE_CONTAIN 2147483648
#define BUDGETS { 2097152, 8388608, 2097152 }
#define KIND_EXEC 1
#define KIND_ARGV 2
#define KIND_EXIT 3
#define KIND_OVER 4
#define KIND_FORK 5
#define KIND_RIGHTS 6
#define KIND_KERNEL 7
#define KIND_TRACE 8
#define KIND_FILE 16
#define KIND_NET 32
#define CLASS_CONTROL 0
#define CLASS_FILE 1
#define CLASS_NET 2
#define FLAG_ARGV_UNREADABLE 1
#define FLAG_PATH_CUT 2
#define FLAG_CWD_CUT 4
#define FLAG_SCRIPT 8
#define FLAG_PATH_IN_FS 16
#define FLAG_PACKET 32
#define FLAG_DENIED 64
#define FLAG_WATCHED 128
#define PROV_TP 0
#define PROV_LSM 1
#define PROV_SYSCALL 2
#define PROV_URING 3
#define FILE_OPEN 1
#define FILE_CREATE 2
#define FILE_WRITE 3
#define FILE_TRUNCATE 4
#define FILE_UNLINK 5
#define FILE_RMDIR 6
#define FILE_RENAME 7
#define FILE_LINK 8
#define FILE_SYMLINK 9
#define FILE_MKDIR 10
#define FILE_MKNOD 11
#define FILE_CHMOD 12
#define FILE_CHOWN 13
#define FILE_SETXATTR 14
#define FILE_REMOVEXATTR 15
#define FILE_SETFLAGS 16
#define FILE_MOUNT 17
#define FILE_UMOUNT 18
#define FILE_PIVOT_ROOT 19
#define FILE_CHROOT 20
#define FILE_MAP_EXEC 21
#define FILE_RECEIVE 22
#define NET_CONNECT 1
#define NET_ACCEPT 2
#define NET_LISTEN 3
#define NET_BIND 4
#define NET_SEND 5
#define NET_CLOSE 6
#define NET_SOCKET 7
#define RIGHTS_SETUID 1
#define RIGHTS_SETGID 2
#define RIGHTS_SETGROUPS 3
#define RIGHTS_CAPSET 4
#define RIGHTS_USERNS 5
#define RIGHTS_NAMESPACE 6
#define RIGHTS_SETFSUID 7
#define RIGHTS_SETFSGID 8
#define KERNEL_MODULE 1
#define KERNEL_BPF 2
#define KERNEL_KEXEC 3
#define KERNEL_PERF 4
#define KERNEL_CLOCK 5
#define KERNEL_RAW 6
#define KERNEL_URING 7
#define KERNEL_SECCOMP_NOTIFY 8
#define KERNEL_TAMPER 9
#define TRACE_PTRACE 1
#define TRACE_MEMORY 2
#define TRACE_SIGNAL 3
#define TRACE_DESCRIPTOR 4
#define TRACE_DELEGATE 5
#define VIA_NONE 0
#define VIA_SOCKET 1
#define VIA_FILE 2
#define VIA_PTRACE 3
#define VIA_HELPER 4
#define KIND_DENIAL 64
#define MODE_AUDIT 1
#define MODE_DENY 2
#define MODE_KILL 3
#define SPACE_EXEC 0
#define SPACE_WRITE 1
#define SPACE_MOVE 2
#define SPACE_SOCKET 3
#define HAS_EXEC 1
#define HAS_WRITE 2
#define HAS_SOCKET 4
#define HAS_CONNECT 8
#define HAS_HASH 16
#define CONTAIN_BPF 1
#define CONTAIN_TRACE 2
#define CONTAIN_MODULE 4
#define CONTAIN_LOGINUID 8
#define CONTAIN_SIGNAL 16
#define CONTAIN_MOUNT 32
#define CONTAIN_PINS 64
#define DEED_EXEC 1
#define DEED_MAP_EXEC 2
#define DEED_OPEN 3
#define DEED_TRUNCATE 4
#define DEED_UNLINK 5
#define DEED_RMDIR 6
#define DEED_RENAME 7
#define DEED_LINK 8
#define DEED_SYMLINK 9
#define DEED_MKDIR 10
#define DEED_MKNOD 11
#define DEED_CHMOD 12
#define DEED_CHOWN 13
#define DEED_CONNECT 14
#define DEED_SEND 15
#define DEED_SOCKET 16
#define DEED_BPF 17
#define DEED_TRACE 18
#define DEED_MODULE 19
#define DEED_LOGINUID 20
#define DEED_SIGNAL 21
#define DEED_MOUNT 22
#define DEED_PINS 23

/* What every record begins with. */
struct header {
	/* Of the whole record, in bytes. */
	__u32 len;
	/* One of the kinds. */
	__u16 kind;
	/* Of this layout. */
	__u16 version;
	/* Nanoseconds since boot, sleep included. */
	__u64 boot_ns;
	/* The node's number of the session. */
	__u64 session;
	/* Counts the session's records of this class, from 0; those that were lost are counted, too. */
	__u64 sequence;
	/* When the process was made, in nanoseconds since boot: with `tgid` it names the process for good. */
	__u64 process_ns;
	/* The process, in the first PID namespace. */
	__u32 tgid;
	/* The thread. */
	__u32 tid;
	/* Effective user. */
	__u32 uid;
	/* Effective group. */
	__u32 gid;
	/* The process that it was made by, or that took it over. */
	__u32 parent;
	/* Who says so: one of the provenances. */
	__u32 prov;
	/* What the task calls itself. */
	__u8 comm[16];
};
_Static_assert(sizeof(struct header) == 80, "header");
_Static_assert(__builtin_offsetof(struct header, len) == 0, "header");
_Static_assert(__builtin_offsetof(struct header, kind) == 4, "header");
_Static_assert(__builtin_offsetof(struct header, version) == 6, "header");
_Static_assert(__builtin_offsetof(struct header, boot_ns) == 8, "header");
_Static_assert(__builtin_offsetof(struct header, session) == 16, "header");
_Static_assert(__builtin_offsetof(struct header, sequence) == 24, "header");
_Static_assert(__builtin_offsetof(struct header, process_ns) == 32, "header");
_Static_assert(__builtin_offsetof(struct header, tgid) == 40, "header");
_Static_assert(__builtin_offsetof(struct header, tid) == 44, "header");
_Static_assert(__builtin_offsetof(struct header, uid) == 48, "header");
_Static_assert(__builtin_offsetof(struct header, gid) == 52, "header");
_Static_assert(__builtin_offsetof(struct header, parent) == 56, "header");
_Static_assert(__builtin_offsetof(struct header, prov) == 60, "header");
_Static_assert(__builtin_offsetof(struct header, comm) == 64, "header");

/* A program was executed, or was not to be. Path, working directory and arguments follow, each argument ended by a NUL. */
struct exec {
	/* Device of the file, as the kernel encodes it. */
	__u64 dev;
	/* Inode of the file. */
	__u64 ino;
	/* How many names the file has; 0 for one that was deleted or never had any. */
	__u32 nlink;
	/* Its mode. */
	__u32 mode;
	/* See the flags. */
	__u32 flags;
	/* Bytes of all arguments. */
	__u32 argv_total;
	/* Bytes of them in this record and in the parts that follow. */
	__u32 argv_captured;
	/* Bytes of them in this record. */
	__u32 argv_len;
	/* Bytes of the path. */
	__u32 path_len;
	/* Bytes of the working directory. */
	__u32 cwd_len;
	/* Real user. */
	__u32 real_uid;
	/* Whose the file is. */
	__u32 owner_uid;
	/* The same of groups. */
	__u32 owner_gid;
	/* 0, or the negative error of one that failed. */
	__s32 result;
};
_Static_assert(sizeof(struct exec) == 64, "exec");
_Static_assert(__builtin_offsetof(struct exec, dev) == 0, "exec");
_Static_assert(__builtin_offsetof(struct exec, ino) == 8, "exec");
_Static_assert(__builtin_offsetof(struct exec, nlink) == 16, "exec");
_Static_assert(__builtin_offsetof(struct exec, mode) == 20, "exec");
_Static_assert(__builtin_offsetof(struct exec, flags) == 24, "exec");
_Static_assert(__builtin_offsetof(struct exec, argv_total) == 28, "exec");
_Static_assert(__builtin_offsetof(struct exec, argv_captured) == 32, "exec");
_Static_assert(__builtin_offsetof(struct exec, argv_len) == 36, "exec");
_Static_assert(__builtin_offsetof(struct exec, path_len) == 40, "exec");
_Static_assert(__builtin_offsetof(struct exec, cwd_len) == 44, "exec");
_Static_assert(__builtin_offsetof(struct exec, real_uid) == 48, "exec");
_Static_assert(__builtin_offsetof(struct exec, owner_uid) == 52, "exec");
_Static_assert(__builtin_offsetof(struct exec, owner_gid) == 56, "exec");
_Static_assert(__builtin_offsetof(struct exec, result) == 60, "exec");

/* More arguments of the program that the process has executed last; the bytes follow. */
struct argv {
	/* Where among the arguments they belong. */
	__u32 at;
	/* How many. */
	__u32 len;
};
_Static_assert(sizeof(struct argv) == 8, "argv");
_Static_assert(__builtin_offsetof(struct argv, at) == 0, "argv");
_Static_assert(__builtin_offsetof(struct argv, len) == 4, "argv");

/* A process has ended. */
struct exit {
	/* As wait(2) gives it. */
	__s32 status;
	/* Nothing. */
	__u32 reserved;
};
_Static_assert(sizeof(struct exit) == 8, "exit");
_Static_assert(__builtin_offsetof(struct exit, status) == 0, "exit");
_Static_assert(__builtin_offsetof(struct exit, reserved) == 4, "exit");

/* A file was opened or changed. Path and other path follow. */
struct file_record {
	/* Device of the file; 0 with `ino` where it is not known. */
	__u64 dev;
	/* Inode of the file. */
	__u64 ino;
	/* How often, since the last record of the same. */
	__u64 times;
	/* What: one of the operations on files. */
	__u32 op;
	/* Of open(2), mount(2), renameat2(2). */
	__u32 flags;
	/* Of the file; the new one, where that is what changes. */
	__u32 mode;
	/* How many names the file has. */
	__u32 nlink;
	/* 0, or the negative error. */
	__s32 result;
	/* See the flags. */
	__u32 bits;
	/* Bytes of the path. */
	__u32 path_len;
	/* Bytes of the other path. */
	__u32 other_len;
};
_Static_assert(sizeof(struct file_record) == 56, "file_record");
_Static_assert(__builtin_offsetof(struct file_record, dev) == 0, "file_record");
_Static_assert(__builtin_offsetof(struct file_record, ino) == 8, "file_record");
_Static_assert(__builtin_offsetof(struct file_record, times) == 16, "file_record");
_Static_assert(__builtin_offsetof(struct file_record, op) == 24, "file_record");
_Static_assert(__builtin_offsetof(struct file_record, flags) == 28, "file_record");
_Static_assert(__builtin_offsetof(struct file_record, mode) == 32, "file_record");
_Static_assert(__builtin_offsetof(struct file_record, nlink) == 36, "file_record");
_Static_assert(__builtin_offsetof(struct file_record, result) == 40, "file_record");
_Static_assert(__builtin_offsetof(struct file_record, bits) == 44, "file_record");
_Static_assert(__builtin_offsetof(struct file_record, path_len) == 48, "file_record");
_Static_assert(__builtin_offsetof(struct file_record, other_len) == 52, "file_record");

/* Somebody was talked to, or listened for. A name follows: a path of a socket, or a packet. */
struct net_record {
	/* Bytes sent, of a connection that is closed. */
	__u64 tx;
	/* Bytes received. */
	__u64 rx;
	/* How often, since the last record of the same. */
	__u64 times;
	/* What: one of the operations of the network. */
	__u32 op;
	/* AF_INET and others. */
	__u32 family;
	/* SOCK_STREAM and others. */
	__u32 kind;
	/* IPPROTO_TCP and others. */
	__u32 protocol;
	/* 0, or the negative error. */
	__s32 result;
	/* The process at the other end of a local socket; 0 where it is not known. */
	__u32 peer;
	/* Our address; the first four bytes for IPv4. */
	__u8 local[16];
	/* The other's. */
	__u8 remote[16];
	/* Our port. */
	__u32 local_port;
	/* The other's; the channel or the protocol of what has no ports. */
	__u32 remote_port;
	/* See the flags. */
	__u32 bits;
	/* Bytes of the name. */
	__u32 name_len;
};
_Static_assert(sizeof(struct net_record) == 96, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, tx) == 0, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, rx) == 8, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, times) == 16, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, op) == 24, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, family) == 28, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, kind) == 32, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, protocol) == 36, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, result) == 40, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, peer) == 44, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, local) == 48, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, remote) == 64, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, local_port) == 80, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, remote_port) == 84, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, bits) == 88, "net_record");
_Static_assert(__builtin_offsetof(struct net_record, name_len) == 92, "net_record");

/* A process took or gave up rights. */
struct rights_record {
	/* Before: real and effective user or group in the upper and the lower half, or a set of capabilities. */
	__u64 old;
	/* After. */
	__u64 new;
	/* What: one of the operations on rights. */
	__u32 op;
	/* 0, or the negative error. */
	__s32 result;
};
_Static_assert(sizeof(struct rights_record) == 24, "rights_record");
_Static_assert(__builtin_offsetof(struct rights_record, old) == 0, "rights_record");
_Static_assert(__builtin_offsetof(struct rights_record, new) == 8, "rights_record");
_Static_assert(__builtin_offsetof(struct rights_record, op) == 16, "rights_record");
_Static_assert(__builtin_offsetof(struct rights_record, result) == 20, "rights_record");

/* The kernel itself was to be changed or watched. A name follows. */
struct kernel_record {
	/* What: one of the operations on the kernel. */
	__u32 op;
	/* The command, as the call has it. */
	__u32 code;
	/* 0, or the negative error. */
	__s32 result;
	/* Bytes of the name. */
	__u32 name_len;
};
_Static_assert(sizeof(struct kernel_record) == 16, "kernel_record");
_Static_assert(__builtin_offsetof(struct kernel_record, op) == 0, "kernel_record");
_Static_assert(__builtin_offsetof(struct kernel_record, code) == 4, "kernel_record");
_Static_assert(__builtin_offsetof(struct kernel_record, result) == 8, "kernel_record");
_Static_assert(__builtin_offsetof(struct kernel_record, name_len) == 12, "kernel_record");

/* A process reached into another, or has another do something. A name follows. */
struct trace_record {
	/* The other's session; 0 for none. */
	__u64 other_session;
	/* What: one of the operations on processes. */
	__u32 op;
	/* The signal or the request. */
	__u32 code;
	/* The other process. */
	__u32 other;
	/* 0, or the negative error. */
	__s32 result;
	/* What the other calls itself. */
	__u8 other_comm[16];
	/* Through what: one of the ways of delegation. */
	__u32 via;
	/* Bytes of the name. */
	__u32 name_len;
};
_Static_assert(sizeof(struct trace_record) == 48, "trace_record");
_Static_assert(__builtin_offsetof(struct trace_record, other_session) == 0, "trace_record");
_Static_assert(__builtin_offsetof(struct trace_record, op) == 8, "trace_record");
_Static_assert(__builtin_offsetof(struct trace_record, code) == 12, "trace_record");
_Static_assert(__builtin_offsetof(struct trace_record, other) == 16, "trace_record");
_Static_assert(__builtin_offsetof(struct trace_record, result) == 20, "trace_record");
_Static_assert(__builtin_offsetof(struct trace_record, other_comm) == 24, "trace_record");
_Static_assert(__builtin_offsetof(struct trace_record, via) == 40, "trace_record");
_Static_assert(__builtin_offsetof(struct trace_record, name_len) == 44, "trace_record");

/* What a task carries, from the session's first process to its last, in task storage. */
struct mark {
	/* The node's number of the session; never 0. */
	__u64 session;
	/* Not 0 once its first program runs: what is done before is the node's own doing. */
	__u64 begun;
	/* As the session's, for when that is taken out of its map. */
	__u32 classes;
	/* The same. */
	__u32 strict;
};
_Static_assert(sizeof(struct mark) == 24, "mark");
_Static_assert(__builtin_offsetof(struct mark, session) == 0, "mark");
_Static_assert(__builtin_offsetof(struct mark, begun) == 8, "mark");
_Static_assert(__builtin_offsetof(struct mark, classes) == 16, "mark");
_Static_assert(__builtin_offsetof(struct mark, strict) == 20, "mark");

/* What the kernel counts of a session's records of one class. */
struct tally {
	/* Records so far, those included that were lost. */
	__u64 records;
	/* Bytes of those that were not lost. */
	__u64 bytes;
	/* Records for which the ring had no room. */
	__u64 lost_ring;
	/* Records beyond the session's budget. */
	__u64 lost_budget;
	/* The sequence of the first that was lost. */
	__u64 lost_first;
	/* And of the last. */
	__u64 lost_last;
};
_Static_assert(sizeof(struct tally) == 48, "tally");
_Static_assert(__builtin_offsetof(struct tally, records) == 0, "tally");
_Static_assert(__builtin_offsetof(struct tally, bytes) == 8, "tally");
_Static_assert(__builtin_offsetof(struct tally, lost_ring) == 16, "tally");
_Static_assert(__builtin_offsetof(struct tally, lost_budget) == 24, "tally");
_Static_assert(__builtin_offsetof(struct tally, lost_first) == 32, "tally");
_Static_assert(__builtin_offsetof(struct tally, lost_last) == 40, "tally");

/* A session: what the node wants to know of it, and what the kernel counts. */
struct session {
	/* Tasks that live. */
	__u64 tasks;
	/* Tasks that could not be marked: what they did is not known. */
	__u64 unmarked;
	/* Repetitions that were not told one by one. */
	__u64 folded;
	/* The classes of records that are wanted, as bits. */
	__u32 classes;
	/* Not 0: what cannot be told must not happen. */
	__u32 strict;
	/* By class. */
	struct tally tallies[3];
};
_Static_assert(sizeof(struct session) == 176, "session");
_Static_assert(__builtin_offsetof(struct session, tasks) == 0, "session");
_Static_assert(__builtin_offsetof(struct session, unmarked) == 8, "session");
_Static_assert(__builtin_offsetof(struct session, folded) == 16, "session");
_Static_assert(__builtin_offsetof(struct session, classes) == 24, "session");
_Static_assert(__builtin_offsetof(struct session, strict) == 28, "session");
_Static_assert(__builtin_offsetof(struct session, tallies) == 32, "session");

/* What of a session's records the node has done with; by class. */
struct credit {
	/* See the tally's. */
	__u64 bytes[3];
	/* See the tally's; what was lost is no record that the node is done with. */
	__u64 records[3];
};
_Static_assert(sizeof(struct credit) == 48, "credit");
_Static_assert(__builtin_offsetof(struct credit, bytes) == 0, "credit");
_Static_assert(__builtin_offsetof(struct credit, records) == 24, "credit");

/* A path, or how paths begin, for the trie. What is exact ends in a NUL. */
struct rules_path {
	/* In bits, from `space` on. */
	__u32 prefixlen;
	/* The policy's number, and one of the spaces. */
	__u32 space;
	/* From the root of the mount namespace; zero where the path has ended. */
	__u8 path[252];
};
_Static_assert(sizeof(struct rules_path) == 260, "rules_path");
_Static_assert(__builtin_offsetof(struct rules_path, prefixlen) == 0, "rules_path");
_Static_assert(__builtin_offsetof(struct rules_path, space) == 4, "rules_path");
_Static_assert(__builtin_offsetof(struct rules_path, path) == 8, "rules_path");

/* An address, or how addresses begin, for the trie. */
struct rules_address {
	/* In bits, from `policy` on. */
	__u32 prefixlen;
	/* The policy's number. */
	__u32 policy;
	/* AF_INET or AF_INET6. */
	__u32 family;
	/* In the network's order; the first four bytes for IPv4. */
	__u8 address[16];
};
_Static_assert(sizeof(struct rules_address) == 28, "rules_address");
_Static_assert(__builtin_offsetof(struct rules_address, prefixlen) == 0, "rules_address");
_Static_assert(__builtin_offsetof(struct rules_address, policy) == 4, "rules_address");
_Static_assert(__builtin_offsetof(struct rules_address, family) == 8, "rules_address");
_Static_assert(__builtin_offsetof(struct rules_address, address) == 12, "rules_address");

/* Ports, both ends included, and whose rule it is. */
struct rules_ports {
	/* The first. */
	__u16 low;
	/* The last. */
	__u16 high;
	/* The rule. */
	__u32 rule;
};
_Static_assert(sizeof(struct rules_ports) == 8, "rules_ports");
_Static_assert(__builtin_offsetof(struct rules_ports, low) == 0, "rules_ports");
_Static_assert(__builtin_offsetof(struct rules_ports, high) == 2, "rules_ports");
_Static_assert(__builtin_offsetof(struct rules_ports, rule) == 4, "rules_ports");

/* What holds at a prefix of addresses: its own ports, then those of every shorter prefix. */
struct rules_address_ports {
	/* How many ranges there are. */
	__u32 count;
	/* The ranges. */
	struct rules_ports ports[32];
};
_Static_assert(sizeof(struct rules_address_ports) == 260, "rules_address_ports");
_Static_assert(__builtin_offsetof(struct rules_address_ports, count) == 0, "rules_address_ports");
_Static_assert(__builtin_offsetof(struct rules_address_ports, ports) == 4, "rules_address_ports");

/* What a program's bytes give. */
struct rules_hash {
	/* The policy's number. */
	__u32 policy;
	/* Nothing. */
	__u32 reserved;
	/* The digest. */
	__u8 sha256[32];
};
_Static_assert(sizeof(struct rules_hash) == 40, "rules_hash");
_Static_assert(__builtin_offsetof(struct rules_hash, policy) == 0, "rules_hash");
_Static_assert(__builtin_offsetof(struct rules_hash, reserved) == 4, "rules_hash");
_Static_assert(__builtin_offsetof(struct rules_hash, sha256) == 8, "rules_hash");

/* A set of rules: what of it there is to look up. */
struct rules_policy {
	/* One of the modes. */
	__u32 mode;
	/* Of which kinds there are rules, as bits. */
	__u32 has;
	/* What is contained, as bits. */
	__u32 contain;
	/* Nothing. */
	__u32 reserved;
};
_Static_assert(sizeof(struct rules_policy) == 16, "rules_policy");
_Static_assert(__builtin_offsetof(struct rules_policy, mode) == 0, "rules_policy");
_Static_assert(__builtin_offsetof(struct rules_policy, has) == 4, "rules_policy");
_Static_assert(__builtin_offsetof(struct rules_policy, contain) == 8, "rules_policy");
_Static_assert(__builtin_offsetof(struct rules_policy, reserved) == 12, "rules_policy");

/* What does not depend on sessions. */
struct rules_settings {
	/* The node's own process, to which no rule applies, and which contained sessions leave alone. */
	__u32 agent;
	/* When that was made, in hundredths of a second since boot: its number may be another's later. */
	__u32 since;
};
_Static_assert(sizeof(struct rules_settings) == 8, "rules_settings");
_Static_assert(__builtin_offsetof(struct rules_settings, agent) == 0, "rules_settings");
_Static_assert(__builtin_offsetof(struct rules_settings, since) == 4, "rules_settings");

/* A deed that a rule is about. A path follows. */
struct denial {
	/* How often, since the last record of the same. */
	__u64 times;
	/* What: one of the deeds. */
	__u32 deed;
	/* The policy's number. */
	__u32 policy;
	/* The rule's number in it. */
	__u32 rule;
	/* One of the modes. */
	__u32 mode;
	/* What the program gets: 0 where the rule only watches. */
	__s32 result;
	/* The signal, the command. */
	__u32 code;
	/* The other process. */
	__u32 other;
	/* AF_INET or AF_INET6; 0 where there is no address. */
	__u32 family;
	/* In the network's order; the first four bytes for IPv4. */
	__u8 address[16];
	/* The port. */
	__u32 port;
	/* Bytes of the path. */
	__u32 path_len;
};
_Static_assert(sizeof(struct denial) == 64, "denial");
_Static_assert(__builtin_offsetof(struct denial, times) == 0, "denial");
_Static_assert(__builtin_offsetof(struct denial, deed) == 8, "denial");
_Static_assert(__builtin_offsetof(struct denial, policy) == 12, "denial");
_Static_assert(__builtin_offsetof(struct denial, rule) == 16, "denial");
_Static_assert(__builtin_offsetof(struct denial, mode) == 20, "denial");
_Static_assert(__builtin_offsetof(struct denial, result) == 24, "denial");
_Static_assert(__builtin_offsetof(struct denial, code) == 28, "denial");
_Static_assert(__builtin_offsetof(struct denial, other) == 32, "denial");
_Static_assert(__builtin_offsetof(struct denial, family) == 36, "denial");
_Static_assert(__builtin_offsetof(struct denial, address) == 40, "denial");
_Static_assert(__builtin_offsetof(struct denial, port) == 56, "denial");
_Static_assert(__builtin_offsetof(struct denial, path_len) == 60, "denial");

#endif
