/* The records, as ebpf/abi has them. Written by `cargo xtask ebpf`; do not edit. */
#ifndef POSTERN_RECORDS_H
#define POSTERN_RECORDS_H

#include <linux/types.h>

#define RECORD_VERSION 1
#define PATH_BYTES_MAX 4095
#define ARGV_PART_BYTES_MAX 8000
#define ARGV_BYTES_MAX 131072
#define KIND_EXEC 1
#define KIND_ARGV 2
#define KIND_EXIT 3
#define KIND_OVER 4
#define FLAG_ARGV_UNREADABLE 1
#define FLAG_PATH_CUT 2
#define FLAG_CWD_CUT 4
#define FLAG_SCRIPT 8

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
};
_Static_assert(sizeof(struct header) == 56, "header");
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

/* A program was executed. Path, working directory and arguments follow, each argument ended by a NUL. */
struct exec {
	/* Device of the file, as the kernel encodes it. */
	__u64 dev;
	/* Inode of the file. */
	__u64 ino;
	/* When the parent process was made, see `header`. */
	__u64 parent_ns;
	/* The parent process. */
	__u32 parent;
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
};
_Static_assert(sizeof(struct exec) == 64, "exec");
_Static_assert(__builtin_offsetof(struct exec, dev) == 0, "exec");
_Static_assert(__builtin_offsetof(struct exec, ino) == 8, "exec");
_Static_assert(__builtin_offsetof(struct exec, parent_ns) == 16, "exec");
_Static_assert(__builtin_offsetof(struct exec, parent) == 24, "exec");
_Static_assert(__builtin_offsetof(struct exec, nlink) == 28, "exec");
_Static_assert(__builtin_offsetof(struct exec, mode) == 32, "exec");
_Static_assert(__builtin_offsetof(struct exec, flags) == 36, "exec");
_Static_assert(__builtin_offsetof(struct exec, argv_total) == 40, "exec");
_Static_assert(__builtin_offsetof(struct exec, argv_captured) == 44, "exec");
_Static_assert(__builtin_offsetof(struct exec, argv_len) == 48, "exec");
_Static_assert(__builtin_offsetof(struct exec, path_len) == 52, "exec");
_Static_assert(__builtin_offsetof(struct exec, cwd_len) == 56, "exec");
_Static_assert(__builtin_offsetof(struct exec, real_uid) == 60, "exec");

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

/* What a task carries, from the session's first process to its last, in task storage. */
struct mark {
	/* The node's number of the session; never 0. */
	__u64 session;
};
_Static_assert(sizeof(struct mark) == 8, "mark");
_Static_assert(__builtin_offsetof(struct mark, session) == 0, "mark");

/* What the kernel counts of a session. */
struct counts {
	/* Tasks that live. */
	__u64 tasks;
	/* Records so far, those included that were lost. */
	__u64 records;
	/* Records that were lost. */
	__u64 lost;
	/* The sequence of the first that was lost since the node last looked. */
	__u64 lost_first;
	/* And of the last. */
	__u64 lost_last;
	/* Tasks that could not be marked: what they did is not known. */
	__u64 unmarked;
};
_Static_assert(sizeof(struct counts) == 48, "counts");
_Static_assert(__builtin_offsetof(struct counts, tasks) == 0, "counts");
_Static_assert(__builtin_offsetof(struct counts, records) == 8, "counts");
_Static_assert(__builtin_offsetof(struct counts, lost) == 16, "counts");
_Static_assert(__builtin_offsetof(struct counts, lost_first) == 24, "counts");
_Static_assert(__builtin_offsetof(struct counts, lost_last) == 32, "counts");
_Static_assert(__builtin_offsetof(struct counts, unmarked) == 40, "counts");

#endif
