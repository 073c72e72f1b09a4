/* Rights, the kernel itself and other processes, before it happens (Tier A). */
#include "other.h"

/* What it is for: setfsuid(2) and setfsgid(2), which are called only to change it. */
#define LSM_SETID_FS 8

SEC("lsm/task_fix_setuid")
int BPF_PROG(task_fix_setuid, struct cred *new, const struct cred *old, int flags, int ret)
{
	struct teller teller;
	__u64 before = ids(old->uid.val, old->euid.val), after = ids(new->uid.val, new->euid.val);

	if (ret || !tell_of(&teller, CLASS_CONTROL))
		return ret;
	if (flags == LSM_SETID_FS)
		return tell_rights(&teller, RIGHTS_SETFSUID, old->fsuid.val, new->fsuid.val, PROV_LSM, 0);
	if (before == after && old->suid.val == new->suid.val)
		return 0;
	return tell_rights(&teller, RIGHTS_SETUID, before, after, PROV_LSM, 0);
}

SEC("lsm/task_fix_setgid")
int BPF_PROG(task_fix_setgid, struct cred *new, const struct cred *old, int flags, int ret)
{
	struct teller teller;
	__u64 before = ids(old->gid.val, old->egid.val), after = ids(new->gid.val, new->egid.val);

	if (ret || !tell_of(&teller, CLASS_CONTROL))
		return ret;
	if (flags == LSM_SETID_FS)
		return tell_rights(&teller, RIGHTS_SETFSGID, old->fsgid.val, new->fsgid.val, PROV_LSM, 0);
	if (before == after && old->sgid.val == new->sgid.val)
		return 0;
	return tell_rights(&teller, RIGHTS_SETGID, before, after, PROV_LSM, 0);
}

SEC("lsm/task_fix_setgroups")
int BPF_PROG(task_fix_setgroups, struct cred *new, const struct cred *old, int ret)
{
	struct teller teller;

	if (ret || !tell_of(&teller, CLASS_CONTROL))
		return ret;
	return tell_rights(&teller, RIGHTS_SETGROUPS, old->group_info->ngroups, new->group_info->ngroups, PROV_LSM, 0);
}

/* A set of capabilities: 64 bits, whatever Linux has called them. */
static __always_inline __u64 effective(const struct cred *cred)
{
	__u64 set = 0;

	bpf_probe_read_kernel(&set, sizeof(set), __builtin_preserve_access_index(&cred->cap_effective));
	return set;
}

SEC("lsm/capset")
int BPF_PROG(capset, struct cred *new, const struct cred *old, void *effective_set, void *inheritable, void *permitted,
	     int ret)
{
	struct teller teller;

	if (ret || !tell_of(&teller, CLASS_CONTROL))
		return ret;
	return tell_rights(&teller, RIGHTS_CAPSET, effective(old), effective(new), PROV_LSM, 0);
}

SEC("lsm/userns_create")
int BPF_PROG(userns_create, const struct cred *cred, int ret)
{
	struct teller teller;

	if (ret || !tell_of(&teller, CLASS_CONTROL))
		return ret;
	return tell_rights(&teller, RIGHTS_USERNS, 0, 0, PROV_LSM, 0);
}

static __always_inline int tell_kernel_op(__u32 op, __u32 code, const char *name)
{
	struct teller teller;

	if (!tell_of(&teller, CLASS_CONTROL))
		return 0;
	return tell_kernel(&teller, op, code, name, PROV_LSM, 0);
}

#define BPF_COMMANDS_READ (1 << BPF_MAP_LOOKUP_ELEM | 1 << BPF_MAP_GET_NEXT_KEY)

/* Whether programs of this kind run at all: a kernel that was not told to ask BPF attaches them and never does. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} asked SEC(".maps");

SEC("lsm/bpf")
int BPF_PROG(bpf, int cmd)
{
	__u32 only = 0, *once = bpf_map_lookup_elem(&asked, &only);

	if (once)
		*once = 1;
	/* Reading elements is told of where a map is taken hold of. */
	if (cmd < 32 && 1 << cmd & BPF_COMMANDS_READ)
		return 0;
	return tell_kernel_op(KERNEL_BPF, cmd, 0);
}

SEC("lsm/bpf_map")
int BPF_PROG(bpf_map, struct bpf_map *map, unsigned int mode, int ret)
{
	__u32 id = map->id;

	if (ret || !bpf_map_lookup_elem(&our_maps, &id))
		return ret;
	return tell_kernel_op(KERNEL_TAMPER, 0, map->name);
}

SEC("lsm/bpf_prog")
int BPF_PROG(bpf_prog, struct bpf_prog *program, int ret)
{
	struct bpf_prog_aux *aux = program->aux;
	__u32 id = aux->id;

	if (ret || !bpf_map_lookup_elem(&our_programs, &id))
		return ret;
	return tell_kernel_op(KERNEL_TAMPER, 1, aux->name);
}

static __always_inline int tell_loaded(int is_module, int is_kexec, const unsigned char *name)
{
	if (is_module)
		return tell_kernel_op(KERNEL_MODULE, 0, (const char *)name);
	return is_kexec ? tell_kernel_op(KERNEL_KEXEC, 0, (const char *)name) : 0;
}

SEC("lsm/kernel_read_file")
int BPF_PROG(kernel_read_file, struct file *file, int id, int contents, int ret)
{
	return ret ? ret :
		     tell_loaded(id == bpf_core_enum_value(enum kernel_read_file_id, READING_MODULE),
				 id == bpf_core_enum_value(enum kernel_read_file_id, READING_KEXEC_IMAGE),
				 file ? BPF_CORE_READ(file, f_path.dentry, d_name.name) : 0);
}

SEC("lsm/kernel_load_data")
int BPF_PROG(kernel_load_data, int id, int contents, int ret)
{
	return ret ? ret :
		     tell_loaded(id == bpf_core_enum_value(enum kernel_load_data_id, LOADING_MODULE),
				 id == bpf_core_enum_value(enum kernel_load_data_id, LOADING_KEXEC_IMAGE), 0);
}

/* The kernel loads a module because somebody asked for what it offers. */
SEC("lsm/kernel_module_request")
int BPF_PROG(kernel_module_request, char *name, int ret)
{
	return ret ? ret : tell_kernel_op(KERNEL_MODULE, 1, name);
}

/* Its arguments have changed: none is read, not even what the previous program said. */
SEC("lsm/perf_event_open")
int BPF_PROG(perf_event_open)
{
	return tell_kernel_op(KERNEL_PERF, 0, 0);
}

SEC("lsm/settime")
int BPF_PROG(settime, void *time, void *zone, int ret)
{
	return ret ? ret : tell_kernel_op(KERNEL_CLOCK, 0, 0);
}

#define PTRACE_MODE_ATTACH 2
#define PTRACE_MODE_FSCREDS 8
#define CALL_PIDFD_GETFD 438
#define CALL_PROCESS_VM_READV 310
#define CALL_PROCESS_VM_WRITEV 311

/* What somebody reaches into another process for: the kernel asks for all of it in the same way. */
static __always_inline __u32 reach(struct task_struct *task, unsigned int mode)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	__u64 call = BPF_CORE_READ(regs, orig_ax);

	/* By a file of /proc. */
	if (mode & PTRACE_MODE_FSCREDS || call == CALL_PROCESS_VM_READV || call == CALL_PROCESS_VM_WRITEV)
		return TRACE_MEMORY;
	return call == CALL_PIDFD_GETFD ? TRACE_DESCRIPTOR : TRACE_PTRACE;
}

/* Makes the other a task of the session: what is done by it is the session's doing. */
static __always_inline void adopt(struct teller *teller, struct task_struct *other)
{
	struct mark mark = {
		.session = teller->number,
		.begun = 1,
		.classes = teller->session->classes,
		.strict = teller->session->strict,
	};

	/* For all threads, whichever was taken hold of. */
	struct task_struct *leader = other->group_leader;

	if (is_agent(other) || other->tgid == 1 || mark_of(leader))
		return;
	if (bpf_task_storage_get(&marks, leader, &mark, BPF_LOCAL_STORAGE_GET_F_CREATE))
		__sync_fetch_and_add(&teller->session->tasks, 1);
}

/* For debugging, for writing into its memory, for taking its descriptors. */
SEC("lsm/ptrace_access_check")
int BPF_PROG(ptrace_access_check, struct task_struct *child, unsigned int mode, int ret)
{
	struct teller teller;

	if (ret || !(mode & PTRACE_MODE_ATTACH) || !tell(&teller) || child->tgid == teller.task->tgid)
		return ret;
	__u32 op = reach(teller.task, mode);
	int answer = tell_trace(&teller, op, mode, child, PROV_LSM, 0);
	if (!answer && op != TRACE_DESCRIPTOR)
		adopt(&teller, child);
	return answer;
}

SEC("lsm/ptrace_traceme")
int BPF_PROG(ptrace_traceme, struct task_struct *parent, int ret)
{
	struct teller teller;

	if (ret || !tell(&teller))
		return ret;
	return tell_trace(&teller, TRACE_PTRACE, 0, parent, PROV_LSM, 0);
}

/* To others: what a session does with its own processes is its business. */
SEC("lsm/task_kill")
int BPF_PROG(task_kill, struct task_struct *target, void *info, int signal, const struct cred *cred, int ret)
{
	struct teller teller;

	if (ret || !signal || !tell(&teller))
		return ret;
	struct mark *mark = mark_of(target);
	if (mark && mark->session == teller.number)
		return 0;
	return tell_trace(&teller, TRACE_SIGNAL, signal, target, PROV_LSM, 0);
}

SEC("lsm/uring_override_creds")
int BPF_PROG(uring_override_creds, const struct cred *new, int ret)
{
	return ret ? ret : tell_kernel_op(KERNEL_URING, 1, 0);
}

SEC("lsm/uring_sqpoll")
int BPF_PROG(uring_sqpoll, int ret)
{
	return ret ? ret : tell_kernel_op(KERNEL_URING, 2, 0);
}
