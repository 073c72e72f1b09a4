/* Processes: whose they are, what they execute, how they end. */
#include "common.h"
#include "path.h"

/* What a new task inherits. Not at sched_process_fork, which io_uring's workers do not pass. */
static __always_inline int inherit(struct task_struct *child)
{
	struct mark *mark = mark_of(bpf_get_current_task_btf());
	struct mark *made = 0;

	if (!mark)
		return 0;
	struct mark same = *mark;
	/* Before Linux 7.0 a tracing program can be told that somebody else of this CPU is at it. */
	for (int try = 0; try < 3 && !made; try++)
		made = bpf_task_storage_get(&marks, child, &same, BPF_LOCAL_STORAGE_GET_F_CREATE);
	return made ? 0 : -EAGAIN;
}

/* No mark, no task. */
SEC("lsm.s/task_alloc")
int BPF_PROG(task_alloc, struct task_struct *child, unsigned long clone_flags)
{
	return inherit(child);
}

SEC("tp_btf/task_newtask")
int BPF_PROG(task_newtask, struct task_struct *child, __u64 clone_flags)
{
	__u64 session;
	struct counts *counts = counts_of_current(&session);

	if (!counts)
		return 0;
	if (inherit(child))
		__sync_fetch_and_add(&counts->unmarked, 1);
	else
		__sync_fetch_and_add(&counts->tasks, 1);
	return 0;
}

struct parts {
	__u64 session;
	unsigned long start;
	__u32 place;
	__u32 at;
	__u32 captured;
};

/* A part of the arguments that the first record had no room for. A call of its own for the verifier's sake: unrolled, the
 * parts are too much for that of Linux 6.1. */
static long send_part(__u32 index, void *context)
{
	struct parts *parts = context;
	__u32 number = parts->place, at = parts->at;
	__u64 session = parts->session;
	struct place *place = bpf_map_lookup_elem(&places, &number);
	struct counts *counts = bpf_map_lookup_elem(&sessions, &session);

	if (!place || !counts || at >= parts->captured)
		return 1;
	struct header *header = (struct header *)place->bytes;
	struct argv *argv = (struct argv *)(header + 1);
	__u32 length = parts->captured - at;
	if (length > ARGV_PART_BYTES_MAX)
		length = ARGV_PART_BYTES_MAX;
	header->kind = KIND_ARGV;
	header->sequence = __sync_fetch_and_add(&counts->records, 1);
	argv->at = at;
	__u32 read = put_from_user(place, sizeof(*header) + sizeof(*argv), (void *)(parts->start + at), length);
	argv->len = read;
	send(counts, header, sizeof(*header) + sizeof(*argv) + read);
	parts->at = at + length;
	return 0;
}

static __always_inline void send_exec(struct counts *counts, struct place *place, __u32 number,
				      struct task_struct *task, struct linux_binprm *bprm, __u64 session,
				      __u64 sequence)
{
	struct header *header = (struct header *)place->bytes;
	struct exec *exec = (struct exec *)(header + 1);
	__u32 to = sizeof(*header) + sizeof(*exec);
	struct file *file = BPF_CORE_READ(bprm, file);
	struct fs_struct *fs = BPF_CORE_READ(task, fs);
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	unsigned long start = BPF_CORE_READ(task, mm, arg_start);
	__u64 total = BPF_CORE_READ(task, mm, arg_end) - start;
	__u32 cut = 0;

	begin(header, task, session, KIND_EXEC, sequence);
	exec->dev = BPF_CORE_READ(inode, i_sb, s_dev);
	exec->ino = BPF_CORE_READ(inode, i_ino);
	exec->nlink = BPF_CORE_READ(inode, i_nlink);
	exec->mode = BPF_CORE_READ(inode, i_mode);
	exec->parent = BPF_CORE_READ(task, real_parent, tgid);
	exec->parent_ns = BPF_CORE_READ(task, real_parent, group_leader, start_boottime);
	exec->real_uid = BPF_CORE_READ(task, cred, uid.val);
	exec->flags = BPF_CORE_READ(bprm, filename) != BPF_CORE_READ(bprm, interp) ? FLAG_SCRIPT : 0;
	exec->path_len =
		put_path(place, number, to, BPF_CORE_READ(file, f_path.mnt), BPF_CORE_READ(file, f_path.dentry), &cut);
	to += exec->path_len;
	if (cut)
		exec->flags |= FLAG_PATH_CUT;
	cut = 0;
	exec->cwd_len =
		put_path(place, number, to, BPF_CORE_READ(fs, pwd.mnt), BPF_CORE_READ(fs, pwd.dentry), &cut);
	to += exec->cwd_len;
	if (cut)
		exec->flags |= FLAG_CWD_CUT;
	__u32 captured = total > ARGV_BYTES_MAX ? ARGV_BYTES_MAX : total;
	__u32 length = captured > ARGV_PART_BYTES_MAX ? ARGV_PART_BYTES_MAX : captured;
	exec->argv_total = total;
	exec->argv_captured = captured;
	exec->argv_len = put_from_user(place, to, (void *)start, length);
	if (exec->argv_len != length)
		exec->flags |= FLAG_ARGV_UNREADABLE;
	send(counts, header, to + exec->argv_len);
	if (captured > length && exec->argv_len == length) {
		struct parts parts = {
			.session = session, .start = start, .place = number, .at = length, .captured = captured
		};
		bpf_loop(ARGV_BYTES_MAX / ARGV_PART_BYTES_MAX + 1, send_part, &parts, 0);
	}
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(sched_process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	__u64 session;
	struct counts *counts = counts_of_current(&session);
	__u32 number = 0;

	if (!counts)
		return 0;
	__u64 sequence = __sync_fetch_and_add(&counts->records, 1);
	struct place *place = take_place(&number);
	if (!place) {
		count_lost(counts, sequence);
		return 0;
	}
	send_exec(counts, place, number, task, bprm, session, sequence);
	leave_place(place);
	return 0;
}

#define SIGNAL_GROUP_EXIT 4

SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *task)
{
	__u64 session;
	struct counts *counts = counts_of_current(&session);

	if (!counts)
		return 0;
	if (BPF_CORE_READ(task, signal, live.counter) == 0) {
		struct {
			struct header header;
			struct exit exit;
		} record = {};
		begin(&record.header, task, session, KIND_EXIT, __sync_fetch_and_add(&counts->records, 1));
		record.exit.status = BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT ?
					     BPF_CORE_READ(task, signal, group_exit_code) :
					     BPF_CORE_READ(task, exit_code);
		send(counts, &record.header, sizeof(record));
	}
	if (__sync_fetch_and_add(&counts->tasks, -1) == 1) {
		struct header over = {};
		begin(&over, task, session, KIND_OVER, __sync_fetch_and_add(&counts->records, 1));
		send(counts, &over, sizeof(over));
	}
	return 0;
}
