/* What system calls did, at their end (Tier B, where the kernel takes no LSM programs): files from the descriptors that they
 * gave, which are the kernel's; paths and addresses as they were passed. */
#include "calls.h"
#include "compat.h"
#include "delegate.h"
#include "other.h"

static __noinline int tell_spec(struct teller *teller, struct arguments *arguments, __u32 call, long result)
{
	const struct spec *spec = &specs[call & (CALLS_MAX - 1)];

	if (!spec->op || !(teller->session->classes & (1 << CLASS_FILE)))
		return 0;
	return tell_by_spec(teller, arguments, spec, result);
}

/* A call of its own: its stack and a caller's would be too much. */
static __noinline int tell_descriptor(struct teller *teller, __s32 fd, __u32 op)
{
	struct file *file = file_of(teller->task, fd);

	return file ? tell_open(teller, file, op, PROV_TP) : 0;
}

/* A descriptor was given for a file; or not. */
static __noinline int tell_opened(struct teller *teller, struct arguments *arguments, __u32 call, long result)
{
	if (result >= 0)
		return tell_descriptor(teller, result, FILE_OPEN);
	if (call == __NR_open_by_handle_at || !(teller->session->classes & (1 << CLASS_FILE)))
		return 0;
	return tell_not_opened(teller, arguments, call, result);
}

/* A call of its own, for its stack. */
static __noinline int tell_socket_made(struct teller *teller, struct arguments *arguments, long result)
{
	struct {
		struct header header;
		struct net_record net;
	} record = { .net = { .op = NET_SOCKET,
			      .family = arguments->of[1],
			      .kind = arguments->of[2] & SOCK_TYPE_MASK,
			      .protocol = arguments->of[3],
			      .result = result < 0 ? result : 0 } };

	if (!is_special(record.net.family, record.net.kind))
		return 0;
	begin(teller, &record.header, CLASS_NET, KIND_NET, PROV_SYSCALL);
	return send(teller->session, CLASS_NET, &record.header, sizeof(record));
}

static __noinline int tell_of_socket(struct teller *teller, struct arguments *arguments, __u32 call, long result)
{
	__u32 failed = result < 0 ? (__u32)-result << 8 : 0;
	struct user_msghdr message = {};

	if (!(teller->session->classes & (1 << CLASS_NET)))
		return 0;
	if (call == __NR_socket)
		return tell_socket_made(teller, arguments, result);
	if (call == __NR_sendmmsg) {
		for (int i = 0; i < MESSAGES_MAX && i < result; i++) {
			void *at = (void *)arguments->of[2] + i * MMSGHDR_BYTES;
			bpf_probe_read_user(&message, sizeof(message), at);
			tell_passed(teller, arguments->of[1], message.name, message.length, NET_SEND);
		}
		/* Perhaps all to one end; it is not looked at. */
		if (result > MESSAGES_MAX)
			lose_many(teller->session, CLASS_NET, result - MESSAGES_MAX);
		return 0;
	}
	if (call == __NR_sendmsg) {
		bpf_probe_read_user(&message, sizeof(message), (void *)arguments->of[2]);
		return tell_passed(teller, arguments->of[1], message.name, message.length, NET_SEND | failed);
	}
	if (call == __NR_sendto)
		return tell_passed(teller, arguments->of[1], (void *)arguments->of[5], arguments->of[6],
				   NET_SEND | failed);
	return tell_passed(teller, arguments->of[1], (void *)arguments->of[2], arguments->of[3],
			   (call == __NR_bind ? NET_BIND : NET_CONNECT) | failed);
}

#define PTRACE_TRACEME 0
#define PTRACE_ATTACH 16
#define PTRACE_SEIZE 0x4206

/* The process that a descriptor stands for; 0 where it stands for none. */
static __always_inline __u32 process_of(struct task_struct *task, __s32 fd)
{
	struct file *file = file_of(task, fd);
	struct pid *pid = BPF_CORE_READ(file, private_data);

	/* From Linux 6.9 on. */
	if (!pid)
		pid = BPF_CORE_READ(file, f_inode, i_private);
	return BPF_CORE_READ(pid, numbers[0].nr);
}

#define SOL_SOCKET 1
#define SCM_RIGHTS 1
#define DESCRIPTORS_MAX 8

/* Descriptors that came with a message. */
static __noinline int tell_received(struct teller *teller, struct arguments *arguments)
{
	struct {
		void *control;
		__u64 control_length;
	} message = {};
	struct {
		__u64 length;
		__s32 level;
		__s32 type;
	} control = {};

	bpf_probe_read_user(&message, sizeof(message),
			    (void *)arguments->of[2] + __builtin_offsetof(struct user_msghdr, control));
	if (!message.control || message.control_length < sizeof(control) ||
	    bpf_probe_read_user(&control, sizeof(control), message.control))
		return 0;
	if (control.level != SOL_SOCKET || control.type != SCM_RIGHTS || control.length <= 16)
		return 0;
	__u32 count = (control.length - 16) / 4;
	for (int i = 0; i < DESCRIPTORS_MAX; i++) {
		__s32 fd = -1;
		if (i >= count)
			break;
		bpf_probe_read_user(&fd, sizeof(fd), message.control + 16 + i * 4);
		tell_descriptor(teller, fd, FILE_RECEIVE);
	}
	if (count > DESCRIPTORS_MAX && teller->session->classes & (1 << CLASS_FILE))
		lose_many(teller->session, CLASS_FILE, count - DESCRIPTORS_MAX);
	return 0;
}

static __noinline int tell_of_other(struct teller *teller, __u32 op, __u32 code, __u32 other, long result)
{
	struct {
		struct header header;
		struct trace_record trace;
	} record = { .trace = { .op = op, .code = code, .other = other, .result = result < 0 ? result : 0 } };

	begin(teller, &record.header, CLASS_CONTROL, KIND_TRACE, PROV_SYSCALL);
	return send(teller->session, CLASS_CONTROL, &record.header, sizeof(record));
}

static __noinline int tell_of_kernel(struct teller *teller, __u32 op, __u32 code, long result)
{
	return tell_kernel(teller, op, code, 0, PROV_SYSCALL, result < 0 ? result : 0);
}

/* Whether a call of bpf(2) gave a descriptor of a map or a program of ours. */
static __noinline int is_ours(struct task_struct *task, __u32 command, __s32 fd)
{
	struct file *file = file_of(task, fd);
	void *data = file ? BPF_CORE_READ(file, private_data) : 0;
	__u32 id;

	if (command == BPF_MAP_GET_FD_BY_ID) {
		id = BPF_CORE_READ((struct bpf_map *)data, id);
		return bpf_map_lookup_elem(&our_maps, &id) != 0;
	}
	if (command == BPF_PROG_GET_FD_BY_ID) {
		id = BPF_CORE_READ((struct bpf_prog *)data, aux, id);
		return bpf_map_lookup_elem(&our_programs, &id) != 0;
	}
	return 0;
}

/* Before is not known at the end of a call. */
#define NOT_KNOWN -1ULL

static __noinline int tell_of_rights(struct teller *teller, __u32 op, __u64 new, long result)
{
	return tell_rights(teller, op, NOT_KNOWN, new, PROV_SYSCALL, result < 0 ? result : 0);
}

static __noinline int tell_of_process(struct teller *teller, struct arguments *arguments, __u32 call, long result)
{
	const struct cred *cred = teller->task->cred;
	unsigned long first = arguments->of[1];
	struct typed path;

	switch (call) {
	case __NR_execve:
		path = typed(arguments, 1, 0);
		return result < 0 ? tell_not_executed(teller, &path, result) : 0;
	case __NR_execveat:
		path = typed(arguments, 2, 1);
		return result < 0 ? tell_not_executed(teller, &path, result) : 0;
	case __NR_setuid:
	case __NR_setreuid:
	case __NR_setresuid:
		return tell_of_rights(teller, RIGHTS_SETUID, ids(cred->uid.val, cred->euid.val), result);
	case __NR_setgid:
	case __NR_setregid:
	case __NR_setresgid:
		return tell_of_rights(teller, RIGHTS_SETGID, ids(cred->gid.val, cred->egid.val), result);
	case __NR_setfsuid:
		/* The answer is what it was. */
		return cred->fsuid.val == result ? 0 : tell_of_rights(teller, RIGHTS_SETFSUID, cred->fsuid.val, 0);
	case __NR_setfsgid:
		return cred->fsgid.val == result ? 0 : tell_of_rights(teller, RIGHTS_SETFSGID, cred->fsgid.val, 0);
	case __NR_setgroups:
		return tell_of_rights(teller, RIGHTS_SETGROUPS, first, result);
	case __NR_capset:
		return tell_of_rights(teller, RIGHTS_CAPSET, 0, result);
	case __NR_unshare:
		return tell_of_rights(teller, RIGHTS_NAMESPACE, first, result);
	case __NR_setns:
		return tell_of_rights(teller, RIGHTS_NAMESPACE, arguments->of[2], result);
	case __NR_init_module:
	case __NR_finit_module:
	case __NR_delete_module:
		return tell_of_kernel(teller, KERNEL_MODULE, 0, result);
	case __NR_bpf:
		if (first == BPF_MAP_LOOKUP_ELEM || first == BPF_MAP_GET_NEXT_KEY)
			return 0;
		return tell_of_kernel(teller, is_ours(teller->task, first, result) ? KERNEL_TAMPER : KERNEL_BPF, first,
				      result);
	case __NR_kexec_load:
	case __NR_kexec_file_load:
		return tell_of_kernel(teller, KERNEL_KEXEC, 0, result);
	case __NR_perf_event_open:
		return tell_of_kernel(teller, KERNEL_PERF, 0, result);
	case __NR_settimeofday:
	case __NR_clock_settime:
		return tell_of_kernel(teller, KERNEL_CLOCK, 0, result);
	case __NR_iopl:
	case __NR_ioperm:
		return tell_of_kernel(teller, KERNEL_RAW, 0, result);
	case __NR_seccomp:
		if (first != SECCOMP_SET_MODE_FILTER || !(arguments->of[2] & SECCOMP_FILTER_FLAG_NEW_LISTENER))
			return 0;
		return tell_of_kernel(teller, KERNEL_SECCOMP_NOTIFY, 0, result);
	case __NR_ptrace:
		if (first != PTRACE_ATTACH && first != PTRACE_SEIZE && first != PTRACE_TRACEME)
			return 0;
		return tell_of_other(teller, TRACE_PTRACE, first, arguments->of[2], result);
	case __NR_process_vm_writev:
	case __NR_process_vm_readv:
		return tell_of_other(teller, TRACE_MEMORY, call, first, result);
	case __NR_pidfd_getfd:
		return tell_of_other(teller, TRACE_DESCRIPTOR, arguments->of[2], process_of(teller->task, first),
				     result);
	default:
		return 0;
	}
}

#define PROT_EXEC 4
#define TS_COMPAT 2

/* A file's bytes become code: of a session, or of somebody else who executes what one wrote. */
static __noinline int tell_mapped_code(struct task_struct *task, __s32 fd)
{
	struct teller teller;
	struct file *file = file_of(task, fd);

	if (!file)
		return 0;
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct vfsmount *mnt = BPF_CORE_READ(file, f_path.mnt);
	struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
	__u64 writer = writer_of(inode);
	if (writer)
		delegate(bpf_get_current_task_btf(), mnt, dentry, writer);
	if (!tell_of(&teller, CLASS_FILE))
		return 0;
	struct deed deed = { .mnt = mnt, .dentry = dentry, .op = FILE_MAP_EXEC, .prov = PROV_TP };
	if (is_folded_file(&teller, inode, FILE_MAP_EXEC, &deed.times) || deed.times)
		return 0;
	return tell_file(&teller, &deed);
}

SEC("tp_btf/sys_exit")
int BPF_PROG(sys_exit, struct pt_regs *regs, long result)
{
	struct teller teller;
	/* Without the mark of x32 programs. */
	__u64 call = regs->orig_ax & ~0x40000000ULL;
	struct task_struct *task = bpf_get_current_task_btf();
	int is_32bit = task->thread_info.status & TS_COMPAT;

	/* Of everybody. */
	if (call == __NR_mmap && !is_32bit && regs->dx & PROT_EXEC && (__s32)regs->r8 >= 0 && result > 0)
		return tell_mapped_code(task, regs->r8);
	if (!tell(&teller) || call >= CALLS_MAX)
		return 0;
	struct arguments arguments;
	if (is_32bit) {
		arguments = arguments_of_32bit(regs);
		/* What the verifier knew of it, it may have forgotten. */
		barrier_var(call);
		call = of_32bit[call & (CALLS_MAX - 1)];
		result = (__s32)result;
	} else {
		arguments = arguments_of(regs);
	}
	switch (call) {
	case __NR_open:
	case __NR_creat:
	case __NR_openat:
	case __NR_openat2:
	case __NR_open_by_handle_at:
		return tell_opened(&teller, &arguments, call, result);
	case __NR_socket:
	case __NR_connect:
	case __NR_bind:
	case __NR_sendto:
	case __NR_sendmsg:
	case __NR_sendmmsg:
		return tell_of_socket(&teller, &arguments, call, result);
	case __NR_recvmsg:
		return result < 0 ? 0 : tell_received(&teller, &arguments);
	default:
		if (specs[call & (CALLS_MAX - 1)].op)
			return tell_spec(&teller, &arguments, call, result);
		return tell_of_process(&teller, &arguments, call, result);
	}
}

#define SI_USER 0
#define SI_QUEUE -1
#define SI_TKILL -6
/* What stands for no structure: of a program's, as kill(2) sends them from Linux 7.0 on; of the kernel's. */
#define INFO_NONE 0
#define INFO_KERNEL 1

/* To others: what a session does with its own processes is its business. */
SEC("tp_btf/signal_generate")
int BPF_PROG(signal_generate, int signal, struct kernel_siginfo *info, struct task_struct *target, int group, int result)
{
	struct teller teller;

	if ((unsigned long)info == INFO_KERNEL || !tell(&teller))
		return 0;
	int code = info == INFO_NONE ? SI_USER : BPF_CORE_READ(info, si_code);
	struct mark *mark = mark_of(target);
	if ((code != SI_USER && code != SI_QUEUE && code != SI_TKILL) || (mark && mark->session == teller.number))
		return 0;
	tell_trace(&teller, TRACE_SIGNAL, signal, target, PROV_TP, 0);
	return 0;
}
