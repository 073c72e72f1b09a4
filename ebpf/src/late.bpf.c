/* What no LSM program sees: how calls ended of which there are few (Tier A). By the names of the kernel's functions, which are
 * those of one architecture; a kernel that has others is told of as that. Of 32-bit programs only what succeeds is told of. */
#include "calls.h"
#include "other.h"

static __always_inline void tell_failed_exec(struct pt_regs *regs, long result, int at)
{
	struct teller teller;

	if (result >= 0 || !tell(&teller))
		return;
	struct typed path = {
		.text = (const char *)(at ? regs->si : regs->di),
		.dir = at ? (__s32)regs->di : AT_FDCWD,
	};
	tell_not_executed(&teller, &path, result);
}

SEC("fexit/__x64_sys_execve")
int BPF_PROG(__x64_sys_execve, struct pt_regs *regs, long result)
{
	tell_failed_exec(regs, result, 0);
	return 0;
}

SEC("fexit/__x64_sys_execveat")
int BPF_PROG(__x64_sys_execveat, struct pt_regs *regs, long result)
{
	tell_failed_exec(regs, result, 1);
	return 0;
}

static __always_inline void tell_namespace(unsigned long flags, long result)
{
	struct teller teller;

	if (tell_of(&teller, CLASS_CONTROL))
		tell_rights(&teller, RIGHTS_NAMESPACE, 0, flags, PROV_SYSCALL, result);
}

SEC("fexit/__x64_sys_unshare")
int BPF_PROG(__x64_sys_unshare, struct pt_regs *regs, long result)
{
	tell_namespace(regs->di, result);
	return 0;
}

SEC("fexit/__x64_sys_setns")
int BPF_PROG(__x64_sys_setns, struct pt_regs *regs, long result)
{
	tell_namespace(regs->si, result);
	return 0;
}

SEC("fexit/__x64_sys_seccomp")
int BPF_PROG(__x64_sys_seccomp, struct pt_regs *regs, long result)
{
	struct teller teller;

	if (regs->di != SECCOMP_SET_MODE_FILTER || !(regs->si & SECCOMP_FILTER_FLAG_NEW_LISTENER) ||
	    !tell_of(&teller, CLASS_CONTROL))
		return 0;
	tell_kernel(&teller, KERNEL_SECCOMP_NOTIFY, 0, 0, PROV_SYSCALL, result < 0 ? result : 0);
	return 0;
}

/* At the ends of the calls: what they have in common, some kernels have no function for. */
static __always_inline int tell_refused_open(struct arguments arguments, __u32 call, long result)
{
	struct teller teller;

	if (result < 0 && tell_of(&teller, CLASS_FILE))
		tell_not_opened(&teller, &arguments, call, result);
	return 0;
}

#define NOT_OPENED(name, number)                                                 \
	SEC("fexit/__x64_sys_" #name)                                            \
	int BPF_PROG(__x64_sys_##name, struct pt_regs *regs, long result)        \
	{                                                                        \
		return tell_refused_open(arguments_of(regs), number, result);    \
	}

NOT_OPENED(open, __NR_open)
NOT_OPENED(creat, __NR_creat)
NOT_OPENED(openat, __NR_openat)
NOT_OPENED(openat2, __NR_openat2)

/* What was to be changed and was not: the hooks before have told that it was tried, or nothing, where rights said no. */
static __always_inline int tell_unchanged(struct pt_regs *regs, const struct spec *spec, long result)
{
	struct teller teller;

	if (result >= 0 || !tell_of(&teller, CLASS_FILE))
		return 0;
	struct arguments arguments = arguments_of(regs);
	tell_by_spec(&teller, &arguments, spec, result);
	return 0;
}

#define UNCHANGED(name, number)                                             \
	SEC("fexit/__x64_sys_" #name)                                       \
	int BPF_PROG(__x64_sys_##name, struct pt_regs *regs, long result)   \
	{                                                                   \
		return tell_unchanged(regs, &specs[number], result);        \
	}

UNCHANGED(unlink, __NR_unlink)
UNCHANGED(unlinkat, __NR_unlinkat)
UNCHANGED(rmdir, __NR_rmdir)
UNCHANGED(rename, __NR_rename)
UNCHANGED(renameat, __NR_renameat)
UNCHANGED(renameat2, __NR_renameat2)
UNCHANGED(link, __NR_link)
UNCHANGED(linkat, __NR_linkat)
UNCHANGED(symlink, __NR_symlink)
UNCHANGED(symlinkat, __NR_symlinkat)
UNCHANGED(mkdir, __NR_mkdir)
UNCHANGED(mkdirat, __NR_mkdirat)
UNCHANGED(mknod, __NR_mknod)
UNCHANGED(mknodat, __NR_mknodat)
UNCHANGED(truncate, __NR_truncate)
UNCHANGED(ftruncate, __NR_ftruncate)
UNCHANGED(chmod, __NR_chmod)
UNCHANGED(fchmod, __NR_fchmod)
UNCHANGED(fchmodat, __NR_fchmodat)
UNCHANGED(fchmodat2, __NR_fchmodat2)
UNCHANGED(chown, __NR_chown)
UNCHANGED(lchown, __NR_lchown)
UNCHANGED(fchown, __NR_fchown)
UNCHANGED(fchownat, __NR_fchownat)
UNCHANGED(setxattr, __NR_setxattr)
UNCHANGED(lsetxattr, __NR_lsetxattr)
UNCHANGED(fsetxattr, __NR_fsetxattr)
UNCHANGED(removexattr, __NR_removexattr)
UNCHANGED(lremovexattr, __NR_lremovexattr)
UNCHANGED(fremovexattr, __NR_fremovexattr)
UNCHANGED(mount, __NR_mount)
UNCHANGED(move_mount, __NR_move_mount)
UNCHANGED(umount, __NR_umount2)
UNCHANGED(pivot_root, __NR_pivot_root)
UNCHANGED(chroot, __NR_chroot)

/* What came of an address; of TCP only where its states say nothing. */
static __always_inline int tell_failed_talk(struct pt_regs *regs, __u32 op, long result)
{
	struct teller teller;

	if (result >= 0 || is_begun_again(result) || !tell_of(&teller, CLASS_NET))
		return 0;
	tell_passed(&teller, regs->di, (void *)regs->si, regs->dx, op | (__u32)-result << 8);
	return 0;
}

SEC("fexit/__x64_sys_connect")
int BPF_PROG(__x64_sys_connect, struct pt_regs *regs, long result)
{
	return tell_failed_talk(regs, NET_CONNECT, result);
}

SEC("fexit/__x64_sys_bind")
int BPF_PROG(__x64_sys_bind, struct pt_regs *regs, long result)
{
	return tell_failed_talk(regs, NET_BIND, result);
}
