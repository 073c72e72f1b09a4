/* What no LSM program sees: how calls ended of which there are few (Tier A). By the names of the kernel's functions, which are
 * those of one architecture; a kernel that has others is told of as that. */
#include "other.h"
#include "typed.h"

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
