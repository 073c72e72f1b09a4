/* What system calls did, at their end: what Tier B tells of all, and Tier A of those that failed. */
#ifndef POSTERN_CALLS_H
#define POSTERN_CALLS_H

#include "network.h"
#include "typed.h"

#include <asm/unistd_64.h>

#define O_CREAT 0100

#define EINTR 4
#define ECONNRESET 104
#define EISCONN 106
#define ETIMEDOUT 110
#define ECONNREFUSED 111
#define EHOSTUNREACH 113
#define EALREADY 114
#define EINPROGRESS 115

/* What a call does with paths. Arguments are counted from 1; 0 for none. */
struct spec {
	__u8 op;
	__u8 path;
	__u8 dir;
	__u8 other;
	__u8 other_dir;
	__u8 flags;
	__u8 mode;
	/* IS_TEXT, OF_FD. */
	__u8 bits;
};

/* The other is no path. */
#define IS_TEXT 1
/* The path is that of a descriptor. */
#define OF_FD 2
#define CALLS_MAX 512
/* Linux 6.6. */
#define __NR_fchmodat2 452
/* Linux 6.13. */
#define __NR_setxattrat 463
#define __NR_removexattrat 466

static const struct spec specs[CALLS_MAX] = {
	[__NR_unlink] = { FILE_UNLINK, 1 },
	[__NR_unlinkat] = { FILE_UNLINK, 2, 1, .flags = 3 },
	[__NR_rmdir] = { FILE_RMDIR, 1 },
	[__NR_rename] = { FILE_RENAME, 1, 0, 2 },
	[__NR_renameat] = { FILE_RENAME, 2, 1, 4, 3 },
	[__NR_renameat2] = { FILE_RENAME, 2, 1, 4, 3, 5 },
	[__NR_link] = { FILE_LINK, 1, 0, 2 },
	[__NR_linkat] = { FILE_LINK, 2, 1, 4, 3, 5 },
	[__NR_symlink] = { FILE_SYMLINK, 2, 0, 1, .bits = IS_TEXT },
	[__NR_symlinkat] = { FILE_SYMLINK, 3, 2, 1, .bits = IS_TEXT },
	[__NR_mkdir] = { FILE_MKDIR, 1, .mode = 2 },
	[__NR_mkdirat] = { FILE_MKDIR, 2, 1, .mode = 3 },
	[__NR_mknod] = { FILE_MKNOD, 1, .mode = 2 },
	[__NR_mknodat] = { FILE_MKNOD, 2, 1, .mode = 3 },
	[__NR_truncate] = { FILE_TRUNCATE, 1 },
	[__NR_ftruncate] = { FILE_TRUNCATE, 1, .bits = OF_FD },
	[__NR_chmod] = { FILE_CHMOD, 1, .mode = 2 },
	[__NR_fchmod] = { FILE_CHMOD, 1, .mode = 2, .bits = OF_FD },
	[__NR_fchmodat] = { FILE_CHMOD, 2, 1, .mode = 3 },
	[__NR_fchmodat2] = { FILE_CHMOD, 2, 1, .mode = 3 },
	[__NR_chown] = { FILE_CHOWN, 1, .flags = 2 },
	[__NR_lchown] = { FILE_CHOWN, 1, .flags = 2 },
	[__NR_fchown] = { FILE_CHOWN, 1, .flags = 2, .bits = OF_FD },
	[__NR_fchownat] = { FILE_CHOWN, 2, 1, .flags = 3 },
	[__NR_setxattr] = { FILE_SETXATTR, 1, 0, 2, .bits = IS_TEXT },
	[__NR_lsetxattr] = { FILE_SETXATTR, 1, 0, 2, .bits = IS_TEXT },
	[__NR_fsetxattr] = { FILE_SETXATTR, 1, 0, 2, .bits = IS_TEXT | OF_FD },
	[__NR_removexattr] = { FILE_REMOVEXATTR, 1, 0, 2, .bits = IS_TEXT },
	[__NR_lremovexattr] = { FILE_REMOVEXATTR, 1, 0, 2, .bits = IS_TEXT },
	[__NR_fremovexattr] = { FILE_REMOVEXATTR, 1, 0, 2, .bits = IS_TEXT | OF_FD },
	[__NR_setxattrat] = { FILE_SETXATTR, 2, 1, 4, .bits = IS_TEXT },
	[__NR_removexattrat] = { FILE_REMOVEXATTR, 2, 1, 4, .bits = IS_TEXT },
	[__NR_mount] = { FILE_MOUNT, 2, 0, 1, .flags = 4, .bits = IS_TEXT },
	[__NR_move_mount] = { FILE_MOUNT, 4, 3, 2, 1, 5 },
	[__NR_umount2] = { FILE_UMOUNT, 1, .flags = 2 },
	[__NR_pivot_root] = { FILE_PIVOT_ROOT, 1, 0, 2 },
	[__NR_chroot] = { FILE_CHROOT, 1 },
};

/* The arguments of a call. */
struct arguments {
	unsigned long of[8];
};

/* Those of a call of a 32-bit program. */
static __always_inline struct arguments arguments_of_32bit(struct pt_regs *regs)
{
	struct arguments arguments = {
		.of = { 0, (__u32)regs->bx, (__u32)regs->cx, (__u32)regs->dx, (__u32)regs->si, (__u32)regs->di,
			(__u32)regs->bp },
	};
	return arguments;
}

static __always_inline struct arguments arguments_of(struct pt_regs *regs)
{
	struct arguments arguments = {
		.of = { 0, regs->di, regs->si, regs->dx, regs->r10, regs->r8, regs->r9 },
	};
	return arguments;
}

static __always_inline unsigned long argument(struct arguments *arguments, __u8 number)
{
	return arguments->of[number & 7];
}

static __always_inline struct typed typed(struct arguments *arguments, __u8 path, __u8 dir)
{
	struct typed typed = {
		.text = (const char *)argument(arguments, path),
		.dir = dir ? (__s32)argument(arguments, dir) : AT_FDCWD,
	};
	return typed;
}

/* A call is to be begun again, once a signal has been dealt with: nothing has come of it yet. */
static __always_inline int is_begun_again(long result)
{
	return result <= -512 && result >= -516;
}

/* Whether a file that was not opened is worth a word: where somebody was not allowed, and where it was to be written. What is
 * looked for in many places, such as libraries, is not. */
static __always_inline int is_told(unsigned long flags, long result)
{
	return !is_begun_again(result) && (is_refusal(result) || flags & (O_ACCMODE | O_CREAT));
}

/* How a file was asked for: of openat2(2) it stands in memory. */
static __always_inline unsigned long open_flags(struct arguments *arguments, __u32 call)
{
	unsigned long flags = 0;

	switch (call) {
	case __NR_creat:
		return O_CREAT;
	case __NR_open:
		return arguments->of[2];
	case __NR_openat:
		return arguments->of[3];
	case __NR_openat2:
		bpf_probe_read_user(&flags, sizeof(flags), (void *)arguments->of[3]);
		return flags;
	default:
		return 0;
	}
}

/* A file was not opened. */
static __always_inline int tell_not_opened(struct teller *teller, struct arguments *arguments, __u32 call, long result)
{
	int at = call == __NR_openat || call == __NR_openat2;
	unsigned long flags = open_flags(arguments, call);

	if (!is_told(flags, result))
		return 0;
	struct typed_deed deed = {
		.path = typed(arguments, at ? 2 : 1, at ? 1 : 0),
		.op = FILE_OPEN,
		.flags = flags,
		.prov = PROV_SYSCALL,
		.result = result,
	};
	return tell_typed(teller, &deed);
}

static __always_inline int tell_by_spec(struct teller *teller, struct arguments *arguments, const struct spec *spec,
					long result)
{
	if (is_begun_again(result))
		return 0;
	if (spec->bits & OF_FD) {
		struct file *file = file_of(teller->task, argument(arguments, spec->path));
		struct deed deed = {
			.mnt = BPF_CORE_READ(file, f_path.mnt),
			.dentry = BPF_CORE_READ(file, f_path.dentry),
			.op = spec->op,
			.flags = spec->flags ? argument(arguments, spec->flags) : 0,
			.mode = spec->mode ? argument(arguments, spec->mode) : 0,
			.prov = PROV_TP,
			.result = result,
		};
		if (!file || (result < 0 && is_folded_file(teller, BPF_CORE_READ(file, f_inode),
							   FOLD_FAILED | spec->op << 16 | (-result & 0xff), &deed.times)))
			return 0;
		return tell_file(teller, &deed);
	}
	struct typed_deed deed = {
		.path = typed(arguments, spec->path, spec->dir),
		.is_text = spec->bits & IS_TEXT,
		.op = spec->op,
		.flags = spec->flags ? argument(arguments, spec->flags) : 0,
		.mode = spec->mode ? argument(arguments, spec->mode) : 0,
		.prov = PROV_SYSCALL,
		.result = result,
	};
	if (spec->other)
		deed.other = typed(arguments, spec->other, spec->other_dir);
	return tell_typed(teller, &deed);
}

#define S_IFSOCK 0140000

static __always_inline struct sock *socket_of(struct task_struct *task, __s32 fd)
{
	struct file *file = file_of(task, fd);

	if (!file || (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	struct socket *socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, sk);
}

/* As recvmsg(2) and sendmsg(2) have it. */
struct user_msghdr {
	void *name;
	__u32 length;
	__u32 padding;
	void *pieces;
	__u64 piece_count;
	void *control;
	__u64 control_length;
	__u64 flags;
};

/* Of sendmmsg(2): each is followed by how much of it was sent. */
#define MESSAGES_MAX 8
#define MMSGHDR_BYTES (sizeof(struct user_msghdr) + 8)

/* How a connection of TCP fails once its states have begun to change, of which network.bpf.c tells; or goes on. */
static __always_inline int is_told_by_states(__s32 result)
{
	switch (-result) {
	case 0:
	case EINTR:
	case ECONNABORTED:
	case ECONNRESET:
	case EISCONN:
	case ETIMEDOUT:
	case ECONNREFUSED:
	case EHOSTUNREACH:
	case EALREADY:
	case EINPROGRESS:
		return 1;
	default:
		return is_begun_again(result);
	}
}

/* Addresses as they were passed. */
static __noinline int tell_passed(struct teller *teller, __s32 fd, void *from, __s32 length, __u32 op_and_result)
{
	__u32 op = op_and_result & 0xff, number = 0;
	__s32 result = -(__s32)(op_and_result >> 8);
	struct sock *sk = socket_of(teller->task, fd);
	__u16 family = 0;

	if (!sk || !from || length < 2 ||
	    (op != NET_BIND && BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP &&
	     (op != NET_CONNECT || is_told_by_states(result))))
		return 0;
	struct place *place = take_place(&number);
	if (!place)
		return lose_one(teller->session, CLASS_NET);
	struct talk *talk = begin_talk(teller, place, op, PROV_SYSCALL);
	copy_ends(&talk->net, sk);
	talk->net.result = result;
	__u32 rest = length - sizeof(family);
	if (rest > sizeof(talk->name))
		rest = sizeof(talk->name);
	bpf_probe_read_user(&family, sizeof(family), from);
	__builtin_memset(talk->name, 0, NAME_BYTES);
	bpf_probe_read_user(talk->name, rest, from + sizeof(family));
	family = family_as_sent(family, op, &talk->net);
	/* What was bound is known better than what was asked for: the port. */
	if (op != NET_BIND || (family != AF_INET && family != AF_INET6))
		copy_address(talk, family, rest, op == NET_BIND);
	if (family == AF_UNIX) {
		talk->net.peer = BPF_CORE_READ(sk, sk_peer_pid, numbers[0].nr);
		if (op == NET_CONNECT && !result)
			copy_bound(talk, BPF_CORE_READ((struct unix_sock *)sk, peer));
	}
	__u64 more = family == AF_UNIX ? digest_of_name(talk) : 0;
	if (op == NET_BIND || !is_folded_talk(teller, &talk->net, more))
		send_talk(teller, talk);
	leave_place(place);
	return 0;
}

#endif
