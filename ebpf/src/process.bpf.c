/* Processes: whose they are, what they execute, how they end. */
#include "common.h"
#include "path.h"
#include "delegate.h"
#include "other.h"

/* No mark, no task. Not at sched_process_fork, which io_uring's workers do not pass. Not asleep while it is made: before
 * Linux 6.2, nobody else of this CPU would find his mark. */
SEC("lsm/task_alloc")
int BPF_PROG(task_alloc, struct task_struct *child, unsigned long clone_flags, int ret)
{
	struct mark *mark = ret ? 0 : mark_of_current(bpf_get_current_task_btf()), *made = 0;

	if (!mark)
		return ret;
	struct mark same = *mark;
	for (int try = 0; try < 3 && !made; try++)
		made = bpf_task_storage_get(&marks, child, &same, BPF_LOCAL_STORAGE_GET_F_CREATE);
	/* It has no number yet to be known by; in a moment it has, see below. */
	return made || (IS_BUSY_AT_TIMES && !same.strict) ? 0 : -EAGAIN;
}

/* What a new task inherits; a second time, where it has a number. */
static __always_inline int inherit(struct task_struct *child)
{
	struct mark *mark = mark_of_current(bpf_get_current_task_btf());

	if (!mark)
		return 0;
	struct mark same = *mark;
	return mark_task(child, &same);
}

#define CLONE_THREAD 0x10000
/* Cgroup, UTS, IPC, user, PID, network; mount. */
#define CLONE_NEW 0x7e020000

SEC("tp_btf/task_newtask")
int BPF_PROG(task_newtask, struct task_struct *child, __u64 clone_flags)
{
	struct teller teller;
	struct header record;

	if (!tell(&teller))
		return 0;
	if (inherit(child))
		__sync_fetch_and_add(&teller.session->unmarked, 1);
	else
		__sync_fetch_and_add(&teller.session->tasks, 1);
	if (clone_flags & CLONE_THREAD)
		return 0;
	if (clone_flags & CLONE_NEW)
		tell_rights(&teller, RIGHTS_NAMESPACE, 0, clone_flags & CLONE_NEW, PROV_TP, 0);
	begin(&teller, &record, CLASS_CONTROL, KIND_FORK, PROV_TP);
	record.tgid = child->tgid;
	record.tid = child->pid;
	record.process_ns = child->start_boottime;
	record.parent = child->real_parent->tgid;
	send(teller.session, CLASS_CONTROL, &record, sizeof(record));
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
	__u64 key = parts->session;
	struct place *place = bpf_map_lookup_elem(&places, &number);
	struct session *session = bpf_map_lookup_elem(&sessions, &key);

	if (!place || !session || at >= parts->captured)
		return 1;
	struct header *header = (struct header *)place->bytes;
	struct argv *argv = (struct argv *)(header + 1);
	__u32 length = parts->captured - at;
	if (length > ARGV_PART_BYTES_MAX)
		length = ARGV_PART_BYTES_MAX;
	header->kind = KIND_ARGV;
	header->sequence = __sync_fetch_and_add(&session->tallies[CLASS_CONTROL].records, 1);
	argv->at = at;
	__u32 read = put_from_user(place, sizeof(*header) + sizeof(*argv), (void *)(parts->start + at), length);
	argv->len = read;
	send(session, CLASS_CONTROL, header, sizeof(*header) + sizeof(*argv) + read);
	parts->at = at + length;
	return 0;
}

static __always_inline void send_exec(struct teller *teller, struct place *place, __u32 number,
				      struct task_struct *task, struct linux_binprm *bprm)
{
	struct header *header = (struct header *)place->bytes;
	struct exec *exec = (struct exec *)(header + 1);
	__u32 to = sizeof(*header) + sizeof(*exec);
	struct file *file = bprm->file;
	struct fs_struct *fs = task->fs;
	struct inode *inode = file->f_inode;
	struct mm_struct *mm = task->mm;
	unsigned long start = mm->arg_start;
	__u64 total = mm->arg_end - start;
	__u32 cut = 0;

	begin(teller, header, CLASS_CONTROL, KIND_EXEC, PROV_TP);
	exec->dev = inode->i_sb->s_dev;
	exec->ino = inode->i_ino;
	exec->nlink = inode->i_nlink;
	exec->mode = inode->i_mode;
	exec->owner_uid = inode->i_uid.val;
	exec->owner_gid = inode->i_gid.val;
	exec->real_uid = task->cred->uid.val;
	exec->flags = bprm->filename != bprm->interp ? FLAG_SCRIPT : 0;
	exec->result = 0;
	exec->path_len = put_path(place, number, to, file->f_path.mnt, file->f_path.dentry, &cut);
	to += exec->path_len;
	if (cut)
		exec->flags |= FLAG_PATH_CUT;
	cut = 0;
	exec->cwd_len = put_path(place, number, to, fs->pwd.mnt, fs->pwd.dentry, &cut);
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
	send(teller->session, CLASS_CONTROL, header, to + exec->argv_len);
	if (captured > length && exec->argv_len == length) {
		struct parts parts = {
			.session = teller->number,
			.start = start,
			.place = number,
			.at = length,
			.captured = captured,
		};
		bpf_loop(ARGV_BYTES_MAX / ARGV_PART_BYTES_MAX + 1, send_part, &parts, 0);
	}
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(sched_process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct teller teller;
	__u32 number = 0;
	struct file *file = bprm->file;
	__u64 writer = writer_of(file->f_inode);

	if (writer)
		delegate(task, file->f_path.mnt, file->f_path.dentry, writer);
	struct mark *mark = mark_of(task);
	teller.task = task;
	if (!tell_by(&teller, mark))
		return 0;
	begin_session(task, mark);
	struct place *place = take_place(&number);
	if (!place) {
		lose_one(teller.session, CLASS_CONTROL);
		return 0;
	}
	send_exec(&teller, place, number, task, bprm);
	leave_place(place);
	return 0;
}

#define SIGNAL_GROUP_EXIT 4

SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *task)
{
	struct teller teller = { .task = task };

	if (!tell_by(&teller, mark_of(task)))
		return 0;
	struct signal_struct *signal = task->signal;
	if (signal->live.counter == 0) {
		struct {
			struct header header;
			struct exit exit;
		} record = {};
		begin(&teller, &record.header, CLASS_CONTROL, KIND_EXIT, PROV_TP);
		record.exit.status = signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code : task->exit_code;
		send(teller.session, CLASS_CONTROL, &record.header, sizeof(record));
	}
	if (__sync_fetch_and_add(&teller.session->tasks, -1) == 1) {
		struct header over = {};
		begin(&teller, &over, CLASS_CONTROL, KIND_OVER, PROV_TP);
		send(teller.session, CLASS_CONTROL, &over, sizeof(over));
	}
	unmark(task);
	return 0;
}
